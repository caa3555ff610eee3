"""Joint attention over segments, and the instruction-to-image attention read off it.

Axes    as in `editmgt_jax.config`; Q query groups (runs of positions that share one bias row)
Source  EditMGT: log(gamma) between the reference and everything else, in both directions (Q11)
Differs gamma = 0 is exact: the bias is then so low that the softmax weight is 0.0, not NaN
"""

import jax
import jax.numpy as jnp

from editmgt_jax.models.layers import per_segment

# exp(NO_WEIGHT - anything) is exactly 0 in float32, while differences with it stay finite.
NO_WEIGHT = -1e30


def strength_bias(strength, lengths: tuple[int, int], batch: int):
    """Bias rows for a reference of strength gamma.

    Args:
      strength: gamma >= 0, scalar or [B], traced.
      lengths: static lengths of the two query groups ([text, image], reference).
    Returns: [B 2 S] float32, log(gamma) wherever a query and a key are in different groups, 0 elsewhere.
    """
    log_gamma = jnp.maximum(jnp.log(jnp.broadcast_to(jnp.asarray(strength, jnp.float32), (batch,))), NO_WEIGHT)
    first, second = (jnp.arange(sum(lengths)) < lengths[0], jnp.arange(sum(lengths)) >= lengths[0])
    crosses = jnp.stack([second, first])  # [2 S]: keys on the other side of each group
    return jnp.where(crosses[None], log_gamma[:, None, None], 0.0)


def attend(q, k, v, bias_rows, lengths: tuple[int, ...]):
    """Softmax attention with one additive bias row per query group; the form of it depends on the platform compiled for.

    Args:
      q, k, v: [B S A K]; `bias_rows`: [B Q S] float32; `lengths`: Q static group lengths, summing to S.
    Returns: [B S A*K]. Logits and softmax in float32.
    """
    batch, length, heads, width = q.shape
    biases = per_segment(bias_rows, lengths)  # [B S S]
    out = jax.lax.platform_dependent(q, k, v, biases, cpu=_attend_by_head, default=_attend_at_once)
    return out.reshape(batch, length, heads * width)


def _attend_at_once(q, k, v, biases):
    logits = jnp.einsum("bqak,bsak->baqs", q, k, preferred_element_type=jnp.float32) * q.shape[-1] ** -0.5
    weights = jax.nn.softmax(logits + biases[:, None], axis=-1)
    return jnp.einsum("baqs,bsak->bqak", weights.astype(v.dtype), v)


def _attend_by_head(q, k, v, biases):
    """One head after another, so that the weights in flight are nearer to a CPU's caches; they are normalised last."""

    def attend_head(head):
        q, k, v = head  # [B S K]
        logits = jnp.einsum("bqk,bsk->bqs", q, k, preferred_element_type=jnp.float32) * q.shape[-1] ** -0.5 + biases
        weights = jnp.exp(logits - jax.lax.stop_gradient(logits.max(axis=-1, keepdims=True)))
        out = jnp.einsum("bqs,bsk->bqk", weights.astype(v.dtype), v, preferred_element_type=jnp.float32)
        return (out / weights.sum(axis=-1, keepdims=True)).astype(v.dtype)

    heads = jax.lax.map(attend_head, tuple(jnp.moveaxis(x, 2, 0) for x in (q, k, v)))  # [A B S K]
    return jnp.moveaxis(heads, 0, 2)


def text_to_image_relevance(q, k, rows, num_text: int):
    """Head-mean attention of chosen text rows to the image; the softmax is over [text, image] keys only.

    Args:
      q, k: [B' T+N.. A K] rotated queries and keys that start with [text, image] (a reference behind them is ignored
        by the caller's slicing); `rows`: [B' R T] weights of the text positions in each wanted row.
    Returns: [B' R N] float32. The uniform row gives the mean over the instruction, the identity the full T x N part.
    """
    logits = jnp.einsum("btak,bsak->bats", q[:, :num_text], k, preferred_element_type=jnp.float32) * q.shape[-1] ** -0.5
    attention = jax.nn.softmax(logits, axis=-1)[..., num_text:]  # [B' A T N]
    return jnp.einsum("brt,btn->brn", rows.astype(jnp.float32), attention.mean(axis=1))
