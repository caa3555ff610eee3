"""Time of scoring sets of blocks from records of random attention.

python benchmarks/ablation.py
python benchmarks/ablation.py --blocks 42 --side 32 --token-side 64 --sets 500 --examples 50
"""

import argparse
import resource
import tempfile
import time
from pathlib import Path

import numpy as np

from editmgt_jax.ablation.choices import View
from editmgt_jax.ablation.records import Manifest, Records
from editmgt_jax.ablation.scoring import Scorer
from editmgt_jax.ablation.sets import of_blocks


def random_records(folder: Path, args: argparse.Namespace) -> Records:
    """Attention of noise, and truths of one square."""
    dice = np.random.default_rng(0)
    manifest = Manifest(
        model="random", fingerprint="0" * 16, examples=args.examples, seeds=(0,), moments=("step 0",),
        signals=("text_to_image",), heads=("mean",), groups=("all",), num_blocks=args.blocks, grid=(args.side,) * 2,
        token_grid=(args.token_side,) * 2, size=4 * args.token_side, layers=(0,), signal="text_to_image", chunk=16, dtype="float16", truth="mask",
    )  # fmt: skip
    records = Records(folder, manifest, create=True)
    for chunk in range(manifest.num_chunks):
        rows = manifest.examples_of(chunk)
        truth = np.zeros((len(rows), args.token_side, args.token_side), bool)
        for one in truth:
            top, left = dice.integers(0, args.token_side * 2 // 3, 2)
            one[top : top + args.token_side // 3, left : left + args.token_side // 3] = True
        records.write(chunk, dice.random((len(rows), *manifest.shape[1:]), np.float32), truth, [{}] * len(rows))
    manifest.write(folder)
    return records


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--blocks", type=int, default=8)
    parser.add_argument("--side", type=int, default=16, help="of the attention's grid")
    parser.add_argument("--token-side", type=int, default=32, help="of the ids' grid")
    parser.add_argument("--sets", type=int, default=10_000)
    parser.add_argument("--examples", type=int, default=200)
    parser.add_argument("--part", type=int, default=256, help="sets that are scored together")
    parser.add_argument("--filter", default="adaptive")
    args = parser.parse_args()
    dice = np.random.default_rng(0)
    sets = [
        of_blocks(np.flatnonzero(np.append(dice.random(args.blocks - 1) < 0.5, True)).tolist(), args.blocks)
        for _ in range(args.sets)
    ]
    with tempfile.TemporaryDirectory() as folder:
        records = random_records(Path(folder) / "records", args)
        scorer = Scorer(records, View("text_to_image", "all", "step 0", "mean", args.filter, "bicubic"))
        scorer.score(sets[: args.part], ("selected",))  # compiles
        started, worked = time.perf_counter(), time.process_time()
        for start in range(0, args.sets, args.part):
            some = sets[start : start + args.part]
            some += some[-1:] * (args.part - len(some))
            scorer.score(some, ("selected",))
        elapsed, worked = time.perf_counter() - started, time.process_time() - worked
    maps = args.sets * args.examples
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    print(f"{args.sets} sets x {args.examples} examples, {args.blocks} blocks x {args.side**2} positions, {args.filter}: "
          f"{elapsed:.1f} s ({worked:.1f} s of CPU time), {maps / elapsed:.0f} maps a second; peak memory {peak:.2f} GiB")  # fmt: skip


if __name__ == "__main__":
    main()
