"""Joint attention over segments, and the instruction-to-image attention read off it.

Axes    as in `editmgt_jax.config`; Q query groups (runs of positions that share one bias row)
Source  EditMGT: log(gamma) between the reference and everything else, in both directions (Q11)
Differs gamma = 0 is exact: the bias is then so low that the softmax weight is 0.0, not NaN

One function, `attend`, has several backends, by name:

    auto    cudnn on NVIDIA GPUs where products are in half precision, xla elsewhere
    xla     plain products and a softmax in float32; on CPUs one head after another
    cudnn   cuDNN's fused attention, for bfloat16 and float16 on NVIDIA GPUs: no weights [B A S S] in memory
"""

import jax
import jax.numpy as jnp
from jax.extend.backend import get_backend

from editmgt_jax.errors import UserError
from editmgt_jax.models.layers import per_segment

# exp(NO_WEIGHT - anything) is exactly 0 in float32, while differences with it stay finite.
NO_WEIGHT = -1e30
# The same in the half-precision dtypes, of values whose differences cuDNN computes without an overflow.
_NO_WEIGHT_OF = {"bfloat16": -(2.0**41), "float16": -(2.0**15)}


def strength_bias(strength, lengths: tuple[int, int]):
    """Bias rows for a reference of strength gamma.

    Args:
      strength: gamma >= 0, [1] for the whole batch or [B], traced; None is 1.
      lengths: static lengths of the two query groups ([text, image], reference).
    Returns: [1 2 S] or [B 2 S] float32, log(gamma) wherever a query and a key are in different groups, 0 elsewhere; None
      where nothing would be added. It has no gradient.
    """
    if strength is None or not lengths[1]:
        return None
    log_gamma = jnp.maximum(jnp.log(jax.lax.stop_gradient(strength)), NO_WEIGHT)
    first, second = (jnp.arange(sum(lengths)) < lengths[0], jnp.arange(sum(lengths)) >= lengths[0])
    crosses = jnp.stack([second, first])  # [2 S]: keys on the other side of each group
    return jnp.where(crosses[None], log_gamma[:, None, None], 0.0)


def attend(q, k, v, bias_rows, lengths: tuple[int, ...], backend: str = "auto"):
    """Softmax attention with one additive bias row per query group.

    Args:
      q, k, v: [B S A K]; `bias_rows`: [1 or B, Q, S] float32 without a gradient, or None, which adds nothing; `lengths`: Q
        static group lengths, summing to S.
      backend: a name of `BACKENDS`.
    Returns: [B S A*K]. Logits and softmax in float32.
    Errors: ValueError for an unknown backend, or one that cannot compute in this dtype.
    """
    check_backend(backend, q.dtype)
    batch, length, heads, width = q.shape
    return BACKENDS[backend](q, k, v, bias_rows, lengths).reshape(batch, length, heads * width)


def check_backend(name: str, dtype) -> None:
    """Errors: ValueError."""
    if name not in BACKENDS:
        raise UserError(f"attention must be one of {sorted(BACKENDS)}; got {name!r}")
    if name == "cudnn" and not _is_half(dtype):
        raise UserError(f"attention 'cudnn' computes in {' or '.join(_NO_WEIGHT_OF)}; got {jnp.dtype(dtype).name}")


def _is_half(dtype) -> bool:
    return jnp.dtype(dtype).name in _NO_WEIGHT_OF


def _auto(q, k, v, bias_rows, lengths):
    """The choice is made when the program is lowered, so that one traced beside a GPU still compiles for its CPU."""

    def cudnn(q, k, v, bias_rows):
        return _cudnn(q, k, v, bias_rows, lengths)

    def xla(q, k, v, bias_rows):
        return _xla(q, k, v, bias_rows, lengths)

    # Without a GPU even tracing cuDNN's attention is an error.
    if not _is_half(q.dtype) or "cuda" not in get_backend().platform_version:
        return xla(q, k, v, bias_rows)
    # Branches share what they keep for the backward pass: without the checkpoint, cuDNN's would hold room for the weights.
    return jax.lax.platform_dependent(q, k, v, bias_rows, cuda=cudnn, default=jax.checkpoint(xla))


def _cudnn(q, k, v, bias_rows, lengths):
    batch, length = q.shape[:2]
    odd, keys, bias = length % 2, None, None
    if odd:  # the gradient takes even lengths alone: a key without weight, and a query whose result is dropped
        q, k, v = (jnp.pad(x, ((0, 0), (0, 1), (0, 0), (0, 0))) for x in (q, k, v))
    if bias_rows is not None:
        lowest = _NO_WEIGHT_OF[q.dtype.name]
        bias = jnp.maximum(per_segment(bias_rows, lengths), lowest)[:, None]  # [1 or B, 1, S, S]
        bias = jnp.pad(bias, ((0, 0), (0, 0), (0, odd), (0, 0)))
        bias = jnp.pad(bias, ((0, 0), (0, 0), (0, 0), (0, odd)), constant_values=lowest).astype(q.dtype)
    elif odd:
        keys = jnp.full((batch,), length, jnp.int32)
    out = jax.nn.dot_product_attention(q, k, v, bias, key_value_seq_lengths=keys, implementation="cudnn")
    return out[:, :length]


def _xla(q, k, v, bias_rows, lengths):
    biases = None if bias_rows is None else per_segment(bias_rows, lengths)  # [1 or B, S, S]
    return jax.lax.platform_dependent(q, k, v, biases, cpu=_attend_by_head, default=_attend_at_once)


def _attend_at_once(q, k, v, biases):
    logits = jnp.einsum("bqak,bsak->baqs", q, k, preferred_element_type=jnp.float32) * q.shape[-1] ** -0.5
    weights = jax.nn.softmax(logits if biases is None else logits + biases[:, None], axis=-1)
    return jnp.einsum("baqs,bsak->bqak", weights.astype(v.dtype), v)


def _attend_by_head(q, k, v, biases):
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


BACKENDS = {"auto": _auto, "xla": _xla, "cudnn": _cudnn}


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
