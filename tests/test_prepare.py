"""Preparing raw pairs: every row is kept or rejected for the right reason, and the same bytes come out every time."""

import hashlib
import io
import json
import os
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
from PIL import Image

pytest.importorskip("apache_beam")
pytest.importorskip("pyarrow")

import planted  # noqa: E402

from editmgt_jax.data import prepare as module  # noqa: E402
from editmgt_jax.data.examine import PrepareConfig  # noqa: E402
from editmgt_jax.data.prepare import PrepareError, prepare  # noqa: E402
from editmgt_jax.data.records import PairSource, read_manifest  # noqa: E402

CONFIG = PrepareConfig(resolution=planted.SIZE, task_rows=100)


@pytest.fixture(scope="module")
def raw(tmp_path_factory):
    """A planted set -> (folder, what is expected of it)"""
    directory = tmp_path_factory.mktemp("raw")
    return directory, planted.write(directory, 420, every=6)


@pytest.fixture(scope="module")
def prepared(raw, tmp_path_factory):
    output = tmp_path_factory.mktemp("prepared") / "set"
    return output, prepare(raw[0], output, CONFIG)


def checksums(directory):
    return {
        str(path.relative_to(directory)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(directory.rglob("*"))
        if path.is_file()
    }


def counts(found):
    return {name: entry["count"] for name, entry in found.items()}


def test_every_defect_is_reported_for_the_right_reason(raw, prepared):
    expected, manifest = raw[1], prepared[1]
    assert counts(manifest["rejects"]) == expected["rejects"]
    assert counts(manifest["notes"]) == expected["notes"]
    assert manifest["rows"] == expected["rows"] == manifest["kept"] + sum(expected["rejects"].values())
    assert sum(manifest["categories"].values()) == sum(shard["records"] for shard in manifest["shards"])
    key, detail = manifest["rejects"]["bad_utf8"]["examples"][0]
    assert "#" in key and "not UTF-8" in detail


def test_prepared_pairs_can_be_read(prepared):
    output, manifest = prepared
    pairs = PairSource(output)
    assert len(pairs) == manifest["kept"]
    pair = pairs[3]
    sizes = {name: Image.open(io.BytesIO(pair[name])).size for name in ("source", "target")}
    assert sizes == {"source": (64, 64), "target": (64, 64)}
    assert pair["category"] in manifest["categories"] and "number" in pair["instruction"]
    assert len({pairs[i]["key"] for i in range(len(pairs))}) == len(pairs)


def test_nothing_is_left_behind(prepared):
    names = {path.name for path in prepared[0].iterdir()}
    assert not names & {"staging"} and "summary.html" in names
    assert not [path for path in prepared[0].rglob("*") if path.name.endswith(".tmp")]
    assert read_manifest(prepared[0]) == json.loads(json.dumps(prepared[1]))
    for shard in prepared[1]["shards"]:
        assert hashlib.sha256((prepared[0] / shard["file"]).read_bytes()).hexdigest() == shard["sha256"]


def test_two_processes_write_the_same_bytes(raw, prepared, tmp_path):
    prepare(raw[0], tmp_path / "set", CONFIG, workers=2)
    assert checksums(tmp_path / "set") == checksums(prepared[0])


@pytest.mark.parametrize("stage", ["survey", "finish"])
def test_a_stopped_preparation_goes_on_to_the_same_bytes(raw, prepared, tmp_path, monkeypatch, stage):
    whole, done = getattr(module, stage), []

    def stop_after_two(task):
        if len(done) == 2:
            raise KeyboardInterrupt
        whole(task)
        done.append(task.number)

    monkeypatch.setattr(module, stage, stop_after_two)
    with pytest.raises(BaseException):  # noqa: B017  (Beam wraps it)
        prepare(raw[0], tmp_path / "set", CONFIG)
    assert not (tmp_path / "set" / "manifest.json").exists()
    again = []
    monkeypatch.setattr(module, stage, lambda task: (again.append(task.number), whole(task)))
    prepare(raw[0], tmp_path / "set", CONFIG)
    assert checksums(tmp_path / "set") == checksums(prepared[0])
    if stage == "finish":
        assert not set(again) & set(done)


def _kill_and_restart(raw, output, task_rows, tasks):
    """Runs the command, kills it with all its processes once some tasks are surveyed, and runs it again."""
    command = [sys.executable, "-m", "editmgt_jax.cli", "prepare", str(raw), "--output", str(output)]
    command += [f"--resolution={planted.SIZE}", f"--task-rows={task_rows}", "--workers=2"]
    process = subprocess.Popen(command, stderr=subprocess.DEVNULL, start_new_session=True)
    while process.poll() is None and len(list((output / "staging").glob("[0-9]" * 5))) < tasks:
        time.sleep(0.02)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    assert not (output / "manifest.json").exists()
    subprocess.run(command, check=True, timeout=600, stderr=subprocess.DEVNULL)


def test_a_killed_preparation_goes_on_to_the_same_bytes(raw, prepared, tmp_path):
    _kill_and_restart(raw[0], tmp_path / "set", 100, 2)
    assert checksums(tmp_path / "set") == checksums(prepared[0])


@pytest.mark.slow
def test_five_thousand_pairs(tmp_path):
    """Counts, reasons and bytes at the size of the planted set that the project is held to."""
    expected = planted.write(tmp_path / "raw", 5000)
    config = PrepareConfig(resolution=planted.SIZE, task_rows=512)
    manifest = prepare(tmp_path / "raw", tmp_path / "set", config, workers=2)
    assert counts(manifest["rejects"]) == expected["rejects"] and counts(manifest["notes"]) == expected["notes"]
    assert manifest["rows"] == 5000 == manifest["kept"] + sum(expected["rejects"].values())
    for tasks in (1, 6):
        _kill_and_restart(tmp_path / "raw", tmp_path / f"killed{tasks}", 512, tasks)
        assert checksums(tmp_path / f"killed{tasks}") == checksums(tmp_path / "set")


def test_a_finished_preparation_is_not_done_again(raw, prepared, monkeypatch):
    monkeypatch.setattr(module, "survey", lambda task: pytest.fail("done again"))
    assert prepare(raw[0], prepared[0], CONFIG) == read_manifest(prepared[0])


def test_another_preparation_s_folder_is_refused(raw, prepared, tmp_path):
    with pytest.raises(PrepareError, match="another source, config"):
        prepare(raw[0], prepared[0], PrepareConfig(resolution=planted.SIZE, task_rows=50))
    (tmp_path / "letter.txt").write_text("dear")
    with pytest.raises(PrepareError, match="is not empty"):
        prepare(raw[0], tmp_path, CONFIG)


def test_without_the_extra_it_says_so(raw, tmp_path, monkeypatch):
    monkeypatch.setattr(module, "NEEDED", ("apache_beam", "not_installed_at_all"))
    with pytest.raises(PrepareError, match="needs not_installed_at_all: pip install 'editmgt_jax.prepare.'"):
        prepare(raw[0], tmp_path / "set", CONFIG)


def test_a_flag_that_no_one_knows(raw, tmp_path):
    with pytest.raises(PrepareError, match="neither .* has the flags .'resolutoin'."):
        prepare(raw[0], tmp_path / "set", CONFIG, flags=["--resolutoin=64"])
    assert not (tmp_path / "set").exists()
    flags = ["--runner=DirectRunner", "--direct_running_mode=multi_threading", "--direct_num_workers=2"]
    assert prepare(raw[0], tmp_path / "set", CONFIG, flags=flags)["rows"] == raw[1]["rows"]


def test_a_category_can_be_limited(raw, tmp_path):
    config = PrepareConfig(resolution=planted.SIZE, task_rows=100, max_per_category=20)
    manifest = prepare(raw[0], tmp_path / "set", config)
    assert set(manifest["categories"].values()) == {20}
    rejected = sum(counts(manifest["rejects"]).values())
    assert manifest["kept"] + rejected == manifest["rows"]
    assert counts(manifest["rejects"])["over_category_limit"] > 0


def test_the_summary_names_reasons_and_shows_pairs(prepared):
    page = (prepared[0] / "summary.html").read_text()
    for reason in prepared[1]["rejects"]:
        assert f"<td>{reason}" in page
    assert page.count("<figure>") == min(12, len(prepared[1]["shards"]))
    assert np.sum([page.count(kind) for kind in ("data:image/jpeg;base64,",)]) == 2 * page.count("<figure>")


@pytest.mark.parametrize(
    "wrong, message",
    [
        ({"resolution": 100}, "multiple of 32"),
        ({"image_format": "gif"}, "image_format must be one of"),
        ({"task_rows": 0}, "task_rows must be at least 1"),
        ({"min_changed": 0.9, "max_changed": 0.5}, "must be shares"),
    ],
)
def test_wrong_settings(wrong, message):
    with pytest.raises(ValueError, match=message):
        PrepareConfig(**wrong)
