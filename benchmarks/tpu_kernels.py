"""What the attention kernels cost by the TPU compiler's own schedule: bundles of instructions times grid steps. No TPU needed.

    pip install "jax[tpu]"        # brings libtpu, the compiler
    python benchmarks/tpu_kernels.py --topology v5e:2x2 --batch 2

An estimate: a bundle is a cycle, and waits for memory are left out. Beside it stands what the matrix unit alone would need. What
runs once a head (moving and preparing its keys) counts so.
"""

import argparse
import os
import subprocess
import sys
import tempfile
from pathlib import Path

from editmgt_jax.training.compile_job import ENVIRONMENT, dump_environment
from editmgt_jax.training.kernel_cost import Shape, compile_kernels, schedules
from editmgt_jax.training.topologies import Chip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--topology", default="v5e:2x2")
    for name, default in {"batch": 2, "heads": 8, "width": 128, "text": 256, "tokens": 1024}.items():
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--forward", action="store_true", help="without the gradient")
    parser.add_argument("--no-bias", action="store_true", help="a reference of strength 1")
    parser.add_argument("--bare", action="store_true", help="without norm and rotation inside")
    parser.add_argument("--one", action="store_true", help=argparse.SUPPRESS)
    args = parser.parse_args()
    shape = Shape(args.batch, args.heads, args.width, args.text, args.tokens, args.tokens, not args.no_bias)
    if args.one:
        print("TEMPORARIES", compile_kernels(args.topology, shape, not args.bare, not args.forward))
        return
    with tempfile.TemporaryDirectory() as folder:
        environment = os.environ | ENVIRONMENT | dump_environment(folder)
        done = subprocess.run([sys.executable, *sys.argv, "--one"], env=environment, capture_output=True, text=True)
        if "TEMPORARIES" not in done.stdout:
            sys.exit(done.stderr[-4000:])
        chip = Chip.of(args.topology)
        print(f"{args.topology}, {shape}; {done.stdout.strip()} bytes")
        for name, schedule in schedules(Path(folder), shape).items():
            products = 5 if "backward" in name else 2
            flops = 2 * products * shape.batch * shape.heads * shape.length**2 * shape.width
            units = " ".join(f"{unit} {share:.0%}" for unit, share in schedule.busy.items() if share > 0.02)
            steps = shape.steps(name)
            print(
                f"{name}: {schedule.bundles:.0f} bundles x {steps} steps = "
                f"{schedule.bundles * steps / chip.clock * 1e3:.3f} ms; ideal {flops / chip.rate * 1e3:.3f} ms; {units}"
            )


if __name__ == "__main__":
    main()
