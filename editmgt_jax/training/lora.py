"""Low-rank adaptation: a second, small tree of parameters beside a transformer's.

The tree has, for each adapted module, `lora_a` [(layers) in r] and `lora_b` [(layers) r out]; the adapted kernel is
kernel + alpha / r * lora_a @ lora_b.

Source  LoRA (Hu et al. 2021), section 4; modules are chosen by the ends of their released names, as PEFT does
"""

import jax
import jax.numpy as jnp
from flax.traverse_util import flatten_dict, unflatten_dict

from editmgt_jax.config import LoRAConfig, MGTConfig
from editmgt_jax.convert import is_linear, released_leaves


def abstract_lora(config: LoRAConfig, mgt: MGTConfig, abstract_params):
    """The shapes of a LoRA's tree. Errors: ValueError when a target names no linear module."""
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
        raise ValueError(f"target_modules must be ends of names of linear modules of the transformer; {absent} are not")
    return unflatten_dict({tuple(path.split("/")): leaf for path, leaf in tree.items()})


def merge(params, lora, config: LoRAConfig):
    """The transformer's parameters with the LoRA added to its kernels, for good.

    Errors: ValueError when its scope is not all tokens, for merged kernels act on all.
    """
    if config.scope != "all":
        raise ValueError(
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
