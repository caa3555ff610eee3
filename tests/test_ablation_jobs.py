"""Ablations as jobs: any number of processes, and any number of kills, give the same bytes."""

import signal
import time

import jobs
import numpy as np
import pytest
from jobs import start

from editmgt_jax.ablation.records import Records
from editmgt_jax.cli import main

CONFIG = """
from editmgt_jax.configs import ablate_layers

def get_config():
    config = ablate_layers.get_config()
    config.model = {model!r}
    config.examples.update(count=12, objects="core")
    config.record.update(rates=(0.5,), steps=(0, 1), seeds=(0, 1), chunk=2, settings=dict(steps=2))
    config.score.update(sets=("subsets",), signals=("text_to_image", "image_to_text"), groups=("all",), windows=("each",), part=3)
    config.decode.update(grid=dict(hold_threshold=(0.0, 0.5)), interventions=("bypass",), count=4, seeds=(0, 1), batch_size=2)
    config.statistics.update(resamples=200, permutations=200)
    return config
"""


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    pytest.importorskip("vl_convert")
    from tiny import write_model

    folder = tmp_path_factory.mktemp("home")
    model = write_model(folder / "model", text_length=96)
    (folder / "config.py").write_text(CONFIG.format(model=str(model)))
    return folder


def finish(started):
    """Exit codes; busy machines compile for minutes."""
    return jobs.finish(started, seconds=1500)


def arguments(home, workdir):
    return ["ablate", "run", "--config", home / "config.py", "--workdir", workdir]


def contents(workdir) -> dict:
    """{name: bytes} of all that the processes share the work of."""
    folders = ("records", "scores", "decodes", "search")
    return {
        str(path.relative_to(workdir)): path.read_bytes()
        for name in folders
        for path in sorted((workdir / name).rglob("*"))
        if path.is_file()
    }


@pytest.fixture(scope="module")
def whole(home):
    """One process, not disturbed."""
    assert finish(start(arguments(home, home / "whole"), processes=1, devices=1, logs=home / "logs")) == [0], (
        home / "logs" / "0.log"
    ).read_text()[-3000:]
    found = contents(home / "whole")
    assert (
        len([name for name in found if name.endswith(".parquet")]) > 10 and (home / "whole" / "report.html").is_file()
    )
    return found


@pytest.mark.parametrize("processes", [2, pytest.param(4, marks=pytest.mark.slow)])
def test_several_processes_write_the_same_bytes(home, whole, tmp_path, processes):
    started = start(arguments(home, tmp_path / "run"), processes=processes, devices=1, logs=tmp_path / "logs")
    assert finish(started) == [0] * processes, (tmp_path / "logs" / "0.log").read_text()[-3000:]
    assert contents(tmp_path / "run") == whole


@pytest.mark.parametrize("kills", [2, pytest.param(10, marks=pytest.mark.slow)])
def test_killed_at_random_it_ends_with_the_same_bytes(home, whole, tmp_path, kills):
    dice, work = np.random.default_rng(kills), tmp_path / "run"
    for _ in range(kills):
        (process,) = start(arguments(home, work), processes=1, devices=1, logs=tmp_path / "logs")
        begun, seen = time.monotonic(), len(contents(work))
        while process.poll() is None and len(contents(work)) == seen and time.monotonic() < begun + 240:
            time.sleep(0.2)  # until it does something
        time.sleep(dice.uniform(0, 2))
        process.send_signal(signal.SIGKILL)
        process.wait()
    assert finish(start(arguments(home, work), processes=1, devices=1, logs=tmp_path / "logs")) == [0]
    found = {name: content for name, content in contents(work).items() if not name.endswith(".tmp")}
    assert found == whole


def test_several_devices_record_the_same_but_for_rounding(home, whole, tmp_path):
    command = ["ablate", "record", "--config", home / "config.py", "--workdir", tmp_path / "run"]
    assert finish(start(command, processes=1, devices=2, logs=tmp_path / "logs")) == [0]
    one, other = (Records.open(folder / "records") for folder in (home / "whole", tmp_path / "run"))
    for signal_name in one.manifest.signals:
        ours, theirs = (each.maps(1, "step 1", signal_name, "mean", "all") for each in (one, other))
        np.testing.assert_allclose(ours, theirs, rtol=2e-3, atol=1e-6)  # of float16, whose steps are 1e-3


@pytest.mark.parametrize(
    "words, message",
    [
        ("ablate score {gone}", "an ablation is a folder with config.json, from `editmgt ablate record`; there is no"),
        (
            "ablate search {whole} --config.search.objectiv=ap",
            "there is no config key search.objectiv: did you mean objective?",
        ),
        (
            "ablate record --config {config} --workdir {whole} --config.record.chunk=3",
            "begun with another config: record.chunk was 2",
        ),
        (
            "ablate score {whole} --config.score.sets=('9',)",
            "distinct blocks from 0 to 2 (this model's blocks); got 9",
        ),
        (
            "ablate run --config {config} --workdir {gone} --config.score.sets=('0-9',)",
            "distinct blocks from 0 to 2 (this model's blocks); got 0-9",
        ),
        ("ablate score {whole} --config.score.sets=()", "score.sets must be several texts"),
        ("ablate record --config scenes_mgt --workdir {gone}", "task must be one of ablate; got 'mgt'"),
        ("report {gone}", "a report is of a folder of an ablation or a run"),
        ("report {home}", "a report is of a folder of an ablation or a run"),
    ],
)
def test_wrong_commands_say_so_in_one_line(home, whole, capsys, words, message):
    places = {"gone": home / "gone", "whole": home / "whole", "config": home / "config.py", "home": home}
    before = (home / "whole" / "config.json").read_text()
    assert main(words.format(**places).split()) == 2
    assert (home / "whole" / "config.json").read_text() == before and not (home / "gone" / "records").exists()
    told = capsys.readouterr().err.strip().splitlines()
    assert len(told) == 1 and message in told[0]
