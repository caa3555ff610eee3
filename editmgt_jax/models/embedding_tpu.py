"""The gradient of an embedding as a kernel for TPUs: each vector is added to the row of its id in a table that stays in fast memory.

Axes    E B N as in `models/cells.py`; C rows of the table, D channels

As a product with one-hot vectors it costs 2 C operations for each number of the gradient; here it costs one.
"""

import functools
import math

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu

from editmgt_jax.models.layers import of_samples

KERNEL = "embedding_gradient"
_VECTORS = 128  # at a time
# Bytes of fast memory, of which TPU v4 has 16 MiB: for the channels that are added up at once, and the vectors that come next.
_LARGEST = 14 * 2**20


def fits(gradient: jax.Array | jax.ShapeDtypeStruct, rows: int) -> bool:
    """Whether the kernel takes a gradient [E B N D] for a table of so many rows."""
    mesh, shape = jax.sharding.get_abstract_mesh(), gradient.shape
    whole = mesh.empty or mesh.shape.get("context", 1) == 1  # positions are not spread
    if not whole or len(shape) != 4 or shape[2] % _VECTORS or gradient.dtype not in (jnp.bfloat16, jnp.float32):
        return False
    return _parts(shape[3], rows) is not None


def table_gradient(ids: jax.Array, gradient: jax.Array, rows: int) -> jax.Array:
    """ids int32 [E B N], gradient [E B N D] -> [C D] float32, C = `rows`. On a mesh each device adds up its samples.

    An id that is not in 0 .. C - 1 counts as the nearest that is.
    """
    ids = jnp.clip(ids, 0, rows - 1)

    def of_device(ids, gradient):
        return _table(ids, gradient, rows)[None, None]

    return of_samples(of_device, ids, gradient, axis=1).sum(axis=(0, 1))


def grid(shape: tuple[int, int, int, int], rows: int) -> tuple[int, int, int, int]:
    """Parts of the channels, E, B, and tiles of N: what the kernel goes through for a gradient [E B N D]."""
    places, batch, cells, width = shape
    return _parts(width, rows), places, batch, cells // _VECTORS


def _parts(width, rows):
    """The fewest parts of the channels whose table fits the fast memory, beside two tiles of vectors; None if there are none."""
    counts = (count for count in range(1, width // 128 + 1) if not width % (128 * count))
    return next((count for count in counts if (rows + 2 * _VECTORS) * width * 4 <= _LARGEST * count), None)


def _table(ids, gradient, rows):
    steps, width = grid(gradient.shape, rows), gradient.shape[3]
    part = width // steps[0]

    def kernel(ids, gradient, out, table, semaphore):
        first_channel = pl.multiple_of(pl.program_id(0) * part, 128)
        step = sum(pl.program_id(axis) * math.prod(steps[axis + 1 :]) for axis in range(1, 4))

        @pl.when(step == 0)
        def _():
            table[...] = jnp.zeros_like(table)

        for vector in range(_VECTORS):
            row = pl.ds(ids[0, vector], 1)
            table[row] = table[row] + gradient[vector : vector + 1].astype(jnp.float32)

        @pl.when(step == math.prod(steps[1:]) - 1)
        def _():
            copy = pltpu.make_async_copy(table, out.at[:, pl.ds(first_channel, part)], semaphore)
            copy.start()
            copy.wait()

    def run(interpret, ids, gradient):
        return pl.pallas_call(
            kernel,
            grid=steps,
            in_specs=[
                pl.BlockSpec(
                    (None, None, None, 1, _VECTORS), lambda p, e, b, i: (e, b, i, 0, 0), memory_space=pltpu.SMEM
                ),
                pl.BlockSpec((None, None, _VECTORS, part), lambda p, e, b, i: (e, b, i, p)),
            ],
            out_specs=pl.BlockSpec(memory_space=pl.ANY),
            out_shape=jax.ShapeDtypeStruct((rows, width), jnp.float32),
            scratch_shapes=[pltpu.VMEM((rows, part), jnp.float32), pltpu.SemaphoreType.DMA],
            compiler_params=pltpu.CompilerParams(
                dimension_semantics=("arbitrary",) * 4, vmem_limit_bytes=_LARGEST + 2**20
            ),
            cost_estimate=pl.CostEstimate(
                flops=gradient.size,
                bytes_accessed=gradient.size * gradient.dtype.itemsize + ids.size * 4 + rows * width * 4,
                transcendentals=0,
            ),
            interpret=interpret,
            name=KERNEL,
        )(ids, gradient)

    ids = ids.reshape(*steps[1:], 1, _VECTORS)
    on_tpu, elsewhere = (functools.partial(run, interpret) for interpret in (False, True))
    return jax.lax.platform_dependent(ids, gradient, tpu=on_tpu, default=elsewhere)
