"""Weight files of one model component: safetensors that are read, and written, one tensor at a time.

Nothing here holds more than the tensor at hand, so that a machine that barely holds a model can still move it.
Source  the safetensors format; shards and their index as diffusers and transformers write them
"""

import json
import math
import os
import re
import struct
import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import ml_dtypes
import numpy as np
from safetensors import SafetensorError, safe_open

from editmgt_jax.errors import UserError
from editmgt_jax.files import is_pointer, parse_json, replacing, write_json

PICKLES = ("*.bin", "*.pt", "*.pth", "*.ckpt", "*.pkl")
DTYPES = {"F32": np.dtype(np.float32), "F16": np.dtype(np.float16), "BF16": np.dtype(ml_dtypes.bfloat16)}
# What files may also hold, in tensors that are no weights, such as the position numbers of old CLIP files.
_STORED = DTYPES | {
    "F64": np.dtype(np.float64),
    "I64": np.dtype(np.int64),
    "I32": np.dtype(np.int32),
    "U8": np.dtype(np.uint8),
    "BOOL": np.dtype(bool),
}
_DTYPE_NAMES = {dtype: name for name, dtype in _STORED.items()}
SHARD_BYTES = 5 * 10**9  # a larger component is written in several files and an index
LISTED = 20  # problems that an error message names


class WeightsError(UserError):
    """Weight files that cannot be used: names the file, the keys and both shapes."""


class Tensor(NamedTuple):
    """What a file's header says of a tensor."""

    shape: tuple[int, ...]
    dtype: str  # as safetensors spells it
    path: Path
    name: str  # in the file, prefix included

    @property
    def bytes(self) -> int:
        """Size in the file."""
        return math.prod(self.shape) * _STORED[self.dtype].itemsize


class Pending(NamedTuple):
    """A tensor to write, made when its turn comes."""

    shape: tuple[int, ...]
    dtype: np.dtype
    make: Callable[[], np.ndarray] | None  # None is zeros that take no room on the disk

    @property
    def bytes(self) -> int:
        """Size in the file."""
        return math.prod(self.shape) * np.dtype(self.dtype).itemsize


class WeightFiles:
    """The tensors of a component's folder by name: `tensors` is their headers, `read` gets one from the disk.

    Errors: WeightsError for files that are damaged, pickled, missing from an index, that repeat a key or hold types unknown
    here (float8). FileNotFoundError when there are none.
    """

    def __init__(self, directory: str | Path, prefixes: Sequence[str] = (), variant: str | None = None):
        """prefixes: of keys in the files, left out here; variant: such as 'fp16', where the folder has one."""
        self.directory = Path(directory)
        self.tensors: dict[str, Tensor] = {}
        for path in _files(self.directory, variant):
            with _opened(path) as file:
                for name in file.keys():
                    entry, prefix = file.get_slice(name), next(filter(name.startswith, prefixes), "")
                    key = name.removeprefix(prefix)
                    tensor = Tensor(tuple(entry.get_shape()), entry.get_dtype(), path, name)
                    if key in self.tensors:
                        raise WeightsError(
                            f"weight {key} is repeated: in {self.tensors[key].path.name} and in {path.name}"
                        )
                    self.tensors[key] = tensor
        unknown = [f"{key} is {tensor.dtype}" for key, tensor in self.tensors.items() if tensor.dtype not in _STORED]
        if unknown:
            raise WeightsError(f"{self.directory}: tensors must be {', '.join(_STORED)}:{listed(unknown)}")

    def read(self, key: str, part: slice | None = None) -> np.ndarray:
        """A tensor, or a part of it along the first axis. The file is opened anew each time: what it maps is released at once."""
        name = self.tensors[key].name
        with _opened(self.tensors[key].path) as file:
            return file.get_tensor(name) if part is None else file.get_slice(name)[part]


def _opened(path):
    try:
        return safe_open(path, framework="np")
    except (SafetensorError, OSError) as error:
        if is_pointer(path):
            raise WeightsError(
                f"{path} is a pointer of Git LFS, not the weights: fetch them with `git lfs pull`"
            ) from error
        raise WeightsError(f"{path} is not a readable safetensors file ({error}); it may be truncated") from error


def listed(items: Iterable[str]) -> str:
    """Problems, for an error message of one line."""
    items = sorted(items)
    more = f"; and {len(items) - LISTED} more" if len(items) > LISTED else ""
    return f" {'; '.join(items[:LISTED])}{more}"


def variant_of(name: str) -> str:
    """'fp16' of the names model.fp16.safetensors, model.fp16-00001-of-00002.safetensors and model.safetensors.index.fp16.json, empty
    of those without."""
    stem, _, end = re.sub(r"-\d+-of-\d+", "", name).partition(".safetensors")
    return stem.partition(".")[2] or end.removeprefix(".index").removesuffix("json").strip(".")


def check_variant(directory: Path, variant: str | None) -> None:
    """Errors: WeightsError when no component of a model directory has a variant."""
    known = sorted({variant_of(path.name) for path in directory.glob("*/*.safetensors")} - {""})
    if variant is not None and variant not in known:
        raise WeightsError(f"{directory} must have the variant {variant!r} of some weights; it has {known or 'none'}")


