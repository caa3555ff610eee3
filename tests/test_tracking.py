"""Trackers against a stand-in for their package, and against the package itself where it is installed."""

import json
import sys
import types

import pytest
import small_runs

from editmgt_jax import cli
from editmgt_jax.errors import UserError
from editmgt_jax.training import tracking
from editmgt_jax.training.metrics import MetricsWriter


class Run:
    """What a run of the package is told."""

    def __init__(self, options):
        self.options, self.lines, self.metrics, self.finished = options, [], [], False

    def define_metric(self, name, step_metric):
        self.metrics.append((name, step_metric))

    def log(self, values):
        self.lines.append(values)

    def finish(self):
        self.finished = True


@pytest.fixture
def runs(monkeypatch):
    """The runs that were begun."""
    begun = []
    stub = types.ModuleType("wandb")
    stub.errors = types.SimpleNamespace(Error=type("Error", (Exception,), {}))
    stub.Html = lambda text: ("html", text)
    stub.init = lambda **options: begun.append(Run(options)) or begun[-1]
    monkeypatch.setitem(sys.modules, "wandb", stub)
    monkeypatch.delenv("WANDB_PROJECT", raising=False)
    return begun


def test_a_run_that_goes_on_is_the_same_run(tmp_path, runs):
    for first in (1, 3):
        trackers = tracking.opened(("wandb", "wandb"), tmp_path / "mine", {"steps": 4})
        writer = MetricsWriter(tmp_path / "mine", first - 1, trackers)
        writer.write(first, {"loss": 0.5})
        writer.close()
    assert [run.options["id"] for run in runs] == [runs[0].options["id"]] * 2 and len(runs[0].options["id"]) == 16
    assert [run.lines for run in runs] == [[{"step": 1, "loss": 0.5}], [{"step": 3, "loss": 0.5}]]
    options = runs[0].options
    assert (options["project"], options["name"], options["resume"]) == ("editmgt_jax", "mine", "allow")
    assert options["config"] == {"steps": 4} and runs[0].metrics == [("*", "step")] and runs[0].finished
    lines = (tmp_path / "mine" / "metrics.jsonl").read_text().splitlines()
    assert [json.loads(line)["step"] for line in lines] == [1, 3]


def test_the_project_is_the_environments(tmp_path, runs, monkeypatch):
    monkeypatch.setenv("WANDB_PROJECT", "theirs")
    tracking.opened(("wandb",), tmp_path, {})
    assert runs[0].options["project"] == "theirs"


def test_the_flag_reaches_training_and_ablations(tmp_path, monkeypatch):
    told = []
    monkeypatch.setattr("editmgt_jax.training.trainer.train", lambda *given: told.append(given[-1]))
    monkeypatch.setattr("editmgt_jax.ablation.steps.run", lambda *given: told.append(given[-1]))
    for command in (["train", "--config", "scenes_mgt"], ["ablate", "run", "--config", "ablate_layers"]):
        assert not cli.main([*command, "--workdir", str(tmp_path / "run"), "--track", "wandb"])
    assert told == [["wandb"]] * 2


@pytest.mark.parametrize("problem", ["missing", "unreachable"])
def test_what_cannot_begin_is_one_line(tmp_path, runs, monkeypatch, problem):
    if problem == "missing":
        monkeypatch.setitem(sys.modules, "wandb", None)
    else:

        def fails(**options):
            raise sys.modules["wandb"].errors.Error("api_key not configured (no-tty)\ncall wandb login")

        sys.modules["wandb"].init = fails
    with pytest.raises(UserError, match="pip install" if problem == "missing" else "not configured") as error:
        tracking.opened(("wandb",), tmp_path, {})
    assert "\n" not in str(error.value) and error.value.transient == (problem == "unreachable")


@pytest.mark.slow
def test_a_run_offline_with_the_package_itself(tmp_path, monkeypatch):
    pytest.importorskip("wandb")
    monkeypatch.setenv("WANDB_MODE", "offline")
    small_runs.train(small_runs.vq_config(2), tmp_path / "run", track=("wandb",))
    assert list((tmp_path / "run" / "wandb").glob("offline-run-*/*.wandb"))
