"""Attention as kernels for TPUs: a tile of queries against all keys and values of a head, which stay in fast memory.

Axes    B batch, S positions, A heads, K head width, Q query groups, G the groups that a tile sees
Differs from `xla` in the order of sums only: logits and softmax are in float32, and the bias of each query
        group is added inside, so that neither weights [B A S S] nor biases [B S S] are ever in memory

Activations stay flat, [B S A*K]: a block takes the K channels of a head, and no head is transposed. The forward pass keeps the
logarithm of each query's sum of exponentials; the backward pass recomputes the weights from it, keys along rows, so that only
the gradient of the queries needs a transposed product. On other platforms the kernels are interpreted.
"""

import dataclasses
import functools
import math

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu
from jax.sharding import PartitionSpec as P

NO_WEIGHT = -1e30  # as in `editmgt_jax.models.attention`, of keys that fill up a block
LANES = 128
TILES = (256, 128)  # queries at a time, the dearest first

_dot = functools.partial(jax.lax.dot_general, preferred_element_type=jnp.float32)
_A_BT, _A_B, _AT_B = ((((1,), (1,)), ((), ())), (((1,), (0,)), ((), ())), (((0,), (0,)), ((), ())))


@dataclasses.dataclass(frozen=True)
class _Tiling:
    """What is static about a call.

    Args:
      heads, width: A, and K as it is stored, a multiple of `LANES`; scale: of the logits.
      bounds: first positions of the query groups but the first; tile: queries at a time.
      whole: whether each tile lies in one group.
    """

    heads: int
    width: int
    scale: float
    bounds: tuple[int, ...]
    tile: int
    whole: bool

    def tiles(self, length: int) -> int:
        return length // self.tile

    def group(self, tile, start):
        """The group of a tile, if it lies in one."""
        return sum(((start + tile * self.tile) >= bound).astype(jnp.int32) for bound in self.bounds)


def attend(q, k, v, group_bias, lengths):
    """See `editmgt_jax.models.attention.attend`. On a mesh each device computes its share of batch, heads and queries.

    -> [B S A K]
    """
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.empty or mesh.size == 1:
        return _attend(q, k, v, group_bias, 0, lengths)
    wanted = nn.logical_to_mesh_axes(("batch", "length", "heads"))
    batch, length, heads = (_dividing(mesh, axes, size) for axes, size in zip(wanted, q.shape, strict=False))

    def share(q, k, v, group_bias):
        start = 0 if length is None else jax.lax.axis_index(length) * q.shape[1]
        return _attend(q, k, v, group_bias, start, lengths)

    queries, keys = P(batch, length, heads), P(batch, None, heads)
    biases = None if group_bias is None else P(batch if len(group_bias) > 1 else None)
    return jax.shard_map(
        share, mesh=mesh, in_specs=(queries, keys, keys, biases), out_specs=queries, check_vma=False
    )(q, k, v, group_bias)  # fmt: skip


def _dividing(mesh, axes, size: int):
    """Mesh axes, if they divide a dimension."""
    names = (axes,) if isinstance(axes, str) else axes or ()
    return axes if names and not size % math.prod(mesh.shape[name] for name in names) else None


def _attend(q, k, v, group_bias, start, lengths):
    """Of queries that begin at position `start`; fills up blocks. -> [B S A K]"""
    batch, length, heads, width = q.shape
    keys, bounds = k.shape[1], tuple(int(bound) for bound in np.cumsum(lengths)[:-1])
    even = [tile for tile in TILES if not any(edge % tile for edge in (*bounds, length))]
    tile = even[0] if even else min(TILES[0], _up(length, 16))
    missing = _up(keys, LANES) - keys
    if group_bias is None:
        bounds = ()
        group_bias = jnp.zeros((1, 1, keys), jnp.float32) if missing else None
    if group_bias is not None:
        group_bias = jnp.pad(group_bias, ((0, 0), (0, 0), (0, missing)), constant_values=NO_WEIGHT)
    tiling = _Tiling(heads, _up(width, LANES), width**-0.5, bounds, tile, bool(even) or not bounds)

    def flat(x, length):
        x = jnp.pad(x, ((0, 0), (0, length - x.shape[1]), (0, 0), (0, tiling.width - width)))
        return x.reshape(batch, length, heads * tiling.width)

    q, k, v = flat(q, _up(length, tile)), flat(k, keys + missing), flat(v, keys + missing)
    start = jnp.full((1,), start, jnp.int32)
    out = _fused(q, k, v, group_bias, start, tiling)
    return out.reshape(batch, -1, heads, tiling.width)[:, :length, :, :width]


