"""The bodies of the attention kernels for TPUs: what happens to one tile of queries and one head.

Axes    S' keys, Q query groups, G the biases that a tile sees, M norms, R weightings of the text; [tile K], [S' K] as stored
Differs logarithms and exponentials are of base 2; queries are multiplied by the scale of the logits after their norm

Queries, keys and values may be given in parts, one behind the other in S: 'q', 'k', 'v', 'out', 'gradient', 'dq', 'dk' and 'dv'
are tuples of blocks. A tile lies in one part of the queries. With several parts, 'values' [S' K] keeps those of the head.

A kernel gets its blocks by name, see `pallas_tpu`: 'scalars' int32 [2] holds the position of the first query and whether the
attention of the text is wanted; 'q_scale', 'k_scale' [M K], 'q_cos', 'q_sin' [tile K], 'cos', 'sin' [S' K] are there if
queries and keys are prepared inside, and then 'ready' [S' K] keeps the prepared keys of the head.
"""

import dataclasses
import functools
import math
from types import SimpleNamespace

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu

LOG2_E = math.log2(math.e)
LANES = 128

_dot = functools.partial(jax.lax.dot_general, preferred_element_type=jnp.float32)
_A_BT, _A_B, _AT_B = ((((1,), (1,)), ((), ())), (((1,), (0,)), ((), ())), (((0,), (0,)), ((), ())))


@dataclasses.dataclass(frozen=True)
class Tiling:
    """The static part of a call.

    Attributes:
      heads, width: A, and K as it is stored, a multiple of `LANES`; channels: K.
      bounds: first positions of the query groups but the first; tile: queries at a time.
      whole: whether each tile lies in one group.
      norm_bounds: first positions of the norms but the first; None if queries and keys are prepared already.
      epsilon: of the norms.
      text, live: queries, and keys, in the attention that is read; `live` is None if none is.
      parts: lengths of the parts of the queries, multiples of `tile`.
    """

    heads: int
    width: int
    channels: int
    bounds: tuple[int, ...]
    tile: int
    whole: bool
    norm_bounds: tuple[int, ...] | None = None
    epsilon: float = 1e-6
    text: int = 0
    live: int | None = None
    parts: tuple[int, ...] = ()

    @property
    def scale(self) -> float:
        """Of the logits."""
        return self.channels**-0.5

    @property
    def prepares(self) -> bool:
        """Whether norm and rotation are the kernel's."""
        return self.norm_bounds is not None

    def tiles(self, length: int) -> int:
        """How many tiles there are of so many queries."""
        return length // self.tile

    def group(self, tile: jax.Array, start: jax.Array) -> jax.Array:
        """The group of a tile, if it lies in one."""
        return sum(((start + tile * self.tile) >= bound).astype(jnp.int32) for bound in self.bounds)


def forward_kernel(r: SimpleNamespace, tiling: Tiling) -> None:
    """q, k, v -> out [tile K], lse [1 tile], and 'read' [R S'], which adds up over the tiles."""
    q, k = _queries(r, tiling), _keys(r, tiling)
    logits = _with_bias(_dot(q, k[...], _A_BT), r, 0, tiling)  # [tile S']
    largest = jnp.max(logits, axis=-1, keepdims=True)
    weights = jnp.exp2(logits - largest)
    total = jnp.sum(weights, axis=-1, keepdims=True)
    values = _values(r)[...]
    _write(r.out, _dot(weights.astype(values.dtype), values, _A_B) / total, tiling)
    r.lse[...] = jnp.transpose(largest + jnp.log2(total))
    if tiling.live is not None:
        _read(q, k, r, tiling)


