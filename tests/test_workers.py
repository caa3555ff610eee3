"""Processes of our own: what they do, and that none outlives the command or lets it wait."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from editmgt_jax.data.prepare.workers import WorkerError, each
from editmgt_jax.errors import UserError


def write(path):
    path.write_text(str(os.getpid()))


def die_at_two(path):
    if path.name == "2":
        os.kill(os.getpid(), signal.SIGKILL)
    write(path)


def refuse(path):
    raise UserError(f"{path.name} must not be")


def sleep(path):
    write(path)
    time.sleep(100)


def names(folder, count=4):
    return [folder / str(number) for number in range(count)]


def alive(process):
    """Whether a process runs; a zombie does not."""
    try:
        return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


@pytest.mark.parametrize("workers", [1, 2])
def test_every_item_is_worked_on(tmp_path, workers):
    each(write, names(tmp_path), workers)
    processes = {int(path.read_text()) for path in names(tmp_path)}
    assert (processes == {os.getpid()}) == (workers == 1) and len(processes) <= workers


def test_a_worker_that_is_killed_ends_the_work(tmp_path):
    with pytest.raises(WorkerError, match="a worker process died.*the same command goes on") as died:
        each(die_at_two, names(tmp_path), 2)
    assert died.value.transient


def test_an_error_of_a_call_is_the_caller_s(tmp_path):
    with pytest.raises(UserError, match="must not be"):
        each(refuse, names(tmp_path), 2)


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="processes are looked up in /proc")
def test_workers_do_not_outlive_a_command_that_is_killed(tmp_path):
    code = (
        f"import sys; sys.path.insert(0, {str(Path(__file__).parent)!r})\n"
        "from pathlib import Path\n"
        "from test_workers import each, names, sleep\n"
        "each(sleep, names(Path(sys.argv[1])), 2)\n"
    )
    command = subprocess.Popen([sys.executable, "-c", code, str(tmp_path)])
    while len(list(tmp_path.iterdir())) < 2 or not all(path.read_text() for path in tmp_path.iterdir()):
        assert command.poll() is None
        time.sleep(0.05)
    command.kill()
    command.wait()
    workers = [int(path.read_text()) for path in tmp_path.iterdir()]
    for _ in range(600):
        if not any(map(alive, workers)):
            break
        time.sleep(0.05)
    assert not any(map(alive, workers))
