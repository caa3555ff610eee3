"""LPIPS: how different two pictures look, measured on the features of a network that was trained on photographs.

Axes    B batch, Y X pixels, F features of a stage
Source  Zhang et al. 2018, 'The Unreasonable Effectiveness of Deep Features as a Perceptual Metric', version 0.1, networks
        AlexNet, VGG-16 and SqueezeNet 1.1. `weights.lpips` reads their weights
Differs pictures are in [0, 1] here, as everywhere in this package
"""

import itertools
from typing import NamedTuple

import flax.linen as nn
import jax.numpy as jnp
from jax.typing import DTypeLike

from editmgt_jax.models.layers import along_channels
from editmgt_jax.shapes import Array, Float

_SHIFT = (-0.030, -0.088, -0.188)  # of pixels in [-1, 1]
_SCALE = (0.458, 0.448, 0.450)
_EPSILON = 1e-10


class _Fire(NamedTuple):
    """SqueezeNet's module: 1 x 1 to fewer channels, then 1 x 1 and 3 x 3 side by side."""

    squeezed: int
    expanded: int  # of either


# Kernel side, stride, padding, channels; 'pool' is a max pooling. The features behind each number in `_STAGES` are compared.
_LAYERS = {
    "alexnet": ((11, 4, 2, 64), "pool", (5, 1, 2, 192), "pool", (3, 1, 1, 384), (3, 1, 1, 256), (3, 1, 1, 256)),
    "vgg16": (
        *((3, 1, 1, 64),) * 2, "pool", *((3, 1, 1, 128),) * 2, "pool", *((3, 1, 1, 256),) * 3, "pool",
        *((3, 1, 1, 512),) * 3, "pool", *((3, 1, 1, 512),) * 3,
    ),
    "squeezenet": (
        (3, 2, 0, 64), "pool", *(_Fire(16, 64),) * 2, "pool", *(_Fire(32, 128),) * 2, "pool", *(_Fire(48, 192),) * 2,
        *(_Fire(64, 256),) * 2,
    ),
}  # fmt: skip
_STAGES = {
    "alexnet": (1, 2, 3, 4, 5),
    "vgg16": (2, 4, 7, 10, 13),
    "squeezenet": (1, 3, 5, 6, 7, 8, 9),
}  # layers done, pools aside
_POOL = {
    "alexnet": (3, False),
    "vgg16": (2, False),
    "squeezenet": (3, True),
}  # window of stride 2; whether its last may stick out
NETWORKS = tuple(_LAYERS)


def convolutions(network: str) -> int:
    """How many a network has."""
    return sum(3 if isinstance(layer, _Fire) else layer != "pool" for layer in _LAYERS[network])


def stages(network: str) -> int:
    """How many features of a network are compared."""
    return len(_STAGES[network])


def network_of(params: dict) -> str | None:
    """The network whose parameters these are, by the number of convolutions; None if it is none of `NETWORKS`."""
    count = sum(name.startswith("convolution_") for name in params)
    return next((name for name in NETWORKS if count == convolutions(name)), None)


class LPIPS(nn.Module):
    """The distance of pairs of pictures. Attributes: network, a key of `NETWORKS`; dtype of its convolutions."""

    network: str = "vgg16"
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, one: Float[Array, "B Y X 3"], other: Float[Array, "B Y X 3"]) -> Float[Array, " B"]:
        """Distances of pictures in [0, 1] with sides of at least 32 pixels."""
        features = self._features(jnp.concatenate([one, other]))
        distance = 0.0
        for stage, found in enumerate(features):
            found = found.astype(jnp.float32)
            found = found / (jnp.sqrt(jnp.square(found).sum(axis=-1, keepdims=True) + _EPSILON**2) + _EPSILON)
            first, second = jnp.split(found, 2)  # [B y x F]
            weights = self.param(f"linear_{stage}", nn.initializers.ones, (found.shape[-1],))
            distance += (jnp.square(first - second) @ weights).mean(axis=(1, 2))
        return distance

    def _features(self, pixels):
        """[2B Y X 3] -> the features of each stage [2B y x F]."""
        shift, scale = (along_channels(jnp.array(values), pixels) for values in (_SHIFT, _SCALE))
        x = ((2 * pixels - 1 - shift) / scale).astype(self.dtype)
        found, done, count = [], 0, itertools.count()

        def convolved(x, side, stride, padding, channels):
            name = f"convolution_{next(count)}"
            return nn.relu(nn.Conv(channels, (side, side), stride, padding, dtype=self.dtype, name=name)(x))

        for layer in _LAYERS[self.network]:
            if layer == "pool":
                x = _pooled(x, *_POOL[self.network])
                continue
            if isinstance(layer, _Fire):
                squeezed = convolved(x, 1, 1, 0, layer.squeezed)
                x = jnp.concatenate(
                    [convolved(squeezed, side, 1, side // 2, layer.expanded) for side in (1, 3)], axis=-1
                )
            else:
                x = convolved(x, *layer)
            done += 1
            if done in _STAGES[self.network]:
                found.append(x)
        return found


def _pooled(x, window, sticks_out):
    """Max pooling of stride 2."""
    more = [(0, (side - window) % 2 if sticks_out else 0) for side in x.shape[1:3]]
    return nn.max_pool(x, (window, window), (2, 2), more)