def backward_kernel(r: SimpleNamespace, tiling: Tiling) -> None:
    """q, k, v, out, its gradient, lse -> gradients 'dq' [tile K], 'dk', 'dv' [S' K], and of the scales, 'dq_scale', 'dk_scale'
    [M K], which add up over the tiles. Keys lie along rows, so that the gradient of the queries alone needs a transposed
    product."""

    @pl.when(pl.program_id(2) == 0)
    def _():
        for sums in (r.dk_sum, r.dv_sum, *([r.dq_scale, r.dk_scale] if tiling.prepares else [])):
            sums[...] = jnp.zeros_like(sums)

    q, k, v = _queries(r, tiling), _keys(r, tiling), _values(r)
    gradient, out = _of_tile(r.gradient, tiling), _of_tile(r.out, tiling)
    share = jnp.transpose(jnp.sum(gradient.astype(jnp.float32) * out.astype(jnp.float32), axis=-1, keepdims=True))
    logits = _with_bias(_dot(k[...], q, _A_BT), r, 1, tiling)  # [S' tile]
    weights = jnp.exp2(logits - r.lse[...])
    r.dv_sum[...] += _dot(weights.astype(gradient.dtype), gradient, _A_B)
    dlogits = (weights * (_dot(v[...], gradient, _A_BT) - share)).astype(q.dtype)
    r.dk_sum[...] += _dot(dlogits, q, _A_B)
    dq = _dot(dlogits, k[...], _AT_B) * tiling.scale
    if tiling.prepares:
        position = _first_position(r, tiling)
        dq, dscale = _unprepare(dq, _of_tile(r.q, tiling), r.q_scale, position, r.q_cos[...], r.q_sin[...], tiling)
        r.dq_scale[...] += dscale
    _write(r.dq, dq, tiling)

    @pl.when(pl.program_id(2) == pl.num_programs(2) - 1)
    def _():
        # Queries already carry the factor of the products' scale and, if prepared here, log2(e).
        for of_part, k, dk, dv in zip(_offsets(r.k), r.k, r.dk, r.dv, strict=True):
            dv[...] = r.dv_sum[of_part].astype(dv.dtype)
            if not tiling.prepares:
                dk[...] = (r.dk_sum[of_part] * tiling.scale).astype(dk.dtype)
                continue
            for here in _chunks(k.shape[0]):
                part = slice(of_part.start + here.start, of_part.start + here.stop)
                of_prepared = r.dk_sum[part] / LOG2_E
                of_k, dscale = _unprepare(of_prepared, k[here], r.k_scale, part.start, r.cos[part], r.sin[part], tiling)
                dk[here] = of_k.astype(dk.dtype)
                r.dk_scale[...] += dscale


# ---- parts


def _offsets(refs) -> list[slice]:
    """Where each part of the keys lies among them."""
    found, start = [], 0
    for ref in refs:
        found.append(slice(start, start + ref.shape[0]))
        start += ref.shape[0]
    return found


