"""Norms, rotary positions, sinusoids and modulation shared by the models.

Axes    as in `editmgt_jax.config`
Source  the released Transformer2DModel; every statistic, angle and norm is in float32
"""

import functools
import math
from collections.abc import Callable

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import PartitionSpec as P
from jax.typing import DTypeLike

from editmgt_jax.shapes import Array, Float, Shaped

SINUSOID_WIDTH = 256


class RMSNorm(nn.Module):
    """x / rms(x) * scale over the last axis, eps 1e-6, statistics in float32."""

    epsilon: float = 1e-6

    @nn.compact
    def __call__(self, x):
        scale = self.param("scale", nn.initializers.ones, (x.shape[-1],))
        return rms_normed(x, along_channels(scale, x), self.epsilon)


class NormScale(nn.Module):
    """The scale [K] of an `RMSNorm` that is applied elsewhere."""

    @nn.compact
    def __call__(self, width: int):
        return self.param("scale", nn.initializers.ones, (width,))


def rms_normed(x: Float[Array, "*axes D"], scale: Float[Array, "..."], epsilon: float) -> Float[Array, "*axes D"]:
    """x / rms(x) * scale over the last axis, in x's dtype; `scale` has as many axes."""
    x32 = x.astype(jnp.float32)
    normed = x32 * jax.lax.rsqrt(jnp.mean(jnp.square(x32), axis=-1, keepdims=True) + epsilon)
    return (normed * scale).astype(x.dtype)


def along_channels(parameter: Shaped[Array, " C"], x: Shaped[Array, "..."]) -> Shaped[Array, "... C"]:
    """A parameter with one number for each channel, with as many axes as `x` has."""
    return parameter.reshape(*(1,) * (x.ndim - 1), -1)


