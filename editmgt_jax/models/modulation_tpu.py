"""Adaptive layer norm and gated residuals as kernels for TPUs: a tile of positions with all its channels at a time.

Axes    B batch, S positions, D channels, G segments; each tile of positions lies in one segment
Differs from the plain forms by fewer roundings: all is float32 inside. Gradients of the vectors of a segment are sums over its
        tiles, in float32. On other platforms the kernels are interpreted.
"""

import functools
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu

from editmgt_jax.models import rooms
from editmgt_jax.models.layers import of_samples, per_segment

EPSILON = 1e-6


def modulated_norm(x: jax.Array, shift: jax.Array, scale: jax.Array, lengths: tuple[int, ...]) -> tuple:
    """See `modulation.modulated_norm`. -> ([B S D], x)"""
    lengths, (shift, scale) = _filled(lengths, shift, scale)
    return of_samples(functools.partial(_norm, lengths=lengths), x, shift, scale, outputs=2)


def gated_sum(x: jax.Array, update: jax.Array, gate: jax.Array, lengths: tuple[int, ...]) -> jax.Array:
    """See `modulation.gated_sum`. -> [B S D]"""
    lengths, (gate,) = _filled(lengths, gate)
    return of_samples(functools.partial(_gate, lengths=lengths), x, update, gate)


def _filled(lengths, *vectors):
    """Segments that have positions, and their vectors: nothing would write the sums of others."""
    chosen = [segment for segment, length in enumerate(lengths) if length]
    if len(chosen) < len(lengths):
        vectors = [one[:, np.array(chosen)] for one in vectors]
    return tuple(lengths[segment] for segment in chosen), vectors


# ---- norm


@functools.partial(jax.custom_vjp, nondiff_argnums=(3,))
def _norm(x, shift, scale, lengths):
    (out,) = _call(_norm_kernel, "modulated_norm", {"x": x}, {"shift": shift, "scale": scale}, {"out": x}, {}, lengths)
    return out, x


def _norm_forward(x, shift, scale, lengths):
    return _norm(x, shift, scale, lengths), (x, shift, scale)


def _norm_backward(lengths, kept, gradients):
    x, shift, scale = kept
    of_out, of_x = gradients
    inputs = {"x": x, "of_out": of_out, "of_x": of_x}
    sums, name = {"dshift": shift, "dscale": scale}, "modulated_norm_backward"
    # In place of `of_x`: a loop over blocks that carries it would else copy it.
    in_place = {"of_x": "dx"} if rooms.in_place() else {}
    return tuple(
        _call(_norm_backward_kernel, name, inputs, {"scale": scale}, {"dx": x}, sums, lengths, in_place=in_place)
    )


_norm.defvjp(_norm_forward, _norm_backward)


def _normed(x):
    """-> x, centred and divided by its deviation [tile D], and 1 / deviation [tile 1], float32"""
    x = x.astype(jnp.float32)
    centred = x - jnp.mean(x, axis=-1, keepdims=True)
    gain = jax.lax.rsqrt(jnp.mean(centred * centred, axis=-1, keepdims=True) + EPSILON)
    return centred * gain, gain


def _norm_kernel(r, _first):
    y, _ = _normed(r.x[...])
    r.out[...] = (y * (1 + r.scale[...].astype(jnp.float32)) + r.shift[...].astype(jnp.float32)).astype(r.out.dtype)


def _norm_backward_kernel(r, first):
    y, gain = _normed(r.x[...])
    gradient = r.of_out[...].astype(jnp.float32)
    _add(r.dshift, jnp.sum(gradient, axis=0, keepdims=True), first)
    _add(r.dscale, jnp.sum(gradient * y, axis=0, keepdims=True), first)
    gradient = gradient * (1 + r.scale[...].astype(jnp.float32))
    along = jnp.mean(gradient, axis=-1, keepdims=True), jnp.mean(gradient * y, axis=-1, keepdims=True)
    dx = gain * (gradient - along[0] - y * along[1])
    r.dx[...] = (r.of_x[...].astype(jnp.float32) + dx).astype(r.dx.dtype)


# ---- gate


