"""Where raw pairs lie: every layout yields the same ones, and what cannot be read is said."""

import dataclasses
import io
import json
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image

pa = pytest.importorskip("pyarrow")
import pyarrow.parquet as pq  # noqa: E402

from editmgt_jax.data.prepare.sources import SourceError, category_name, open_source  # noqa: E402

TEXTS = ["make the sky red", "remove the tree", "turn it into a sketch"]


def picture(seed) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(np.random.default_rng(seed).integers(0, 256, (32, 32, 3), np.uint8)).save(buffer, "PNG")
    return buffer.getvalue()


SOURCES, TARGETS = [picture(i) for i in range(3)], [picture(10 + i) for i in range(3)]


def pairs(where, **more):
    return [pair for part in open_source(str(where), **more) for pair in part.read()]


def write_parquet(path, **columns):
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.table(columns), path, row_group_size=2)


def check(found, keys=None):
    assert [pair.source for pair in found] == SOURCES and [pair.target for pair in found] == TARGETS
    assert [pair.instruction for pair in found] == TEXTS
    assert all(pair.defect is None for pair in found)


@pytest.mark.parametrize(
    "names",
    [
        ("input_img", "instruction", "output_img"),
        ("image_file", "edit_instruction", "edited_file"),
        ("input", "instruction", "generated_image"),
    ],
)
@pytest.mark.parametrize("struct", [True, False])
def test_parquet_of_all_known_column_names(tmp_path, names, struct):
    pictures = [
        [{"bytes": data, "path": None} for data in column] if struct else column for column in (SOURCES, TARGETS)
    ]
    columns = dict(zip(names, (pictures[0], TEXTS, pictures[1]), strict=True))
    write_parquet(tmp_path / "data" / "add_00000.parquet", **columns)
    check(pairs(tmp_path))
    check(pairs(tmp_path / "data" / "add_00000.parquet"))
    assert [part.pairs for part in open_source(str(tmp_path))] == [2, 1]


def test_columns_can_be_named(tmp_path):
    write_parquet(tmp_path / "a.parquet", before=SOURCES, after=TARGETS, text=TEXTS)
    check(pairs(tmp_path, mapping={"source": "before", "target": "after", "instruction": "text"}))
    with pytest.raises(SourceError, match="needs a column for source.*it has"):
        pairs(tmp_path)
    with pytest.raises(SourceError, match="must have the column 'text2' for instruction"):
        pairs(tmp_path, mapping={"source": "before", "target": "after", "instruction": "text2"})
    with pytest.raises(SourceError, match="--column takes source"):
        pairs(tmp_path, mapping={"picture": "before"})


def test_an_unreadable_file_is_named(tmp_path):
    (tmp_path / "a.parquet").write_bytes(b"PAR1 no")
    with pytest.raises(SourceError, match="a.parquet is not a readable parquet file"):
        pairs(tmp_path)


def test_a_damaged_row_group_is_pairs_with_a_reason(tmp_path):
    path = tmp_path / "a.parquet"
    write_parquet(path, input=SOURCES, output=TARGETS, instruction=TEXTS)
    data = bytearray(path.read_bytes())
    data[4:400] = bytes(396)  # the pages of the first group
    path.write_bytes(data)
    found = pairs(tmp_path)
    assert [pair.defect and pair.defect[0] for pair in found] == ["unreadable_row_group"] * 2 + [None]
    assert [pair.key for pair in found] == ["a.parquet#0", "a.parquet#1", "a.parquet#2"]


@pytest.fixture
def pictures(tmp_path):
    for i, (source, target) in enumerate(zip(SOURCES, TARGETS, strict=True)):
        (tmp_path / "images" / "7").mkdir(parents=True, exist_ok=True)
        (tmp_path / "images" / "7" / f"7-in{i}.png").write_bytes(source)
        (tmp_path / "images" / "7" / f"7-out{i}.png").write_bytes(target)
    return tmp_path


