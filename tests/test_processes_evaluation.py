"""Evaluations as jobs of two processes: the files of one process."""

from pathlib import Path

import benchmark_data as made
import pytest
import tiny
from jobs import finish, start

from editmgt_jax.files import read_json

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return tiny.write_model(tmp_path_factory.mktemp("model") / "model", text_length=96)


def files(folder: Path) -> dict[str, bytes]:
    """Every file of a run, but the logs of processes."""
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def evaluated(tmp_path, *arguments) -> tuple[dict, dict]:
    """The files of an evaluation by one process, and by two."""
    found = []
    for count in (1, 2):
        run, logs = tmp_path / f"run{count}", tmp_path / f"logs{count}"
        started = start(["evaluate", *arguments, "--workdir", run], processes=count, devices=2, logs=logs)
        assert finish(started) == [0] * count, (logs / "0.log").read_text()[-3000:]
        found.append(files(run))
    return tuple(found)


def test_two_processes_evaluate_scenes_as_one_does(model, tmp_path):
    options = ["--model", model, "--count", 40, "--objects", "core", "--batch-size", 8, "--steps", 1]
    one, two = evaluated(tmp_path, "scenes", *options)
    assert {"parts/000000.npz", "parts/000001.npz", "outputs/held/00039.png", "outcomes.parquet"} <= one.keys()
    assert two == one


def test_two_processes_evaluate_a_benchmark_as_one_does(model, tmp_path):
    data = made.emu(tmp_path / "data", generations=False, count=40)
    one, two = evaluated(tmp_path, "emu_paper", "--data", data, "--model", model, "--steps", 2)
    assert {"parts/000001.json", "outputs/39.png", "outcomes.parquet"} <= one.keys()
    assert two == one
    assert read_json(tmp_path / "run2" / "summary.json", dict)["scored"] == 40
