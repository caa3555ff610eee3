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
from types import SimpleNamespace

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax.ad_checkpoint import checkpoint_name
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu
from jax.sharding import PartitionSpec as P

from editmgt_jax.models.attention.pallas_kernels import LANES, LOG2_E, Tiling, backward_kernel, forward_kernel
from editmgt_jax.models.attention.preparation import ATTENTION, Preparation, Reading, Room
from editmgt_jax.shapes import Array, Float

NO_WEIGHT = -1e30  # as in `editmgt_jax.models.attention`, of keys that fill up a block
TILES = (768, 384, 256, 128)  # queries at a time, the best first
_UNEVEN = 256  # where none of them fits
_BACKWARD = 384  # at most so many in the backward pass, which else leaves no fast memory to read kept arrays in place
PARTS = "_parts"  # the end of the names of kernels whose queries and keys come in parts


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
        out, read, _ = attend(*found, group_bias, lengths, preparation, reading)
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
        lambda: jax.lax.empty(shape, kept.dtype), mesh=mesh, in_specs=(), out_specs=_kept(mesh), check_vma=False
    )()


def _kept(mesh):
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
    of_room = room and Room(_kept(mesh), P())
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
    out, read, room, lse = _forward(q, k, v, prepared, group_bias, weights, scalars, room, tiling)
    q, k, v, out, lse = jax.tree.map(lambda x: checkpoint_name(x, ATTENTION), (q, k, v, out, lse))
    return (out, read, room), (q, k, v, prepared, group_bias, scalars, out, lse)


def _fused_backward(tiling, kept, gradients):
    q, k, v, prepared, group_bias, scalars, out, lse = kept
    dq, dk, dv, dtables = _backward(q, k, v, prepared, group_bias, scalars, out, lse, gradients[0], tiling)
    return dq, dk, dv, {name: dtables.get(name) for name in prepared}, None, None, None, None


_fused.defvjp(_fused_forward, _fused_backward)


def _forward(q, k, v, prepared, group_bias, weights, scalars, room, tiling):
    """-> out like q, what is read [B R S'] or None, the room, log-sum-exp [B A tiles 1 tile] float32"""
    batch, keys = len(q[0]), sum(x.shape[1] for x in k)
    lse = jax.ShapeDtypeStruct((batch, tiling.heads, tiling.tiles(sum(tiling.parts)), 1, tiling.tile), jnp.float32)
    inputs = {"q": (q, _tiles(tiling)), "k": (k, _heads(tiling, k)), "v": (v, _heads(tiling, v))}
    outputs = {"out": (_like(q), _tiles(tiling)), "lse": ((lse,), (_statistics(tiling),))}
    if group_bias is not None:
        inputs["bias"] = _bias(group_bias[:, :, None], tiling)  # [1 or B, Q, 1, S']
    if room is not None:
        inputs["room"] = room.stacks, (pl.BlockSpec(memory_space=pl.ANY),) * len(room.stacks)
        outputs["out"] = _like(room.stacks), tuple(_in_stack(block) for block in _tiles(tiling))
        scalars = jnp.append(scalars, room.place)
    if weights is not None:
        block = pl.BlockSpec((None, weights.shape[1], tiling.tile), lambda b, h, i, _: (b, 0, i))
        inputs["text_weights"] = (weights,), (block,)
        shape = (batch, tiling.heads, weights.shape[1], keys)
        outputs["read"] = (jax.ShapeDtypeStruct(shape, jnp.float32),), (_of_head(*shape[2:]),)
    in_place = {"room": "out"} if room is not None else {}
    found = _call(
        forward_kernel, "fused_attention", scalars, inputs, prepared, outputs, {}, tiling, 2, in_place=in_place
    )
    read, out = found["read"][0].sum(axis=1) if weights is not None else None, found["out"]
    if room is not None:
        room = room._replace(stacks=out)
        out = tuple(jax.lax.dynamic_index_in_dim(x, room.place, 0, False, allow_negative_indices=False) for x in out)
    return out, read, room, found["lse"][0]


