"""Preparing raw pairs: every one is kept or rejected for the right reason, and the same bytes come out every time."""

import hashlib
import io
import json
import os
import shutil
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
import pyarrow.parquet  # noqa: E402

from editmgt_jax.data.prepare import job as module  # noqa: E402
from editmgt_jax.data.prepare.duplicates import NearDuplicates  # noqa: E402
from editmgt_jax.data.prepare.examine import PrepareConfig, examine  # noqa: E402
from editmgt_jax.data.prepare.job import PrepareError, prepare  # noqa: E402
from editmgt_jax.data.prepare.sources import RawPair  # noqa: E402
from editmgt_jax.data.records import PairSource, read_manifest  # noqa: E402
from editmgt_jax.errors import UserError  # noqa: E402

CONFIG = PrepareConfig(resolution=planted.SIZE, task_pairs=100)


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
    assert manifest["pairs"] == expected["pairs"] == manifest["kept"] + sum(expected["rejects"].values())
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


def _kill_and_restart(raw, output, task_pairs, tasks):
    """Runs the command, kills it with all its processes once some tasks are surveyed, and runs it again."""
    command = [sys.executable, "-m", "editmgt_jax.cli", "prepare", str(raw), "--output", str(output)]
    command += [f"--resolution={planted.SIZE}", f"--task-pairs={task_pairs}", "--workers=2"]
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
    config = PrepareConfig(resolution=planted.SIZE, task_pairs=512)
    manifest = prepare(tmp_path / "raw", tmp_path / "set", config, workers=2)
    assert counts(manifest["rejects"]) == expected["rejects"] and counts(manifest["notes"]) == expected["notes"]
    assert manifest["pairs"] == 5000 == manifest["kept"] + sum(expected["rejects"].values())
    for tasks in (1, 6):
        _kill_and_restart(tmp_path / "raw", tmp_path / f"killed{tasks}", 512, tasks)
        assert checksums(tmp_path / f"killed{tasks}") == checksums(tmp_path / "set")


def test_a_kill_while_a_shard_is_written_leaves_nothing(raw, prepared, tmp_path):
    code = (
        "import os, signal, sys\n"
        "from editmgt_jax.data import records\n"
        "from editmgt_jax.data.prepare import job as module\n"
        "from editmgt_jax.data.prepare.examine import PrepareConfig, examine\n"
        "read, seen = records.ShardReader.read, []\n"
        "def stop(self, index):\n"
        "    seen.append(index)\n"
        "    if len(seen) == 150: os.kill(os.getpid(), signal.SIGKILL)\n"
        "    return read(self, index)\n"
        "records.ShardReader.read = stop\n"
        f"module.prepare(*sys.argv[1:], PrepareConfig(resolution={planted.SIZE}, task_pairs=100))\n"
    )
    done = subprocess.run([sys.executable, "-c", code, str(raw[0]), str(tmp_path / "set")], stderr=subprocess.DEVNULL)
    assert done.returncode == -signal.SIGKILL and list((tmp_path / "set").glob("*.tmp"))
    prepare(raw[0], tmp_path / "set", CONFIG)
    assert checksums(tmp_path / "set") == checksums(prepared[0])


