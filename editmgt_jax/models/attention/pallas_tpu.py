"""Attention as kernels for TPUs: a tile of queries against all keys and values of a head, which stay in fast memory.

Axes    B batch, S positions, A heads, K head width, Q query groups, G the bias rows that a tile sees
Differs from `xla` in the order of sums only: logits and softmax are in float32, and a bias row is added inside, one for each
        query group, so that neither weights [B A S S] nor biases [B S S] are ever in memory

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
class _Plan:
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


def attend(q, k, v, bias_rows, lengths):
    """See `editmgt_jax.models.attention.attend`. On a mesh each device computes its share of batch, heads and queries.

    -> [B S A K]
    """
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.empty or mesh.size == 1:
        return _attend(q, k, v, bias_rows, 0, lengths)
    wanted = nn.logical_to_mesh_axes(("batch", "length", "heads"))
    batch, length, heads = (_dividing(mesh, axes, size) for axes, size in zip(wanted, q.shape, strict=False))

    def share(q, k, v, bias_rows):
        start = 0 if length is None else jax.lax.axis_index(length) * q.shape[1]
        return _attend(q, k, v, bias_rows, start, lengths)

    queries, keys = P(batch, length, heads), P(batch, None, heads)
    biases = None if bias_rows is None else P(batch if len(bias_rows) > 1 else None)
    return jax.shard_map(
        share, mesh=mesh, in_specs=(queries, keys, keys, biases), out_specs=queries, check_vma=False
    )(q, k, v, bias_rows)  # fmt: skip


def _dividing(mesh, axes, size: int):
    """Mesh axes, if they divide a dimension."""
    names = (axes,) if isinstance(axes, str) else axes or ()
    return axes if names and not size % math.prod(mesh.shape[name] for name in names) else None


def _attend(q, k, v, bias_rows, start, lengths):
    """Of queries that begin at position `start`; fills up blocks. -> [B S A K]"""
    batch, length, heads, width = q.shape
    keys, bounds = k.shape[1], tuple(int(bound) for bound in np.cumsum(lengths)[:-1])
    even = [tile for tile in TILES if not any(edge % tile for edge in (*bounds, length))]
    tile = even[0] if even else min(TILES[0], _up(length, 16))
    missing = _up(keys, LANES) - keys
    if bias_rows is None:
        bounds = ()
        bias_rows = jnp.zeros((1, 1, keys), jnp.float32) if missing else None
    if bias_rows is not None:
        bias_rows = jnp.pad(bias_rows, ((0, 0), (0, 0), (0, missing)), constant_values=NO_WEIGHT)
    plan = _Plan(heads, _up(width, LANES), width**-0.5, bounds, tile, bool(even) or not bounds)

    def flat(x, length):
        x = jnp.pad(x, ((0, 0), (0, length - x.shape[1]), (0, 0), (0, plan.width - width)))
        return x.reshape(batch, length, heads * plan.width)

    q, k, v = flat(q, _up(length, tile)), flat(k, keys + missing), flat(v, keys + missing)
    start = jnp.full((1,), start, jnp.int32)
    out = _rows(q, k, v, bias_rows, start, plan)
    return out.reshape(batch, -1, heads, plan.width)[:, :length, :, :width]


def _up(size: int, multiple: int) -> int:
    return -(-size // multiple) * multiple


# ---- the operation: q [B S A*K], k and v [B S' A*K], bias_rows [1 or B, Q, S'] or None, start int32 [1]


@functools.partial(jax.custom_vjp, nondiff_argnums=(5,))
def _rows(q, k, v, bias_rows, start, plan):
    return _forward(q, k, v, bias_rows, start, plan)[0]


def _rows_forward(q, k, v, bias_rows, start, plan):
    out, lse = _forward(q, k, v, bias_rows, start, plan)
    return out, (q, k, v, bias_rows, start, out, lse)


def _rows_backward(plan, kept, gradient):
    q, k, v, bias_rows, start, out, lse = kept
    return *_backward(q, k, v, bias_rows, start, out, lse, gradient, plan), None, None


_rows.defvjp(_rows_forward, _rows_backward)


def _forward(q, k, v, bias_rows, start, plan):
    """-> out like q, log-sum-exp [B A tiles 1 tile] float32"""
    batch, length, _ = q.shape
    lse = jax.ShapeDtypeStruct((batch, plan.heads, plan.tiles(length), 1, plan.tile), jnp.float32)
    biases = [] if bias_rows is None else [bias_rows[:, :, None]]  # [1 or B, Q, 1, S']
    return _call(
        functools.partial(_forward_kernel, plan=plan),
        "row_attention",
        start,
        biases,
        [q, k, v],
        [_tile(plan), _head(plan, k), _head(plan, v)],
        [(jax.ShapeDtypeStruct(q.shape, q.dtype), _tile(plan)), (lse, _statistics(plan))],
        [],
        plan,
        products=2,
    )


def _backward(q, k, v, bias_rows, start, out, lse, gradient, plan):
    """-> gradients of q, k, v"""
    biases = [] if bias_rows is None else [bias_rows[..., None]]  # [1 or B, Q, S', 1]
    tile, head = _tile(plan), _head(plan, k)
    return _call(
        functools.partial(_backward_kernel, plan=plan),
        "row_attention_backward",
        start,
        biases,
        [q, k, v, out, gradient, lse],
        [tile, head, head, tile, tile, _statistics(plan)],
        [(jax.ShapeDtypeStruct(x.shape, x.dtype), spec) for x, spec in ((q, tile), (k, head), (v, head))],
        [pltpu.VMEM((k.shape[1], plan.width), jnp.float32)] * 2,
        plan,
        products=5,
    )


def _call(kernel, name, start, biases, inputs, specs, outputs, scratch, plan, products):
    """A kernel over (sample, head, tile of queries); `products`: how many of [tile K S'] it computes."""
    q, k = inputs[:2]
    batch, length, _ = q.shape
    bias_specs = [_bias(plan, bias.shape) for bias in biases]
    size = batch * plan.heads * length * k.shape[1]
    moved = [*inputs, *(shape for shape, _ in outputs)]

    def run(interpret, start, *arrays):
        return pl.pallas_call(
            kernel,
            grid_spec=pltpu.PrefetchScalarGridSpec(
                num_scalar_prefetch=1,
                grid=(batch, plan.heads, plan.tiles(length)),
                in_specs=[*bias_specs, *specs],
                out_specs=[spec for _, spec in outputs],
                scratch_shapes=scratch,
            ),
            out_shape=[shape for shape, _ in outputs],
            compiler_params=pltpu.CompilerParams(
                dimension_semantics=("parallel", "parallel", "arbitrary"), vmem_limit_bytes=96 * 2**20
            ),
            cost_estimate=pl.CostEstimate(
                flops=2 * products * size * plan.width,
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


def _tile(plan):
    return pl.BlockSpec((None, plan.tile, plan.width), lambda b, h, i, start: (b, i, h))


def _head(plan, x):
    return pl.BlockSpec((None, x.shape[1], plan.width), lambda b, h, i, start: (b, 0, h))


def _statistics(plan):
    return pl.BlockSpec((None, None, None, 1, plan.tile), lambda b, h, i, start: (b, h, i, 0, 0))


def _bias(plan, shape):
    """Bias rows [1 or B, Q, ...]: of the tile's group, or of all groups."""
    batch, groups, *rest = shape

    def index(b, h, i, start):
        return b if batch > 1 else 0, plan.group(i, start[0]) if plan.whole and groups > 1 else 0, 0, 0

    return pl.BlockSpec((None, 1 if plan.whole else groups, *rest), index)


# ---- kernels


def _forward_kernel(start, *refs, plan):
    *bias, q, k, v, out, lse = refs
    logits = _dot(q[...], k[...], _A_BT) * plan.scale  # [tile S']
    logits = _add_bias(logits, bias, start, 0, plan)
    largest = jnp.max(logits, axis=-1, keepdims=True)
    weights = jnp.exp(logits - largest)
    total = jnp.sum(weights, axis=-1, keepdims=True)
    out[...] = (_dot(weights.astype(v.dtype), v[...], _A_B) / total).astype(out.dtype)
    lse[...] = jnp.transpose(largest + jnp.log(total))


def _backward_kernel(start, *refs, plan):
    *bias, q, k, v, out, gradient, lse, dq, dk, dv, dk_sum, dv_sum = refs
    tile, last = pl.program_id(2), pl.num_programs(2) - 1

    @pl.when(tile == 0)
    def _():
        dk_sum[...] = jnp.zeros_like(dk_sum)
        dv_sum[...] = jnp.zeros_like(dv_sum)

    logits = _dot(k[...], q[...], _A_BT) * plan.scale  # [S' tile]
    weights = jnp.exp(_add_bias(logits, bias, start, 1, plan) - lse[...])
    dv_sum[...] += _dot(weights.astype(gradient.dtype), gradient[...], _A_B)
    share = jnp.sum(gradient[...].astype(jnp.float32) * out[...].astype(jnp.float32), axis=-1, keepdims=True)
    dlogits = weights * (_dot(v[...], gradient[...], _A_BT) - jnp.transpose(share))
    dlogits = dlogits.astype(q.dtype)
    dk_sum[...] += _dot(dlogits, q[...], _A_B)
    dq[...] = (_dot(dlogits, k[...], _AT_B) * plan.scale).astype(dq.dtype)

    @pl.when(tile == last)
    def _():
        dk[...] = (dk_sum[...] * plan.scale).astype(dk.dtype)
        dv[...] = dv_sum[...].astype(dv.dtype)


def _add_bias(logits, bias, start, axis: int, plan):
    """Adds each query's bias row; queries lie along `axis` of the logits."""
    if not bias:
        return logits
    (bias,) = bias  # [G 1 S'] or [G S' 1]
    row = bias[0]
    if not plan.whole:
        shape = tuple(plan.tile if i == axis else 1 for i in range(2))
        position = start[0] + pl.program_id(2) * plan.tile + jax.lax.broadcasted_iota(jnp.int32, shape, axis)
        for group, bound in enumerate(plan.bounds, 1):
            row = jnp.where(position >= bound, bias[group], row)
    return logits + row
