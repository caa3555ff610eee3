"""How near a forward pass of the transformer comes to what this machine's matrix products reach.

    python benchmarks/forward.py                      the full-size editor at 1024 px, in float32, on random weights
    python benchmarks/forward.py --size 256 --blocks 2 2

achieved    operations of the pass (`editmgt_jax.models.flops`) / its time
attainable  the best rate that plain products of several sizes keep up, measured before and after in the same process
"""

import argparse
import json
import time

import jax
import jax.numpy as jnp
import numpy as np

from editmgt_jax.config import MGTConfig, micro_conditions
from editmgt_jax.models.flops import forward_flops
from editmgt_jax.models.mgt import MGT
from editmgt_jax.weights.components import abstract_params

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
    ids = jnp.zeros((1, side, side), jnp.int32)

    @jax.jit
    def condition(params, text, pooled):
        micro = jnp.array([micro_conditions(args.size, args.size)])
        return model.apply({"params": params}, text, pooled, micro, ids, 1.0, method="condition")

    @jax.jit
    def forward(params, ids, condition):
        return model.apply({"params": params}, ids, 3.0, condition)[0]

    text = jnp.ones((1, args.text, config.joint_attention_dim))
    given = condition(params, text, jnp.ones((1, config.pooled_projection_dim)))
    before = matmul_rate(model.dtype)
    elapsed = seconds(forward, params, ids, given, repeats=args.repeats)
    attainable = max(before, matmul_rate(model.dtype))
    operations = forward_flops(config, (side, side), args.text, reference=True)
    report = {
        "device": jax.devices()[0].device_kind,
        "dtype": args.dtype,
        "blocks": args.blocks,
        "size": args.size,
        "seconds": round(elapsed, 2),
        "operations": operations,
        "achieved_gflops": round(operations / elapsed / 1e9, 1),
        "attainable_gflops": round(attainable / 1e9, 1),
        "ratio": round(operations / elapsed / attainable, 3),
    }
    if args.json:
        print(json.dumps(report))
    else:
        print("\n".join(f"{name:<18}{value}" for name, value in report.items()))


if __name__ == "__main__":
    main()
