"""Calls of the attention kernels for TPUs: the blocks of arrays that each grid step sees, by the names of `pallas_kernels.py`.

Axes    as in `pallas_tpu.py`; a grid index is (sample, head, tile of queries), and scalars come with it
"""

import functools
from collections.abc import Callable, Sequence
from types import SimpleNamespace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu

from editmgt_jax.models.attention.pallas_kernels import Tiling

Blocks = tuple[pl.BlockSpec, ...]
Arguments = dict[str, tuple[Sequence, Blocks]]

PARTS = "_parts"  # the end of the names of kernels whose queries and keys come in parts
_TUPLES = ("q", "k", "v", "out", "gradient", "dq", "dk", "dv", "room")  # what a kernel gets as tuples of blocks


def call_kernel(
    kernel: Callable[[SimpleNamespace, Tiling], None],
    name: str,
    scalars: jax.Array,
    inputs: Arguments,
    prepared: dict[str, jax.Array],
    outputs: Arguments,
    scratch: dict[str, Any],
    tiling: Tiling,
    products: int,
    read_in_place: tuple[str, ...] = (),
    in_place: tuple[str, str] | None = None,
) -> dict[str, tuple[jax.Array, ...]]:
    """A kernel over (sample, head, tile of queries); its blocks are those of named inputs, outputs and scratch.

    Args:
      inputs, outputs: {name: (arrays or shapes, their blocks)}; prepared: {name: table}, further inputs.
      products: how many of [tile K S'] it computes.
      read_in_place: inputs that a loop kept; they are not copied out of its stack first.
      in_place: an input and the output that takes its memory.
    Returns: {name: arrays}.
    """
    (q, _), (k, _) = inputs["q"], inputs["k"]
    batch, keys = q[0].shape[-3], sum(x.shape[-2] for x in k)
    inputs |= {table: ((x,), (_table(table, x, tiling),)) for table, x in prepared.items()}
    cost = _cost(inputs, outputs, tiling, products)
    of_keys = pltpu.VMEM((keys, tiling.width), k[0].dtype)
    scratch = scratch | ({"ready": of_keys} if prepared else {}) | ({"values": of_keys} if len(k) > 1 else {})
    counts = {"scalars": 1} | {name: len(arrays) for name, (arrays, _) in (inputs | outputs).items()}
    counts |= dict.fromkeys(scratch, 1)

    shapes, blocks = ([x for pair in outputs.values() for x in pair[i]] for i in range(2))

    def body(*refs):
        kernel(_named(refs, counts), tiling)

    def run(interpret, scalars, *arrays):
        return pl.pallas_call(
            body,
            grid_spec=pltpu.PrefetchScalarGridSpec(
                num_scalar_prefetch=1,
                grid=(batch, tiling.heads, tiling.tiles(sum(tiling.parts))),
                in_specs=[block for _, several in inputs.values() for block in several],
                out_specs=blocks,
                scratch_shapes=list(scratch.values()),
            ),
            out_shape=shapes,
            input_output_aliases=_aliases(inputs, outputs, in_place),
            compiler_params=_options([False, *(name in read_in_place for name in _each(inputs))]),
            cost_estimate=cost,
            interpret=interpret,
            name=name + PARTS if len(k) > 1 else name,
        )(scalars, *arrays)

    arrays = [x for several, _ in inputs.values() for x in several]
    on_tpu, elsewhere = (functools.partial(run, interpret) for interpret in (False, True))
    found = iter(jax.lax.platform_dependent(scalars, *arrays, tpu=on_tpu, default=elsewhere))
    return {name: tuple(next(found) for _ in arrays) for name, (arrays, _) in outputs.items()}


def _options(allow_input_fusion):
    return pltpu.CompilerParams(
        dimension_semantics=("parallel", "parallel", "arbitrary"),
        vmem_limit_bytes=96 * 2**20,
        allow_input_fusion=allow_input_fusion,
    )


def _each(arguments) -> list[str]:
    """The name of each array."""
    return [name for name, (arrays, _) in arguments.items() for _ in arrays]


def _aliases(inputs, outputs, in_place) -> dict[int, int]:
    """{number of an argument: number of the result that takes its memory}; the scalars are the first argument."""
    if in_place is None:
        return {}
    taken, given = (
        [number for number, name in enumerate(_each(arguments)) if name == wanted]
        for arguments, wanted in zip((inputs, outputs), in_place, strict=True)
    )
    return {1 + one: other for one, other in zip(taken, given, strict=True)}