class GroupNorm(nn.Module):
    """GroupNorm over [B Y X C], eps 1e-6, as one scale and shift a channel.

    Means over pixels come first and groups second: on CPUs XLA runs one mean over both more slowly.
    """

    groups: int
    epsilon: float = 1e-6

    @nn.compact
    def __call__(self, x):
        channels = x.shape[-1]
        scale = self.param("scale", nn.initializers.ones, (channels,))
        bias = self.param("bias", nn.initializers.zeros, (channels,))
        flat = x.reshape(x.shape[0], -1, channels)

        def group_mean(per_pixel):  # [B YX C] -> [B 1 C]
            groups = per_pixel.mean(axis=1).reshape(-1, self.groups, channels // self.groups).mean(axis=-1)
            return jnp.repeat(groups, channels // self.groups, axis=1)[:, None]

        mean = group_mean(flat)
        gain = jax.lax.rsqrt(group_mean(jnp.square(flat - mean)) + self.epsilon) * along_channels(scale, flat)
        return (flat * gain + (along_channels(bias, flat) - mean * gain)).reshape(x.shape)


class TokenEmbedding(nn.Module):
    """Vectors of a table by ids. The gradient is a product with one-hot vectors, except on CPUs, and where a TPU has a kernel for it.

    A scatter-add of half-precision vectors is slow where many ids are equal, as masks are, and on GPUs its sums depend on the
    order in which threads come.
    """

    size: int
    features: int
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, ids):
        """int32 ids [...] -> [... D]"""
        init = nn.initializers.variance_scaling(1.0, "fan_in", "normal", out_axis=0)
        return _lookup(self.param("embedding", init, (self.size, self.features)), ids, jnp.dtype(self.dtype))


@functools.partial(jax.custom_vjp, nondiff_argnums=(2,))
def _lookup(table, ids, dtype):
    return jnp.take(table, ids, axis=0).astype(dtype)


def _lookup_forward(table, ids, dtype):
    return _lookup(table, ids, dtype), (ids, table)


def _lookup_backward(_dtype, kept, gradient):
    ids, table = kept

    def scatter(ids, gradient):
        return jnp.zeros_like(table).at[ids].add(gradient.astype(table.dtype))

    def product(ids, gradient):  # not over flattened ids: their axes may be spread over several mesh axes
        chosen = jax.nn.one_hot(ids, len(table), dtype=gradient.dtype)  # [... C]
        axes = tuple(range(ids.ndim))
        return jnp.tensordot(chosen, gradient, (axes, axes), preferred_element_type=table.dtype)

    def kernel(ids, gradient):
        from editmgt_jax.models import embedding_tpu  # its imports take a while

        if not embedding_tpu.fits(gradient, len(table)):
            return product(ids, gradient)
        return embedding_tpu.table_gradient(ids, gradient, len(table)).astype(table.dtype)

    return jax.lax.platform_dependent(ids, gradient, cpu=scatter, tpu=kernel, default=product), None


_lookup.defvjp(_lookup_forward, _lookup_backward)


def constrain(x: Array, *axes: str | None) -> Array:
    """`x`, spread over devices as the training layout says for the logical names of its axes; else as it is.

    Names are "batch", "copy" (samples, whole on all devices that share a copy of the parameters), "length" (positions), "heads",
    "channels" (of a feed-forward part) or None.
    """
    return nn.with_logical_constraint(x, axes)


def device_kind() -> str:
    """The kind of the devices of the mesh in use, as 'TPU v5 lite'; empty where it is unknown, as without `jax.set_mesh`."""
    device = getattr(jax.sharding.get_abstract_mesh(), "abstract_device", None)
    return device.device_kind if device is not None else ""


def of_samples(function: Callable, *arrays: Array, axis: int = 0, outputs: int = 1) -> Array | tuple[Array, ...]:
    """`function` of arrays whose samples lie along `axis`, on each device for its own: for kernels, which XLA does not divide.

    Args:
      outputs: how many arrays it returns, with their samples along the same axis.
    """
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.empty or mesh.size == 1:
        return function(*arrays)
    (batch,) = nn.logical_to_mesh_axes(("batch",)) or (None,)
    names = (batch,) if isinstance(batch, str) else batch or ()
    divides = names and not arrays[0].shape[axis] % math.prod(mesh.shape[name] for name in names)
    spec = P(*(None,) * axis, batch if divides else None)
    out = (spec,) * outputs if outputs > 1 else spec
    return jax.shard_map(
        function, mesh=mesh, in_specs=(spec,) * len(arrays), out_specs=out, check_vma=False
    )(*arrays)  # fmt: skip


def shared_vectors(x: Array) -> Array:
    """One or a few vectors for each sample, [B ... D], whole on all devices that share a copy of the parameters.

    They are few, and each device has a share of the channels of the weights that they are multiplied with: so vectors are
    exchanged, and no weights.
    """
    return constrain(x, "copy", *(None,) * (x.ndim - 1))


def layer_norm(x: Float[Array, "*axes D"]) -> Float[Array, "*axes D"]:
    """LayerNorm without affine parameters; what follows it is always an adaptive shift and scale."""
    x32 = x.astype(jnp.float32)
    centred = x32 - jnp.mean(x32, axis=-1, keepdims=True)
    return (centred * jax.lax.rsqrt(jnp.mean(jnp.square(centred), axis=-1, keepdims=True) + 1e-6)).astype(x.dtype)


def _released_frequencies() -> np.ndarray:
    """exp(-ln(10000) i / 128), bit for bit as PyTorch computes it in float32 (Q3)."""
    half = SINUSOID_WIDTH // 2
    exponent = -np.float32(math.log(10000)) * np.arange(half, dtype=np.float32) / np.float32(half)
    table = np.exp(exponent.astype(np.float64)).astype(np.float32)
    table[[12, 106]] = np.nextafter(table[[12, 106]], np.float32(np.inf))
    return table


_FREQUENCIES = _released_frequencies()


def sinusoid(value: Float[Array, "*axes"]) -> Float[Array, "*axes 256"]:
    """[cos, sin] of a value times 128 frequencies. Angles reach 1e6 rad, so float32 throughout."""
    angle = value.astype(jnp.float32)[..., None]
    angle = angle * along_channels(jnp.asarray(_FREQUENCIES), angle)
    return jnp.concatenate([jnp.cos(angle), jnp.sin(angle)], axis=-1)


def rotary_table(
    grid: tuple[int, int], num_text: int, axes_dims: tuple[int, ...]
) -> tuple[Float[np.ndarray, "S half"], Float[np.ndarray, "S half"]]:
    """Rotary angles of [text, image]: ids (0, 0, 0) for text and (0, row, column) for the image.

    Returns cos, sin, float32, made on the host in float64.
    """
    rows, columns = np.indices(grid).reshape(2, -1)
    ids = np.stack([np.zeros_like(rows), rows, columns], axis=-1)
    ids = np.concatenate([np.zeros((num_text, 3), ids.dtype), ids])  # [T+N 3]
    angles = [
        ids[:, axis, None] / 10000.0 ** (np.arange(0, width, 2, dtype=np.float64) / width)
        for axis, width in enumerate(axes_dims)
    ]
    angles = np.concatenate(angles, axis=-1)
    return np.cos(angles).astype(np.float32), np.sin(angles).astype(np.float32)


def rotate(
    x: Float[Array, "B S A K"], cos: Float[Array, "S half"], sin: Float[Array, "S half"]
) -> Float[Array, "B S A K"]:
    """Rotates heads by angles per position, with half as many of them as channels K.

    A rotated pair is channels (i, i + K/2) of a head. The released weights pair (2i, 2i + 1); `convert` permutes the
    query and key channels once, which leaves every inner product unchanged and avoids strided access here.
    """
    first, second = jnp.split(x.astype(jnp.float32), 2, axis=-1)
    cos, sin = cos[None, :, None, :], sin[None, :, None, :]
    rotated = jnp.concatenate([first * cos - second * sin, second * cos + first * sin], axis=-1)
    return rotated.astype(x.dtype)


def per_segment(vectors: Float[Array, "B G D"], lengths: tuple[int, ...]) -> Float[Array, "B S D"]:
    """Spreads one vector per segment over its positions: [B G D] and G static lengths -> [B sum(lengths) D].

    A chain of selects, which fuses into what follows; a concatenation would be written to memory.
    """
    segment = np.repeat(np.arange(len(lengths)), lengths)[None, :, None]
    spread = vectors[:, :1]
    for g in range(1, len(lengths)):
        spread = jnp.where(segment == g, vectors[:, g : g + 1], spread)
    return jnp.broadcast_to(spread, (vectors.shape[0], sum(lengths), vectors.shape[2]))


class Linear(nn.Module):
    """nn.Dense of the concatenation of its inputs [B S D1], [B S D2], ..., which is never made.

    With low-rank factors `lora_a` [D r] and `lora_b` [r D'] in the collection "lora", positions from `adapted_from` on see
    kernel + lora_scale * lora_a @ lora_b.
    """

    features: int
    dtype: DTypeLike
    lora_scale: float = 1.0

    @nn.compact
    def __call__(self, *parts, adapted_from: int = 0):
        widths = [part.shape[-1] for part in parts]
        kernel = self.param("kernel", nn.initializers.lecun_normal(), (sum(widths), self.features))
        bias = self.param("bias", nn.initializers.zeros, (self.features,))
        out = _product(parts, kernel, self.dtype)
        if not self.has_variable("lora", "lora_a"):
            return _biased(out, bias, self.dtype)
        out = out + along_channels(bias, out)
        if self.has_variable("lora", "lora_a") and adapted_from < parts[0].shape[1]:
            adapted = [part[:, adapted_from:] for part in parts]
            low = _product(adapted, self.get_variable("lora", "lora_a"), self.dtype).astype(self.dtype)
            update = _product([low], self.get_variable("lora", "lora_b"), self.dtype)
            out = out.at[:, adapted_from:].add(self.lora_scale * update)
        return out.astype(self.dtype)


@functools.partial(jax.custom_vjp, nondiff_argnums=(2,))
def _biased(product, bias, dtype):
    """product [... D] + bias [D], as `dtype`. In half precision the gradient of the bias is a product with ones: on TPUs a sum
    over positions takes XLA longer."""
    return (product + along_channels(bias, product)).astype(dtype)


def _biased_forward(product, bias, dtype):
    return _biased(product, bias, dtype), ()


def _biased_backward(_dtype, _kept, gradient):
    axes = tuple(range(gradient.ndim - 1))
    if gradient.dtype.itemsize > 2:
        return gradient, gradient.sum(axis=axes)
    ones = jnp.ones((8, *gradient.shape[:-1]), gradient.dtype)
    total = jnp.tensordot(ones, gradient, (tuple(axis + 1 for axis in axes), axes), preferred_element_type=jnp.float32)
    # The row is taken behind a barrier: libtpu 0.0.42.1 otherwise merges it with the devices' shares of a reduce-scatter, and fails.
    return gradient.astype(jnp.float32), jax.lax.optimization_barrier(total)[0]


_biased.defvjp(_biased_forward, _biased_backward)


def _product(parts, kernel, dtype):
    """parts, concatenated, times kernel; sums are in float32."""
    blocks = jnp.split(kernel.astype(dtype), np.cumsum([part.shape[-1] for part in parts[:-1]]))
    return sum(
        jnp.matmul(part.astype(dtype), block, preferred_element_type=jnp.float32)
        for part, block in zip(parts, blocks, strict=True)
    )


class TwoLayerMLP(nn.Module):
    """Linear, SiLU, Linear: the embedders of time, of the pooled condition and of the micro-conditions."""

    width: int
    use_bias: bool
    dtype: DTypeLike

    @nn.compact
    def __call__(self, x):
        x = nn.Dense(self.width, use_bias=self.use_bias, dtype=self.dtype, name="linear_1")(shared_vectors(x))
        x = nn.silu(shared_vectors(x))
        return shared_vectors(nn.Dense(self.width, use_bias=self.use_bias, dtype=self.dtype, name="linear_2")(x))
