"""Whole model directories: say what is in one, move one to Orbax and back, make an editor of a base.

A directory that is written appears under its name only when it is complete.
Axes    none
Source  the released diffusers layout
"""

import dataclasses
import hashlib
import math
from collections import Counter
from pathlib import Path

import jax
import numpy as np

from editmgt_jax.config import (
    Gemma2Config,
    MGTConfig,
    SchedulerConfig,
)
from editmgt_jax.errors import EditMGTError, UserError
from editmgt_jax.files import copy_files, new_folder, read_json, write_json
from editmgt_jax.weights import lora as adapters
from editmgt_jax.weights import presets
from editmgt_jax.weights.components import MGT_FOLDERS, abstract_params, component, folder_configs, make_module
from editmgt_jax.weights.conversion import (
    check_weights,
    load_params,
    parameter_count,
    released_leaves,
    released_tensors,
)
from editmgt_jax.weights.files import (
    DTYPES,
    Pending,
    WeightFiles,
    WeightsError,
    as_bits,
    check_finite,
    check_same,
    check_variant,
    listed,
    write_weights,
)
from editmgt_jax.weights.loading import (
    find_model,
    load_gemma,
    load_mgt,
    load_model,
)
from editmgt_jax.weights.random_model import random_tensor
from editmgt_jax.weights.trees import check_name, load_tree, save_tree

TYPES = "types.json"  # of a component's released tensors, where they differ
CHECKSUMS = "checksums.json"  # of a component's released tensors, beside its checkpoint
ORBAX = adapters.ORBAX


class DirectoryError(UserError):
    """A request about model directories that cannot be met."""


def _components(directory: Path):
    """(folder name, config) of each component with weights, in a fixed order."""
    for name, kind in folder_configs().items():
        if (directory / name).is_dir():
            yield name, kind.from_json(directory / name / "config.json")


# ---- inspect


def inspect_preset(name: str) -> dict:
    """What a released model consists of, from its configs alone. -> {"components": {folder: {...}}}"""
    components = {
        folder: {"class": config.CLASS_NAME, "parameters": parameter_count(abstract_params(make_module(config)))}
        for folder, config in presets.preset(name).items()
        if not isinstance(config, SchedulerConfig)
    }
    return {"preset": name, "components": components}


def inspect(directory: str | Path, variant: str | None = None) -> dict:
    """What a model directory holds and whether it would load. No weight is read, only the headers of the files.

    Returns: {"components": {folder: {"class", "parameters", "unused", "dtypes", "bytes", "problem"}}, "loads", "problem"};
      "unused" counts parameters that the released file has and this package has no use for.
    """
    directory, _ = find_model(directory)
    check_variant(directory, variant)
    components = {}
    for folder, kind in folder_configs().items():
        if not (directory / folder).is_dir():
            continue
        entry = components[folder] = {"class": kind.CLASS_NAME, "problem": None}
        try:
            config = kind.from_json(directory / folder / "config.json")
            tensors = WeightFiles(directory / folder, variant=variant).tensors
            unused = component(config).unused(config)
            if isinstance(config, MGTConfig):
                entry["not_for_pytorch"] = config.released_problem
            entry["parameters"] = sum(math.prod(t.shape) for key, t in tensors.items() if key not in unused)
            entry["unused"] = sum(math.prod(t.shape) for key, t in tensors.items() if key in unused)
            entry["dtypes"] = dict(Counter(tensor.dtype for tensor in tensors.values()))
            entry["bytes"] = sum(tensor.bytes for tensor in tensors.values())
            check_weights(directory / folder, config, abstract_params(make_module(config)), variant)
        except (OSError, EditMGTError) as error:
            entry["problem"] = str(error)
    problem = next((entry["problem"] for entry in components.values() if entry["problem"]), None)
    if problem is None:
        try:
            load_model(directory, check_only=True, variant=variant)
        except (OSError, EditMGTError) as error:
            problem = str(error)
    return {"directory": str(directory), "components": components, "loads": problem is None, "problem": problem}


def describe(report: dict) -> str:
    """The report of `inspect` or `inspect_preset` as a table."""
    lines = [f"{'component':<14}{'class':<32}{'parameters':>16}{'size':>12}  types"]
    total = 0
    for folder, entry in report["components"].items():
        size = f"{entry['bytes'] / 1e6:.1f} MB" if "bytes" in entry else ""
        types = ", ".join(entry.get("dtypes", ()))
        total += entry.get("parameters", 0)
        lines.append(f"{folder:<14}{entry['class']:<32}{entry.get('parameters', 0):>16,}{size:>12}  {types}")
        if entry.get("unused"):
            lines.append(f"{'':<14}{'(in the file, not used)':<32}{entry['unused']:>16,}")
    lines.append(f"{'all':<46}{total:>16,}")
    for entry in report["components"].values():
        if entry.get("not_for_pytorch"):
            lines.append(f"not for PyTorch: the released classes cannot hold this model: {entry['not_for_pytorch']}")
    if "loads" in report:
        lines.append("would load" if report["loads"] else f"would not load: {report['problem']}")
    return "\n".join(lines)


