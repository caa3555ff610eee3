"""Adaptive layer norm and gated residuals: what a block does besides its products, one modulation vector per segment.

Axes    as in `editmgt_jax.config`; G segments

In half precision on TPUs both are kernels (`modulation_tpu.py`), because sums over positions and channels cost XLA as much there
as a product.
"""

import jax
import jax.numpy as jnp

from editmgt_jax.models.layers import layer_norm, per_segment


def modulated_norm(x: jax.Array, shift: jax.Array, scale: jax.Array, lengths: tuple[int, ...], backend: str) -> tuple:
    """Layer norm of x [B S D], times 1 + scale, plus shift, both [B G D], one for each of G segments of `lengths`.

    Args:
      backend: as of attention: 'pallas_tpu' asks for the kernel on every platform, 'auto' for it on TPUs in half precision.
    Returns: ([B S D], x): the residual path goes through it, too, so that both gradients are one sum.
    """

    def plain(x, shift, scale):
        return layer_norm(x) * (1 + per_segment(scale, lengths)) + per_segment(shift, lengths), x

    def fused(x, shift, scale):
        from editmgt_jax.models import modulation_tpu  # its imports take a while

        return modulation_tpu.modulated_norm(x, shift, scale, lengths)

    return _choose(plain, fused, lengths, backend, x, shift, scale)


def gated_sum(x: jax.Array, update: jax.Array, gate: jax.Array, lengths: tuple[int, ...], backend: str) -> jax.Array:
    """x + gate * update of x, update [B S D] and gate [B G D]; `backend` as of `modulated_norm`. -> [B S D]"""

    def plain(x, update, gate):
        return x + per_segment(gate, lengths) * update

    def fused(x, update, gate):
        from editmgt_jax.models import modulation_tpu

        return modulation_tpu.gated_sum(x, update, gate, lengths)

    return _choose(plain, fused, lengths, backend, x, update, gate)


def _choose(plain, fused, lengths, backend, x, *more):
    mesh = jax.sharding.get_abstract_mesh()
    whole = mesh.empty or mesh.shape.get("context", 1) == 1  # positions are not spread
    if backend not in ("auto", "pallas_tpu") or not whole or not _fits(x.shape, lengths):
        return plain(x, *more)
    if backend == "pallas_tpu":
        return fused(x, *more)
    if jnp.dtype(x.dtype).itemsize > 2:
        return plain(x, *more)
    return jax.lax.platform_dependent(x, *more, tpu=fused, default=plain)


def _fits(shape, lengths) -> bool:
    """Whether whole tiles of the kernel lie in one segment."""
    return not shape[2] % 128 and not any(length % 128 for length in lengths)
