"""How near a forward pass of the transformer comes to what this machine's matrix products reach, and to PyTorch's time.

    python benchmarks/forward.py                      the full-size editor at 1024 px, in float32, on random weights
    python benchmarks/forward.py --size 256 --blocks 2 2
    taskset -c 0 python benchmarks/forward.py         on one core: threads that wait for each other do not count

achieved    operations of the pass (`editmgt_jax.models.flops`) / its time, with what a decode computes only once
attainable  the best rate that plain products of several sizes keep up, measured before and after in the same process
torch       the same pass with the same weights on the blocks of diffusers (`torch_mgt.py`), in turns with ours; left out
            where the extra `parity` is not installed, off the CPU, and in other dtypes than float32
"""

import argparse
import importlib.util
import json
import os
import time

import jax
import jax.numpy as jnp
import numpy as np

from editmgt_jax.config import MGTConfig, micro_conditions
from editmgt_jax.models.flops import forward_flops
from editmgt_jax.models.mgt import MGT
from editmgt_jax.weights.components import abstract_params
from editmgt_jax.weights.conversion import to_released

PRODUCTS = ((2304, 1024, 4096), (2304, 4096, 1024), (2048, 2048, 2048), (4096, 4096, 4096))
SPELL = 2.0  # seconds


def seconds(function, *arguments, repeats: int, last_for: float = 0.0) -> float:
    """The shortest of a few spells, after one run that does not count. A spell is runs back to back for at least
    `last_for` seconds, so that what is compared with a pass of many seconds is a rate that holds as long."""
    jax.block_until_ready(function(*arguments))
    times = []
    for _ in range(repeats):
        start, runs = time.perf_counter(), 0
        while runs == 0 or time.perf_counter() - start < last_for:
            jax.block_until_ready(function(*arguments))
            runs += 1
        times.append((time.perf_counter() - start) / runs)
    return min(times)


def matmul_rate(dtype) -> float:
    """Operations a second of the fastest of PRODUCTS, each kept up for SPELL seconds."""
    product = jax.jit(jnp.matmul)
    rates = []
    for rows, inner, columns in PRODUCTS:
        a, b = jnp.ones((rows, inner), dtype), jnp.ones((inner, columns), dtype)
        rates.append(2 * rows * inner * columns / seconds(product, a, b, repeats=2, last_for=SPELL))
    return max(rates)


def random_params(model):
    dice = np.random.default_rng(0)

    def draw(leaf):
        value = dice.standard_normal(leaf.shape, np.float32)
        value *= leaf.shape[-2] ** -0.5 if leaf.ndim > 1 else 1.0
        return jax.device_put(value)

    return jax.tree.map(draw, abstract_params(model))


def torch_pass(config: MGTConfig, params: dict, inputs: tuple, threads: int):
    """A function that makes PyTorch's logits [B H W K] of the same inputs with the same weights."""
    import torch
    from torch_mgt import TorchMGT

    torch.set_num_threads(threads)
    with torch.device("meta"):
        model = TorchMGT(config)
    weights = {name: torch.from_numpy(np.array(value)) for name, value in to_released(params, config).items()}
    model.load_state_dict(weights, assign=True)
    ids, time, text, pooled, micro = (torch.from_numpy(np.array(value)) for value in inputs)

    @torch.inference_mode()
    def forward():
        return model(ids, time, text, pooled, micro, reference=ids).movedim(1, -1).numpy()

    return forward


def in_turns(functions: list, repeats: int) -> list[float]:
    """The shortest time of each function in seconds, of one run to compile and `repeats` more."""
    return [min(times) for times in zip(*([_once(f) for f in functions] for _ in range(repeats + 1)), strict=True)]


def _once(function):
    start = time.perf_counter()
    jax.block_until_ready(function())
    return time.perf_counter() - start


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", type=int, default=1024, help="side of the picture in pixels")
    parser.add_argument("--text", type=int, default=256, help="text tokens")
    parser.add_argument("--blocks", type=int, nargs=2, default=[14, 28], metavar=("DOUBLE", "SINGLE"))
    parser.add_argument("--dtype", default="float32", help="of the products")
    parser.add_argument("--repeats", type=int, default=2)
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args()

    config = MGTConfig(num_layers=args.blocks[0], num_single_layers=args.blocks[1])
    model = MGT(config, jnp.dtype(args.dtype))
    params = random_params(model)
    side = args.size // 16
    inputs = (
        jnp.zeros((1, side, side), jnp.int32),
        jnp.array([3.0]),
        jnp.ones((1, args.text, config.joint_attention_dim)),
        jnp.ones((1, config.pooled_projection_dim)),
        jnp.array([micro_conditions(args.size, args.size)]),
    )

    @jax.jit
    def forward(params, ids, time, text, pooled, micro):
        condition = model.apply({"params": params}, text, pooled, micro, ids, 1.0, method="condition")
        return model.apply({"params": params}, ids, time, condition)[0]

    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    functions = [lambda: forward(params, *inputs)]
    installed = all(map(importlib.util.find_spec, ("torch", "diffusers")))
    if installed and jax.default_backend() == "cpu" and model.dtype == jnp.float32:
        functions.append(torch_pass(config, params, inputs, cores))
    before = matmul_rate(model.dtype)
    elapsed, *theirs = in_turns(functions, args.repeats)
    attainable = max(before, matmul_rate(model.dtype))
    operations = forward_flops(config, (side, side), args.text, reference=True)
    report = {
        "device": jax.devices()[0].device_kind,
        "cores": cores,
        "dtype": args.dtype,
        "blocks": args.blocks,
        "size": args.size,
        "seconds": round(elapsed, 2),
        "operations": operations,
        "achieved_gflops": round(operations / elapsed / 1e9, 1),
        "attainable_gflops": round(attainable / 1e9, 1),
        "of_attainable": round(operations / elapsed / attainable, 3),
    }
    if theirs:
        report["torch_seconds"] = round(theirs[0], 2)
        report["of_torch"] = round(elapsed / theirs[0], 3)
        logits = [np.asarray(function()) for function in functions]
        report["largest_difference"] = float(np.abs(logits[0] - logits[1]).max() / np.abs(logits[1]).max())
    if args.json:
        print(json.dumps(report))
    else:
        print("\n".join(f"{name:<20}{value}" for name, value in report.items()))


if __name__ == "__main__":
    main()