# ---- Orbax and back


def to_orbax(
    source: str | Path, output: str | Path, verify: bool = False, strict: bool = False, variant: str | None = None
) -> None:
    """Writes a released directory with each component's weights as an Orbax checkpoint of our tree, types kept.

    Args:
      verify: whether to read the result back and compare every tensor with the source's, bit for bit.
      strict: whether NaN is an error; variant: of the weight files, as in `load_model`.
    """
    check_name(output)
    source, _ = find_model(source)
    check_variant(source, variant)
    with new_folder(output, source) as target:
        for folder, config in _components(source):
            files = WeightFiles(source / folder, variant=variant)
            abstract = abstract_params(make_module(config))
            params = load_params(source / folder, config, abstract, None, None, strict, variant)
            unused = {key: files.read(key) for key in files.tensors.keys() & component(config).unused(config).keys()}
            for key, value in unused.items():
                check_finite(key, value, strict)
            (target / folder).mkdir()
            sums = {key: _checksum(files.read(key)) for key in sorted(files.tensors)}
            write_json(target / folder / CHECKSUMS, sums)
            types = {key: tensor.dtype for key, tensor in files.tensors.items()}
            if len(set(types.values())) > 1:  # a stack of layers of several types is stored as float32
                write_json(target / folder / TYPES, types)
            save_tree(target / folder / ORBAX, {"params": params} | ({"unused": unused} if unused else {}))
            del params, unused
            if verify:
                check_same(files, _orbax_tensors(target / folder, config))
        copy_files(source, target, _weights_of_components(source))


def to_released(source: str | Path, output: str | Path, verify: bool = False, strict: bool = False) -> None:
    """The inverse of `to_orbax`: the released layout, with the config files and the types that it had.

    Errors: WeightsError when the checkpoints do not fit their configs, or are not what `to_orbax` wrote.
    """
    source = Path(source)
    if not list(source.glob(f"*/{ORBAX}")):
        raise FileNotFoundError(f"a converted directory has components with a folder {ORBAX}; {source} has none")
    with new_folder(output, source) as target:
        for folder, config in _components(source):
            (target / folder).mkdir()
            tensors = _orbax_tensors(source / folder, config, strict)
            write_weights(target / folder, component(config).file_name, tensors, verify)
            del tensors
            check_weights(target / folder, config, abstract_params(make_module(config)))
        copy_files(source, target, lambda path: path.name in (CHECKSUMS, TYPES) or ORBAX in path.parts[1:])
        find_model(target)


def _orbax_tensors(directory, config, strict=False) -> dict[str, Pending]:
    """The released tensors of a component's checkpoint, checked against its config and against their checksums."""
    tree = load_tree(directory / ORBAX)
    shapes = jax.tree.map(np.shape, abstract_params(make_module(config)))
    if jax.tree.map(np.shape, tree["params"]) != shapes:
        raise WeightsError(f"the tree of {directory / ORBAX} must have the paths and shapes of {directory}/config.json")
    unused = {key: Pending(a.shape, a.dtype, lambda a=a: a) for key, a in tree.get("unused", {}).items()}
    types = read_json(directory / TYPES, dict) if (directory / TYPES).is_file() else {}
    dtypes = {key: DTYPES[name] for key, name in types.items() if name in DTYPES}
    tensors = released_tensors(tree["params"], config, dtypes) | unused
    sums = read_json(directory / CHECKSUMS, dict) if (directory / CHECKSUMS).is_file() else None
    different = []
    for key, tensor in tensors.items():
        value = tensor.make()
        check_finite(key, value, strict)
        if sums is not None and sums.get(key) != _checksum(value):
            different.append(key)
    if sums is not None and (different or sums.keys() != tensors.keys()):
        different = different or sums.keys() ^ tensors.keys()
        raise WeightsError(f"{directory / ORBAX} is damaged: not what {CHECKSUMS} says of{listed(different)}")
    return tensors


def _checksum(array) -> str:
    return hashlib.sha256(as_bits(array)).hexdigest()


def _weights_of_components(directory):
    """Whether a path, relative to a model directory, is a weight file of a component that is converted."""
    folders = {folder for folder, _ in _components(directory)}

    def is_weights(path):
        inside = len(path.parts) == 2 and path.parts[0] in folders
        return inside and ".safetensors" in path.name  # with indices, those of variants too

    return is_weights


# ---- base -> editor


