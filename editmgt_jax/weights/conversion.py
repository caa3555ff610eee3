"""Released PyTorch weights <-> our parameter trees, by the rules of `weights.rules`, read in both directions."""

import dataclasses
import functools
import math
import re
from collections.abc import Callable, Collection, Iterator, Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict
from jax.typing import DTypeLike

from editmgt_jax.weights.components import component
from editmgt_jax.weights.files import DTYPES, Pending, WeightFiles, WeightsError, check_finite, listed, write_weights
from editmgt_jax.weights.rules import AFFINE, KINDS, LORA, ComponentConfig, Kind, Rule, identity

_STRIP = 16  # rows of a transposed matrix that are copied together: a line of a cache for each of its columns
_READ_BYTES = 1 << 27  # of a large unstacked tensor, at once


def is_linear(config: ComponentConfig, path: str) -> bool:
    """Whether a leaf of our tree is the kernel of a linear module, which low-rank factors can be added to."""
    module, leaf = path.rsplit("/", 1)
    rules = [rule for rule in component(config).rules if _match(rule, module) is not None]
    return leaf == "kernel" and rules[0].kind in ("linear", "rotary_linear")


@dataclasses.dataclass(frozen=True)
class _Leaf:
    """One leaf of our tree and the released keys it comes from (several when layers are stacked)."""

    path: tuple[str, ...]
    shape: tuple[int, ...]
    keys: tuple[str, ...]
    kind: Kind
    stacked: bool

    def their_shape(self, config) -> tuple[int, ...]:
        probe = np.broadcast_to(np.int8(0), self.shape[1:] if self.stacked else self.shape)
        return self.kind.to_theirs(probe, config).shape


@functools.cache
def _pattern(ours: str) -> re.Pattern:
    return re.compile(re.sub(r"\\\{(\d)\\\}", r"(?P<n\1>\\d+)", re.escape(ours)))


def _match(rule: Rule, module: str) -> str | None:
    """Their module name for our module path, or None if the rule is about another module."""
    found = _pattern(rule.ours).fullmatch(module)
    if not found:
        return None
    theirs = rule.theirs
    for name, number in found.groupdict().items():
        theirs = theirs.replace("{" + name[1:] + "}", number)
    return theirs


def _leaves(config, abstract_params) -> list[_Leaf]:
    """Every leaf with its rule. A path that no rule, or more than one, covers is a programming error here."""
    leaves = []
    for path, value in flatten_dict(abstract_params).items():
        found = []
        for rule in component(config).rules:
            kind = KINDS[rule.kind]
            module, leaf = ("/".join(path), "") if "" in kind.leaves else ("/".join(path[:-1]), path[-1])
            theirs = _match(rule, module)
            if theirs is not None and leaf in kind.leaves:
                found.append((f"{theirs}.{kind.leaves[leaf]}", kind))
            elif theirs is not None and leaf in LORA and kind.leaves is AFFINE:
                # The first factor only sees inputs; outputs are laid out as the module's own.
                found.append((f"{theirs}.{LORA[leaf]}", KINDS["linear"] if leaf == "lora_a" else kind))
        if len(found) != 1:
            raise ValueError(f"exactly one conversion rule must cover {'/'.join(path)}; {len(found)} do")
        (name, kind), stacked = found[0], "{L}" in found[0][0]
        keys = tuple(name.replace("{L}", str(i)) for i in range(value.shape[0])) if stacked else (name,)
        leaves.append(_Leaf(path, tuple(value.shape), keys, kind, stacked))
    return leaves


