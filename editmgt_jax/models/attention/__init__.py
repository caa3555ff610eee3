"""Joint attention over segments, and the instruction-to-image attention read off it.

Axes    as in `editmgt_jax.config`; Q query groups (runs of positions that share one bias)
Source  EditMGT: log(gamma) between the reference and everything else, in both directions (Q11)
Differs gamma = 0 is exact: the bias is then so low that the softmax weight is 0.0, not NaN

One function, `attend`, has several backends, by name, each in a file of its own. It may be given projections and the norm
and rotation that make queries and keys of them (`preparation.py`), which `pallas_tpu` does inside of its kernels:

    auto        where products are in half precision, pallas_tpu on TPUs and cudnn on NVIDIA GPUs; xla elsewhere
    xla         plain products and a softmax in float32; on CPUs one head after another
    cudnn       cuDNN's fused attention, for bfloat16 and float16 on NVIDIA GPUs: no weights [B A S S] in memory
    pallas_tpu  a kernel for TPUs: neither weights nor biases [B S S] in memory; elsewhere it is interpreted, for tests
"""

import jax
import jax.numpy as jnp
from jax.extend.backend import get_backend
from jax.typing import DTypeLike

from editmgt_jax.errors import UserError
from editmgt_jax.models.attention import cudnn, xla
from editmgt_jax.models.attention.preparation import (
    ATTENTION,
    Preparation,
    Reading,
    prepare,
    text_to_image_attention,
)
from editmgt_jax.models.rooms import Request, Room
from editmgt_jax.shapes import Array, Float

__all__ = [
    "ATTENTION",
    "BACKENDS",
    "NO_WEIGHT",
    "ROOM",
    "Preparation",
    "Reading",
    "attend",
    "attend_and_read",
    "check_backend",
    "prepare",
    "strength_bias",
    "text_to_image_attention",
]

# exp(NO_WEIGHT - anything) is exactly 0 in float32, while differences with it stay finite.
NO_WEIGHT = -1e30


