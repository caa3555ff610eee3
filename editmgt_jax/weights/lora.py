"""Low-rank adaptation (LoRA): a second, small tree of parameters beside a transformer's.

The tree has, for each adapted module, `lora_a` [(layers) in r] and `lora_b` [(layers) r out]; the adapted kernel is
kernel + alpha / r * lora_a @ lora_b.

Source  LoRA (Hu et al. 2021), section 4; modules are chosen by the ends of their released names, as PEFT does
"""

import json
from collections import Counter
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict

from editmgt_jax.config import LoRAConfig, MGTConfig, PEFTConfig
from editmgt_jax.errors import UserError
from editmgt_jax.weights.conversion import check_tensors, from_released, is_linear, released_leaves, released_tensors
from editmgt_jax.weights.files import DTYPES, WeightFiles, WeightsError, check_finite, write_weights

PEFT_CONFIG_NAME = "adapter_config.json"
CONFIG_NAME = "lora_config.json"  # of scopes that PEFT does not know: it would adapt all tokens
WEIGHTS_NAME = "adapter_model.safetensors"
PREFIX = "base_model.model."  # of the names of modules
TRAINER_PREFIXES = ("unet._orig_mod.", "unet.", "_orig_mod.", PREFIX)  # of the released trainer's, compiled or not
ORBAX = "orbax"  # folder of weights that are an Orbax checkpoint
BLOCKS = ("double_blocks", "single_blocks")


def abstract_lora(config: LoRAConfig, mgt: MGTConfig, abstract_params: dict) -> dict:
    """The shapes of a LoRA's tree. Errors: UserError when a target names no linear module."""
    flat, found, tree, layers_of = flatten_dict(abstract_params, sep="/"), set(), {}, Counter()
    for key, path, _ in released_leaves(mgt, abstract_params):
        module = key.removesuffix(".weight")
        targets = [name for name in config.target_modules if module == name or module.endswith(f".{name}")]
        if not targets or not is_linear(mgt, path):
            continue
        found.update(targets)
        layers_of[path] += 1
        *layers, inputs, outputs = flat[path].shape
        base = path.removesuffix("/kernel")
        tree[f"{base}/lora_a"] = jax.ShapeDtypeStruct((*layers, inputs, config.r), jnp.float32)
        tree[f"{base}/lora_b"] = jax.ShapeDtypeStruct((*layers, config.r, outputs), jnp.float32)
    if absent := sorted(set(config.target_modules) - found):
        raise UserError(f"target_modules must be ends of names of linear modules of the transformer; {absent} are not")
    whole = {path: flat[path].shape[0] if flat[path].ndim == 3 else 1 for path in layers_of}
    if partly := sorted(path for path, count in layers_of.items() if count != whole[path]):
        raise UserError(f"target_modules must name all layers of a module, or none; not so of {', '.join(partly)}")
    return unflatten_dict({tuple(path.split("/")): leaf for path, leaf in tree.items()})


def check_applicable(lora: dict, config: LoRAConfig) -> None:
    """Errors: UserError for modules that the transformer cannot adapt unmerged: others than those of its blocks, and with
    scope 'reference' those that no reference token passes."""
    for path in flatten_dict(lora):
        if path[0] not in BLOCKS:
            raise UserError(
                f"unmerged, a LoRA adapts modules of the blocks; {'/'.join(path[:-1])} is none: leave it out, or merge the LoRA"
            )
        if config.scope == "reference" and path[1].startswith("text_"):
            raise UserError(f"scope 'reference' must target modules that the reference passes; {path[1]} is the text's")


def init_lora(config: LoRAConfig, mgt: MGTConfig, abstract_params: dict, key: jax.Array) -> dict:
    """A LoRA that changes nothing yet: `lora_b` is 0, `lora_a` uniform as PEFT draws it. Errors: as `check_applicable`."""
    tree = abstract_lora(config, mgt, abstract_params)
    check_applicable(tree, config)
    shapes = flatten_dict(tree)
    keys = dict(zip(shapes, jax.random.split(key, len(shapes)), strict=True))

    def draw(path, shape):
        if path[-1] == "lora_b":
            return jnp.zeros(shape.shape, shape.dtype)
        bound = shape.shape[-2] ** -0.5
        return jax.random.uniform(keys[path], shape.shape, shape.dtype, -bound, bound)

    return unflatten_dict({path: draw(path, shape) for path, shape in shapes.items()})


def save_lora(directory: str | Path, config: LoRAConfig, mgt: MGTConfig, lora: dict, verify: bool = False) -> None:
    """Writes a LoRA as PEFT does: `lora_A` and `lora_B` of each module, and the config; under another name if its scope is not
    all tokens."""
    Path(directory).mkdir(parents=True, exist_ok=True)
    tensors = {f"{PREFIX}{key}": tensor for key, tensor in released_tensors(lora, mgt).items()}
    write_weights(directory, WEIGHTS_NAME, tensors, verify, _for_diffusers(config))
    write_config(config, directory)


def _for_diffusers(config: LoRAConfig) -> dict[str, str]:
    """Metadata of the weight file that diffusers' `load_lora_adapter` reads alpha and targets from: it reads no config file."""
    if config.scope != "all":
        return {}
    values = config.to_dict()
    prefixed = {f"{PREFIX}{name}": value for name, value in values.items()}
    return {"lora_adapter_metadata": json.dumps(prefixed, sort_keys=True)}


def write_config(config: LoRAConfig, directory: str | Path) -> None:
    """Writes a LoRA's config, in PEFT's file if its scope is all tokens."""
    config.to_json(Path(directory) / (PEFT_CONFIG_NAME if config.scope == "all" else CONFIG_NAME))


