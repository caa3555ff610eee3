"""Tokens by their place in a cell of the trunk, and the two convolutions between tokens and cells.

Axes    B batch, H W tokens, E places in a cell (stride * stride), N cells of a picture in row-major order, D channels
Source  released Transformer2DModel (a convolution 2 x 2 of stride 2, and its transpose)
Differs activations of tokens are [E B N D]: what is done to each token does not see their order, and both convolutions are then
        products, with no transposed copy of activations
"""

import flax.linen as nn
import jax.numpy as jnp
from jax.typing import DTypeLike

from editmgt_jax.models.layers import constrain
from editmgt_jax.shapes import Array, Float, Shaped


def to_cells(x: Shaped[Array, "B H W"], stride: int) -> Shaped[Array, "E B N"]:
    """A number for each token of a grid, by its place in a cell of stride x stride tokens."""
    batch, rows, columns = x.shape
    x = x.reshape(batch, rows // stride, stride, columns // stride, stride)
    return x.transpose(2, 4, 0, 1, 3).reshape(stride**2, batch, -1)


def from_cells(x: Shaped[Array, "E B N D"], grid: tuple[int, int]) -> Shaped[Array, "B H W D"]:
    """Vectors of tokens as a grid again; `grid` is that of the cells."""
    places, batch, _, channels = x.shape
    (rows, columns), stride = grid, round(places**0.5)
    x = x.reshape(stride, stride, batch, rows, columns, channels).transpose(2, 3, 0, 4, 1, 5)
    return x.reshape(batch, rows * stride, columns * stride, channels)


def spread_cells(x: Array) -> Array:
    """Ids [E B N] or activations [E B N D], spread over batch and cells."""
    return constrain(x, None, "batch", "length", *(None,) * (x.ndim - 3))


class Downsample(nn.Module):
    """A convolution 2 x 2 of stride 2 without bias; `kernel` is laid out as one, [2 2 D D']."""

    dtype: DTypeLike

    @nn.compact
    def __call__(self, x: Float[Array, "E B N D"]) -> Float[Array, "B N D"]:
        """[E B N D] -> [B N D]"""
        width = x.shape[-1]
        kernel = self.param("kernel", nn.initializers.lecun_normal(), (2, 2, width, width))
        kernel = kernel.reshape(4, width, width).astype(self.dtype)
        return jnp.einsum("ebnd,edc->bnc", x.astype(self.dtype), kernel)


class Upsample(nn.Module):
    """A transposed convolution 2 x 2 of stride 2 without bias; `kernel` is [D, 4 D'], places in a cell first."""

    dtype: DTypeLike

    @nn.compact
    def __call__(self, x: Float[Array, "B N D"]) -> Float[Array, "E B N D"]:
        """[B N D] -> [E B N D]"""
        width = x.shape[-1]
        kernel = self.param("kernel", nn.initializers.lecun_normal(), (width, 4 * width))
        kernel = kernel.reshape(width, 4, width).astype(self.dtype)
        return jnp.einsum("bnd,dec->ebnc", x.astype(self.dtype), kernel)