def test_pairs_jsonl(pictures):
    lines = [
        {
            "source": f"images/7/7-in{i}.png",
            "target": f"images/7/7-out{i}.png",
            "instruction": text,
            "category": "Color",
        }
        for i, text in enumerate(TEXTS)
    ]
    lines[1]["mask"] = "images/7/7-in0.png"
    path = pictures / "pairs.jsonl"
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    found = pairs(pictures)
    check(found)
    assert [pair.category for pair in found] == ["color"] * 3 and found[1].mask == SOURCES[0]
    path.write_text(
        path.read_text() + '{"source": 3}\n{"broken\n' + json.dumps(lines[0] | {"target": "gone.png"}) + "\n"
    )
    assert [pair.defect[0] for pair in pairs(pictures)[3:]] == ["bad_line", "bad_line", "missing_file"]


@pytest.mark.parametrize("by_session", [True, False])
def test_magicbrush(pictures, by_session):
    turns = [{"input": f"7-in{i}.png", "output": f"7-out{i}.png", "instruction": text} for i, text in enumerate(TEXTS)]
    name, content = ("edit_sessions.json", {"7": turns}) if by_session else ("edit_turns.json", turns)
    (pictures / name).write_text(json.dumps(content))
    check(pairs(pictures))
    (pictures / name).write_text('{"7": 3}')
    with pytest.raises(SourceError, match="must list turns"):
        pairs(pictures)


def test_scenes():
    parts = open_source("scenes:300:5", resolution=32)
    assert [part.pairs for part in parts] == [256, 44]
    pair = next(dataclasses.replace(parts[1], pairs=1).read())
    assert pair.key == "scenes-5#256" and Image.open(io.BytesIO(pair.mask)).size == (32, 32)
    for wrong in (
        "scenes:",
        "scenes:many",
        "scenes:0",
        "scenes:3:x",
        "scenes:²",
        "scenes:" + "9" * 20,
        "scenes:9" + "9" * 5000,
        "scenes:3:4294967296",
    ):
        with pytest.raises(SourceError, match="scenes:COUNT"):
            open_source(wrong)


def test_tfds_builder_of_the_parquet_files(tmp_path):
    tfds = pytest.importorskip("tensorflow_datasets")
    pytest.importorskip("apache_beam")
    import editmgt_jax.data.prepare.tfds_crispedit  # noqa: F401

    pictures = [[{"bytes": data, "path": None} for data in column] for column in (SOURCES, TARGETS)]
    write_parquet(
        tmp_path / "raw" / "data" / "motion change_00000.parquet",
        input_img=pictures[0],
        output_img=pictures[1],
        instruction=TEXTS,
        type=["motion change"] * 3,
    )
    builder = tfds.builder("crisp_edit", data_dir=tmp_path / "tfds", file_format="array_record")
    builder.download_and_prepare(download_config=tfds.download.DownloadConfig(manual_dir=tmp_path / "raw"))
    assert len(builder.as_data_source("train")) == 3
    found = sorted(pairs(f"tfds:{builder.data_path}"), key=lambda pair: TEXTS.index(pair.instruction))
    check(found)
    assert {pair.category for pair in found} == {"motion_change"}
    with pytest.raises(SourceError, match="a split 'test'"):
        pairs(f"tfds:{builder.data_path}:test")
    with pytest.raises(SourceError, match="TFDS must have 'no_such_set'"):
        pairs("tfds:no_such_set")


def test_a_folder_that_is_named_like_a_file_holds_the_parts(tmp_path):
    write_parquet(tmp_path / "train.parquet" / "part-00000.parquet", source=SOURCES, target=TARGETS, instruction=TEXTS)
    (tmp_path / "train.parquet" / "._part-00000.parquet").write_bytes(b"of another system")
    check(pairs(tmp_path))
    check(pairs(tmp_path / "train.parquet"))