@functools.partial(jax.custom_vjp, nondiff_argnums=(3,))
def _gate(x, update, gate, lengths):
    return x + per_segment(gate, lengths) * update


def _gate_forward(x, update, gate, lengths):
    return _gate(x, update, gate, lengths), (update, gate)


def _gate_backward(lengths, kept, gradient):
    update, gate = kept
    inputs, outputs = {"gradient": gradient, "update": update}, {"dupdate": update}
    found = _call(
        _gate_backward_kernel, "gated_sum_backward", inputs, {"gate": gate}, outputs, {"dgate": gate}, lengths
    )
    return gradient, *found


_gate.defvjp(_gate_forward, _gate_backward)


def _gate_backward_kernel(r, first):
    gradient = r.gradient[...].astype(jnp.float32)
    _add(r.dgate, jnp.sum(gradient * r.update[...].astype(jnp.float32), axis=0, keepdims=True), first)
    r.dupdate[...] = (gradient * r.gate[...].astype(jnp.float32)).astype(r.dupdate.dtype)


# ---- calls


def _add(sums, part, first):
    """Adds the tile's part to the sums of its segment, which begin with its first tile."""

    @pl.when(first)
    def _():
        sums[...] = part

    @pl.when(jnp.logical_not(first))
    def _():
        sums[...] += part


def _call(kernel, name, inputs, vectors, outputs, sums, lengths, in_place=None):
    """A kernel over (sample, tile of positions). -> arrays like `outputs` and like `sums`

    Args:
      inputs, outputs: {name: [B S D]}; vectors, sums: {name: [B G D]}, of which a tile sees that of its segment.
      in_place: {input: the output that takes its memory}.
    """
    x = next(iter(inputs.values()))
    batch, length, width = x.shape
    tile = 256 if not any(one % 256 for one in lengths) else 128
    bounds = [int(bound) // tile for bound in np.cumsum(lengths)[:-1]]

    def segment(i):
        return sum(((i >= bound).astype(jnp.int32) for bound in bounds), jnp.int32(0))

    of_tile = pl.BlockSpec((None, tile, width), lambda b, i: (b, i, 0))
    of_segment = pl.BlockSpec((None, None, 1, width), lambda b, i: (b, segment(i), 0, 0))
    names = (*inputs, *vectors, *outputs, *sums)

    def body(*refs):
        i = pl.program_id(1)
        first = functools.reduce(jnp.logical_or, [i == bound for bound in bounds], i == 0)
        kernel(SimpleNamespace(**dict(zip(names, refs, strict=True))), first)

    shapes = [jax.ShapeDtypeStruct(x.shape, x.dtype) for x in outputs.values()]
    shapes += [jax.ShapeDtypeStruct((batch, x.shape[1], 1, width), jnp.float32) for x in sums.values()]

    def run(interpret, *arrays):
        return pl.pallas_call(
            body,
            grid=(batch, length // tile),
            in_specs=[of_tile] * len(inputs) + [of_segment] * len(vectors),
            out_specs=[of_tile] * len(outputs) + [of_segment] * len(sums),
            out_shape=shapes,
            compiler_params=pltpu.CompilerParams(
                dimension_semantics=("parallel", "arbitrary"),
                vmem_limit_bytes=64 * 2**20,
                # What a scan kept is read where it lies, and not copied out of its stack first.
                allow_input_fusion=[True] * len(inputs) + [False] * len(vectors),
            ),
            input_output_aliases={
                list(inputs).index(one): list(outputs).index(other) for one, other in (in_place or {}).items()
            },
            cost_estimate=pl.CostEstimate(
                flops=10 * x.size,
                bytes_accessed=sum(one.size * one.dtype.itemsize for one in (*inputs.values(), *shapes)),
                transcendentals=0,
            ),
            interpret=interpret,
            name=name,
        )(*arrays)

    arrays = [*inputs.values(), *(one[:, :, None] for one in vectors.values())]
    found = jax.lax.platform_dependent(
        *arrays, tpu=functools.partial(run, False), default=functools.partial(run, True)
    )  # fmt: skip
    totals = zip(found[len(outputs) :], sums.values(), strict=True)
    return [*found[: len(outputs)], *(total[:, :, 0].astype(like.dtype) for total, like in totals)]
