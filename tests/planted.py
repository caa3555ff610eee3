"""A parquet set in CrispEdit-2M's schema, made of procedural scenes, with ten kinds of defects planted."""

import io
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

from editmgt_jax.data.scenes.source import SceneConfig, SceneSource

SIZE = 64
FILE_ROWS, GROUP_ROWS = 64, 24
SCHEMA = pa.schema(
    [
        ("input_img", pa.struct([("bytes", pa.binary()), ("path", pa.string())])),
        ("instruction", pa.string()),
        ("output_img", pa.struct([("bytes", pa.binary()), ("path", pa.string())])),
        ("type", pa.string()),
    ]
)
# What CrispEdit calls the scenes' categories.
TYPES = {"background": "background change", "colour": "color", "motion": "motion change"}


def encoded(array, form="JPEG", mode="RGB", size=None, **options) -> bytes:
    image = Image.fromarray(array).convert(mode)
    buffer = io.BytesIO()
    (image if size is None else image.resize(size)).save(buffer, form, **({"quality": 95} | options))
    return buffer.getvalue()


def write(directory, count: int, every: int = 25) -> dict:
    """Writes `count` rows; every `every`-th of a type's is defective, one kind after the other.

    Returns: {"rows", "rejects": {reason: count}, "notes": {note: count}}, what a preparation at SIZE must report.
    """
    scenes, by_type = SceneSource(SceneConfig(size=SIZE, seed=7)), {}
    expected = {"rows": count, "rejects": {}, "notes": {"null_path": 0}}
    defects, kind = list(DEFECTS), 0
    for index in range(count):
        example = scenes[index]
        kept = by_type.setdefault(TYPES.get(example["category"], example["category"]), [])
        row = {
            "input_img": encoded(example["source"]),
            "instruction": f"{example['instruction']}, number {index}".encode(),
            "output_img": encoded(example["target"]),
        }
        reason = note = None
        if len(kept) % every == every - 1:
            reason, note = DEFECTS[defects[kind % len(defects)]](row, kept, example)
            kind += 1
        kept.append(row)
        if reason is not None:
            expected["rejects"][reason] = expected["rejects"].get(reason, 0) + 1
        if note is not None:
            expected["notes"][note] = expected["notes"].get(note, 0) + 1
    for name, rows in by_type.items():
        _write_type(Path(directory), name, rows, expected["notes"])
    return expected


def _write_type(directory, name, rows, notes):
    (directory / "data").mkdir(parents=True, exist_ok=True)
    three, rest = rows[:3], rows[3:]
    files = [three, *(rest[i : i + FILE_ROWS] for i in range(0, len(rest), FILE_ROWS))]
    for number, part in enumerate(files):
        columns = [[row[key] for row in part] for key in ("input_img", "instruction", "output_img")]
        pictures = [pa.array([{"bytes": data, "path": None} for data in columns[i]], SCHEMA[i].type) for i in (0, 2)]
        texts = pa.array(columns[1], pa.binary()).view(pa.string())  # as it comes, UTF-8 or not
        table = pa.Table.from_arrays([pictures[0], texts, pictures[1], pa.array([name] * len(part))], schema=SCHEMA)
        pq.write_table(table, directory / "data" / f"{name}_{number:05d}.parquet", row_group_size=GROUP_ROWS)
        for note, applies in (("space_in_name", " " in name), ("small_file", len(part) <= 3), ("null_path", True)):
            if applies:
                notes[note] = notes.get(note, 0) + len(part)


# Each changes a row -> (reason to reject it, note about it).


def _truncated(row, _kept, _example):
    row["output_img"] = row["output_img"][: len(row["output_img"]) // 2]
    return "undecodable", None


def _cmyk(row, _kept, example):
    row["output_img"] = encoded(example["target"], mode="CMYK")
    return None, "mode_CMYK"


def _no_op(row, _kept, _example):
    row["output_img"] = row["input_img"]
    return "unchanged", None


def _huge(row, _kept, _example):
    buffer = io.BytesIO()
    Image.new("1", (9000, 9000)).save(buffer, "PNG")
    row["input_img"] = buffer.getvalue()
    return "too_large", None


def _bad_utf8(row, _kept, _example):
    row["instruction"] = b"make the \xff\xfe red"
    return "bad_utf8", None


def _duplicate(row, kept, _example):
    row |= kept[0]
    return "duplicate", None


def _recompressed(row, kept, _example):
    """The first pair of the type again, saved anew, its instruction in capitals."""
    first = kept[0]
    for name in ("input_img", "output_img"):
        row[name] = encoded(np.asarray(Image.open(io.BytesIO(first[name]))), quality=80 + len(kept) % 14)
    row["instruction"] = first["instruction"].upper()
    return "near_duplicate", None


def _other_shape(row, _kept, example):
    row["output_img"] = encoded(example["target"], size=(SIZE + 32, SIZE))
    return "aspect_mismatch", None


def _other_size(row, _kept, example):
    row["output_img"] = encoded(example["target"], size=(SIZE * 2, SIZE * 2))
    return None, "sizes_differ"


def _silent(row, _kept, _example):
    row["instruction"] = b"  "
    return "no_instruction", None


DEFECTS = {
    function.__name__.strip("_"): function
    for function in (
        _truncated, _cmyk, _no_op, _huge, _bad_utf8, _duplicate, _recompressed, _other_shape, _other_size, _silent
    )
}  # fmt: skip
