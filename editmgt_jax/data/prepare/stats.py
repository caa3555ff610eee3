"""Contents of a folder of prepared pairs or of token records: counts, histograms, and a picture of samples."""

import io
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageOps

from editmgt_jax import images
from editmgt_jax.data.records import PAIRS, PairSource, TokenSet, read_manifest

SAMPLES = 12  # pairs in the picture
SIDE = 192  # of its pictures, pixels
COLUMNS = 3
LETTERS = 30  # of a caption, a line
READ = 2000  # records at most that lengths of instructions are counted over


def collect(directory: str | Path) -> dict:
    """{"kind", "examples", "categories", "buckets", "instruction_tokens" or "instruction_characters", ...}"""
    manifest = read_manifest(directory)
    if manifest["kind"] == PAIRS:
        names = ("source", "categories", "buckets", "rejects", "notes")
        rejected = sum(entry["count"] for entry in manifest["rejects"].values())
        report = {"kind": PAIRS, "examples": manifest["kept"], "raw_pairs": manifest["kept"] + rejected}
        report |= {name: manifest[name] for name in names}
        for part in ("rejects", "notes"):
            report[part] = {name: entry["count"] for name, entry in manifest[part].items()}
        pairs = PairSource(directory)
        lengths = [len(pairs[i]["instruction"]) for i in _spread(len(pairs), READ)]
        return report | {"instruction_characters": _quantiles(lengths)}
    tokens = TokenSet(directory)
    counts, lengths = Counter(), []
    for bucket in tokens.buckets.values():
        counts.update(tokens.categories[i] for i in bucket.categories().tolist())
        text = [field.name for field in bucket.schema.fields if field.dtype == "int32"][
            -1
        ]  # the transformer attends to
        for index in _spread(len(bucket), READ):
            lengths.append(_length(bucket[index][text]))
    return {
        "kind": manifest["kind"],
        "examples": manifest["examples"],
        "left_out": manifest["left_out"]["count"],
        "categories": dict(sorted(counts.items())),
        "buckets": {name: len(bucket) for name, bucket in tokens.buckets.items()},
        "fields": {f.name: f"{f.dtype} {list(f.shape)}" for f in next(iter(tokens.buckets.values())).schema.fields},
        "instruction_tokens": _quantiles(lengths),
    }


def describe(report: dict) -> str:
    """The report of `collect` as text."""
    lines = []
    for name, value in report.items():
        if isinstance(value, dict):
            lines.append(f"{name}")
            lines += [f"  {key:<24}{f'{n:,}' if isinstance(n, int) else n:>14}" for key, n in value.items()]
        else:
            lines.append(f"{name:<26}{f'{value:,}' if isinstance(value, int) else value:>14}")
    return "\n".join(lines)


def grid(directory: str | Path, paint: Callable[[np.ndarray], np.ndarray] | None = None) -> Image.Image:
    """Sample pairs, source beside target, with category and instruction.

    Args:
      paint: for token records, a function of ids [B H W] that gives pixels [B Y X 3] in [0, 1].
    """
    manifest = read_manifest(directory)
    samples = _pairs(directory) if manifest["kind"] == PAIRS else _painted(directory, paint)
    cells = []
    for source, target, caption in samples:
        cell = Image.new("RGB", (2 * SIDE + 4, SIDE + 30), "white")
        for x, picture in ((0, source), (SIDE + 4, target)):
            cell.paste(ImageOps.contain(picture, (SIDE, SIDE)), (x, 0))
        ImageDraw.Draw(cell).text((2, SIDE + 2), _wrapped(caption), fill="black")
        cells.append(cell)
    rows = -(-len(cells) // COLUMNS)
    width, height = cells[0].width + 12, cells[0].height + 8
    sheet = Image.new("RGB", (COLUMNS * width, rows * height), "white")
    for number, cell in enumerate(cells):
        sheet.paste(cell, (number % COLUMNS * width, number // COLUMNS * height))
    return sheet


def _pairs(directory):
    pairs = PairSource(directory)
    for index in _spread(len(pairs), SAMPLES):
        pair = pairs[index]
        pictures = (Image.open(io.BytesIO(pair[side])).convert("RGB") for side in ("source", "target"))
        yield *pictures, f"{pair['category']}: {pair['instruction']}"


def _painted(directory, paint):
    tokens = TokenSet(directory)
    each = max(1, SAMPLES // len(tokens.buckets))
    for name, bucket in tokens.buckets.items():
        categories = bucket.categories()
        for index in _spread(len(bucket), each):
            record = bucket[index]
            pixels = np.asarray(paint(np.stack([record["source_ids"], record["target_ids"]]).astype(np.int32)))
            source, target = (images.to_image(picture) for picture in pixels)
            yield source, target, f"{tokens.categories[categories[index]]} {name}"


def _spread(count, most) -> list[int]:
    """At most `most` numbers below `count`, evenly spaced."""
    return np.unique(np.linspace(0, count - 1, min(count, most)).astype(int)).tolist()


def _length(ids) -> int:
    """Tokens of an instruction without padding: one id, repeated at either end."""
    changes = np.flatnonzero(np.diff(ids))
    if not len(changes):
        return 1
    after, before = len(ids) - 1 - changes[-1], changes[0] + 1
    return int(len(ids) - (max(after, before) - 1))


def _quantiles(values) -> dict:
    values = np.array(values)
    shares = {"least": 0, "5 %": 5, "median": 50, "95 %": 95, "most": 100}
    return {name: int(np.percentile(values, share, method="nearest")) for name, share in shares.items()}


def _wrapped(text) -> str:
    words, lines = text.split(), [""]
    for word in words:
        if len(lines[-1]) + len(word) + 1 > 2 * LETTERS and lines[-1]:
            lines.append("")
        lines[-1] = f"{lines[-1]} {word}".strip()
    return "\n".join(lines[:2])
