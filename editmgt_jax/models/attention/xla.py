"""Attention as plain products and a softmax in float32: the reference of the other backends.

Axes    as in `editmgt_jax.config`; Q query groups
"""

import jax
import jax.numpy as jnp

from editmgt_jax.models.attention.preparation import Preparation, Reading, prepare, read
from editmgt_jax.models.layers import per_segment
from editmgt_jax.shapes import Array, Float


def attend(
    q: Float[Array, "B S A K"],
    k: Float[Array, "B S A K"],
    v: Float[Array, "B S A K"],
    group_bias: Float[Array, "#B Q S"] | None,
    lengths: tuple[int, ...],
    preparation: Preparation | None = None,
    reading: Reading | None = None,
) -> tuple[Float[Array, "B S A K"], Float[Array, "live R N"] | None]:
    """See `editmgt_jax.models.attention.attend`; on CPUs one head after another. -> ([B S A K], what is read)"""
    q, k = prepare(q, k, preparation)
    biases = None if group_bias is None else per_segment(group_bias, lengths)  # [1 or B, S, S]
    out = jax.lax.platform_dependent(q, k, v, biases, cpu=attend_by_head, default=attend_at_once)
    return out, read(q, k, reading)


def attend_at_once(
    q: Float[Array, "B S A K"],
    k: Float[Array, "B S A K"],
    v: Float[Array, "B S A K"],
    biases: Float[Array, "#B S S"] | None,
) -> Float[Array, "B S A K"]:
    """All heads; `biases` [1 or B, S, S] or None."""
    logits = jnp.einsum("bqak,bsak->baqs", q, k, preferred_element_type=jnp.float32) * q.shape[-1] ** -0.5
    weights = jax.nn.softmax(logits if biases is None else logits + biases[:, None], axis=-1)
    return jnp.einsum("baqs,bsak->bqak", weights.astype(v.dtype), v)


def attend_by_head(
    q: Float[Array, "B S A K"],
    k: Float[Array, "B S A K"],
    v: Float[Array, "B S A K"],
    biases: Float[Array, "#B S S"] | None,
) -> Float[Array, "B S A K"]:
    """One head after another, so that the weights in flight are nearer to a CPU's caches; they are normalised last."""

    def attend_head(head):
        q, k, v = head  # [B S K]
        logits = jnp.einsum("bqk,bsk->bqs", q, k, preferred_element_type=jnp.float32) * q.shape[-1] ** -0.5
        logits = logits if biases is None else logits + biases
        weights = jnp.exp(logits - jax.lax.stop_gradient(logits.max(axis=-1, keepdims=True)))
        out = jnp.einsum("bqs,bsk->bqk", weights.astype(v.dtype), v, preferred_element_type=jnp.float32)
        return (out / weights.sum(axis=-1, keepdims=True)).astype(v.dtype)

    heads = jax.lax.map(attend_head, tuple(jnp.moveaxis(x, 2, 0) for x in (q, k, v)))  # [A B S K]
    return jnp.moveaxis(heads, 0, 2)
