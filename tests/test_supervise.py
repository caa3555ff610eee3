"""The supervisor: restarts, gives up, passes signals on."""

import signal
import subprocess
import sys
import time

import pytest

from editmgt_jax.training.supervise import supervise

# Counts its starts in a file and dies until there were enough of them.
MORTAL = """
import os, pathlib, signal, sys
path, enough, how = pathlib.Path(sys.argv[1]), int(sys.argv[2]), sys.argv[3]
starts = len(path.read_text()) + 1 if path.exists() else 1
path.write_text("x" * starts)
if starts < enough:
    os.kill(os.getpid(), signal.SIGKILL) if how == "kill" else sys.exit(7)
"""


def mortal(tmp_path, enough, how="exit"):
    return [sys.executable, "-c", MORTAL, str(tmp_path / "starts"), str(enough), how]


# A supervisor has neither jax nor threads; these tests have.
pytestmark = [
    pytest.mark.filterwarnings(r"ignore:os.fork\(\) was called:RuntimeWarning"),
    pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning"),
]


@pytest.mark.parametrize("how", ["exit", "kill"])
def test_what_dies_is_started_again(tmp_path, how, capfd):
    assert supervise(mortal(tmp_path, 3, how), first_wait=0.01) == 0
    assert (tmp_path / "starts").read_text() == "xxx"
    assert capfd.readouterr().err.count("SIGKILL" if how == "kill" else "exit code 7") == 2


def test_it_gives_up(tmp_path, capfd):
    assert supervise(mortal(tmp_path, 99), max_restarts=2, first_wait=0.01) == 7
    assert (tmp_path / "starts").read_text() == "xxx" and "giving up" in capfd.readouterr().err
    assert supervise(mortal(tmp_path, 99, "kill"), max_restarts=0, first_wait=0.01) == 128 + signal.SIGKILL


def test_an_error_that_would_come_again_is_final():
    assert supervise([sys.executable, "-c", "import sys; sys.exit(2)"], first_wait=60.0) == 2


def test_a_long_life_starts_the_count_anew(tmp_path):
    assert supervise(mortal(tmp_path, 5), max_restarts=1, first_wait=0.01, healthy=0.0) == 0


def supervised(tmp_path, on_sigterm) -> subprocess.Popen:
    """A supervisor whose child waits, and does this when it gets SIGTERM; as soon as it would."""
    child = (
        "import pathlib, signal, sys, time\n"
        f"signal.signal(signal.SIGTERM, lambda *_: ({on_sigterm}, sys.exit(0)))\n"
        f"pathlib.Path({str(tmp_path / 'ready')!r}).touch()\n"
        "time.sleep(60)\n"
    )
    process = subprocess.Popen(
        [sys.executable, "-m", "editmgt_jax.cli", "supervise", "--", sys.executable, "-c", child]
    )
    while not (tmp_path / "ready").exists():
        assert process.poll() is None
        time.sleep(0.05)
    return process


def test_sigterm_goes_to_the_child_and_ends_the_supervision(tmp_path):
    process = supervised(tmp_path, "None")
    process.terminate()
    assert process.wait(240) == 0


@pytest.mark.skipif(sys.platform != "linux", reason="Linux tells a child that its parent died")
def test_the_child_of_a_killed_supervisor_ends(tmp_path):
    process = supervised(tmp_path, f"pathlib.Path({str(tmp_path / 'asked')!r}).touch()")
    process.kill()
    process.wait()
    for _ in range(600):
        if (tmp_path / "asked").exists():
            break
        time.sleep(0.05)
    assert (tmp_path / "asked").exists()


def test_a_command_that_is_not_there():
    with pytest.raises(FileNotFoundError):
        supervise(["/no/such/command"])