def read(directory: str | Path, mgt: MGTConfig, abstract_params: dict, strict: bool = False) -> tuple[LoRAConfig, dict]:
    """A LoRA of a transformer, from what `save_lora`, PEFT or the released trainer wrote, or `editmgt convert lora` as Orbax.

    Modules of other ranks or scales than most are padded and scaled to theirs, and layers without factors have zeros: the
    products are the same.
    Returns: (config, tree of host arrays)
    Errors: FileNotFoundError when the folder is no LoRA's; WeightsError, also for a kind of adapter that is not supported; CheckpointError.
    """
    try:
        return _read(Path(directory), mgt, abstract_params, strict)
    except WeightsError:
        raise
    except UserError as error:  # of its config
        raise WeightsError(str(error)) from error


def _read(directory, mgt, abstract_params, strict) -> tuple[LoRAConfig, dict]:
    names = [name for name in (CONFIG_NAME, PEFT_CONFIG_NAME) if (directory / name).is_file()]
    if not names:
        raise FileNotFoundError(f"a LoRA is a folder with {CONFIG_NAME} or {PEFT_CONFIG_NAME}; {directory} has none")
    if (directory / ORBAX).is_dir():
        config = LoRAConfig.from_json(directory / names[0])
        from editmgt_jax.weights.trees import load_tree  # Orbax, whose import takes as long as an edit

        lora, shapes = load_tree(directory / ORBAX), abstract_lora(config, mgt, abstract_params)
        if jax.tree.map(np.shape, lora) != jax.tree.map(np.shape, shapes):
            raise WeightsError(f"the LoRA in {directory} must have the modules of the model and of its config")
        return config, lora
    config = PEFTConfig.from_json(directory / names[0])
    released = names[0] == CONFIG_NAME and config.scope is None  # the released trainer's, which adapts the reference
    files = WeightFiles(directory, TRAINER_PREFIXES if released else (PREFIX,))
    return _read_peft(files, config, "reference" if released else config.scope or "all", mgt, abstract_params, strict)


def _read_peft(files, config, scope, mgt, abstract_params, strict) -> tuple[LoRAConfig, dict]:
    linear = {k.removesuffix(".weight"): p for k, p, _ in released_leaves(mgt, abstract_params) if is_linear(mgt, p)}
    config.check_quick(list(linear))
    modules = [module for module in linear if config.targets(module)]
    _check_targets(config, modules)
    ranks = {module: config.rank(module) for module in modules}
    scales = {module: config.scale(module) for module in modules}
    # 1. The tree: all layers of a leaf that has an adapted one, at the largest rank.
    rank, leaves = max(ranks.values()), {linear[module] for module in modules}
    stacked = [module for module, path in linear.items() if path in leaves]
    scale = Counter(scales.values()).most_common(1)[0][0]
    chosen = isinstance(config.target_modules, str) or config.exclude_modules or config.layers_to_transform
    targets = tuple(stacked) if chosen or stacked != modules else config.target_modules
    other = config.use_rslora or config.alpha_pattern or config.rank_pattern
    ours = LoRAConfig(rank, scale * rank if other else config.lora_alpha, targets, scope)
    abstract = abstract_lora(ours, mgt, abstract_params)
    # 2. What the files must hold.
    needed = {}
    for key, _, (outputs, inputs) in released_leaves(mgt, abstract):
        module, factor = key.rsplit(".lora_", 1)
        if module in ranks:
            needed[key] = (ranks[module], inputs) if factor.startswith("A") else (outputs, ranks[module])
    check_tensors(files, needed, needed, needed.keys())
    # 3. Each factor, padded with zeros, and lora_B scaled to the common scale.
    if not scale:
        scale = 1.0  # all are 0: so become the factors

    def read_factor(key, shape):
        module, factor = key.rsplit(".lora_", 1)
        if module not in ranks:
            return np.zeros(shape, DTYPES[files.tensors[next(iter(needed))].dtype])
        value = files.read(key)
        check_finite(key, value, strict)
        if factor.startswith("B") and scales[module] != scale:
            value = value.astype(np.float32) * np.float32(scales[module] / scale)
        return np.pad(value, [(0, whole - part) for whole, part in zip(shape, value.shape, strict=True)])

    return ours, from_released(mgt, abstract, read_factor)


def _check_targets(config, modules) -> None:
    """Errors: UserError when no module is adapted, or a name in the config is none's."""
    named = () if isinstance(config.target_modules, str) else config.target_modules
    absent = sorted({name for name in named if not any(m == name or m.endswith(f".{name}") for m in modules)})
    if absent and not (config.exclude_modules or config.layers_to_transform) or not modules:
        raise UserError(
            "target_modules must be ends of names of linear modules of the transformer, or a regular expression of them; "
            f"{absent or config.target_modules} are not"
        )


def merge(params: dict, lora: dict, config: LoRAConfig) -> dict:
    """The transformer's parameters with the LoRA added to its kernels, for good.

    Errors: UserError when its scope is not all tokens, for merged kernels act on all.
    """
    if config.scope != "all":
        raise UserError(
            f"only a LoRA of scope 'all' can be merged: merged weights act on all tokens; this one has {config.scope!r}"
        )
    flat, extra = flatten_dict(params), flatten_dict(lora)
    for path in {path[:-1] for path in extra}:
        kernel, a, b = flat[(*path, "kernel")], extra[(*path, "lora_a")], extra[(*path, "lora_b")]
        update = (
            jnp.matmul(jnp.asarray(a, jnp.float32), jnp.asarray(b, jnp.float32), precision="highest") * config.scale
        )
        flat[(*path, "kernel")] = (jnp.asarray(kernel, jnp.float32) + update).astype(kernel.dtype)
    return unflatten_dict(flat)