def test_odd_pairs_are_rejected_and_stop_nothing(tmp_path):
    source, target = (planted.encoded(np.full((64, 64, 3), value, np.uint8), "PNG") for value in (0, 200))
    wide = planted.encoded(np.zeros((64, 330, 3), np.uint8), "PNG")
    bomb = io.BytesIO()
    Image.new("1", (14000, 14000)).save(bomb, "PNG")
    for name, data in (("a", source), ("b", target), ("wide", wide), ("bomb", bomb.getvalue())):
        (tmp_path / f"{name}.png").write_bytes(data)
    lines = [
        {"source": "a.png", "target": "b.png", "instruction": "turn it grey", "category": "tone"},
        {"source": "a.png", "target": "b.png", "instruction": "Turn it to grey!"},
        {"source": "a.png", "target": "b.png", "instruction": "\ud800"},
        {"source": "a\u0000.png", "target": "b.png", "instruction": "x"},
        {"source": "wide.png", "target": "b.png", "instruction": "x"},
        {"source": "bomb.png", "target": "b.png", "instruction": "x"},
    ]
    (tmp_path / "pairs.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    manifest = prepare(tmp_path, tmp_path / "set", PrepareConfig(resolution=64))
    expected = {"duplicate", "bad_utf8", "missing_file", "extreme_aspect", "too_large"}
    assert counts(manifest["rejects"]) == dict.fromkeys(expected, 1) and manifest["kept"] == 1


def test_source_and_target_are_cropped_alike(tmp_path):
    """A target that is a little wider is scaled as a whole: what was at one position stays there."""
    picture = np.zeros((128, 128, 3), np.uint8)
    picture[:, 24:28] = 255
    target = Image.fromarray(picture).resize((133, 128))
    pair = RawPair("k", planted.encoded(picture, "PNG"), planted.encoded(np.asarray(target), "PNG"), "x")
    found = examine(pair, PrepareConfig(resolution=128, min_changed=0.0, image_format="png"))
    columns = [
        np.asarray(Image.open(io.BytesIO(found.record[side])))[64, :, 0].argmax() for side in ("source", "target")
    ]
    assert abs(int(columns[0]) - int(columns[1])) <= 1 and "sizes_differ" in found.notes


def test_nothing_kept_is_an_error_and_other_file_systems_too(tmp_path):
    (tmp_path / "pairs.jsonl").write_text("{}\n")
    with pytest.raises(PrepareError, match="no pair of .* is kept.*bad_line"):
        prepare(tmp_path, tmp_path / "set", CONFIG)
    with pytest.raises(ValueError, match="the output must lie in a file system that this machine mounts"):
        prepare("scenes:3", "gs://bucket/set", CONFIG)


def test_a_finished_preparation_is_not_done_again(raw, prepared, monkeypatch):
    monkeypatch.setattr(module, "survey", lambda task: pytest.fail("done again"))
    assert prepare(raw[0], prepared[0], CONFIG) == read_manifest(prepared[0])


def test_another_preparation_s_folder_is_refused(raw, prepared, tmp_path):
    with pytest.raises(UserError, match="belongs to a job with other config "):
        prepare(raw[0], prepared[0], PrepareConfig(resolution=planted.SIZE, task_pairs=50))
    (tmp_path / "letter.txt").write_text("dear")
    with pytest.raises(UserError, match="is not empty"):
        prepare(raw[0], tmp_path, CONFIG)


def test_an_unfinished_preparation_under_former_names_is_refused_in_one_line(raw, prepared, tmp_path):
    """`task_pairs` was `task_rows`."""
    shutil.copytree(prepared[0], tmp_path / "set", ignore=shutil.ignore_patterns("manifest.json"))
    note = tmp_path / "set" / "job.json"
    note.write_text(note.read_text().replace("task_pairs", "task_rows"))
    with pytest.raises(UserError, match=r"other config \(see .*job\.json\): name a new folder") as refused:
        prepare(raw[0], tmp_path / "set", CONFIG)
    assert "\n" not in str(refused.value)


def test_a_source_that_changed_is_refused(raw, prepared, tmp_path):
    source = tmp_path / "raw"
    shutil.copytree(raw[0], source)
    prepare(source, tmp_path / "set", CONFIG)
    file = sorted(source.rglob("*.parquet"))[0]
    table = pyarrow.parquet.read_table(file)
    pyarrow.parquet.write_table(table.replace_schema_metadata({"changed": "yes"}), file)
    with pytest.raises(UserError, match="belongs to a job with other parts "):
        prepare(source, tmp_path / "set", CONFIG)


def test_without_the_extra_it_says_so(raw, tmp_path, monkeypatch):
    monkeypatch.setattr(module, "NEEDED", ("apache_beam", "not_installed_at_all"))
    with pytest.raises(PrepareError, match="needs not_installed_at_all: pip install 'editmgt_jax.prepare.'"):
        prepare(raw[0], tmp_path / "set", CONFIG)


def test_a_flag_that_no_one_knows(raw, tmp_path):
    with pytest.raises(PrepareError, match="unknown flags.* .'resolutoin'."):
        prepare(raw[0], tmp_path / "set", CONFIG, flags=["--resolutoin=64"])
    assert not (tmp_path / "set").exists()
    flags = ["--runner=DirectRunner", "--direct_running_mode=multi_threading", "--direct_num_workers=2"]
    assert prepare(raw[0], tmp_path / "set", CONFIG, flags=flags)["pairs"] == raw[1]["pairs"]


def test_a_category_can_be_limited(raw, tmp_path):
    config = PrepareConfig(resolution=planted.SIZE, task_pairs=100, max_per_category=20)
    manifest = prepare(raw[0], tmp_path / "set", config)
    assert set(manifest["categories"].values()) == {20}
    rejected = sum(counts(manifest["rejects"]).values())
    assert manifest["kept"] + rejected == manifest["pairs"]
    assert counts(manifest["rejects"])["over_category_limit"] > 0


@pytest.mark.parametrize("bits", [0, 5, 48])
def test_near_duplicates_are_those_of_a_comparison_of_all_with_all(bits):
    dice = np.random.default_rng(bits)
    base = dice.integers(0, 256, (12, 64), dtype=np.uint8)
    flips = dice.random((300, 512)) < dice.choice([0.0, 0.005, 0.05, 0.1], (300, 1))
    hashes = base[dice.integers(0, 12, 300)] ^ np.packbits(flips, axis=1)
    kept, found, seen = [], [], NearDuplicates(bits)
    for own in hashes:
        near = [i for i, other in enumerate(kept) if np.bitwise_count(own ^ other).sum() <= bits]
        expected = near[0] if near else None
        if expected is None:
            kept.append(own)
        assert seen.find_or_add(own.tobytes()) == expected
        found.append(expected)
    assert 12 <= len(kept) < len(hashes) and any(found)


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
        ({"task_pairs": 0}, "task_pairs must be at least 1"),
        ({"min_changed": 0.9, "max_changed": 0.5}, "must be shares"),
    ],
)
def test_wrong_settings(wrong, message):
    with pytest.raises(ValueError, match=message):
        PrepareConfig(**wrong)
