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
    """Writes `count` raw pairs; every `every`-th of a type's is defective, one kind after the other.

    Returns: {"pairs", "rejects": {reason: count}, "notes": {note: count}}, what a preparation at SIZE must report.
    """
    scenes, by_type = SceneSource(SceneConfig(size=SIZE, seed=7)), {}
    expected = {"pairs": count, "rejects": {}, "notes": {"null_path": 0}}
    defects, kind = list(DEFECTS), 0
    for index in range(count):
        example = scenes[index]
        kept = by_type.setdefault(TYPES.get(example["category"], example["category"]), [])
        pair = {
            "input_img": encoded(example["source"]),
            "instruction": f"{example['instruction']}, number {index}".encode(),
            "output_img": encoded(example["target"]),
        }
        reason = note = None
        if len(kept) % every == every - 1:
            reason, note = DEFECTS[defects[kind % len(defects)]](pair, kept, example)
            kind += 1
        kept.append(pair)
        if reason is not None:
            expected["rejects"][reason] = expected["rejects"].get(reason, 0) + 1
        if note is not None:
            expected["notes"][note] = expected["notes"].get(note, 0) + 1
    for name, pairs in by_type.items():
        _write_type(Path(directory), name, pairs, expected["notes"])
    return expected


def _write_type(directory, name, pairs, notes):
    (directory / "data").mkdir(parents=True, exist_ok=True)
    three, rest = pairs[:3], pairs[3:]
    files = [three, *(rest[i : i + FILE_ROWS] for i in range(0, len(rest), FILE_ROWS))]
    for number, part in enumerate(files):
        columns = [[pair[key] for pair in part] for key in ("input_img", "instruction", "output_img")]
        pictures = [pa.array([{"bytes": data, "path": None} for data in columns[i]], SCHEMA[i].type) for i in (0, 2)]
        texts = pa.array(columns[1], pa.binary()).view(pa.string())  # as it comes, UTF-8 or not
        table = pa.Table.from_arrays([pictures[0], texts, pictures[1], pa.array([name] * len(part))], schema=SCHEMA)
        pq.write_table(table, directory / "data" / f"{name}_{number:05d}.parquet", row_group_size=GROUP_ROWS)
        for note, applies in (("space_in_name", " " in name), ("small_file", len(part) <= 3), ("null_path", True)):
            if applies:
                notes[note] = notes.get(note, 0) + len(part)


# Each changes a raw pair -> (reason to reject it, note about it).


def _truncated(pair, _kept, _example):
    pair["output_img"] = pair["output_img"][: len(pair["output_img"]) // 2]
    return "undecodable", None


def _cmyk(pair, _kept, example):
    pair["output_img"] = encoded(example["target"], mode="CMYK")
    return None, "mode_CMYK"


def _no_op(pair, _kept, _example):
    pair["output_img"] = pair["input_img"]
    return "unchanged", None


def _huge(pair, _kept, _example):
    buffer = io.BytesIO()
    Image.new("1", (9000, 9000)).save(buffer, "PNG")
    pair["input_img"] = buffer.getvalue()
    return "too_large", None


def _bad_utf8(pair, _kept, _example):
    pair["instruction"] = b"make the \xff\xfe red"
    return "bad_utf8", None


def _duplicate(pair, kept, _example):
    pair |= kept[0]
    return "duplicate", None


def _recompressed(pair, kept, _example):
    """The first pair of the type again, saved anew, its instruction in capitals."""
    first = kept[0]
    for name in ("input_img", "output_img"):
        pair[name] = encoded(np.asarray(Image.open(io.BytesIO(first[name]))), quality=80 + len(kept) % 14)
    pair["instruction"] = first["instruction"].upper()
    return "near_duplicate", None


def _other_shape(pair, _kept, example):
    pair["output_img"] = encoded(example["target"], size=(SIZE + 32, SIZE))
    return "aspect_mismatch", None


def _other_size(pair, _kept, example):
    pair["output_img"] = encoded(example["target"], size=(SIZE * 2, SIZE * 2))
    return None, "sizes_differ"


def _silent(pair, _kept, _example):
    pair["instruction"] = b"  "
    return "no_instruction", None


DEFECTS = {
    function.__name__.strip("_"): function
    for function in (
        _truncated, _cmyk, _no_op, _huge, _bad_utf8, _duplicate, _recompressed, _other_shape, _other_size, _silent
    )
}  # fmt: skip
