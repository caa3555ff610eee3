"""Gives damaged files to everything that reads them; whatever is not an error for users is a defect.

    pip install hypothesis
    python tests/campaigns/fuzz.py --examples 2000

Files of pictures, weights, adapters, configs, tokenizers, records and raw pairs are made whole, and then changed: bytes, lengths, JSON
values, types of columns. Prints a line a target, and of each defect the smallest input that hypothesis came upon.
"""

import argparse
import os
import shutil
import sys
import tempfile
import traceback
import warnings
from pathlib import Path

os.environ.setdefault("JAX_PLATFORMS", "cpu")
sys.path[:0] = [str(Path(__file__).parents[1]), str(Path(__file__).parents[2])]

from campaigns.fuzz_targets import Target, targets  # noqa: E402
from hypothesis import HealthCheck, Phase, given, seed, settings  # noqa: E402

import editmgt_jax  # noqa: E402
from editmgt_jax.data.prepare.examine import Rejected  # noqa: E402
from editmgt_jax.errors import EditMGTError  # noqa: E402

RIGHT = (EditMGTError, Rejected, FileNotFoundError, FileExistsError)  # what damaged files may raise
OWN = os.path.dirname(editmgt_jax.__file__)


def tried(target: Target, examples: int, number: int) -> tuple[int, dict[str, tuple[bytes, str]]]:
    """-> (inputs that were read, {defect: (its smallest input, traceback)})"""
    defects, count = {}, 0

    @seed(number)
    @settings(
        max_examples=max(1, int(examples * target.share)),
        deadline=None,
        database=None,
        phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )
    @given(target.strategy)
    def one(data):
        nonlocal count
        count += 1
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                target.read(data)
        except RIGHT:
            return
        except Exception as error:  # noqa: BLE001  (these are what is looked for)
            frames = [frame for frame in traceback.extract_tb(error.__traceback__) if frame.filename.startswith(OWN)]
            where = f"{os.path.relpath(frames[-1].filename, OWN)}:{frames[-1].lineno}" if frames else "?"
            name = f"{type(error).__name__} at {where}: {str(error)[:150]!r}"
            key = f"{type(error).__name__} at {where}"
            size = len(data)
            if key not in defects or size < len(defects[key][0]):
                defects[key] = (data, name)

    one()
    return count, defects


def main() -> None:
    """Runs the campaign. Errors: SystemExit with code 1 when there is a defect."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--examples", type=int, default=2000, help="of each target")
    parser.add_argument("--targets", nargs="+", help="names of targets (default: all)")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    home, total, inputs = Path(tempfile.mkdtemp()), 0, 0
    try:
        known = targets(home)
        chosen = args.targets or list(known)
        if unknown := set(chosen) - set(known):
            parser.error(f"--targets must be of {', '.join(known)}; got {', '.join(sorted(unknown))}")
        for name in chosen:
            count, defects = tried(known[name], args.examples, args.seed)
            print(f"{name}: {count} inputs, {len(defects)} defects", flush=True)
            for data, said in defects.values():
                print(f"  {said}\n    input {data[:300]!r}", flush=True)
            total, inputs = total + len(defects), inputs + count
    finally:
        shutil.rmtree(home, ignore_errors=True)
    print(f"{inputs} inputs, {total} defects")
    raise SystemExit(bool(total))


if __name__ == "__main__":
    main()
