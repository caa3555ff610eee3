"""Jobs of two processes with four devices each: the same run as one process, through stops, signals and kills."""

import json
import os
import shutil
import signal
import time

import jax
import numpy as np
import pytest
import tokens
from processes import EDITMGT, finish, start
from small_runs import distances, frozen_config

from editmgt_jax.data.records import TokenSet
from editmgt_jax.training.runs import CHECKPOINTS, run_params

STEPS = 6


@pytest.fixture(scope="module")
def home(tiny_model, tmp_path_factory):
    """A folder with a config file; records of random ids serve as data."""
    folder = tmp_path_factory.mktemp("processes")
    tokens.write_random(folder / "tokens", tiny_model)
    shutil.copytree(tiny_model / "vqvae", folder / "vqvae")
    config = frozen_config(tiny_model, STEPS)
    config.data.update(tokens=str(folder / "tokens"), heldout=str(folder / "tokens"))
    config.mesh.update(data=2, fsdp=-1)
    config.checkpoint.every = 2
    text = f"from ml_collections import ConfigDict\ndef get_config():\n    return ConfigDict({config.to_dict()!r})\n"
    (folder / "config.py").write_text(text)
    return folder


@pytest.fixture(scope="module")
def undisturbed(home):
    """A run of two processes, not stopped."""
    started = start(arguments(home, home / "whole"), logs=home / "logs")
    assert finish(started) == [0, 0], (home / "logs" / "0.log").read_text()[-3000:]
    return home / "whole"


def arguments(home, workdir, *overrides):
    return ["train", "--config", home / "config.py", "--workdir", workdir, *overrides]


def parameters(run):
    return [run_params(run, average, STEPS) for average in (False, True)]


def assert_same_parameters(one, other):
    jax.tree.map(np.testing.assert_array_equal, parameters(one), parameters(other))


def assert_close_parameters(one, other):
    """Sums over other parts, or by other collectives, are rounded otherwise."""
    assert distances(parameters(one), parameters(other))[1] < 1e-5


def wait_for(condition, started, seconds=240):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end and all(process.poll() is None for process in started)
        time.sleep(0.02)


def test_two_processes_train_as_one_does(home, undisturbed, tmp_path):
    steps = [json.loads(line)["step"] for line in (undisturbed / "metrics.jsonl").read_text().splitlines()]
    assert steps == sorted(steps) and steps[-1] == STEPS  # one process writes
    started = start(arguments(home, tmp_path / "one"), processes=1, devices=8, logs=tmp_path / "logs")
    assert finish(started) == [0]
    assert_close_parameters(tmp_path / "one", undisturbed)


def test_two_processes_tokenise_as_one_does(home, tmp_path):
    def tokenise(output, count):
        more = ["--output", tmp_path / output, "--examples", 40, "--config.model.encoders="]
        more += [f"--config.model.vq={home / 'vqvae'}", "--config.data.tokens=", "--config.data.heldout="]
        started = start(["tokenize", "--config", home / "config.py", *more], processes=count, logs=tmp_path / "logs")
        assert finish(started) == [0] * count, (tmp_path / "logs" / "0.log").read_text()[-3000:]
        return {p.name: p.read_bytes() for p in (tmp_path / output).iterdir() if p.suffix in (".array_record", ".npy")}

    two, one = tokenise("two", 2), tokenise("one", 1)
    assert two == one and len(two) > 1
    assert TokenSet(tmp_path / "two").manifest["examples"] == 40


def test_sigterm_to_one_makes_all_save_the_same_step_and_one_process_goes_on(home, undisturbed, tmp_path):
    slow = arguments(home, tmp_path / "run", "--config.steps=1000000", "--config.checkpoint.every=1000000")
    started = start(slow, logs=tmp_path / "logs")
    try:
        log = tmp_path / "run" / "metrics.jsonl"
        wait_for(lambda: log.exists() and log.read_text().count("\n") > 1, started)
        started[1].send_signal(signal.SIGTERM)
        assert finish(started) == [0, 0], (tmp_path / "logs" / "0.log").read_text()[-3000:]
    finally:
        finish(started, 1)
    (step,) = (int(path.name) for path in (tmp_path / "run" / CHECKPOINTS).iterdir() if path.name.isdigit())
    assert f"saved at step {step}" in (tmp_path / "logs" / "0.log").read_text()


@pytest.mark.slow
def test_a_run_of_two_processes_goes_on_with_one_and_fewer_devices(home, undisturbed, tmp_path):
    first = start(arguments(home, tmp_path / "run", "--config.steps=2"), logs=tmp_path / "logs")
    assert finish(first) == [0, 0]
    middle = arguments(home, tmp_path / "run", "--config.steps=4")
    assert finish(start(middle, processes=1, devices=4, logs=tmp_path / "logs")) == [0]
    last = arguments(home, tmp_path / "run", "--config.mesh.data=1")
    assert finish(start(last, processes=1, devices=1, logs=tmp_path / "logs")) == [0]
    assert_close_parameters(tmp_path / "run", undisturbed)


def test_a_killed_process_takes_the_job_down_and_supervisors_bring_it_back(home, undisturbed, tmp_path):
    workdir = tmp_path / "run"
    started = start(
        arguments(home, workdir), before=["supervise", "--max-restarts", "20", "--", *EDITMGT], logs=tmp_path / "logs"
    )
    log = workdir / "metrics.jsonl"
    wait_for(lambda: log.exists() and log.read_text().count("\n") > 2, started)
    child = int(os.popen(f"pgrep -P {started[1].pid}").read().split()[0])
    os.kill(child, signal.SIGKILL)
    assert finish(started) == [0, 0], (tmp_path / "logs" / "0.log").read_text()[-3000:]
    assert_same_parameters(workdir, undisturbed)