def _backward(q, k, v, prepared, group_bias, scalars, out, lse, gradient, tiling):
    """-> gradients of q, k, v, and of the scales by name"""
    smaller = backward_tile(tiling.tile)
    tiling, lse = dataclasses.replace(tiling, tile=smaller), lse.reshape(*lse.shape[:2], -1, 1, smaller)
    tiles, heads = _tiles(tiling), _heads(tiling, k)
    inputs = {"q": (q, tiles), "k": (k, heads), "v": (v, heads)}
    inputs |= {"out": (out, tiles), "gradient": (gradient, tiles), "lse": ((lse,), (_statistics(tiling),))}
    if group_bias is not None:
        inputs["bias"] = _bias(group_bias[..., None], tiling)  # [1 or B, Q, S', 1]
    outputs = {"dq": (_like(q), tiles), "dk": (_like(k), heads), "dv": (_like(v), heads)}
    scales = ("q_scale", "k_scale") if prepared else ()
    for name in scales:
        shape = (len(q[0]), tiling.heads, *prepared[name].shape)
        outputs[f"d{name}"] = (jax.ShapeDtypeStruct(shape, jnp.float32),), (_of_head(*shape[2:]),)
    sums = pltpu.VMEM((sum(x.shape[1] for x in k), tiling.width), jnp.float32)
    scratch = {"dk_sum": sums, "dv_sum": sums}
    name = "fused_attention_backward"
    kept = ("q", "k", "v", "out")
    found = _call(backward_kernel, name, scalars, inputs, prepared, outputs, scratch, tiling, 5, read_in_place=kept)
    return found["dq"], found["dk"], found["dv"], {name: found[f"d{name}"][0].sum(axis=(0, 1)) for name in scales}


_TUPLES = ("q", "k", "v", "out", "gradient", "dq", "dk", "dv", "room")  # what a kernel gets as tuples of blocks


def _call(kernel, name, scalars, inputs, prepared, outputs, scratch, tiling, products, read_in_place=(), in_place=None):
    """A kernel over (sample, head, tile of queries); its blocks are those of named inputs, outputs and scratch.

    Args:
      inputs, outputs: {name: (arrays or shapes, their blocks)}; products: how many of [tile K S'] it computes.
      read_in_place: inputs that a scan kept; they are not copied out of its stack first.
      in_place: {input: the output that takes its memory}.
    Returns: {name: arrays}.
    """
    (q, _), (k, _) = inputs["q"], inputs["k"]
    batch, length, keys = len(q[0]), sum(tiling.parts), sum(x.shape[1] for x in k)
    size = batch * tiling.heads * length * keys
    # Of stacks the kernel moves one result, as large as the queries.
    moved = [x for name, (arrays, _) in (inputs | outputs).items() if name not in ("room", "out") for x in arrays] + [
        *q
    ]
    inputs |= {table: ((x,), (_table(table, x, tiling),)) for table, x in prepared.items()}
    of_head = pltpu.VMEM((keys, tiling.width), k[0].dtype)
    scratch = scratch | ({"ready": of_head} if prepared else {}) | ({"values": of_head} if len(k) > 1 else {})
    counts = {"scalars": 1} | {name: len(arrays) for name, (arrays, _) in (inputs | outputs).items()}
    counts |= dict.fromkeys(scratch, 1)

    name += PARTS if len(k) > 1 else ""

    def body(*refs):
        kernel(_named(refs, counts), tiling)

    shapes, blocks = ([x for pair in outputs.values() for x in pair[i]] for i in range(2))
    places, results = ([name for name, (x, _) in group.items() for _ in x] for group in (inputs, outputs))
    aliases = {
        1 + places.index(one) + i: results.index(other) + i
        for one, other in (in_place or {}).items()
        for i in range(places.count(one))
    }

    def run(interpret, scalars, *arrays):
        return pl.pallas_call(
            body,
            grid_spec=pltpu.PrefetchScalarGridSpec(
                num_scalar_prefetch=1,
                grid=(batch, tiling.heads, tiling.tiles(length)),
                in_specs=[block for _, several in inputs.values() for block in several],
                out_specs=blocks,
                scratch_shapes=list(scratch.values()),
            ),
            out_shape=shapes,
            input_output_aliases=aliases,
            compiler_params=pltpu.CompilerParams(
                dimension_semantics=("parallel", "parallel", "arbitrary"),
                vmem_limit_bytes=96 * 2**20,
                allow_input_fusion=[False, *(name in read_in_place for name, (x, _) in inputs.items() for _ in x)],
            ),
            cost_estimate=pl.CostEstimate(
                flops=2 * products * size * tiling.width,
                bytes_accessed=sum(x.size * x.dtype.itemsize for x in moved),
                transcendentals=size,
            ),
            interpret=interpret,
            name=name,
        )(scalars, *arrays)

    found = jax.lax.platform_dependent(
        scalars,
        *[x for arrays, _ in inputs.values() for x in arrays],
        tpu=functools.partial(run, False),
        default=functools.partial(run, True),
    )
    found = iter(found)
    return {name: tuple(next(found) for _ in arrays) for name, (arrays, _) in outputs.items()}


