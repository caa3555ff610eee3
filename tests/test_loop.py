"""What the training loop does when a step is bad, slow, or watched."""

import errno
import json
import pickle
import re
import subprocess
import sys
import time

import jax
import numpy as np
import pytest
import tiny
import tokens
from PIL import Image
from small_runs import frozen_config, train

from editmgt_jax import locks
from editmgt_jax.data.loader import DataError
from editmgt_jax.errors import TRANSIENT, EditMGTError, UserError
from editmgt_jax.training import tracking, trainer
from editmgt_jax.training.checkpoint import SIZES, Checkpoints
from editmgt_jax.training.metrics import MetricsWriter, RunLog, Sums, keep_lines, peak_flops
from editmgt_jax.training.runs import run_params
from editmgt_jax.training.trainer import BAD_BATCHES, TrainingError


@pytest.fixture(scope="module")
def records(tiny_model, tmp_path_factory):
    folder = tmp_path_factory.mktemp("loop") / "tokens"
    tokens.write_random(folder, tiny_model)
    return folder


@pytest.fixture
def config(tiny_model, records):
    """Three steps from a model directory."""
    config = frozen_config(tiny_model, steps=3)
    config.start_from = str(tiny_model)
    config.model.mgt.update(tiny.MGT_CONFIG.to_dict())
    config.data.update(tokens=str(records), heldout=str(records))
    config.mesh.update(data=8, fsdp=1)
    return config


def metrics_of(workdir):
    return [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]


class Lines(list):
    """A tracker that keeps what it is told."""

    def scalars(self, step, values):
        self.append({"step": step} | values)

    def close(self):
        self.append("closed")


def test_a_run_says_what_it_does(config, tmp_path, capfd, monkeypatch):
    config.sample_edits, tracked = 3, Lines()
    monkeypatch.setattr(tracking, "opened", lambda names, *_: [tracked] * (names == ("wandb",)))
    evaluation = train(config, tmp_path, profile=(1, 2), track=("wandb",))
    assert {"loss", "accuracy", "accuracy_changed"} <= evaluation.keys()
    lines = metrics_of(tmp_path)
    steps = [line for line in lines if "loss" in line]
    assert tracked[-1] == "closed" and [one.keys() for one in tracked[:-1]] == [line.keys() for line in lines]
    wanted = {"gradient_norm", "learning_rate", "samples_per_second", "flops_per_second", "data_wait", "accuracy"}
    assert [line["step"] for line in steps] == [1, 2, 3] and all(wanted <= line.keys() for line in steps)
    assert any(name.startswith("accuracy/rate_") for name in steps[0])
    told = capfd.readouterr().err
    assert "time went to" in told and (tmp_path / "goodput.json").is_file()
    assert re.findall(r"the train step was (compiled|read from the cache on disk) in \d+ s", told)
    assert list((tmp_path / trainer.PROFILE).rglob("*.xplane.pb"))
    assert list((tmp_path / "tensorboard").iterdir())
    assert [path.name for path in sorted((tmp_path / "samples").iterdir())] == ["step_000002.png", "step_000003.png"]
    with Image.open(tmp_path / "samples" / "step_000003.png") as picture:
        assert picture.size == (4 * 32 + 3 * 4, 3 * 32 + 2 * 4)
    assert metrics_of(tmp_path)[-1]["eval/loss"] == pytest.approx(evaluation["loss"], rel=1e-5)


def test_a_bad_step_ends_the_run_before_it_does_harm(config, tmp_path):
    config.guard.max_loss = 1e-3
    with pytest.raises(TrainingError, match=r"step 0 has loss .* guard.skip \(now 0\)"):
        train(config, tmp_path)
    (line,) = (tmp_path / BAD_BATCHES).read_text().splitlines()
    noted = json.loads(line)
    assert noted["step"] == 0 and len(noted["records"]) == 8 and "array_record" in noted["records"][0]
    assert not any(path.name.isdigit() for path in (tmp_path / "checkpoints").iterdir())


def test_bad_steps_can_be_left_out(config, tmp_path, tiny_model):
    config.guard.update(max_loss=1e-3, skip=3)
    config.optimizer.ema_decay = 0.0
    train(config, tmp_path)
    from editmgt_jax.weights.loading import load_mgt

    jax.tree.map(np.testing.assert_array_equal, run_params(tmp_path, False)["mgt"], load_mgt(tiny_model / "editmgt")[1])
    assert len((tmp_path / BAD_BATCHES).read_text().splitlines()) == 3
    assert [line["bad"] for line in metrics_of(tmp_path) if "bad" in line] == [1, 1, 1]


