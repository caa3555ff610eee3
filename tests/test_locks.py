"""A folder is held by one job, and by no dead one."""

import json
import os
import signal
import subprocess
import sys

import pytest

from editmgt_jax import locks
from editmgt_jax.errors import UserError
from editmgt_jax.locks import NOTE, held

HOLD = """
import sys, time
from editmgt_jax.locks import held
with held(sys.argv[1], "train"):
    print("held", flush=True)
    time.sleep(100)
"""


@pytest.fixture
def owner(tmp_path):
    """Another process that holds tmp_path / 'run'."""
    process = subprocess.Popen([sys.executable, "-c", HOLD, str(tmp_path / "run")], stdout=subprocess.PIPE, text=True)
    assert process.stdout.readline() == "held\n"
    yield process
    process.kill()
    process.communicate()


def test_a_second_job_is_refused_and_told_of_the_first(tmp_path, owner):
    before = (tmp_path / "run" / NOTE).read_bytes()
    with pytest.raises(
        UserError, match=rf"run is in use by `editmgt train`, process {owner.pid} on {os.uname().nodename}:"
    ):
        with held(tmp_path / "run", "train"):
            pytest.fail("two hold it")
    assert (tmp_path / "run" / NOTE).read_bytes() == before


def test_a_dead_job_holds_nothing(tmp_path, owner):
    owner.send_signal(signal.SIGKILL)
    owner.wait()
    assert (tmp_path / "run" / NOTE).is_file()
    with held(tmp_path / "run", "train"):
        assert json.loads((tmp_path / "run" / NOTE).read_text())["process"] == os.getpid()
    assert not (tmp_path / "run" / NOTE).exists()


@pytest.mark.filterwarnings(r"ignore:os.fork\(\) was called:RuntimeWarning")  # of jax, of which the child needs nothing
@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")
def test_a_child_that_outlives_its_job_holds_nothing(tmp_path):
    with held(tmp_path / "run", "train"):
        child = os.fork()
        if not child:
            signal.pause()
            os._exit(0)
    try:
        with held(tmp_path / "run", "train"):
            pass
    finally:
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)


def test_a_process_holds_a_folder_once(tmp_path):
    with held(tmp_path, "train"):
        with pytest.raises(UserError, match=f"process {os.getpid()} on "), held(tmp_path, "export"):
            pytest.fail("held twice")
    with held(tmp_path, "train"):
        pass


def test_a_process_that_ends_in_the_middle_can_let_go(tmp_path):
    with held(tmp_path, "train"):
        locks.release()
        assert not list(tmp_path.iterdir())
        with held(tmp_path, "train"):
            pass


def test_an_empty_folder_that_was_not_there_goes_again(tmp_path):
    with pytest.raises(ZeroDivisionError), held(tmp_path / "new", "train"):
        1 / 0  # noqa: B018
    assert not (tmp_path / "new").exists()
    with held(tmp_path / "new", "train"):
        (tmp_path / "new" / "a").touch()
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["a"]


def elsewhere(path, beat):
    mine = locks._mine("train") | {"machine": "another", "host": "node-7", "process": 12, "beat": beat}
    path.write_text(json.dumps(mine))


def test_a_job_on_another_machine_lives_while_it_counts(tmp_path, monkeypatch):
    elsewhere(tmp_path / NOTE, 1)
    beats = iter(range(2, 9))
    monkeypatch.setattr(locks.time, "sleep", lambda _: elsewhere(tmp_path / NOTE, next(beats)))
    with pytest.raises(UserError, match="process 12 on node-7"), held(tmp_path, "train"):
        pytest.fail("two hold it")


def test_a_job_on_another_machine_that_does_not_count_is_dead(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(locks, "LEASE", 0.2)
    elsewhere(tmp_path / NOTE, 1)
    with held(tmp_path, "train"):
        assert json.loads((tmp_path / NOTE).read_text())["process"] == os.getpid()
    assert "was in use by `editmgt train`, process 12 on node-7" in capsys.readouterr().err


def test_an_owner_counts(tmp_path, monkeypatch):
    monkeypatch.setattr(locks, "BEAT", 0.01)
    with held(tmp_path, "train"):
        while json.loads((tmp_path / NOTE).read_text())["beat"] < 3:
            pass


def test_without_locks_the_process_tells(tmp_path, monkeypatch, owner):
    monkeypatch.setattr(locks, "_lock", lambda *_: False)
    monkeypatch.setattr(locks, "_SETTLING", 0.0)
    with pytest.raises(UserError, match=f"process {owner.pid} on "), held(tmp_path / "run", "train"):
        pytest.fail("two hold it")
    owner.kill()
    owner.wait()
    with held(tmp_path / "run", "train"):
        pass


@pytest.mark.parametrize("text", ["", "{", "[1]", "null", '{"process": "x"}'])
def test_a_damaged_note_holds_nothing(tmp_path, text, monkeypatch):
    monkeypatch.setattr(locks, "LEASE", 0.1)
    (tmp_path / NOTE).write_text(text)
    with held(tmp_path, "train"):
        pass


def test_a_file_is_no_folder(tmp_path):
    (tmp_path / "run").write_text("mine")
    with (
        pytest.raises(UserError, match="evaluate works in a folder, and .*run is a file"),
        held(tmp_path / "run", "evaluate"),
    ):
        pass
    assert (tmp_path / "run").read_text() == "mine"
