"""The tokenizing job: edit pairs -> records of image ids, text ids and what else a training step needs. The one module of
`data` that uses jax.

Each pair is encoded once, and not in every training step. The job is cut into shards; each process takes its share of them,
and a shard that exists is not made again.

Axes    as in `editmgt_jax.config`; Y X pixels
"""

import concurrent.futures
import dataclasses
import io
import itertools
import sys
import time
from collections.abc import Callable
from pathlib import Path

import grain
import jax
import numpy as np
from PIL import Image
from tqdm import tqdm

from editmgt_jax.batching import in_batches
from editmgt_jax.config import micro_conditions
from editmgt_jax.data.records import (
    MANIFEST,
    TOKENS,
    VERSION,
    Field,
    Schema,
    categories_name,
    write_shard,
)
from editmgt_jax.errors import UserError
from editmgt_jax.files import claim, read_json, write_json

SHARD = 4096  # examples
REPORTS = "reports"  # the folder with what was written of each shard


@dataclasses.dataclass(frozen=True)
class Encoders:
    """What turns pairs into tokens.

    image: uint8 [B Y X 3] -> int32 [B H W], on the device; text: strings -> {name: int32 [B T]}, on the host;
    states: {name: ids} -> {name: arrays, batch first}, on the device, or None to store no text states.
    Errors of `text`: UserError for an instruction that does not fit; that pair is left out and counted.
    """

    image: Callable
    text: Callable
    states: Callable | None = None


@dataclasses.dataclass(frozen=True)
class Shard:
    bucket: str
    number: int
    first: int  # example of the bucket's source
    count: int

    @property
    def name(self) -> str:
        """Name of its file, without the ending."""
        return f"{self.bucket}-{self.number:05d}"


def tokenize(
    sources: dict,
    encoders: Encoders,
    directory: str | Path,
    facts: dict,
    batch_size: int = 32,
    threads: int = 4,
    process: tuple[int, int] = (0, 1),
    wait_for_all: Callable = lambda: None,
) -> dict:
    """Writes the pairs of some sources as token records.

    Args:
      sources: {bucket: random access to pairs}; a pair has 'source' and 'target', pictures of the bucket's size as uint8
        [Y X 3] or bytes of a file, 'instruction', 'category', and may have 'original_size' and 'crop'.
      facts: further entries of the manifest: the encoders, the data.
      process: (number, count); the first one writes the manifest when `wait_for_all` returns.
    Returns: {"images", "seconds", "waited": share of the time that the device had no batch to work on, "left_out"} of this
      process.
    Errors: UserError when the folder holds, or was begun with, records of other facts, or when no pair can be used.
    """
    directory = Path(directory)
    sizes = {bucket: len(source) for bucket, source in sources.items()}
    claim(directory, {"sizes": sizes} | facts, beside=["tokenizer"])
    (directory / REPORTS).mkdir(exist_ok=True)
    shards = [
        Shard(bucket, number, first, min(SHARD, size - first))
        for bucket, size in sizes.items()
        for number, first in enumerate(range(0, size, SHARD))
    ]
    mine = shards[process[0] :: process[1]]
    clock = _Clock()
    with tqdm(total=sum(shard.count for shard in mine), unit="pair", file=sys.stderr, mininterval=5) as bar:
        for shard in mine:
            if not _is_done(directory, shard):
                _write(shard, sources[shard.bucket], encoders, directory, batch_size, threads, clock, bar)
            else:
                bar.update(shard.count)
    wait_for_all()
    if process[0] == 0:
        _finish(directory, shards, facts)
    left_out = [pair for shard in mine for pair in _report(directory, shard)["left_out"]]
    return clock.report() | {"left_out": len(left_out)}


def _write(shard, source, encoders, directory, batch_size, threads, clock, bar) -> None:
    """One shard, pair by pair, then its report, which marks it as complete."""
    categories, left_out = [], []

    def usable():
        for key, record, category, problem in _records(shard, source, encoders, batch_size, threads, clock):
            bar.update()
            if problem:
                left_out.append([key, problem])
            else:
                categories.append(category)
                yield record

    records, fields = usable(), None
    first = next(records, None)
    if first is not None:
        schema = _schema(first)
        write_shard(_records_path(directory, shard), schema, itertools.chain([first], records))
        fields = schema.to_json()
    names = sorted(set(categories))
    report = {"records": len(categories), "left_out": left_out, "categories": names, "fields": fields}
    write_json(_report_path(directory, shard), report | {"category": [names.index(name) for name in categories]})


def _records(shard, source, encoders, batch_size, threads, clock):
    """(key, record {name: array}, category, why it cannot be used or "") of each pair."""
    with concurrent.futures.ThreadPoolExecutor(1) as pool:
        pending = None  # a batch that the device works on while the next one is read
        for batch in _batches(shard, source, encoders, batch_size, threads):
            ids = encoders.image(batch["pixels"])
            states = {} if encoders.states is None else encoders.states(batch["text"])
            clock.dispatched()
            done = pool.submit(clock.wait, (ids, states))
            if pending is not None:
                yield from _encoded(*pending, clock)
            pending = (batch, ids, states, done)
        yield from _encoded(*pending, clock)