def to_editor(
    base: str | Path,
    output: str | Path,
    llm_encoder: str | Path | None = None,
    seed: int = 0,
    verify: bool = False,
    strict: bool = False,
) -> tuple[list[str], list[str]]:
    """Writes the editor that training starts from: a text-to-image base with a new connector for Gemma 2's states.

    Args:
      base: text-to-image model directory; llm_encoder: folder of a Gemma 2 to go with it; without it the result has a
        transformer that training code can start from, and says so.
    Returns: the keys that were copied and those that are new.
    """
    base, mgt_folder = find_model(base)
    config = MGTConfig.from_json(mgt_folder / "config.json")
    if config.connector_type != "none":
        raise UserError(f"{base} must be a text-to-image base, without a connector; it has {config.connector_type!r}")
    if config.joint_attention_dim != config.width:
        raise UserError(
            f"the base's joint_attention_dim must be its width {config.width}, for its context_embedder is kept; "
            f"got {config.joint_attention_dim}"
        )
    llm = Gemma2Config()
    if llm_encoder is not None:
        llm, _ = load_gemma(llm_encoder, check_only=True)
        llm = llm.config
    editor = dataclasses.replace(
        config,
        joint_attention_dim=llm.hidden_size,
        connector_type="linear",
        text_encoder_architecture="CLIP_Gemma2",
    )
    files = check_weights(mgt_folder, config, abstract_params(make_module(config)))
    dtype = DTYPES[files.tensors["context_embedder.weight"].dtype]

    def checked(key):
        value = files.read(key)
        check_finite(key, value, strict)
        return value

    new = {
        key: random_tensor(key, path, shape, dtype, seed)
        for key, path, shape in released_leaves(editor, abstract_params(make_module(editor)))
        if key not in files.tensors
    }
    copied = {key: Pending(t.shape, DTYPES[t.dtype], lambda key=key: checked(key)) for key, t in files.tensors.items()}
    with new_folder(output, base, *([] if llm_encoder is None else [llm_encoder])) as target:
        (target / MGT_FOLDERS[0]).mkdir()
        write_weights(target / MGT_FOLDERS[0], component(editor).file_name, copied | new, verify)
        editor.to_json(target / MGT_FOLDERS[0] / "config.json")
        check_weights(target / MGT_FOLDERS[0], editor, abstract_params(make_module(editor)))
        replaced = {mgt_folder.name} | ({"llm_encoder"} if llm_encoder is not None else set())
        copy_files(base, target, lambda path: path.parts[0] in replaced)
        if llm_encoder is not None:
            copy_files(llm_encoder, target / "llm_encoder")
    return sorted(copied), sorted(new)


# ---- LoRA


def convert_lora(
    source: str | Path, output: str | Path, model: str | Path, verify: bool = False, strict: bool = False
) -> None:
    """Writes a LoRA in the other format: Orbax (folder `orbax`) to PEFT's safetensors, or back.

    Args:
      source: folder with a LoRA's config and weights; model: whose LoRA it is.
    """
    check_name(output)
    source = Path(source)
    mgt, abstract = load_mgt(find_model(model)[1], check_only=True)
    config, lora = adapters.read(source, mgt.config, abstract, strict)
    with new_folder(output, source) as target:
        if (source / adapters.ORBAX).is_dir():
            adapters.save_lora(target, config, mgt.config, lora, verify)
            return
        save_tree(target / adapters.ORBAX, lora)
        adapters.write_config(config, target)
        if verify:
            _check_same_trees(target, load_tree(target / adapters.ORBAX), lora)


def _check_same_trees(where, one, other) -> None:
    """Errors: WeightsError for trees that differ in a single bit."""
    pairs = zip(jax.tree.leaves(one), jax.tree.leaves(other), strict=True)
    same = all(a.dtype == b.dtype and np.array_equal(as_bits(np.asarray(a)), as_bits(np.asarray(b))) for a, b in pairs)
    if jax.tree.structure(one) != jax.tree.structure(other) or not same:
        raise WeightsError(f"{where} did not survive the conversion")


def merge_lora(
    source: str | Path, output: str | Path, lora: str | Path, verify: bool = False, strict: bool = False
) -> None:
    """Writes a model directory whose transformer has a LoRA merged into its weights, in the types they have."""
    source, mgt_folder = find_model(source)
    mgt = make_module(MGTConfig.from_json(mgt_folder / "config.json"))
    config, factors = adapters.read(lora, mgt.config, abstract_params(mgt), strict)
    params = load_params(mgt_folder, mgt.config, abstract_params(mgt), None, None, strict)
    params = adapters.merge(params, factors, config)
    types = {key: DTYPES[t.dtype] for key, t in WeightFiles(mgt_folder).tensors.items() if t.dtype in DTYPES}
    with new_folder(output, source, lora) as target:
        (target / mgt_folder.name).mkdir()
        tensors = released_tensors(params, mgt.config, types)
        write_weights(target / mgt_folder.name, component(mgt.config).file_name, tensors, verify)
        copy_files(source, target, lambda path: path.parts[0] == mgt_folder.name and ".safetensors" in path.name)