@pytest.mark.parametrize("form", ["names", "names of a dictionary", "structs"])
def test_tables_that_name_files(pictures, form):
    names = [[f"images/7/7-{side}{i}.png" for i in range(3)] for side in ("in", "out")]
    if form == "names of a dictionary":
        columns = [pa.array(column).dictionary_encode() for column in names]
    else:
        columns = [[{"bytes": None, "path": n} for n in column] if form == "structs" else column for column in names]
    write_parquet(pictures / "tables" / "a.parquet", source=columns[0], target=columns[1], instruction=TEXTS)
    check(pairs(pictures))
    for i in range(3):
        (pictures / names[1][i]).unlink()
    assert [pair.defect[0] for pair in pairs(pictures)] == ["missing_file"] * 3


def test_an_address_is_no_file(tmp_path):
    write_parquet(tmp_path / "a.parquet", source=["https://host/a.png"], target=["b.png"], instruction=["x"])
    (pair,) = pairs(tmp_path)
    assert pair.defect[0] == "missing_file" and "is an address" in pair.defect[1]


def test_categories_by_number_have_their_names(tmp_path):
    features = {"type": {"names": ["Add", "Background change"], "_type": "ClassLabel"}}
    table = pa.table({"source": SOURCES, "target": TARGETS, "instruction": TEXTS, "type": [1, 0, 7]})
    table = table.replace_schema_metadata({"huggingface": json.dumps({"info": {"features": features}})})
    pq.write_table(table, tmp_path / "a.parquet")
    assert [pair.category for pair in pairs(tmp_path)] == ["background_change", "add", "7"]


POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 12\n"


@pytest.mark.parametrize("name", ["a.parquet", "pairs.jsonl", "edit_turns.json"])
def test_what_git_lfs_did_not_fetch_is_named(tmp_path, name):
    (tmp_path / name).write_bytes(POINTER)
    with pytest.raises(SourceError, match=f"{name} is a pointer of Git LFS.*git lfs pull"):
        pairs(tmp_path)


def test_lines_as_people_write_them(pictures):
    names = [(f"images/7/7-in{i}.png", f"images/7/7-out{i}.png") for i in range(3)]
    lines = [
        json.dumps({"source": source, "target": target, "instruction": text}).encode()
        for (source, target), text in zip(names, TEXTS, strict=True)
    ]
    (pictures / "pairs.jsonl").write_bytes(b"\xef\xbb\xbf" + b"\r\n\r\n".join(lines) + b"\r\n  ")
    check(pairs(pictures))
    assert [pair.key for pair in pairs(pictures)] == [f"pairs.jsonl#{number}" for number in (1, 3, 5)]
    for text, problem in (
        (b"\n".join(lines).decode().encode("utf-16"), "must be UTF-8 text"),
        (b"[" + b",\n".join(lines) + b"]", "must have a JSON object a line"),
    ):
        (pictures / "pairs.jsonl").write_bytes(text)
        with pytest.raises(SourceError, match=problem):
            pairs(pictures)


def test_nothing_there(tmp_path):
    with pytest.raises(FileNotFoundError, match="does not exist"):
        pairs(tmp_path / "gone")
    with pytest.raises(SourceError, match="has none"):
        pairs(tmp_path)


def test_category_names():
    assert category_name("Background change") == category_name("background-change") == "background_change"
    assert category_name("  ") == "edit"


def test_a_file_of_one_row_group_is_read_within_some_twice_its_size(tmp_path):
    """In a process of its own, where nothing else is in Arrow's memory."""
    code = (
        "import sys\nimport pyarrow as pa, pyarrow.parquet\n"
        "from editmgt_jax.data.prepare.sources import open_source\n"
        "(part,) = open_source(sys.argv[1])\n"
        "assert sum(len(pair.source) for pair in part.read()) == 100 * 10**5\n"
        "print(pa.default_memory_pool().max_memory())\n"
    )
    dice = np.random.default_rng(0)
    pictures = {name: [dice.bytes(10**5) for _ in range(100)] for name in ("input_img", "output_img")}
    path = tmp_path / "a.parquet"
    pq.write_table(pa.table(pictures | {"instruction": ["make it red"] * 100}), path)
    done = subprocess.run([sys.executable, "-c", code, path], capture_output=True, text=True, check=True)
    assert int(done.stdout) < 2.5 * path.stat().st_size
