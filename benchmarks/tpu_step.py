"""What a step of a run costs on TPUs by the compiler's own static numbers: estimates, without a TPU.

    pip install "jax[tpu]"        # brings libtpu, the compiler
    python benchmarks/tpu_step.py --config configs/stage2_finetune.py --samples 4
    python benchmarks/tpu_step.py --config configs/stage2_finetune.py --samples 4 --config.model.remat=full

The same as `editmgt compile-check --states`, with the batch as samples a device, and more operations by their cost. `--blocks 2 2`
compiles fewer blocks of each kind: the time of a block follows from the difference of two depths.
"""

import argparse
import json
from pathlib import Path

from editmgt_jax.training.compile_job import check
from editmgt_jax.training.compile_report import describe
from editmgt_jax.training.topologies import CHIPS, device_count


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", required=True)
    parser.add_argument("--topology", default="v5e:4x4")
    parser.add_argument("--slices", type=int, default=1)
    parser.add_argument("--program", default="train", help="train, evaluate, tokenize or decode")
    parser.add_argument("--samples", type=int, default=4, help="samples a device (default 4)")
    parser.add_argument("--blocks", type=int, nargs=2, metavar=("DOUBLE", "SINGLE"), help="fewer blocks")
    parser.add_argument("--text-ids", action="store_true", help="steps encode the text with the frozen encoders")
    parser.add_argument("--top", type=int, default=25, help="operations to print (default 25)")
    parser.add_argument("--json", help="write all figures")
    args, overrides = parser.parse_known_args()
    overrides.append(f"--config.batch_size={args.samples * device_count(args.topology) * args.slices}")
    for name, count in zip(("num_layers", "num_single_layers"), args.blocks or (), strict=False):
        overrides.append(f"--config.model.mgt.{name}={count}")
    entry = check(args.config, overrides, args.topology, args.slices, args.program, not args.text_ids)
    print(describe(entry))
    clock = CHIPS[args.topology.partition(":")[0]].clock
    for kind, operation, result, place, cycles in entry.get("top", ())[10 : args.top]:
        print(f"  {cycles / clock * 1e3:8.2f} ms  {kind}: {result[:48]} <- {operation[-70:]} {place}")
    for kind, operation, result, size in entry.get("moved", ())[:10]:
        print(f"  {size / 2**30:8.3f} GiB  {kind}: {result[:48]} <- {operation[-70:]}")
    if args.json:
        Path(args.json).write_text(json.dumps(entry))


if __name__ == "__main__":
    main()
