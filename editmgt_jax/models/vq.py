"""The image tokenizer: pixels in [0, 1] <-> ids of a codebook.

Axes    B batch, Y X pixels, H W tokens, Z latent channels, C codebook size
Source  diffusers VQModel with DownEncoderBlock2D / UpDecoderBlock2D; parity to 2e-4 on decoded pixels, ids identical
Differs channels last; always float32, and unless a training run asks for less at the highest precision, also on accelerators
        (lower precision changes the ids)
"""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp

from editmgt_jax.config import VQConfig
from editmgt_jax.errors import UserError
from editmgt_jax.models.layers import GroupNorm, along_channels
from editmgt_jax.models.traces import traces
from editmgt_jax.shapes import Array, Float, Int, UInt8


def _conv(features, name):
    return nn.Conv(features, (3, 3), padding=((1, 1), (1, 1)), name=name)


def _halving_conv(features, name):
    """Stride 2; padded on the right and bottom only, as released."""
    return nn.Conv(features, (3, 3), (2, 2), padding=((0, 1), (0, 1)), name=name)


class ResnetBlock(nn.Module):
    """GroupNorm, SiLU, 3x3 conv, twice, around a shortcut."""

    features: int
    groups: int

    @nn.compact
    def __call__(self, x):
        shortcut = x
        x = _conv(self.features, name="conv1")(nn.silu(GroupNorm(self.groups, name="norm1")(x)))
        x = _conv(self.features, name="conv2")(nn.silu(GroupNorm(self.groups, name="norm2")(x)))
        if shortcut.shape[-1] != self.features:
            shortcut = nn.Dense(self.features, name="conv_shortcut")(shortcut)
        return shortcut + x


class SpatialAttention(nn.Module):
    """Single-head self-attention over all positions, with a residual."""

    groups: int

    @nn.compact
    def __call__(self, x):
        batch, rows, columns, width = x.shape
        y = GroupNorm(self.groups, name="norm")(x).reshape(batch, rows * columns, width)
        q, k, v = (nn.Dense(width, name=name)(y) for name in ("to_q", "to_k", "to_v"))
        weights = jax.nn.softmax(jnp.einsum("bqc,bkc->bqk", q, k) * width**-0.5, axis=-1)
        y = nn.Dense(width, name="to_out")(jnp.einsum("bqk,bkc->bqc", weights, v))
        return x + y.reshape(x.shape)


class MiddleBlock(nn.Module):
    """Two residual blocks at the lowest resolution, with attention between them if configured."""

    config: VQConfig

    @nn.compact
    def __call__(self, x):
        groups = self.config.norm_num_groups
        x = ResnetBlock(x.shape[-1], groups, name="resnet_0")(x)
        if self.config.mid_block_add_attention:
            x = SpatialAttention(groups, name="attention_0")(x)
        return ResnetBlock(x.shape[-1], groups, name="resnet_1")(x)


class Encoder(nn.Module):
    """[B Y X 3] -> [B H W Z]."""

    config: VQConfig

    @nn.compact
    def __call__(self, x):
        config = self.config
        x = _conv(config.block_out_channels[0], name="conv_in")(x)
        for level, features in enumerate(config.block_out_channels):
            for i in range(config.layers_per_block):
                x = ResnetBlock(features, config.norm_num_groups, name=f"down_{level}_resnet_{i}")(x)
            if level < len(config.block_out_channels) - 1:
                x = _halving_conv(features, name=f"down_{level}_conv")(x)
        x = MiddleBlock(config, name="middle")(x)
        x = nn.silu(GroupNorm(config.norm_num_groups, name="norm_out")(x))
        return _conv(config.latent_channels, name="conv_out")(x)


class Decoder(nn.Module):
    """[B H W Z] -> [B Y X 3]; one more residual block a level than the encoder."""

    config: VQConfig

    @nn.compact
    def __call__(self, x):
        config = self.config
        x = _conv(config.block_out_channels[-1], name="conv_in")(x)
        x = MiddleBlock(config, name="middle")(x)
        for level, features in enumerate(reversed(config.block_out_channels)):
            for i in range(config.layers_per_block + 1):
                x = ResnetBlock(features, config.norm_num_groups, name=f"up_{level}_resnet_{i}")(x)
            if level < len(config.block_out_channels) - 1:
                x = jnp.repeat(jnp.repeat(x, 2, axis=1), 2, axis=2)
                x = _conv(features, name=f"up_{level}_conv")(x)
        x = nn.silu(GroupNorm(config.norm_num_groups, name="norm_out")(x))
        return _conv(config.out_channels, name="conv_out")(x)