def load_params(
    directory: str | Path,
    config: ComponentConfig,
    abstract_params: dict,
    dtype: DTypeLike | None = np.float32,
    put: Callable[[str, np.ndarray], Any] | None = None,
    strict: bool = False,
    variant: str | None = None,
) -> dict:
    """Reads a component's safetensors straight into our tree, a leaf at a time, the largest first.

    Args:
      directory: folder with `*.safetensors`; config: MGTConfig, VQConfig, CLIPTextConfig or Gemma2Config.
      abstract_params: the tree of shapes, from `jax.eval_shape(model.init, ...)`.
      dtype: of matrices, while vectors are float32; None is as stored.
      put: called with (path, host array) of each leaf as soon as it is read, to put it on its devices.
      strict: whether NaN and infinite values are errors and not warnings; variant: of the files, as in `WeightFiles`.
    Errors: WeightsError listing unknown, missing, repeated or misshapen weights with both shapes.
    """
    files, values = check_weights(directory, config, abstract_params, variant), {}
    leaves = _leaves(config, abstract_params)
    for leaf in sorted(leaves, key=lambda leaf: -math.prod(leaf.shape)):
        value = _read(leaf, files, config, dtype, strict)
        values[leaf.path] = value if put is None else put("/".join(leaf.path), value)
    return unflatten_dict({leaf.path: values[leaf.path] for leaf in leaves})


def from_released(
    config: ComponentConfig, abstract_params: dict, read: Callable[[str, tuple[int, ...]], np.ndarray]
) -> dict:
    """A tree of host arrays, made of released ones that `read` gives for (key, shape). Layers of several types become float32."""
    values = {}
    for leaf in _leaves(config, abstract_params):
        shape = leaf.their_shape(config)
        layers = [leaf.kind.to_ours(read(key, shape), config) for key in leaf.keys]
        dtype = layers[0].dtype if len({layer.dtype for layer in layers}) == 1 else np.float32
        values[leaf.path] = np.stack(layers).astype(dtype) if leaf.stacked else layers[0]
    return unflatten_dict(values)


def check_weights(
    directory: str | Path, config: ComponentConfig, abstract_params: dict, variant: str | None = None
) -> WeightFiles:
    """Reads the headers of a component's files. Errors: as `load_params`."""
    files = WeightFiles(directory, variant=variant)
    needed = {key: tuple(shape) for key, _, shape in released_leaves(config, abstract_params)}
    typed, unused = set(needed), component(config).unused(config)
    allowed = needed | {key: shape for key, (shape, _) in unused.items()}
    needed |= {key: shape for key, (shape, always) in unused.items() if always}
    check_tensors(files, needed, allowed, typed)
    return files


def check_tensors(
    files: WeightFiles,
    needed: Mapping[str, tuple[int, ...]],
    allowed: Mapping[str, tuple[int, ...]],
    typed: Collection[str],
) -> None:
    """Errors: WeightsError that lists what of the files' tensors does not fit.

    Args:
      needed, allowed: {key: shape}; typed: keys of tensors that must be of floating-point numbers.
    """
    problems = [f"missing: {key} {list(shape)}" for key, shape in needed.items() if key not in files.tensors]
    if problems and (prefix := _common_prefix(files.tensors, needed)):
        raise WeightsError(
            f"{files.directory}: all names of weights have the prefix {prefix!r}, as wrappers of a model put it before them: save "
            "the module inside of the wrapper (model._orig_mod, model.module), or rename the weights"
        )
    for key, tensor in files.tensors.items():
        if key not in allowed:
            problems.append(f"unknown: {key} {list(tensor.shape)}")
        elif tensor.shape != allowed[key]:
            problems.append(f"misshapen: {key} is {list(tensor.shape)} in the file, {list(allowed[key])} by its config")
        elif key in typed and tensor.dtype not in DTYPES:
            problems.append(f"mistyped: {key} is {tensor.dtype}; weights are {', '.join(DTYPES)}")
    if problems:
        raise WeightsError(f"{files.directory}: weights do not fit their config:{listed(problems)}")


def _common_prefix(given: Collection[str], needed: Collection[str]) -> str | None:
    """What stands before the names of all needed weights; None when there is no such prefix."""
    for key in given:
        dots = [place for place, letter in enumerate(key) if letter == "."]
        found = next((key[: place + 1] for place in dots if key[place + 1 :] in needed and key not in needed), None)
        if found is not None:
            return found if all(f"{found}{name}" in given for name in needed) else None
    return None


