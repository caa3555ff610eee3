"""The tokenising job: edit pairs -> records of image ids and text ids. The one module of `data` that uses jax.

Each pair is encoded once, and not in every training step.
"""

import json
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from tqdm import tqdm

from editmgt_jax.data.loader import batches
from editmgt_jax.data.records import Field, Schema, write_manifest, write_shard

SHARD = 4096  # examples
JOB = "job.json"  # what the records of a folder are made of


def token_schema(grid: tuple[int, int], text_length: int) -> Schema:
    return Schema(
        (
            Field("source_ids", "uint16", grid),
            Field("target_ids", "uint16", grid),
            Field("text_ids", "int32", (text_length,)),
        )
    )


def tokenize(source, encode_image, encode_text, directory, examples: int, facts: dict, batch_size: int = 32) -> None:
    """Writes the first `examples` of `source` as token records; shards that exist are kept, so it can be restarted.

    Args:
      source: see `loader.batches`; encode_image: float [B Y X 3] in [0, 1] -> ids [B H W]; encode_text: strings -> ids.
      facts: what the manifest says besides (which tokenizer, which data).
    Errors: ValueError when the folder holds, or was begun with, records of other facts.
    """
    directory = Path(directory)
    if examples < 1 or examples % batch_size:
        raise ValueError(f"examples must be a positive multiple of the batch size {batch_size}; got {examples}")
    directory.mkdir(parents=True, exist_ok=True)
    _claim(directory, {"examples": examples} | facts)
    starts = range(0, examples, SHARD)
    shards = [f"tokens-{start // SHARD:05d}-of-{len(starts):05d}.array_record" for start in starts]
    encode = jax.jit(lambda pixels: encode_image(pixels.astype(jnp.float32) / 255))
    schema = None
    with tqdm(total=examples, unit="pair", file=sys.stderr, dynamic_ncols=True, mininterval=5) as bar:
        for start, name in zip(starts, shards, strict=True):
            count = min(SHARD, examples - start)
            if schema is not None and (directory / name).exists():
                bar.update(count)
                continue
            iterator = batches(_Slice(source, start, count), batch_size, encode_text=encode_text)
            rows = []
            for _ in range(count // batch_size):
                batch = next(iterator)
                arrays = {f"{side}_ids": np.asarray(encode(batch[side])) for side in ("source", "target")}
                arrays["text_ids"] = batch["text_ids"]
                rows += [{k: v[i] for k, v in arrays.items()} for i in range(batch_size)]
                bar.update(batch_size)
            schema = schema or token_schema(rows[0]["source_ids"].shape, rows[0]["text_ids"].shape[0])
            write_shard(directory / name, schema, rows)
    write_manifest(directory, schema, shards, examples, facts)


def _claim(directory, job: dict) -> None:
    """Writes what this folder's records are of, or checks it: shards of two jobs must not be mixed."""
    path, text = directory / JOB, json.dumps(job, indent=2, sort_keys=True) + "\n"
    if not path.exists():
        if any(directory.glob("*.array_record")):
            raise ValueError(f"{directory} holds records of an unknown job: name a new folder, or empty it")
        path.write_text(text)
    elif path.read_text() != text:
        raise ValueError(
            f"{directory} was begun as another job (tokenizer, data or number of examples; see {path}): "
            "name a new folder, or delete it"
        )


class _Slice:
    """Examples start ... start + count of a source."""

    def __init__(self, source, start: int, count: int):
        self._source, self._start, self._count = source, start, count

    def __len__(self) -> int:
        return self._count

    def __getitem__(self, index):
        return self._source[self._start + index % self._count]
