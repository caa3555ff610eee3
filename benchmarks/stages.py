"""What a stage needs: its train state spread over a pod, by shapes alone, and its time by its FLOPs. Nothing is computed.

    python benchmarks/stages.py                                             all three stages on 16, 64 and 256 devices
    python benchmarks/stages.py --config configs/stage2_finetune.py --devices 64 --mfu 0.5

mesh        that of the config
hours       3 x the forward FLOPs of every sample / (devices x their peak x --mfu)
"""

import argparse
import dataclasses
import json
import math
import os
import subprocess
import sys
from pathlib import Path

STAGES = ("stage1_adapt", "stage2_finetune", "stage3_refine")
CHIPS = ("TPU v5e", "TPU v5p", "TPU v6e")
TEXT_TOKENS = 256


def describe(config_path, devices: int, mfu: float) -> dict:
    """In a process with as many fake devices."""
    import jax

    from editmgt_jax.models.flops import forward_flops
    from editmgt_jax.models.mgt import MGT, init_mgt
    from editmgt_jax.training.config_files import load_config
    from editmgt_jax.training.metrics import PEAK_FLOPS
    from editmgt_jax.training.optimizer import make_optimizer
    from editmgt_jax.training.sharding import MGT_RULES, Layout, make_mesh, replicated_share
    from editmgt_jax.training.state import new_state

    config = load_config(config_path)
    architecture = config.model.mgt
    mgt, optimizer = MGT(architecture), make_optimizer(config.optimizer)
    average = config.optimizer.ema_decay > 0
    state = jax.eval_shape(lambda: new_state({"mgt": init_mgt(mgt, jax.random.key(0))}, optimizer, average))
    layout = Layout(make_mesh(dataclasses.asdict(config.mesh)), MGT_RULES)
    layout.check_batch(config.batch_size, config.accumulate)
    leaves = list(zip(jax.tree.leaves(state), jax.tree.leaves(layout.of(state)), strict=True))
    on_each = sum(math.prod(sharding.shard_shape(leaf.shape)) * leaf.dtype.itemsize for leaf, sharding in leaves)
    side = config.data.size // 16
    flops = 3 * forward_flops(architecture, (side, side), TEXT_TOKENS, config.model.reference)
    total = flops * config.batch_size * config.steps
    return {
        "config": Path(config_path).name,
        "devices": devices,
        "mesh": dict(layout.mesh.shape),
        "parameters": sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(state.params)),
        "state_gib": round(sum(math.prod(leaf.shape) * leaf.dtype.itemsize for leaf, _ in leaves) / 2**30, 3),
        "state_gib_per_device": round(on_each / 2**30, 4),
        "replicated_share": replicated_share(state, layout.of(state)),
        "whole_leaves": sum(sharding.is_fully_replicated and leaf.ndim > 0 for leaf, sharding in leaves),
        "tflop_per_sample": round(flops / 1e12, 2),
        "hours": {chip: round(total / (devices * PEAK_FLOPS[chip] * mfu) / 3600, 2) for chip in CHIPS},
    }


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", nargs="+", help="config files (default: the three stages)")
    parser.add_argument("--devices", type=int, nargs="+", default=[16, 64, 256])
    parser.add_argument("--mfu", type=float, default=0.4, help="share of the peak that is reached (default 0.4)")
    parser.add_argument("--here", action="store_true", help=argparse.SUPPRESS)  # the process has its devices
    args = parser.parse_args()
    folder = Path(__file__).parents[1] / "configs"
    configs = args.config or [str(folder / f"{stage}.py") for stage in STAGES]
    if args.here:
        print(json.dumps([describe(config, args.devices[0], args.mfu) for config in configs]))
        return
    for devices in args.devices:
        own = {"JAX_PLATFORMS": "cpu", "XLA_FLAGS": f"--xla_force_host_platform_device_count={devices}"}
        command = [sys.executable, __file__, "--here", "--devices", str(devices), "--config", *configs]
        command += ["--mfu", str(args.mfu)]
        done = subprocess.run(command, env=os.environ | own, check=True, stdout=subprocess.PIPE, text=True)
        for report in json.loads(done.stdout):
            print(json.dumps(report))


if __name__ == "__main__":
    main()