def strength_bias(strength: Float[Array, " B"] | None, lengths: tuple[int, int]) -> Float[Array, "B 2 S"] | None:
    """The biases of query groups for a reference of strength gamma.

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


def attend(
    q: Float[Array, "B S A K"],
    k: Float[Array, "B S A K"],
    v: Float[Array, "B S A K"],
    group_bias: Float[Array, "#B Q S"] | None,
    lengths: tuple[int, ...],
    backend: str = "auto",
    preparation: Preparation | None = None,
) -> Float[Array, "B S _"]:
    """Softmax attention with one additive bias row per query group.

    Args:
      q, k, v: [B S A K]; `group_bias`: [1 or B, Q, S] float32 without a gradient, or None, which adds nothing; `lengths`: Q
        static group lengths, summing to S.
      backend: a name of `BACKENDS`.
      preparation: what is done to q and k first; None if they are queries and keys already.
    Returns: [B S A*K]. Logits and softmax in float32.
    Errors: UserError for an unknown backend, or one that cannot compute in this dtype.
    """
    return attend_and_read(q, k, v, group_bias, lengths, backend, preparation, None)[0]


def attend_and_read(
    q: jax.Array | tuple,
    k: jax.Array | tuple,
    v: jax.Array | tuple,
    group_bias: jax.Array | None,
    lengths: tuple[int, ...],
    backend: str,
    preparation: Preparation | None,
    reading: Reading | None,
    room: Room | None = None,
) -> tuple[jax.Array | tuple, jax.Array | None, Room | None]:
    """`attend`, and the attention of text to image that `reading` asks for. -> ([B S A*K], [B' R N] float32 or None, the room)

    q, k and v may be tuples of parts, one behind the other in S; then so is the result. What is read has no gradient with some
    backends. The kernel for TPUs has queries, keys, values and results in `room`, of `ROOM`. Other backends return it as it is.
    """
    check_backend(backend, jax.tree.leaves(q)[0].dtype)
    out, attention, room = BACKENDS[backend](q, k, v, group_bias, lengths, preparation, reading, room)
    return jax.tree.map(lambda x: x.reshape(*x.shape[:2], -1), out), attention, room


def check_backend(name: str, dtype: DTypeLike) -> None:
    """Errors: UserError for an unknown backend, or one that cannot compute in this dtype."""
    if name not in BACKENDS:
        raise UserError(f"attention must be one of {sorted(BACKENDS)}; got {name!r}")
    if name == "cudnn" and not _is_half(dtype):
        raise UserError(f"attention 'cudnn' computes in {' or '.join(cudnn.NO_WEIGHT_OF)}; got {jnp.dtype(dtype).name}")


def _is_half(dtype) -> bool:
    return jnp.dtype(dtype).name in cudnn.NO_WEIGHT_OF


def _kept(kept: list, _shown: list) -> list[int]:
    """Indices of queries, keys, values and results in what the backward pass of one block keeps; none without a TPU's kernel.

    With one, a block keeps as many parts of each, one behind the other, and then the sums of the softmax [B A tiles 1 tile]. These
    alone have five axes.
    """
    sums = next((index for index, x in enumerate(kept) if x.ndim == 5), 0)
    for parts in range(1, sums // 4 + 1):
        first = sums - 4 * parts
        queries, keys, values, results = (
            [x.shape for x in kept[i : i + parts]] for i in range(first, sums, parts)
        )  # fmt: skip
        whole = sum(shape[1] for shape in queries) == kept[sums].shape[2] * kept[sums].shape[4]
        if whole and queries == results and keys == values:
            return list(range(first, sums))
    return []


def _empty_stack(length, shape):
    from editmgt_jax.models.attention import pallas_tpu

    return pallas_tpu.empty_stack(length, shape)


ROOM = Request(_kept, _empty_stack)  # for what the backward pass of attention needs


def _auto(q, k, v, group_bias, lengths, preparation=None, reading=None, room=None):
    """The choice is made when the program is lowered: one traced beside a GPU, or for a TPU, still compiles for its CPU."""

    def of(backend):
        return lambda q, k, v, group_bias, *more: backend(q, k, v, group_bias, lengths, *more)

    if not _is_half(jax.tree.leaves(q)[0].dtype):
        return _xla(q, k, v, group_bias, lengths, preparation, reading, room)
    choices = {"tpu": of(_pallas_tpu)}
    if "cuda" in get_backend().platform_version:  # without a GPU even tracing cuDNN's attention is an error
        choices["cuda"] = of(_cudnn)
    # Branches share what they keep for the backward pass: without the checkpoint, the fused would hold room for the weights.
    default = jax.checkpoint(of(_xla))
    return jax.lax.platform_dependent(q, k, v, group_bias, preparation, reading, room, **choices, default=default)


def _pallas_tpu(q, k, v, group_bias, lengths, preparation=None, reading=None, room=None):
    from editmgt_jax.models.attention import pallas_tpu  # its imports take a while, and most programs need none of them

    return pallas_tpu.attend(q, k, v, group_bias, lengths, preparation, reading, room)


def _of_whole(backend):
    """A backend that wants q, k and v whole."""

    def attend(q, k, v, group_bias, lengths, preparation=None, reading=None, room=None):
        more = group_bias, lengths, preparation, reading
        if not isinstance(q, tuple):
            return *backend(q, k, v, *more), room
        out, attention = backend(*(jnp.concatenate(parts, axis=1) for parts in (q, k, v)), *more)
        bounds = [sum(x.shape[1] for x in q[:i]) for i in range(1, len(q))]
        return tuple(jnp.split(out, bounds, axis=1)), attention, room

    return attend


_xla, _cudnn = _of_whole(xla.attend), _of_whole(cudnn.attend)
BACKENDS = {"auto": _auto, "xla": _xla, "cudnn": _cudnn, "pallas_tpu": _pallas_tpu}