class VQModel(nn.Module):
    """Vector-quantised autoencoder. Methods: `latents`, `encode`, `decode`; parameters are float32."""

    config: VQConfig
    precision: str = "highest"  # of convolutions and products, as `jax.default_matmul_precision` names it

    def setup(self) -> None:
        """Declares the modules and the codebook."""
        config = self.config
        self.encoder = Encoder(config)
        self.decoder = Decoder(config)
        self.quant_conv = nn.Dense(config.code_dim)
        self.post_quant_conv = nn.Dense(config.latent_channels)
        self.codebook = self.param(
            "codebook",
            nn.initializers.uniform(2.0 / config.num_vq_embeddings),
            (config.num_vq_embeddings, config.code_dim),
        )

    def __call__(self, pixels: Float[Array, "B Y X 3"]) -> Float[Array, "B Y X 3"]:
        """The reconstruction, not clipped. Touches every parameter (for `init`)."""
        return self.decode(self.encode(pixels))

    def latents(self, pixels: Float[Array, "B Y X 3"]) -> Float[Array, "B H W Z"]:
        """Pixels in [0, 1] -> latents before quantisation. Errors: UserError unless sides are multiples of `config.factor`."""
        if any(side % self.config.factor for side in pixels.shape[1:3]):
            raise UserError(f"image sides must be multiples of {self.config.factor}; got {pixels.shape[1:3]}")
        with jax.default_matmul_precision(self.precision):
            return self.quant_conv(self.encoder(pixels.astype(jnp.float32)))

    def quantize(self, latents: Float[Array, "B H W Z"]) -> Int[Array, "B H W"]:
        """Ids of the nearest codebook vectors (Euclidean)."""
        product = jnp.einsum("...z,cz->...c", latents, self.codebook, precision=jax.lax.Precision.HIGHEST)
        norms = along_channels(jnp.sum(jnp.square(self.codebook), axis=-1), product)
        distance = jnp.sum(jnp.square(latents), axis=-1, keepdims=True) - 2 * product + norms
        return jnp.argmin(distance, axis=-1).astype(jnp.int32)

    def encode(self, pixels: Float[Array, "B Y X 3"]) -> Int[Array, "B H W"]:
        """Ids of pixels in [0, 1]."""
        return self.quantize(self.latents(pixels))

    def decode_latents(self, latents: Float[Array, "B H W Z"]) -> Float[Array, "B Y X 3"]:
        """Pixels, not clipped."""
        with jax.default_matmul_precision(self.precision):
            return self.decoder(self.post_quant_conv(latents))

    def decode(self, tokens: Int[Array, "B H W"]) -> Float[Array, "B Y X 3"]:
        """Pixels, not clipped. Ids past the codebook (left-over masks) decode as code 0 (Q13)."""
        tokens = jnp.where((tokens >= 0) & (tokens < self.config.num_vq_embeddings), tokens, 0)
        return self.decode_latents(jnp.take(self.codebook, tokens, axis=0))


@functools.partial(jax.jit, static_argnames="vq")
def pixels_to_ids(
    params: dict, pixels: UInt8[Array, "B Y X 3"] | Float[Array, "B Y X 3"], vq: VQModel
) -> Int[Array, "B H W"]:
    """Ids of pictures; floats are in [0, 1]."""
    traces["pixels_to_ids"] += 1
    if pixels.dtype == jnp.uint8:
        pixels = pixels.astype(jnp.float32) / 255
    return vq.apply({"params": params}, pixels, method="encode")


@functools.partial(jax.jit, static_argnames="vq")
def ids_to_pixels(params: dict, ids: Int[Array, "B H W"], vq: VQModel) -> Float[Array, "B Y X 3"]:
    """Pictures in [0, 1]."""
    traces["ids_to_pixels"] += 1
    return jnp.clip(vq.apply({"params": params}, ids, method="decode"), 0, 1)
