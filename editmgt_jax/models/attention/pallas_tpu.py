"""Attention as kernels for TPUs: a tile of queries against all keys and values of a head, which stay in fast memory.

Axes    B batch, S positions, A heads, K head width, Q query groups, M norms, R weightings of the text
Differs from `xla` in the order of sums and, where norm and rotation are done inside, in one rounding less: logits and softmax
        are in float32, and a bias is added inside, one for each query group, so that neither weights [B A S S] nor biases
        [B S S] are ever in memory

Activations stay flat, [B S A*K]: a block takes the K channels of a head, and no head is transposed. The forward pass keeps the
logarithm of each query's sum of exponentials; the backward pass recomputes the weights from it. On other platforms the
kernels (`pallas_kernels.py`) are interpreted.
"""

import dataclasses
import functools
import math

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax.ad_checkpoint import checkpoint_name
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu
from jax.sharding import PartitionSpec as P

from editmgt_jax.models.attention import pallas_calls as calls
from editmgt_jax.models.attention.pallas_kernels import LANES, LOG2_E, Tiling, backward_kernel, forward_kernel
from editmgt_jax.models.attention.preparation import ATTENTION, Preparation, Reading
from editmgt_jax.models.rooms import Room, put_and_fix
from editmgt_jax.shapes import Array, Float

NO_WEIGHT = -1e30  # as in `editmgt_jax.models.attention`, of keys that fill up a block
TILES = (768, 384, 256, 128)  # queries at a time, the best first
_UNEVEN = 256  # where none of them fits
_BACKWARD = 384  # at most so many in the backward pass, which else leaves no fast memory to read kept arrays in place


def attend(
    q: Float[Array, "B S A K"] | tuple,
    k: Float[Array, "B S A K"] | tuple,
    v: Float[Array, "B S A K"] | tuple,
    group_bias: Float[Array, "#B Q _"] | None,
    lengths: tuple[int, ...],
    preparation: Preparation | None = None,
    reading: Reading | None = None,
    room: Room | None = None,
) -> tuple[Float[Array, "B S A K"] | tuple, Float[Array, "live R N"] | None, Room | None]:
    """See `editmgt_jax.models.attention.attend_and_read`. On a mesh each device computes its share of batch, heads and queries.

    q, k, v may be tuples of parts, one behind the other in S; then so is the result.
    -> ([B S A K], what is read, without a gradient, the room)
    """
    if isinstance(q, tuple) and not _separable(q, preparation):
        parts, found = [x.shape[1] for x in q], (jnp.concatenate(x, axis=1) for x in (q, k, v))
        out, read, room = attend(*found, group_bias, lengths, preparation, reading, room)
        return tuple(jnp.split(out, np.cumsum(parts)[:-1], axis=1)), read, room
    whole_q, (q, k, v) = not isinstance(q, tuple), (x if isinstance(x, tuple) else (x,) for x in (q, k, v))
    mesh, (batch, _, heads, _) = jax.sharding.get_abstract_mesh(), q[0].shape
    prepared = _tables(preparation)
    weights = None
    if reading is not None:  # 0 for the samples and positions that are not asked for: [B R S]
        missing = batch - len(reading.text_weights)
        weights = reading.text_weights.astype(jnp.float32)
        weights = jnp.pad(weights, ((missing, 0), (0, 0), (0, sum(lengths) - weights.shape[2])))
    wanted = jnp.int32(0) if reading is None else reading.wanted.astype(jnp.int32)
    norms = preparation and (tuple(preparation.lengths), preparation.epsilon)
    static = (tuple(lengths), norms, reading and (reading.num_text, reading.num_live))
    run = functools.partial(_attend, static=static)
    if mesh.empty or mesh.size == 1:
        out, read, room = run(q, k, v, group_bias, prepared, weights, wanted, room, jnp.int32(0))
    else:
        out, read, room = _on_mesh(run, mesh, q, k, v, group_bias, prepared, weights, wanted, room)
    out = out[0] if whole_q else out
    if reading is None:
        return out, None, room
    return out, read[missing:, :, reading.num_text : reading.num_live] / heads, room