def test_a_run_that_fails_waits_for_its_last_checkpoint(config, tmp_path, monkeypatch):
    note, add = Checkpoints._note_sizes, RunLog.add
    monkeypatch.setattr(Checkpoints, "_note_sizes", lambda *given: (time.sleep(1.5), note(*given)))

    def failing(self, step, *more):
        if step == 2:
            raise TrainingError("step 2 failed")
        add(self, step, *more)

    monkeypatch.setattr(RunLog, "add", failing)
    with pytest.raises(TrainingError, match="step 2 failed"):
        train(config, tmp_path)
    assert list(json.loads((tmp_path / SIZES).read_text())) == ["2"]


def test_what_was_noted_of_bad_batches_may_be_cut_off(tmp_path):
    path = tmp_path / BAD_BATCHES
    path.write_text('{"step": 1}\n{"step": 5}\n{"st')
    assert len(keep_lines(path, 3, write=False)) == 1 and path.read_text().count("\n") == 2
    assert len(keep_lines(path, 3)) == 1 and path.read_text() == '{"step": 1}\n'


def test_a_bfloat16_first_moment_and_undecayed_norms_survive_a_stop(config, tmp_path):
    config.optimizer.update(first_moment="bfloat16", undecayed="no_norms")
    for run, steps in (("whole", 3), ("parts", 2), ("parts", 3)):
        config.steps = steps
        train(config, tmp_path / run)
    ours, theirs = (run_params(tmp_path / run, True, step=3) for run in ("whole", "parts"))
    jax.tree.map(np.testing.assert_array_equal, ours, theirs)


def test_errors_of_data_workers_are_for_users_too():
    """They come pickled, from other processes."""
    error = pickle.loads(pickle.dumps(DataError("too many", transient=True)))
    assert isinstance(error, EditMGTError) and str(error) == "too many" and error.exit_code == TRANSIENT


def test_a_full_disk_is_told(config, tmp_path, monkeypatch):
    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(MetricsWriter, "write", full)
    with pytest.raises(TrainingError, match="No space left on device.*make room.*checkpoints are as they were"):
        train(config, tmp_path)


@pytest.mark.parametrize("name", ["job.json", "evaluation.json"])
def test_another_job_s_folder_is_no_workdir(config, tmp_path, name):
    (tmp_path / name).write_text("{}")
    with pytest.raises(UserError, match=f"holds {name} of another job: name a new folder"):
        train(config, tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == [name]


def test_a_bucket_s_address_is_no_workdir(config):
    with pytest.raises(ValueError, match="the workdir must lie in a file system that this machine mounts"):
        train(config, "gs://bucket/run")


def test_two_runs_do_not_share_a_workdir(config, tmp_path):
    with locks.held(tmp_path / "run", "train"):
        with pytest.raises(UserError, match="run is in use by `editmgt train`, process"):
            train(config, tmp_path / "run")
        assert [path.name for path in (tmp_path / "run").iterdir()] == [locks.NOTE]


def test_a_workdir_whose_checkpoints_could_not_be_read_back_is_refused(config, tmp_path):
    with pytest.raises(UserError, match="must be without .* take another name"):
        train(config, tmp_path / "run[1]")
    assert not list(tmp_path.iterdir())


def test_a_step_that_hangs_is_shown_and_ended():
    code = (
        "import time\n"
        "from editmgt_jax.training.processes import Watchdog\n"
        "def hanging():\n"
        "    time.sleep(60)\n"
        "dog = Watchdog(0.5, end=True)\n"
        "dog.heard()\n"
        "hanging()\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=50)
    assert done.returncode == 1 and "in hanging" in done.stderr


def test_sums_add_up():
    sums = Sums()
    sums.add({"a": (2.0, 1.0), "b": (0.0, 0.0)})
    sums.add({"a": (4.0, 3.0), "b": (0.0, 0.0)})
    assert sums.means() == {"a": 1.5}


def test_mfu_is_the_share_of_what_the_devices_could_do(tmp_path, monkeypatch, config):
    class Ledger:
        seconds = {"data wait": 0.0, "eval": 0.0, "checkpoint": 0.0}

        def write(self):
            pass

    assert peak_flops() is None  # CPUs
    monkeypatch.setattr("editmgt_jax.training.metrics.peak_flops", lambda: 1000.0)
    times, ledger = iter([0.0, 5.0, 5.0]), Ledger()
    log = RunLog(tmp_path, config, ledger, 0, clock=lambda: next(times))
    ledger.seconds |= {"eval": 2.0, "checkpoint": 1.0}  # in which no sample was trained on
    log.add(0, {"loss": (1.0, 1.0), "bad": (0.0, 1.0)}, 500)
    log.close()
    (line,) = metrics_of(tmp_path)
    assert line["mfu"] == 0.25 and line["flops_per_second"] == 250 and line["samples_per_second"] == 4