def _first_tiles(tiling) -> list[int]:
    return [sum(tiling.parts[:i]) // tiling.tile for i in range(len(tiling.parts))]


def _of_tile(refs, tiling):
    """The tile's block of the part that it lies in. -> [tile K]"""
    chosen = refs[0][...]
    for ref, first in list(zip(refs, _first_tiles(tiling), strict=True))[1:]:
        chosen = jnp.where(pl.program_id(2) >= first, ref[...], chosen)
    return chosen


def _write(refs, value, tiling):
    """Writes the tile's block of the part that it lies in."""
    firsts = [*_first_tiles(tiling), None]
    for i, ref in enumerate(refs):
        if len(refs) == 1:
            ref[...] = value.astype(ref.dtype)
            continue
        inside = pl.program_id(2) >= firsts[i]
        if firsts[i + 1] is not None:
            inside &= pl.program_id(2) < firsts[i + 1]

        @pl.when(inside)
        def _(ref=ref):
            ref[...] = value.astype(ref.dtype)


def _values(r):
    """A reference to the values of the head; parts are put together with its first tile."""
    if len(r.v) == 1:
        return r.v[0]

    @pl.when(pl.program_id(2) == 0)
    def _():
        for part, v in zip(_offsets(r.v), r.v, strict=True):
            r.values[part] = v[...]

    return r.values


# ---- norm and rotation


def _queries(r, tiling):
    """Queries of the tile, in the dtype of the products."""
    if not tiling.prepares:
        return _of_tile(r.q, tiling)
    position, q = _first_position(r, tiling), _of_tile(r.q, tiling)
    dtype = q.dtype
    q = _prepare(q, r.q_scale, position, r.q_cos[...], r.q_sin[...], tiling)
    return (q * (tiling.scale * LOG2_E)).astype(dtype)


def _keys(r, tiling):
    """A reference to the keys of the head; they are prepared with its first tile."""
    if not tiling.prepares:
        return r.k[0]

    @pl.when(pl.program_id(2) == 0)
    def _():
        for of_part, k in zip(_offsets(r.k), r.k, strict=True):
            for here in _chunks(k.shape[0]):
                part = slice(of_part.start + here.start, of_part.start + here.stop)
                prepared = _prepare(k[here], r.k_scale, part.start, r.cos[part], r.sin[part], tiling)
                r.ready[part] = prepared.astype(r.ready.dtype)

    return r.ready


def _chunks(length):
    size = 256 if length % 256 == 0 else 128
    return [slice(start, start + size) for start in range(0, length, size)]


def _first_position(r, tiling):
    return r.scalars[0] + pl.program_id(2) * tiling.tile


def _prepare(x, scales, start, cos, sin, tiling):
    """Projections [n K] of positions from `start` on -> float32 [n K]; `sin` has the sign of each half."""
    y = _normed(x, tiling)[0] * _scale_of(scales, start, len(x), tiling)
    return y * cos + pltpu.roll(y, tiling.width // 2, 1) * sin


def _unprepare(gradient, x, scales, start, cos, sin, tiling):
    """Gradient of what `_prepare` gave -> that of x [n K] and that of the scales [M K]."""
    y, gain = _normed(x, tiling)
    dscaled = gradient * cos + pltpu.roll(gradient * sin, tiling.width // 2, 1)
    dnormed = dscaled * _scale_of(scales, start, len(x), tiling)
    mean = jnp.sum(dnormed * y, axis=-1, keepdims=True) / tiling.channels
    dscale = dscaled * y
    norm = _norm_of(start, len(x), tiling)
    each = [jnp.where(norm == i, dscale, 0.0) for i in range(scales.shape[0])] if tiling.norm_bounds else [dscale]
    return gain * (dnormed - y * mean), jnp.concatenate([jnp.sum(one, axis=0, keepdims=True) for one in each])


def _normed(x, tiling):
    """-> x / rms(x) [n K], 1 / rms(x) [n 1], float32"""
    x = x.astype(jnp.float32)
    gain = jax.lax.rsqrt(jnp.sum(x * x, axis=-1, keepdims=True) / tiling.channels + tiling.epsilon)
    return x * gain, gain


def _norm_of(start, length, tiling):
    """The number of the norm of each position from `start` on. -> int32 [n 1]"""
    position = start + jax.lax.broadcasted_iota(jnp.int32, (length, 1), 0)
    return sum(((position >= bound).astype(jnp.int32) for bound in tiling.norm_bounds), jnp.zeros_like(position))


def _scale_of(scales, start, length, tiling):
    """The scale of each position from `start` on. -> [1 or n, K]"""
    chosen = scales[0:1]
    for i in range(1, len(tiling.norm_bounds) + 1):
        chosen = jnp.where(_norm_of(start, length, tiling) == i, scales[i : i + 1], chosen)
    return chosen


# ---- logits


def _with_bias(products, r, axis: int, tiling):
    """Logits of base 2: products, scaled unless the queries are, and each query's bias; queries lie along `axis`."""
    logits = products if tiling.prepares else products * (tiling.scale * LOG2_E)
    if not hasattr(r, "bias"):
        return logits
    bias = r.bias[0]  # of [G 1 S'] or [G S' 1]
    if not tiling.whole:
        shape = tuple(tiling.tile if i == axis else 1 for i in range(2))
        position = _first_position(r, tiling) + jax.lax.broadcasted_iota(jnp.int32, shape, axis)
        for group, bound in enumerate(tiling.bounds, 1):
            bias = jnp.where(position >= bound, r.bias[group], bias)
    return logits + bias


def _read(q, k, r, tiling):
    """Adds the tile's share of the attention of the weighted text, a softmax over the first `live` keys without biases."""
    first, wanted = _first_position(r, tiling), r.scalars[1] > 0

    @pl.when(pl.program_id(2) == 0)
    def _():
        r.read[...] = jnp.zeros_like(r.read)

    @pl.when(wanted & (first < tiling.text))
    def _():
        logits = _dot(q, k[...], _A_BT) * (1.0 if tiling.prepares else tiling.scale * LOG2_E)
        live = jax.lax.broadcasted_iota(jnp.int32, (1, logits.shape[1]), 1) < tiling.live
        logits = jnp.where(live, logits, -jnp.inf)
        weights = jnp.exp2(logits - jnp.max(logits, axis=-1, keepdims=True))
        weights = weights / jnp.sum(weights, axis=-1, keepdims=True)
        r.read[...] += _dot(r.text_weights[...], weights, _A_B, precision=jax.lax.Precision.HIGHEST)