def _up(size: int, multiple: int) -> int:
    return -(-size // multiple) * multiple


# ---- the operation: q [B S A*K], k and v [B S' A*K], group_bias [1 or B, Q, S'] or None, start int32 [1]


@functools.partial(jax.custom_vjp, nondiff_argnums=(5,))
def _fused(q, k, v, group_bias, start, tiling):
    return _forward(q, k, v, group_bias, start, tiling)[0]


def _fused_forward(q, k, v, group_bias, start, tiling):
    out, lse = _forward(q, k, v, group_bias, start, tiling)
    return out, (q, k, v, group_bias, start, out, lse)


def _fused_backward(tiling, kept, gradient):
    q, k, v, group_bias, start, out, lse = kept
    return *_backward(q, k, v, group_bias, start, out, lse, gradient, tiling), None, None


_fused.defvjp(_fused_forward, _fused_backward)


def _forward(q, k, v, group_bias, start, tiling):
    """-> out like q, log-sum-exp [B A tiles 1 tile] float32"""
    batch, length, _ = q.shape
    lse = jax.ShapeDtypeStruct((batch, tiling.heads, tiling.tiles(length), 1, tiling.tile), jnp.float32)
    biases = [] if group_bias is None else [group_bias[:, :, None]]  # [1 or B, Q, 1, S']
    return _call(
        functools.partial(_forward_kernel, tiling=tiling),
        "fused_attention",
        start,
        biases,
        [q, k, v],
        [_tile(tiling), _head(tiling, k), _head(tiling, v)],
        [(jax.ShapeDtypeStruct(q.shape, q.dtype), _tile(tiling)), (lse, _statistics(tiling))],
        [],
        tiling,
        products=2,
    )


def _backward(q, k, v, group_bias, start, out, lse, gradient, tiling):
    """-> gradients of q, k, v"""
    biases = [] if group_bias is None else [group_bias[..., None]]  # [1 or B, Q, S', 1]
    tile, head = _tile(tiling), _head(tiling, k)
    return _call(
        functools.partial(_backward_kernel, tiling=tiling),
        "fused_attention_backward",
        start,
        biases,
        [q, k, v, out, gradient, lse],
        [tile, head, head, tile, tile, _statistics(tiling)],
        [(jax.ShapeDtypeStruct(x.shape, x.dtype), spec) for x, spec in ((q, tile), (k, head), (v, head))],
        [pltpu.VMEM((k.shape[1], tiling.width), jnp.float32)] * 2,
        tiling,
        products=5,
    )


def _call(kernel, name, start, biases, inputs, specs, outputs, scratch, tiling, products):
    """A kernel over (sample, head, tile of queries); `products`: how many of [tile K S'] it computes."""
    q, k = inputs[:2]
    batch, length, _ = q.shape
    bias_specs = [_bias(tiling, bias.shape) for bias in biases]
    size = batch * tiling.heads * length * k.shape[1]
    moved = [*inputs, *(shape for shape, _ in outputs)]

    def run(interpret, start, *arrays):
        return pl.pallas_call(
            kernel,
            grid_spec=pltpu.PrefetchScalarGridSpec(
                num_scalar_prefetch=1,
                grid=(batch, tiling.heads, tiling.tiles(length)),
                in_specs=[*bias_specs, *specs],
                out_specs=[spec for _, spec in outputs],
                scratch_shapes=scratch,
            ),
            out_shape=[shape for shape, _ in outputs],
            compiler_params=pltpu.CompilerParams(
                dimension_semantics=("parallel", "parallel", "arbitrary"), vmem_limit_bytes=96 * 2**20
            ),
            cost_estimate=pl.CostEstimate(
                flops=2 * products * size * tiling.width,
                bytes_accessed=sum(x.size * x.dtype.itemsize for x in moved),
                transcendentals=size,
            ),
            interpret=interpret,
            name=name,
        )(start, *arrays)

    return jax.lax.platform_dependent(
        start, *biases, *inputs, tpu=functools.partial(run, False), default=functools.partial(run, True)
    )


# ---- blocks of arrays, by grid indices (sample, head, tile) and the start of the queries


def _tile(tiling):
    return pl.BlockSpec((None, tiling.tile, tiling.width), lambda b, h, i, start: (b, i, h))


def _head(tiling, x):
    return pl.BlockSpec((None, x.shape[1], tiling.width), lambda b, h, i, start: (b, 0, h))


def _statistics(tiling):
    return pl.BlockSpec((None, None, None, 1, tiling.tile), lambda b, h, i, start: (b, h, i, 0, 0))


def _bias(tiling, shape):
    """Biases [1 or B, Q, ...]: of the tile's group, or of all groups."""
    batch, groups, *rest = shape

    def index(b, h, i, start):
        return b if batch > 1 else 0, tiling.group(i, start[0]) if tiling.whole and groups > 1 else 0, 0, 0

    return pl.BlockSpec((None, 1 if tiling.whole else groups, *rest), index)


# ---- kernels


def _forward_kernel(start, *refs, tiling):
    *bias, q, k, v, out, lse = refs
    logits = _dot(q[...], k[...], _A_BT) * tiling.scale  # [tile S']
    logits = _add_bias(logits, bias, start, 0, tiling)
    largest = jnp.max(logits, axis=-1, keepdims=True)
    weights = jnp.exp(logits - largest)
    total = jnp.sum(weights, axis=-1, keepdims=True)
    out[...] = (_dot(weights.astype(v.dtype), v[...], _A_B) / total).astype(out.dtype)
    lse[...] = jnp.transpose(largest + jnp.log(total))


def _backward_kernel(start, *refs, tiling):
    *bias, q, k, v, out, gradient, lse, dq, dk, dv, dk_sum, dv_sum = refs
    tile, last = pl.program_id(2), pl.num_programs(2) - 1

    @pl.when(tile == 0)
    def _():
        dk_sum[...] = jnp.zeros_like(dk_sum)
        dv_sum[...] = jnp.zeros_like(dv_sum)

    logits = _dot(k[...], q[...], _A_BT) * tiling.scale  # [S' tile]
    weights = jnp.exp(_add_bias(logits, bias, start, 1, tiling) - lse[...])
    dv_sum[...] += _dot(weights.astype(gradient.dtype), gradient[...], _A_B)
    share = jnp.sum(gradient[...].astype(jnp.float32) * out[...].astype(jnp.float32), axis=-1, keepdims=True)
    dlogits = weights * (_dot(v[...], gradient[...], _A_BT) - jnp.transpose(share))
    dlogits = dlogits.astype(q.dtype)
    dk_sum[...] += _dot(dlogits, q[...], _A_B)
    dq[...] = (_dot(dlogits, k[...], _AT_B) * tiling.scale).astype(dq.dtype)

    @pl.when(tile == last)
    def _():
        dk[...] = (dk_sum[...] * tiling.scale).astype(dk.dtype)
        dv[...] = dv_sum[...].astype(dv.dtype)


def _add_bias(logits, bias, start, axis: int, tiling):
    """Adds the bias of each query's group; queries lie along `axis` of the logits."""
    if not bias:
        return logits
    (bias,) = bias  # [G 1 S'] or [G S' 1]
    bias_of_query = bias[0]
    if not tiling.whole:
        shape = tuple(tiling.tile if i == axis else 1 for i in range(2))
        position = start[0] + pl.program_id(2) * tiling.tile + jax.lax.broadcasted_iota(jnp.int32, shape, axis)
        for group, bound in enumerate(tiling.bounds, 1):
            bias_of_query = jnp.where(position >= bound, bias[group], bias_of_query)
    return logits + bias_of_query
