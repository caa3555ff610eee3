"""Cross-entropy over a codebook, and the likeliest code.

Axes    C codebook size; E B N as in `models/cells.py`

In half precision on TPUs the forward pass is a kernel, which reads the logits once. XLA reads them twice there, and slowly, for its sums
are along the codebook. The gradient, softmax less the target, is left to XLA, which computes it while it reads the operands of products.
"""

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu

from editmgt_jax.models.layers import along_channels, of_samples
from editmgt_jax.shapes import Array, Float, Int

_TILE = 128  # positions at a time


@jax.custom_vjp
def cross_entropy(
    logits: Float[Array, "*axes C"], targets: Int[Array, "*axes"]
) -> tuple[Float[Array, "*axes"], Int[Array, "*axes"]]:
    """logits [... C], targets [...] int32 -> (cross-entropy [...] float32, the likeliest code [...] int32)

    The kernel takes logits [E B N C] whose B alone is spread over devices.
    """
    return _forward(logits, targets)[0]


def _forward(logits, targets):
    total, picked, likeliest = _statistics(logits, targets)
    return (total - picked, likeliest), (logits, targets, total)


def _backward(kept, gradients):
    logits, targets, total = kept
    hot = along_channels(jnp.arange(logits.shape[-1]), logits) == targets[..., None]
    difference = jnp.exp(logits.astype(jnp.float32) - total[..., None]) - hot.astype(jnp.float32)
    return (gradients[0][..., None] * difference).astype(logits.dtype), None


cross_entropy.defvjp(_forward, _backward)


def _statistics(logits, targets):
    """-> log-sum-exp, logit of the target, likeliest code; each [...]"""
    mesh = jax.sharding.get_abstract_mesh()
    positions_whole = mesh.empty or mesh.shape.get("context", 1) == 1
    fits = logits.ndim == 4 and not logits.shape[2] % _TILE and not logits.shape[3] % _TILE
    if logits.dtype.itemsize > 2 or not positions_whole or not fits:
        return _plain(logits, targets)
    return jax.lax.platform_dependent(logits, targets, tpu=_shared, default=_plain)


def _plain(logits, targets):
    logits = logits.astype(jnp.float32)
    # A sum over the codebook: a gather is slow on TPUs.
    chosen = along_channels(jnp.arange(logits.shape[-1]), logits) == targets[..., None]
    picked = jnp.sum(jnp.where(chosen, logits, 0.0), axis=-1)
    return jax.nn.logsumexp(logits, axis=-1), picked, jnp.argmax(logits, axis=-1).astype(jnp.int32)


def _shared(logits, targets):
    """The kernel, on each device for its samples."""
    return of_samples(fused_statistics, logits, targets, axis=1, outputs=3)


def fused_statistics(logits: jax.Array, targets: jax.Array, interpret: bool = False) -> tuple:
    """Log-sum-exp, logit of the target and likeliest code of logits [E B N C], as a kernel. -> three of [E B N]"""
    places, batch, cells, codes = logits.shape
    tiled = (places, batch, cells // _TILE, 1, _TILE)
    of_tile = pl.BlockSpec((None, None, None, 1, _TILE), lambda e, b, i: (e, b, i, 0, 0))
    found = pl.pallas_call(
        _kernel,
        grid=tiled[:3],
        in_specs=[pl.BlockSpec((None, None, _TILE, codes), lambda e, b, i: (e, b, i, 0)), of_tile],
        out_specs=[of_tile] * 3,
        out_shape=[jax.ShapeDtypeStruct(tiled, dtype) for dtype in (jnp.float32, jnp.float32, jnp.int32)],
        compiler_params=pltpu.CompilerParams(
            dimension_semantics=("parallel", "parallel", "parallel"), vmem_limit_bytes=64 * 2**20
        ),
        cost_estimate=pl.CostEstimate(
            flops=8 * logits.size, bytes_accessed=logits.size * logits.dtype.itemsize, transcendentals=logits.size
        ),
        interpret=interpret,
        name="cross_entropy",
    )(logits, targets.reshape(tiled))
    return tuple(x.reshape(logits.shape[:3]) for x in found)


def _kernel(logits, targets, total, picked, likeliest):
    x = logits[...].astype(jnp.float32)  # [tile C]
    codes = jax.lax.broadcasted_iota(jnp.int32, x.shape, 1).astype(jnp.float32)  # exact: they are few
    largest = jnp.max(x, axis=-1, keepdims=True)
    sums = jnp.sum(jnp.exp(x - largest), axis=-1, keepdims=True)
    chosen = codes == jnp.transpose(targets[...]).astype(jnp.float32)
    first = jnp.min(jnp.where(x == largest, codes, float(x.shape[1])), axis=-1, keepdims=True)
    total[...] = jnp.transpose(largest + jnp.log(sums))
    picked[...] = jnp.transpose(jnp.sum(jnp.where(chosen, x, 0.0), axis=-1, keepdims=True))
    likeliest[...] = jnp.transpose(first).astype(jnp.int32)
