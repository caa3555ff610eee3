"""Examples a second that the loader reads from token records, beside a plain PyTorch DataLoader over the same files.

    python benchmarks/loader.py                          random records of 1024 px: 4096 + 4096 ids
    python benchmarks/loader.py --examples 4000 --workers 0 2

Rates are of one run on one machine: what counts is their ratio. PyTorch is left out where it is not installed.
"""

import argparse
import json
import tempfile
import time
from pathlib import Path

import numpy as np

from editmgt_jax.data.loader import Mixture, token_batches
from editmgt_jax.data.records import MANIFEST, TOKENS, VERSION, Field, Schema, TokenSet, write_shard
from editmgt_jax.files import write_json

FIELDS = (
    Field("source_ids", "uint16", (64, 64)),
    Field("target_ids", "uint16", (64, 64)),
    Field("micro", "float32", (5,)),
    Field("text_ids", "int32", (77,)),
    Field("llm_ids", "int32", (256,)),
)
SHARD = 2000


def write_records(directory, examples) -> None:
    """Random records of 1024 px pairs."""
    dice, schema, shards = np.random.default_rng(0), Schema(FIELDS), []
    for first in range(0, examples, SHARD):
        count = min(SHARD, examples - first)
        rows = ({f.name: dice.integers(0, 8192, f.shape).astype(f.dtype) for f in FIELDS} for _ in range(count))
        shards.append({"file": f"1024x1024-{first // SHARD:05d}.array_record", "records": count})
        write_shard(directory / shards[-1]["file"], schema, rows)
    bucket = {"fields": schema.to_json(), "shards": shards}
    np.save(directory / "1024x1024.categories.npy", np.zeros(examples, np.uint16))
    manifest = {"version": VERSION, "kind": TOKENS, "examples": examples, "categories": ["edit"]}
    write_json(directory / MANIFEST, manifest | {"buckets": {"1024x1024": bucket}, "left_out": {"count": 0}})


def rate(iterator, batch_size, seconds) -> float:
    """Examples a second, after a few batches that do not count."""
    for _ in range(3):
        next(iterator)
    started, count = time.perf_counter(), 0
    while time.perf_counter() - started < seconds:
        next(iterator)
        count += batch_size
    return count / (time.perf_counter() - started)


def torch_batches(directory, batch_size, workers):
    """The same records through torch's DataLoader: a map-style dataset, shuffled, its default collation."""
    import torch.utils.data

    class Records(torch.utils.data.Dataset):
        def __init__(self):
            (self.bucket,) = TokenSet(directory).buckets.values()

        def __len__(self):
            return len(self.bucket)

        def __getitem__(self, index):
            record = self.bucket[index]
            return {
                name: value.astype(np.int32) if value.dtype == np.uint16 else value for name, value in record.items()
            }

    loader = torch.utils.data.DataLoader(Records(), batch_size, shuffle=True, num_workers=workers, drop_last=True)
    while True:
        yield from loader


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--examples", type=int, default=20_000)
    parser.add_argument("--batch-size", type=int, default=64)
    parser.add_argument("--workers", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--seconds", type=float, default=5.0, help="of each measurement")
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args()
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        write_records(Path(folder), args.examples)
        mixture = Mixture(((folder, 1.0),))
        for workers in args.workers:
            ours = rate(token_batches(mixture, args.batch_size, seed=0, workers=workers), args.batch_size, args.seconds)
            row = {"workers": workers, "examples_per_s": round(ours)}
            try:
                theirs = rate(torch_batches(folder, args.batch_size, workers), args.batch_size, args.seconds)
                row |= {"torch_examples_per_s": round(theirs), "ratio": round(ours / theirs, 2)}
            except ModuleNotFoundError:
                row |= {"torch_examples_per_s": None, "ratio": None}
            rows.append(row)
    if args.json:
        print(json.dumps(rows))
        return
    print("".join(f"{name:>24}" for name in rows[0]))
    for row in rows:
        print("".join(f"{value!s:>24}" for value in row.values()))


if __name__ == "__main__":
    main()
