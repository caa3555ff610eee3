"""Attention through cuDNN, in half precision: no weights [B A S S] in memory."""

import jax
import jax.numpy as jnp

from editmgt_jax.models.attention.preparation import Preparation, Reading, prepare, read
from editmgt_jax.models.layers import per_segment
from editmgt_jax.shapes import Array, Float

# Biases whose softmax weight is exactly 0, of values whose differences cuDNN computes without an overflow.
NO_WEIGHT_OF = {"bfloat16": -(2.0**41), "float16": -(2.0**15)}


def attend(
    q: Float[Array, "B S A K"],
    k: Float[Array, "B S A K"],
    v: Float[Array, "B S A K"],
    group_bias: Float[Array, "#B Q S"] | None,
    lengths: tuple[int, ...],
    preparation: Preparation | None = None,
    reading: Reading | None = None,
) -> tuple[Float[Array, "B S A K"], Float[Array, "live R N"] | None]:
    """See `editmgt_jax.models.attention.attend`. -> ([B S A K], what is read)"""
    q, k = prepare(q, k, preparation)
    return _attend(q, k, v, group_bias, lengths), read(q, k, reading)


def _attend(q, k, v, group_bias, lengths):
    batch, length = q.shape[:2]
    odd, keys, bias = length % 2, None, None
    if odd:  # the gradient takes even lengths alone: a key without weight, and a query whose result is dropped
        q, k, v = (jnp.pad(x, ((0, 0), (0, 1), (0, 0), (0, 0))) for x in (q, k, v))
    if group_bias is not None:
        lowest = NO_WEIGHT_OF[q.dtype.name]
        bias = jnp.maximum(per_segment(group_bias, lengths), lowest)[:, None]  # [1 or B, 1, S, S]
        bias = jnp.pad(bias, ((0, 0), (0, 0), (0, odd), (0, 0)))
        bias = jnp.pad(bias, ((0, 0), (0, 0), (0, 0), (0, odd)), constant_values=lowest).astype(q.dtype)
    elif odd:
        keys = jnp.full((batch,), length, jnp.int32)
    out = jax.nn.dot_product_attention(q, k, v, bias, key_value_seq_lengths=keys, implementation="cudnn")
    return out[:, :length]
