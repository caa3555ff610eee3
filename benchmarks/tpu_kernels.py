"""What the attention kernels cost by the TPU compiler's own schedule: bundles of instructions times grid steps. No TPU needed.

    pip install "jax[tpu]"        # brings libtpu, the compiler
    python benchmarks/tpu_kernels.py --topology v5e:2x2 --batch 2

An estimate: a bundle is a cycle, and waits for memory are left out. Beside it stands what the matrix unit alone would need.
"""

import argparse
import os
import re
import subprocess
import sys
import tempfile
from pathlib import Path

# Clock in Hz and matrix rate in bfloat16 FLOP/s.
CHIPS = {"v5e": (1.5e9, 197e12), "v5p": (1.75e9, 459e12), "v6e": (1.75e9, 918e12), "v4": (1.05e9, 275e12)}
QUIET = {
    "TPU_SKIP_MDS_QUERY": "1",
    "JAX_PLATFORMS": "cpu",
    "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",
    "TPU_LOG_DIR": "disabled",
}


def compile_one(args) -> None:
    """Compiles attention, or its gradient, for one chip; prints the grid steps and the temporaries."""
    import jax
    import jax.numpy as jnp
    from jax.experimental import topologies
    from jax.sharding import SingleDeviceSharding

    from editmgt_jax.models import attention

    device = topologies.get_topology_desc(platform="tpu", topology_name=args.topology).devices[0]

    def array(*shape, dtype=jnp.bfloat16):
        return jax.ShapeDtypeStruct(shape, dtype, sharding=SingleDeviceSharding(device))

    length, live = args.text + 2 * args.tokens, args.text + args.tokens
    qkv = [array(args.batch, length, args.heads, args.width)] * 3

    def total(q, k, v, strength):
        bias = attention.strength_bias(None if args.no_bias else strength, (live, length - live))
        out = attention.attend(q, k, v, bias, (live, length - live), "pallas_tpu")
        return out if args.forward else out.astype(jnp.float32).sum()

    program = total if args.forward else jax.grad(total, (0, 1, 2))
    compiled = jax.jit(program).lower(*qkv, array(1, dtype=jnp.float32)).compile()
    print("TEMPORARIES", compiled.memory_analysis().temp_size_in_bytes)


def bundles(folder: Path) -> dict:
    """{kernel: (bundles in one grid step, {unit: busy share})} of a dump."""
    found = {}
    for path in sorted(folder.glob("*schedule-analysis_final_bundles.txt")):
        name = re.search(r"fused_attention\w*?(?=[.-])", path.name)
        if name is None:
            continue
        count = int(re.search(r"total scheduled bundles:\s+(\d+)", path.read_text()).group(1))
        busy = {}
        for other in folder.glob(f"{path.name.split('-')[0]}-*{name.group()}*per-bundle-utilization.txt"):
            lines = other.read_text().splitlines()
            units = [unit.strip() for unit in lines[1].split(",")]
            room = [int(value) for value in lines[2].split()]
            used = [[int(value) for value in line.split()] for line in lines[3:] if line[:1].isdigit()]
            busy = {
                unit: sum(row[i] for row in used) / len(used) / room[i] for i, unit in enumerate(units) if len(used)
            }
        found[name.group()] = count, busy
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--topology", default="v5e:2x2")
    for name, default in {"batch": 2, "heads": 8, "width": 128, "text": 256, "tokens": 1024, "tile": 256}.items():
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--forward", action="store_true", help="without the gradient")
    parser.add_argument("--no-bias", action="store_true", help="a reference of strength 1")
    parser.add_argument("--one", action="store_true", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.one:
        compile_one(args)
        return
    with tempfile.TemporaryDirectory() as folder:
        dump = {"LIBTPU_INIT_ARGS": f"--xla_jf_dump_to={folder} --xla_jf_dump_llo_text=true"}
        done = subprocess.run(
            [sys.executable, *sys.argv, "--one"], env=os.environ | QUIET | dump, capture_output=True, text=True
        )
        if "TEMPORARIES" not in done.stdout:
            sys.exit(done.stderr[-4000:])
        clock, rate = CHIPS[args.topology.split(":")[0]]
        length = args.text + 2 * args.tokens
        steps = args.batch * args.heads * -(-length // args.tile)
        print(f"{args.topology}, [{args.batch} {length} {args.heads} {args.width}]; {done.stdout.strip()} bytes")
        for name, (count, busy) in bundles(Path(folder)).items():
            products = 5 if "backward" in name else 2
            flops = 2 * products * args.batch * args.heads * length * length * args.width
            units = " ".join(f"{unit} {share:.0%}" for unit, share in busy.items() if share > 0.02)
            print(
                f"{name}: {count} bundles x {steps} steps = {count * steps / clock * 1e3:.3f} ms; "
                f"ideal {flops / rate * 1e3:.3f} ms; {units}"
            )


if __name__ == "__main__":
    main()