def empty_stack(length: int, kept: jax.ShapeDtypeStruct) -> jax.Array:
    """Memory for `Room`, of L results as a backward pass keeps them. On a mesh each device has its own."""
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.empty or mesh.size == 1:
        return jax.lax.empty((length, *kept.shape), kept.dtype)
    shape = (length, kept.shape[0] // mesh.size, *kept.shape[1:])
    return jax.shard_map(
        lambda: jax.lax.empty(shape, kept.dtype), mesh=mesh, in_specs=(), out_specs=_residuals(mesh), check_vma=False
    )()


def _residuals(mesh):
    """How JAX lays out what a `shard_map` keeps for the backward pass, in a stack."""
    return P(None, mesh.axis_names)


def _separable(parts, preparation) -> bool:
    """Whether the kernels take parts as they are: whole tiles, prepared inside, and positions that are not split."""
    mesh = jax.sharding.get_abstract_mesh()
    split = not mesh.empty and mesh.shape.get("context", 1) > 1
    return preparation is not None and not split and not any(x.shape[1] % min(TILES) for x in parts)


def _tables(preparation):
    """{name: array} of what the kernels prepare with: the angles twice, of queries and of keys."""
    if preparation is None:
        return {}
    scales = {"q_scale": preparation.q_scale, "k_scale": preparation.k_scale}
    cos, sin = (jnp.asarray(x, jnp.float32) for x in (preparation.cos, preparation.sin))
    cos, sin = jnp.concatenate([cos, cos], axis=-1), jnp.concatenate([-sin, sin], axis=-1)
    return scales | {"q_cos": cos, "q_sin": sin, "cos": cos, "sin": sin}


def _on_mesh(run, mesh, q, k, v, group_bias, prepared, weights, wanted, room):
    wanted_axes = nn.logical_to_mesh_axes(("batch", "length", "heads"))
    sizes = (q[0].shape[0], q[0].shape[1] if len(q) == 1 else 1, q[0].shape[2])
    batch, length, heads = (_dividing(mesh, axes, size) for axes, size in zip(wanted_axes, sizes, strict=True))

    def share(q, k, v, group_bias, prepared, weights, wanted, room):
        start = 0 if length is None else jax.lax.axis_index(length) * q[0].shape[1]
        out, read, room = run(q, k, v, group_bias, prepared, weights, wanted, room, start)
        parts = [axes for axes in (length, heads) if axes is not None]
        return out, jax.lax.psum(read, parts) if parts and read is not None else read, room

    queries, keys = P(batch, length, heads), P(batch, None, heads)
    biases = None if group_bias is None else P(batch if len(group_bias) > 1 else None)
    tables = {name: P(length if name.startswith("q_") and name != "q_scale" else None) for name in prepared}
    specs = (queries, keys, keys, biases, tables, None if weights is None else P(batch, None, length), P())
    of_room = room and Room(_residuals(mesh), P())
    return jax.shard_map(
        share,
        mesh=mesh,
        in_specs=(*specs, of_room),
        out_specs=(queries, None if weights is None else P(batch), of_room),
        check_vma=False,
    )(q, k, v, group_bias, prepared, weights, wanted, room)


def _dividing(mesh, axes, size: int):
    """Mesh axes, if they divide a dimension."""
    names = (axes,) if isinstance(axes, str) else axes or ()
    return axes if names and not size % math.prod(mesh.shape[name] for name in names) else None


def _attend(q, k, v, group_bias, prepared, weights, wanted, room, start, static):
    """Of queries that begin at position `start`; fills up blocks. -> ([B S A K], the sum over heads of what is read [B R S'], the
    room)"""
    lengths, norms, reading = static
    batch, _, heads, width = q[0].shape
    parts, bounds = tuple(x.shape[1] for x in q), _bounds(lengths)
    bounds = () if group_bias is None else bounds
    length, keys = sum(parts), sum(x.shape[1] for x in k)
    tile = tile_of(parts)
    whole = not any(bound % tile for bound in bounds)
    queries, filled = _up(length, tile), _up(keys, LANES)
    if group_bias is None:
        group_bias = jnp.zeros((1, 1, keys), jnp.float32) if filled > keys else None
    if group_bias is not None:
        group_bias = jnp.pad(group_bias, ((0, 0), (0, 0), (0, filled - keys)), constant_values=NO_WEIGHT) * LOG2_E
    tiling = Tiling(heads, _up(width, LANES), width, bounds, tile, whole)
    tiling = dataclasses.replace(tiling, parts=parts if len(parts) > 1 else (queries,))
    if norms is not None:
        tiling = dataclasses.replace(tiling, norm_bounds=_bounds(norms[0]), epsilon=norms[1])
    if reading is not None:
        tiling = dataclasses.replace(tiling, text=reading[0], live=reading[1])

    def flat(parts, missing):
        padded = (jnp.pad(x, ((0, 0), (0, missing), (0, 0), (0, 0))) for x in parts)
        return tuple(_wide(x, tiling).reshape(batch, x.shape[1], heads * tiling.width) for x in padded)

    sizes = {"q_cos": queries, "q_sin": queries, "cos": filled, "sin": filled}
    prepared = {
        name: _wide(jnp.pad(x, ((0, sizes.get(name, len(x)) - len(x)), (0, 0))), tiling) for name, x in prepared.items()
    }
    if weights is not None:
        weights = jnp.pad(weights, ((0, 0), (0, 0), (0, queries - length)))
    scalars = jnp.stack([jnp.asarray(start, jnp.int32), wanted])
    q, k, v = flat(q, queries - length), flat(k, filled - keys), flat(v, filled - keys)
    out, read, room = _fused(q, k, v, prepared, group_bias, weights, scalars, room, tiling)
    out = (x.reshape(batch, -1, heads, tiling.width)[:, :real] for x, real in zip(out, parts, strict=True))
    return tuple(_narrow(x, tiling) for x in out), read, room


def _bounds(lengths) -> tuple[int, ...]:
    return tuple(int(bound) for bound in np.cumsum(lengths)[:-1])


def tile_of(parts: tuple[int, ...]) -> int:
    """Queries at a time, of parts of these lengths: the widest tile that lies in no two of them."""
    fitting = (tile for tile in TILES if not any(part % tile for part in parts))
    return next(fitting, min(_UNEVEN, _up(sum(parts), 16)))


def backward_tile(tile: int) -> int:
    """Queries at a time in the backward pass, of a forward pass with so many."""
    return tile if tile <= _BACKWARD else max(one for one in TILES if one <= _BACKWARD and not tile % one)


def _up(size: int, multiple: int) -> int:
    return -(-size // multiple) * multiple


def _wide(x, tiling):
    """[... channels] -> [... width]: each half of the channels is filled up, so that a rotated pair stays half a width apart."""
    if tiling.width == tiling.channels:
        return x
    first, second = x[..., : tiling.channels // 2], x[..., tiling.channels // 2 :]
    fill = [[(0, 0)] * (x.ndim - 1) + [(0, tiling.width // 2 - half.shape[-1])] for half in (first, second)]
    return jnp.concatenate([jnp.pad(first, fill[0]), jnp.pad(second, fill[1])], axis=-1)


def _narrow(x, tiling):
    if tiling.width == tiling.channels:
        return x
    half = tiling.channels // 2
    second = x[..., tiling.width // 2 : tiling.width // 2 + tiling.channels - half]
    return jnp.concatenate([x[..., :half], second], axis=-1)


# ---- the operation: parts q [B S A*K], k and v [B S' A*K], tables, group_bias [1 or B, Q, S'] or None, weights [B R S] or None;
# a Room or None


@functools.partial(jax.custom_vjp, nondiff_argnums=(8,))
def _fused(q, k, v, prepared, group_bias, weights, scalars, room, tiling):
    """-> (out like q, what is read [B R S'] or None, the room)"""
    return _forward(q, k, v, prepared, group_bias, weights, scalars, room, tiling)[:3]


def _fused_forward(q, k, v, prepared, group_bias, weights, scalars, room, tiling):
    out, read, room, kept = _forward(q, k, v, prepared, group_bias, weights, scalars, room, tiling)
    q, k, v, out, lse = jax.tree.map(lambda x: checkpoint_name(x, ATTENTION), kept)
    return (out, read, room), (q, k, v, prepared, group_bias, scalars, out, lse)


def _fused_backward(tiling, kept, gradients):
    q, k, v, prepared, group_bias, scalars, out, lse = kept
    dq, dk, dv, dtables = _backward(q, k, v, prepared, group_bias, scalars, out, lse, gradients[0], tiling)
    return dq, dk, dv, {name: dtables.get(name) for name in prepared}, None, None, None, None


_fused.defvjp(_fused_forward, _fused_backward)


def _forward(q, k, v, prepared, group_bias, weights, scalars, room, tiling):
    """-> out like q, what is read [B R S'] or None, the room, (q, k, v, out, log-sum-exp [B A tiles 1 tile] float32)"""
    batch, keys = len(q[0]), sum(x.shape[1] for x in k)
    tiles, heads = calls.tiles(tiling), calls.heads(tiling, k)
    lse = jax.ShapeDtypeStruct((batch, tiling.heads, tiling.tiles(sum(tiling.parts)), 1, tiling.tile), jnp.float32)
    inputs = {"q": (q, tiles), "k": (k, heads), "v": (v, heads)}
    outputs = {"out": (calls.like(q), tiles), "lse": ((lse,), (calls.statistics(tiling),))}
    if room is not None:
        stacks = iter(room.stacks)
        for name, (parts, blocks) in inputs.items():
            places = tuple(put_and_fix(next(stacks), x, room.index) for x in parts)
            inputs[name] = places, calls.in_stacks(blocks)
        given, out = [places for places, _ in inputs.values()], tuple(stacks)
        inputs["room"] = out, (pl.BlockSpec(memory_space=pl.ANY),) * len(out)
        outputs["out"] = calls.like(out), calls.in_stacks(tiles)
        scalars = jnp.append(scalars, room.index)
    if group_bias is not None:
        inputs["bias"] = calls.of_bias(group_bias[:, :, None], tiling)  # [1 or B, Q, 1, S']
    if weights is not None:
        block = pl.BlockSpec((None, weights.shape[1], tiling.tile), lambda b, h, i, _: (b, 0, i))
        inputs["text_weights"] = (weights,), (block,)
        shape = (batch, tiling.heads, weights.shape[1], keys)
        outputs["read"] = (jax.ShapeDtypeStruct(shape, jnp.float32),), (calls.of_head(*shape[2:]),)
    in_place = ("room", "out") if room is not None else None
    found = calls.call_kernel(
        forward_kernel, "fused_attention", scalars, inputs, prepared, outputs, {}, tiling, 2, in_place=in_place
    )
    read, out = found["read"][0].sum(axis=1) if weights is not None else None, found["out"]
    if room is not None:
        q, k, v, out = (room._replace(stacks=places).read() for places in (*given, out))
        room = room._replace(stacks=sum((*given, found["out"]), ()))
    return out, read, room, (q, k, v, out, found["lse"][0])


def _backward(q, k, v, prepared, group_bias, scalars, out, lse, gradient, tiling):
    """-> gradients of q, k, v, and of the scales by name"""
    smaller = backward_tile(tiling.tile)
    tiling, lse = dataclasses.replace(tiling, tile=smaller), lse.reshape(*lse.shape[:2], -1, 1, smaller)
    tiles, heads = calls.tiles(tiling), calls.heads(tiling, k)
    inputs = {"q": (q, tiles), "k": (k, heads), "v": (v, heads)}
    inputs |= {"out": (out, tiles), "gradient": (gradient, tiles), "lse": ((lse,), (calls.statistics(tiling),))}
    if group_bias is not None:
        inputs["bias"] = calls.of_bias(group_bias[..., None], tiling)  # [1 or B, Q, S', 1]
    outputs = {"dq": (calls.like(q), tiles), "dk": (calls.like(k), heads), "dv": (calls.like(v), heads)}
    scales = ("q_scale", "k_scale") if prepared else ()
    for name in scales:
        shape = (len(q[0]), tiling.heads, *prepared[name].shape)
        outputs[f"d{name}"] = (jax.ShapeDtypeStruct(shape, jnp.float32),), (calls.of_head(*shape[2:]),)
    sums = pltpu.VMEM((sum(x.shape[1] for x in k), tiling.width), jnp.float32)
    scratch = {"dk_sum": sums, "dv_sum": sums}
    name = "fused_attention_backward"
    kept = ("q", "k", "v", "out")
    found = calls.call_kernel(
        backward_kernel, name, scalars, inputs, prepared, outputs, scratch, tiling, 5, read_in_place=kept
    )
    return found["dq"], found["dk"], found["dv"], {name: found[f"d{name}"][0].sum(axis=(0, 1)) for name in scales}
