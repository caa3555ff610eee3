"""Jobs of two processes with four devices each: the same run as one process, through stops, signals and kills."""

import json
import shutil
import signal

import jobs
import numpy as np
import pytest
from campaigns import kill
from campaigns.kill import Kill
from jobs import finish, start, wait_for
from PIL import Image
from small_runs import distances

from editmgt_jax.data.records import TokenSet
from editmgt_jax.training.runs import CHECKPOINTS

STEPS = 6


@pytest.fixture(scope="module")
def home(tiny_model, tmp_path_factory):
    return jobs.write_home(tmp_path_factory.mktemp("processes"), tiny_model)


@pytest.fixture(scope="module")
def undisturbed(home):
    """A run of two processes, not stopped."""
    started = start(arguments(home, home / "whole", "--config.sample_edits=2"), logs=home / "logs")
    assert finish(started) == [0, 0], (home / "logs" / "0.log").read_text()[-3000:]
    return home / "whole"


def arguments(home, workdir, *overrides):
    return jobs.train(home, workdir, f"--config.steps={STEPS}", *overrides)


def assert_close_parameters(one, other):
    """Sums over other parts, or by other collectives, are rounded otherwise."""
    for average in (False, True):
        ours, theirs = (jobs.parameters(run, average, STEPS) for run in (one, other))
        assert distances(ours, theirs)[1] < 1e-5


def test_two_processes_train_as_one_does(home, undisturbed, tmp_path):
    steps = [json.loads(line)["step"] for line in (undisturbed / "metrics.jsonl").read_text().splitlines()]
    assert steps == sorted(steps) and steps[-1] == STEPS  # one process writes
    one = arguments(home, tmp_path / "one", "--config.sample_edits=2")
    assert finish(start(one, processes=1, devices=8, logs=tmp_path / "logs")) == [0]
    pictures = [Image.open(run / "samples" / "step_000006.png") for run in (undisturbed, tmp_path / "one")]
    sources = [np.asarray(picture)[:, :32].astype(int) for picture in pictures]  # the edits differ by rounding
    assert pictures[0].size == pictures[1].size and np.abs(sources[0] - sources[1]).max() <= 1
    assert_close_parameters(tmp_path / "one", undisturbed)


def test_two_processes_tokenize_as_one_does(home, tmp_path):
    def tokenize(output, count):
        more = ["--output", tmp_path / output, "--examples", 40, "--config.model.encoders="]
        more += [f"--config.model.vq={home / 'model' / 'vqvae'}", "--config.data.tokens=", "--config.data.heldout="]
        started = start(["tokenize", "--config", home / "config.py", *more], processes=count, logs=tmp_path / "logs")
        assert finish(started) == [0] * count, (tmp_path / "logs" / "0.log").read_text()[-3000:]
        return {p.name: p.read_bytes() for p in (tmp_path / output).iterdir() if p.suffix in (".array_record", ".npy")}

    two, one = tokenize("two", 2), tokenize("one", 1)
    assert two == one and len(two) > 1
    assert TokenSet(tmp_path / "two").manifest["examples"] == 40


def test_sigterm_to_one_makes_all_save_the_same_step_and_one_process_goes_on(home, undisturbed, tmp_path):
    """A run that starts from another run's best step, as a stage does."""
    long = arguments(home, tmp_path / "run", f"--config.start_from={undisturbed}", "--config.checkpoint.every=1000000")
    started = start([*long, "--config.steps=1000000"], logs=tmp_path / "logs")
    try:
        log = tmp_path / "run" / "metrics.jsonl"
        wait_for(lambda: log.exists() and log.read_text().count("\n") > 1, started)
        started[1].send_signal(signal.SIGTERM)
        assert finish(started) == [0, 0], (tmp_path / "logs" / "0.log").read_text()[-3000:]
    finally:
        for process in started:
            process.kill()
    (step,) = (int(path.name) for path in (tmp_path / "run" / CHECKPOINTS).iterdir() if path.name.isdigit())
    assert f"saved at step {step}" in (tmp_path / "logs" / "0.log").read_text()
    alone = start([*long, f"--config.steps={step + 1}"], processes=1, devices=8, logs=tmp_path / "logs_alone")
    assert finish(alone) == [0] and f"at step {step}" in (tmp_path / "logs_alone" / "0.log").read_text()


@pytest.mark.parametrize("number", [0, 1])
def test_an_error_in_one_process_ends_all_of_them(home, tmp_path, number):
    """With its exit code, so that no supervisor starts again what would fail again."""
    shutil.copytree(home, tmp_path / "home")
    config = tmp_path / "home" / "config.py"
    wrong = f"os.environ.get('JAX_PROCESS_ID') == '{number}' and '/nowhere' or"
    config.write_text("import os\n" + config.read_text().replace("'start_from': ", f"'start_from': {wrong} "))
    started = start(
        arguments(tmp_path / "home", tmp_path / "run"),
        before=["supervise", "--", *jobs.EDITMGT],
        logs=tmp_path / "logs",
    )
    assert finish(started, 120) == [2, 2]
    logs = [(tmp_path / "logs" / f"{i}.log").read_text() for i in (0, 1)]
    assert "start_from must be a folder; there is none at /nowhere" in logs[number]
    assert [("an error in another process" in log) for log in logs] == [number == 1, number == 0]
    assert "starting again" not in logs[0] + logs[1]


@pytest.mark.slow
def test_damage_that_one_process_sees_puts_the_checkpoint_aside(home, undisturbed, tmp_path):
    shutil.copytree(undisturbed, tmp_path / "run")
    parts = (tmp_path / "run" / CHECKPOINTS / str(STEPS)).rglob("ocdbt.process_1/d/*")
    path = max(parts, key=lambda path: path.stat().st_size)
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 4
    path.write_bytes(data)
    started = start(arguments(home, tmp_path / "run"), logs=tmp_path / "logs")
    assert finish(started, 120) == [0, 0]
    assert f"checkpoint {STEPS} is damaged, put aside" in (tmp_path / "logs" / "0.log").read_text()
    assert_close_parameters(tmp_path / "run", undisturbed)


@pytest.mark.slow
def test_a_run_of_two_processes_goes_on_with_one_and_fewer_devices(home, undisturbed, tmp_path):
    first = start(arguments(home, tmp_path / "run", "--config.steps=2"), logs=tmp_path / "logs")
    assert finish(first) == [0, 0]
    middle = arguments(home, tmp_path / "run", "--config.steps=4")
    assert finish(start(middle, processes=1, devices=4, logs=tmp_path / "logs")) == [0]
    last = arguments(home, tmp_path / "run", "--config.mesh.data=1")
    assert finish(start(last, processes=1, devices=1, logs=tmp_path / "logs")) == [0]
    assert_close_parameters(tmp_path / "run", undisturbed)


@pytest.mark.slow
def test_a_job_that_is_killed_ends_as_one_that_is_not(home, tmp_path):
    """The short form of `tests/campaigns/kill.py`."""
    shutil.copytree(home / "tokens", tmp_path / "tokens")
    shutil.copy(home / "config.py", tmp_path)
    kills = [Kill((0,), True), Kill((0, 1), False, 2), Kill((1,), True), Kill((0, 1), True), Kill((1,), False, 1)]
    kill.campaign(tmp_path, kills, steps=24)