def _named(refs, counts) -> SimpleNamespace:
    """The blocks of a kernel by name, so many of each."""
    named, rest = {}, list(refs)
    for name, count in counts.items():
        taken, rest = tuple(rest[:count]), rest[count:]
        named[name] = taken if name in _TUPLES else taken[0]
    return SimpleNamespace(**named)


def _like(arrays):
    return tuple(jax.ShapeDtypeStruct(x.shape, x.dtype) for x in arrays)


# ---- blocks of arrays, by grid indices (sample, head, tile) and the scalars


def _tiles(tiling):
    """Blocks of the parts of the queries; where a tile lies in another part, the block that is nearest stays."""

    def of_part(first, count):
        return pl.BlockSpec(
            (None, tiling.tile, tiling.width), lambda b, h, i, _: (b, jnp.clip(i - first, 0, count - 1), h)
        )

    if len(tiling.parts) == 1:
        return (pl.BlockSpec((None, tiling.tile, tiling.width), lambda b, h, i, _: (b, i, h)),)
    bounds = np.cumsum((0, *tiling.parts)) // tiling.tile
    return tuple(of_part(int(a), int(b - a)) for a, b in zip(bounds[:-1], bounds[1:], strict=True))


def _in_stack(block):
    """The same block of an array in a stack, whose place there is the third scalar."""
    return pl.BlockSpec((None, *block.block_shape), lambda b, h, i, s: (s[2], *block.index_map(b, h, i, s)))


def _heads(tiling, parts):
    return tuple(pl.BlockSpec((None, x.shape[1], tiling.width), lambda b, h, i, _: (b, 0, h)) for x in parts)


def _table(name, x, tiling):
    """Of angles of the tile's queries, or all of a table."""
    if name in ("q_cos", "q_sin"):
        return pl.BlockSpec((tiling.tile, tiling.width), lambda b, h, i, _: (i, 0))
    return pl.BlockSpec(x.shape, lambda b, h, i, _: (0, 0))


def _of_head(*shape):
    """Of an array [B A ...]."""
    return pl.BlockSpec((None, None, *shape), lambda b, h, i, _: (b, h, *[0] * len(shape)))


def _statistics(tiling):
    return pl.BlockSpec((None, None, None, 1, tiling.tile), lambda b, h, i, _: (b, h, i, 0, 0))


def _bias(biases, tiling):
    """Biases [1 or B, Q, ...] with their block, as `_call` takes them: of the tile's group, or of all groups."""
    batch, groups, *rest = biases.shape

    def index(b, h, i, scalars):
        return b if batch > 1 else 0, tiling.group(i, scalars[0]) if tiling.whole and groups > 1 else 0, 0, 0

    return (biases,), (pl.BlockSpec((None, 1 if tiling.whole else groups, *rest), index),)