def _encoded(batch, ids, states, done, clock):
    """The records of a batch, once the device is done with it."""
    done.result()
    half = len(batch["pixels"]) // 2
    ids = np.asarray(ids).astype(np.uint16)
    others = batch["text"] | {name: np.asarray(value) for name, value in states.items()}
    clock.images += 2 * batch["count"]
    for i in range(batch["count"]):
        record = {"source_ids": ids[i], "target_ids": ids[half + i], "micro": batch["micro"][i]}
        record |= {name: value[i] for name, value in others.items()}
        yield batch["keys"][i], record, batch["categories"][i], batch["problems"][i]


def _batches(shard, source, encoders, batch_size, threads):
    """Batches of a shard's pairs, read ahead; the last one is filled up with its last pair."""

    def load(index):
        pair = source[shard.first + index]
        pixels = [_pixels(pair[side]) for side in ("source", "target")]
        height, width = pixels[0].shape[:2]
        size, crop = pair.get("original_size", (width, height)), pair.get("crop", (0, 0))
        try:
            text, problem = {name: ids[0] for name, ids in encoders.text([pair["instruction"]]).items()}, ""
        except UserError as error:
            text, problem = {name: ids[0] for name, ids in encoders.text([""]).items()}, str(error)
        return {
            "pixels": pixels,
            "text": text,
            "micro": np.array(micro_conditions(*size, top=crop[1], left=crop[0]), np.float32),
            "category": pair["category"],
            "key": str(pair.get("key", shard.first + index)),
            "problem": problem,
        }

    dataset = grain.MapDataset.range(shard.count).map(load)
    loaded = iter(dataset.to_iter_dataset(grain.ReadOptions(num_threads=threads, prefetch_buffer_size=2 * batch_size)))
    for pairs, count in in_batches(loaded, batch_size):
        yield {
            "count": count,
            "pixels": np.stack([pair["pixels"][side] for side in (0, 1) for pair in pairs]),
            "text": {name: np.stack([pair["text"][name] for pair in pairs]) for name in pairs[0]["text"]},
            "micro": np.stack([pair["micro"] for pair in pairs]),
            "categories": [pair["category"] for pair in pairs],
            "keys": [pair["key"] for pair in pairs],
            "problems": [pair["problem"] for pair in pairs],
        }


def _pixels(picture) -> np.ndarray:
    if isinstance(picture, bytes):
        picture = Image.open(io.BytesIO(picture)).convert("RGB")
    return np.asarray(picture, np.uint8)


def _schema(record) -> Schema:
    return Schema(tuple(Field(name, value.dtype.name, value.shape) for name, value in record.items()))


class _Clock:
    """How long the device had nothing to do between two batches, because the next one was not there yet."""

    def __init__(self):
        self.images, self._idle, self._started, self._free = 0, 0.0, time.perf_counter(), None

    def dispatched(self) -> None:
        now = time.perf_counter()
        if self._free is not None:
            self._idle += max(0.0, now - self._free)
        self._free = None

    def wait(self, arrays) -> None:
        jax.block_until_ready(arrays)
        self._free = time.perf_counter()

    def report(self) -> dict:
        seconds = time.perf_counter() - self._started
        return {"images": self.images, "seconds": seconds, "waited": self._idle / seconds if self.images else 0.0}


def _report_path(directory, shard) -> Path:
    return directory / REPORTS / f"{shard.name}.json"


def _is_done(directory, shard) -> bool:
    if not _report_path(directory, shard).is_file():
        return False
    return not _report(directory, shard)["records"] or _records_path(directory, shard).is_file()


def _report(directory, shard) -> dict:
    return read_json(_report_path(directory, shard), dict)


def _records_path(directory, shard) -> Path:
    return directory / f"{shard.name}.array_record"


def _finish(directory, shards, facts) -> None:
    """The manifest, and for each bucket the category of each of its records."""
    reports = [_report(directory, shard) for shard in shards]
    names = sorted({name for report in reports for name in report["categories"]})
    buckets, left_out = {}, []
    categories = {}
    for shard, report in zip(shards, reports, strict=True):
        left_out += report["left_out"]
        if not report["records"]:
            continue
        bucket = buckets.setdefault(shard.bucket, {"fields": report["fields"], "shards": []})
        bucket["shards"].append({"file": _records_path(directory, shard).name, "records": report["records"]})
        own = [names.index(report["categories"][i]) for i in report["category"]]
        categories.setdefault(shard.bucket, []).extend(own)
    if not buckets:
        raise UserError(f"no pair of {sum(shard.count for shard in shards)} can be used, such as {left_out[:3]}")
    for bucket, numbers in categories.items():
        np.save(directory / categories_name(bucket), np.array(numbers, np.uint16))
    examples = sum(report["records"] for report in reports)
    manifest = {"version": VERSION, "kind": TOKENS, "examples": examples, "categories": names, "buckets": buckets}
    left = {"count": len(left_out), "examples": left_out[:20]}
    write_json(directory / MANIFEST, manifest | {"left_out": left} | facts)