def _cost(inputs, outputs, tiling, products):
    q, k = inputs["q"][0], inputs["k"][0]
    size = q[0].shape[-3] * tiling.heads * sum(tiling.parts) * sum(x.shape[-2] for x in k)
    names = (set(inputs) | set(outputs)) - {"room", "q", "k", "v", "out"}
    moved = [x for name, (arrays, _) in (inputs | outputs).items() if name in names for x in arrays]
    # These may be stacks, of which one place is moved. There are as many results as queries.
    moved += [jax.ShapeDtypeStruct(x.shape[-3:], x.dtype) for x in (*q, *q, *k, *inputs["v"][0])]
    return pl.CostEstimate(
        flops=2 * products * size * tiling.width,
        bytes_accessed=sum(x.size * x.dtype.itemsize for x in moved),
        transcendentals=size,
    )


def _named(refs, counts) -> SimpleNamespace:
    """The blocks of a kernel by name, so many of each."""
    named, rest = {}, list(refs)
    for name, count in counts.items():
        taken, rest = tuple(rest[:count]), rest[count:]
        named[name] = taken if name in _TUPLES else taken[0]
    return SimpleNamespace(**named)


def like(arrays: Sequence[jax.Array]) -> tuple[jax.ShapeDtypeStruct, ...]:
    """Their shapes and types."""
    return tuple(jax.ShapeDtypeStruct(x.shape, x.dtype) for x in arrays)


# ---- blocks of arrays, by grid indices (sample, head, tile) and the scalars


def tiles(tiling: Tiling) -> Blocks:
    """Blocks of the parts of the queries; where a tile lies in another part, the block that is nearest stays."""

    def of_part(first, count):
        return pl.BlockSpec(
            (None, tiling.tile, tiling.width), lambda b, h, i, _: (b, jnp.clip(i - first, 0, count - 1), h)
        )

    if len(tiling.parts) == 1:
        return (pl.BlockSpec((None, tiling.tile, tiling.width), lambda b, h, i, _: (b, i, h)),)
    bounds = np.cumsum((0, *tiling.parts)) // tiling.tile
    return tuple(of_part(int(a), int(b - a)) for a, b in zip(bounds[:-1], bounds[1:], strict=True))


def in_stacks(blocks: Blocks) -> Blocks:
    """The same blocks of arrays in stacks, whose index there is the third scalar."""

    def one(block):
        return pl.BlockSpec((None, *block.block_shape), lambda b, h, i, s: (s[2], *block.index_map(b, h, i, s)))

    return tuple(one(block) for block in blocks)


def heads(tiling: Tiling, parts: Sequence[jax.Array]) -> Blocks:
    """Blocks of the parts of the keys: all of a head."""
    return tuple(pl.BlockSpec((None, x.shape[1], tiling.width), lambda b, h, i, _: (b, 0, h)) for x in parts)


def _table(name, x, tiling):
    """Of angles of the tile's queries, or all of a table."""
    if name in ("q_cos", "q_sin"):
        return pl.BlockSpec((tiling.tile, tiling.width), lambda b, h, i, _: (i, 0))
    return pl.BlockSpec(x.shape, lambda b, h, i, _: (0, 0))


def of_head(*shape: int) -> pl.BlockSpec:
    """Of an array [B A ...]."""
    return pl.BlockSpec((None, None, *shape), lambda b, h, i, _: (b, h, *[0] * len(shape)))


def statistics(tiling: Tiling) -> pl.BlockSpec:
    """Of an array [B A tiles 1 tile]."""
    return pl.BlockSpec((None, None, None, 1, tiling.tile), lambda b, h, i, _: (b, h, i, 0, 0))


def of_bias(biases: jax.Array, tiling: Tiling) -> tuple[tuple[jax.Array], Blocks]:
    """Biases [1 or B, Q, ...] with their block, as `call_kernel` takes them: of the tile's group, or of all groups."""
    batch, groups, *rest = biases.shape

    def index(b, h, i, scalars):
        return b if batch > 1 else 0, tiling.group(i, scalars[0]) if tiling.whole and groups > 1 else 0, 0, 0

    return (biases,), (pl.BlockSpec((None, 1 if tiling.whole else groups, *rest), index),)