def released_leaves(config: ComponentConfig, abstract_params: dict) -> Iterator[tuple[str, str, tuple[int, ...]]]:
    """(released key, path in our tree, shape of the released tensor) of every weight."""
    for leaf in _leaves(config, abstract_params):
        for key in leaf.keys:
            yield key, "/".join(leaf.path), leaf.their_shape(config)


def parameter_count(abstract_params: dict) -> int:
    """The number of parameters of a tree of shapes."""
    return sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(abstract_params))


def _read(leaf, files, config, dtype, strict) -> np.ndarray:
    """A leaf's value: its layers stacked, in our layout."""
    stored = {DTYPES[files.tensors[key].dtype] for key in leaf.keys}
    own = stored.pop() if len(stored) == 1 else np.float32  # which holds all others exactly
    is_matrix = len(leaf.shape) - leaf.stacked > 1
    value = np.empty(leaf.shape, own if dtype is None else dtype if is_matrix else np.float32)
    for key, layer in zip(leaf.keys, value if leaf.stacked else value[None], strict=True):
        if leaf.kind.to_ours is identity and layer.ndim > 1:  # large embeddings: a part at a time
            step = max(1, _READ_BYTES // layer[0].nbytes)
            for first in range(0, len(layer), step):
                part = slice(first, min(first + step, len(layer)))
                read = files.read(key, part)
                _copy(read, layer[part])
                check_finite(key, layer[part], strict, read)
        else:
            read = files.read(key)
            _copy(leaf.kind.to_ours(read, config), layer)
            check_finite(key, layer, strict, read)
    return value


def _copy(array, target) -> None:
    """Copies an array in the target's dtype. A transposed matrix goes a few rows at a time: all at once takes 8 times as long."""
    with np.errstate(over="ignore"):  # is told by name
        if array.ndim != 2 or array.flags.c_contiguous:
            target[...] = array
            return
        for first in range(0, len(array), _STRIP):
            target[first : first + _STRIP] = array[first : first + _STRIP]


def released_tensors(
    params: dict, config: ComponentConfig, dtype: DTypeLike | Mapping[str, np.dtype] | None = None
) -> dict[str, Pending]:
    """Our tree -> {released key: tensor, made when asked for}; the exact inverse of `load_params`.

    Args:
      dtype: of all tensors, or those of some by key; None is that of each parameter.
    """
    chosen = dtype if isinstance(dtype, Mapping) else {}
    values = flatten_dict(params)
    tensors = {}
    for leaf in _leaves(config, params):
        value, shape = values[leaf.path], leaf.their_shape(config)
        for layer, key in enumerate(leaf.keys):
            target = np.dtype(chosen.get(key, value.dtype) if isinstance(dtype, Mapping) else dtype or value.dtype)
            make = functools.partial(_to_theirs, value, leaf, layer, config, target)
            tensors[key] = Pending(shape, target, make)
    return tensors


def _to_theirs(value, leaf, layer, config, dtype) -> np.ndarray:
    array = np.asarray(jax.device_get(value[layer] if leaf.stacked else value))
    theirs = leaf.kind.to_theirs(array, config)
    found = np.empty(theirs.shape, dtype)
    _copy(theirs, found)
    if dtype != array.dtype:
        check_finite(leaf.keys[layer], found, False, array)
    return found


def to_released(params: dict, config: ComponentConfig) -> dict[str, np.ndarray]:
    """All of `released_tensors`, made."""
    return {key: tensor.make() for key, tensor in released_tensors(params, config).items()}


def save_component(
    directory: str | Path, config: ComponentConfig, params: dict, dtype: DTypeLike | None = None, verify: bool = False
) -> None:
    """Writes config.json and safetensors of one component into `directory` (created).

    Args:
      dtype: of the file; None is that of the parameters.
      verify: whether to read the file back and compare.
    """
    directory = Path(directory)
    directory.mkdir(parents=True, exist_ok=True)
    write_weights(directory, component(config).file_name, released_tensors(params, config, dtype), verify)
    config.to_json(directory / "config.json")