def _files(directory, variant) -> list[Path]:
    """The safetensors files of a component: those of its index if it has one. A pickle alone is refused with the reason."""
    kinds: dict[str, list[Path]] = {}
    for path in sorted(directory.glob("*.safetensors*")):
        if path.name.endswith((".safetensors", ".json")):
            kinds.setdefault(variant_of(path.name), []).append(path)
    if len(kinds) > 1 and "" not in kinds and variant not in kinds:
        raise WeightsError(f"{directory} has several variants of its weights: name one, --variant {' or '.join(kinds)}")
    of_kind = kinds.get(variant if variant in kinds else "" if "" in kinds else next(iter(kinds), ""), [])
    indices = [path for path in of_kind if path.name.endswith(".json")]
    if len(indices) > 1:
        raise WeightsError(f"{directory} must have one index of weights; got {[path.name for path in indices]}")
    if indices:
        try:
            names = sorted(set(parse_json(indices[0].read_text())["weight_map"].values()))
            files = [directory / name for name in names]
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise WeightsError(f"{indices[0]} is not a readable index of weights ({error!r})") from error
        missing = [path.name for path in files if not path.is_file()]
        if missing:
            raise WeightsError(f"{indices[0].name} names files that {directory} does not have: {missing}")
        return files
    if of_kind:
        return of_kind
    pickles = sorted(path.name for pattern in PICKLES for path in directory.glob(pattern))
    if pickles:
        raise WeightsError(
            f"{directory} has only pickled weights ({', '.join(pickles)}), and unpickling can run any code: they are "
            "refused. Convert them to safetensors with the library that wrote them"
        )
    raise FileNotFoundError(f"a model component needs *.safetensors weights; none in {directory}")


def check_finite(key: str, array: np.ndarray, strict: bool, before: np.ndarray | None = None) -> None:
    """NaN or infinite values are a warning that names the weight, or under `strict` a WeightsError.

    Args:
      before: the array in another dtype. Errors: WeightsError when that is finite.
    """
    if np.isfinite(array).all():
        return
    if before is not None and array.dtype != before.dtype and np.isfinite(before).all():
        raise WeightsError(
            f"weight {key} does not fit {array.dtype}, its largest value is {np.abs(before.astype(np.float32)).max():.4g}: "
            "take bfloat16 or float32"
        )
    message = f"weight {key} holds NaN or infinite values"
    if strict:
        raise WeightsError(message)
    warnings.warn(message, stacklevel=2)


def write_weights(
    directory: str | Path,
    name: str,
    tensors: Mapping[str, Pending],
    verify: bool = False,
    metadata: Mapping[str, str] | None = None,
) -> None:
    """Writes tensors as `name`, or as shards and an index where they exceed SHARD_BYTES.

    Args:
      directory: existing folder; name: file name, `*.safetensors`; tensors: each is made when it is written.
      verify: whether to read the files back and compare every tensor, bit for bit. Errors: WeightsError.
      metadata: of the files, besides their format.
    """
    directory, shards, total = Path(directory), [{}], 0
    room = SHARD_BYTES
    for key in sorted(tensors, key=lambda key: -np.dtype(tensors[key].dtype).itemsize):  # keeps all of them aligned
        if shards[-1] and tensors[key].bytes > room:
            shards.append({})
            room = SHARD_BYTES
        shards[-1][key] = tensors[key]
        room -= tensors[key].bytes
        total += tensors[key].bytes
    stem, count = name.removesuffix(".safetensors"), len(shards)
    names = [name] if count == 1 else [f"{stem}-{i + 1:05}-of-{count:05}.safetensors" for i in range(count)]
    for shard_name, shard in zip(names, shards, strict=True):
        _write_file(directory / shard_name, shard, metadata or {})
    if count > 1:
        weight_map = {key: shard_name for shard_name, shard in zip(names, shards, strict=True) for key in shard}
        index = {"metadata": {"total_size": total}, "weight_map": weight_map}
        write_json(directory / f"{name}.index.json", index, indent=2, sort_keys=True)
    if verify:
        check_same(WeightFiles(directory), tensors)


def check_same(files: WeightFiles, tensors: Mapping[str, Pending]) -> None:
    """Errors: WeightsError naming the tensors that the files lack, have too many of, or that differ in a single bit."""
    different = sorted(files.tensors.keys() ^ tensors.keys())
    for key in files.tensors.keys() & tensors.keys():
        one, other = files.read(key), tensors[key].make()
        if one.dtype != other.dtype or one.shape != other.shape or not np.array_equal(as_bits(one), as_bits(other)):
            different.append(key)
    if different:
        raise WeightsError(
            f"{files.directory} did not survive the conversion; these tensors differ:{listed(different)}"
        )


def as_bits(array: np.ndarray) -> np.ndarray:
    """The array's bytes, uncopied: NaN equals itself, and 0 differs from -0."""
    return np.ascontiguousarray(array).reshape(-1).view(np.uint8)


def _write_file(path, tensors, metadata):
    """One safetensors file: the length of the header, the header, then the tensors back to back."""
    header, end = {"__metadata__": {"format": "pt"} | metadata}, 0
    for key, tensor in tensors.items():
        begin, end = end, end + tensor.bytes
        dtype = _DTYPE_NAMES[np.dtype(tensor.dtype)]
        header[key] = {"dtype": dtype, "shape": list(tensor.shape), "data_offsets": [begin, end]}
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)  # so that the tensors begin at a multiple of 8
    with replacing(path) as temporary, open(temporary, "wb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        for key, tensor in tensors.items():
            if tensor.make is None:
                file.truncate(file.seek(tensor.bytes, os.SEEK_CUR))
                continue
            array = np.ascontiguousarray(tensor.make())
            if array.shape != tuple(tensor.shape) or array.dtype != tensor.dtype:
                raise ValueError(f"{key} must be {tensor.shape} {tensor.dtype}; got {array.shape} {array.dtype}")
            file.write(as_bits(array).data)
