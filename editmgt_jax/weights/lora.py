"""Low-rank adaptation (LoRA): a second, small tree of parameters beside a transformer's.

The tree has, for each adapted module, `lora_a` [(layers) in r] and `lora_b` [(layers) r out]; the adapted kernel is
kernel + alpha / r * lora_a @ lora_b.

Source  LoRA (Hu et al. 2021), section 4; modules are chosen by the ends of their released names, as PEFT does
"""

from pathlib import Path

import jax
import jax.numpy as jnp
from flax.traverse_util import flatten_dict, unflatten_dict

from editmgt_jax.config import LoRAConfig, MGTConfig
from editmgt_jax.errors import UserError
from editmgt_jax.weights.conversion import is_linear, load_params, released_leaves, released_tensors
from editmgt_jax.weights.files import write_weights

PEFT_CONFIG_NAME = "adapter_config.json"
CONFIG_NAME = "lora_config.json"  # of scopes that PEFT does not know: it would adapt all tokens
WEIGHTS_NAME = "adapter_model.safetensors"
PREFIX = "base_model.model."  # of the names of modules
BLOCKS = ("double_blocks", "single_blocks")


def abstract_lora(config: LoRAConfig, mgt: MGTConfig, abstract_params: dict) -> dict:
    """The shapes of a LoRA's tree. Errors: UserError when a target names no linear module."""
    flat, found, tree = flatten_dict(abstract_params, sep="/"), set(), {}
    for key, path, _ in released_leaves(mgt, abstract_params):
        module = key.removesuffix(".weight")
        targets = [name for name in config.target_modules if module == name or module.endswith(f".{name}")]
        if not targets or not is_linear(mgt, path):
            continue
        found.update(targets)
        *layers, inputs, outputs = flat[path].shape
        base = path.removesuffix("/kernel")
        tree[f"{base}/lora_a"] = jax.ShapeDtypeStruct((*layers, inputs, config.r), jnp.float32)
        tree[f"{base}/lora_b"] = jax.ShapeDtypeStruct((*layers, config.r, outputs), jnp.float32)
    if absent := sorted(set(config.target_modules) - found):
        raise UserError(f"target_modules must be ends of names of linear modules of the transformer; {absent} are not")
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
    write_weights(directory, WEIGHTS_NAME, tensors, verify)
    write_config(config, directory)


def load_lora(
    directory: str | Path, config: LoRAConfig, mgt: MGTConfig, abstract_params: dict, strict: bool = False
) -> dict:
    """Reads what `save_lora` or PEFT wrote, as host arrays. Errors: WeightsError, UserError."""
    return load_params(directory, mgt, abstract_lora(config, mgt, abstract_params), None, None, strict, PREFIX)


def write_config(config: LoRAConfig, directory: str | Path) -> None:
    """Writes a LoRA's config, in PEFT's file if its scope is all tokens."""
    config.to_json(Path(directory) / (PEFT_CONFIG_NAME if config.scope == "all" else CONFIG_NAME))


def read_config(directory: str | Path) -> LoRAConfig:
    """Errors: FileNotFoundError when the folder is no LoRA's."""
    names = [name for name in (CONFIG_NAME, PEFT_CONFIG_NAME) if (Path(directory) / name).is_file()]
    if not names:
        raise FileNotFoundError(f"a LoRA is a folder with {CONFIG_NAME} or {PEFT_CONFIG_NAME}; {directory} has none")
    return LoRAConfig.from_json(Path(directory) / names[0])


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
