"""Host memory that loading a model takes, next to the size of its weights.

    editmgt make-random --preset editmgt-1024 --out /tmp/full
    python benchmarks/loading.py /tmp/full

Linux: the peak is the kernel's own record of the process, what it took before loading included.
"""

import argparse
import json
from pathlib import Path

import jax

from editmgt_jax.weights.loading import load_model


def resident(field: str) -> int:
    """VmRSS (now) or VmHWM (at most so far) in bytes."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(field):
            return int(line.split()[1]) * 1024
    raise OSError(f"/proc/self/status has no {field}")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", help="model directory")
    parser.add_argument("--dtype", help="as of `editmgt edit`")
    args = parser.parse_args()

    jax.block_until_ready(jax.device_put(0.0))  # the runtime itself
    before = resident("VmRSS")
    model = load_model(args.model, args.dtype)
    params = (model.mgt_params, model.vq_params, model.text.params)
    weights = sum(leaf.nbytes for leaf in jax.tree.leaves(jax.block_until_ready(params)))
    peak = resident("VmHWM")
    report = {
        "weights_gb": round(weights / 1e9, 3),
        "before_gb": round(before / 1e9, 3),
        "peak_gb": round(peak / 1e9, 3),
        "ratio": round(peak / weights, 3),
        "ratio_without_before": round((peak - before) / weights, 3),
    }
    print(json.dumps(report))


if __name__ == "__main__":
    main()
