"""Model directories of random weights, for tests without the released files."""

import zlib
from pathlib import Path

import jax.numpy as jnp
import numpy as np
from jax.typing import DTypeLike

from editmgt_jax.config import RELEASED_NEGATIVE_PROMPT, SchedulerConfig
from editmgt_jax.errors import UserError
from editmgt_jax.files import new_folder
from editmgt_jax.models.prompts import train_tokenizer
from editmgt_jax.weights import presets
from editmgt_jax.weights.components import abstract_params, component, make_module
from editmgt_jax.weights.conversion import released_leaves
from editmgt_jax.weights.files import Pending, write_weights


def make_random(
    preset: str,
    output: str | Path,
    text_encoders: str = "small",
    dtype: str = "float32",
    seed: int = 0,
    zeros: bool = False,
) -> None:
    """Writes a model directory with the architecture of a released model and random weights, for tests without its files.

    Args:
      text_encoders: 'small' (few layers, few words, the widths that the transformer needs) or 'full'.
      dtype: of the matrices of the transformer and of the text encoders, 'float32', 'float16' or 'bfloat16'.
      zeros: whether all weights are zeros that take no room on the disk, for programs that only ask for shapes.
    """
    if text_encoders not in ("small", "full"):
        raise UserError(f"text_encoders must be 'small' or 'full'; got {text_encoders!r}")
    configs = presets.preset(preset)
    with new_folder(output) as target:
        sizes = {}
        for folder, encoder, length in (("tokenizer", "text_encoder", 77), ("llm_encoder", "llm_encoder", 256)):
            if encoder in configs:
                size = configs[encoder].vocab_size if text_encoders == "full" else None
                side = "left" if folder == "llm_encoder" else "right"
                sizes[encoder] = train_tokenizer(
                    _SENTENCES, target / folder, length=length, size=size, padding_side=side
                )
        if text_encoders == "small":
            configs = presets.with_small_text(configs, sizes["text_encoder"], sizes.get("llm_encoder", 0))
        for folder, config in configs.items():
            (target / folder).mkdir(exist_ok=True)
            if isinstance(config, SchedulerConfig):
                config.to_json(target / folder / "scheduler_config.json")
                continue
            chosen = jnp.dtype("float32" if component(config).always_float32 else dtype)
            tensors = dict(_random_tensors(config, chosen, seed))
            if zeros:
                tensors = {key: tensor._replace(make=None) for key, tensor in tensors.items()}
            write_weights(target / folder, component(config).file_name, tensors)
            config.to_json(target / folder / "config.json")


# What the small tokenizers learn. The released negative prompt must fit the 77 tokens of a text-to-image model.
_SENTENCES = ["make the car red", "remove the tree", "add a small blue bird", RELEASED_NEGATIVE_PROMPT] * 2


def _random_tensors(config, dtype, seed):
    for key, path, shape in released_leaves(config, abstract_params(make_module(config))):
        yield key, random_tensor(key, path, shape, dtype, seed)
    for key, (shape, always) in component(config).unused(config).items():
        if always:
            yield key, random_tensor(key, "scale" if len(shape) == 1 else "kernel", shape, dtype, seed)


def random_tensor(key: str, path: str, shape: tuple[int, ...], dtype: DTypeLike, seed: int) -> Pending:
    """Norm scales 1 (Gemma 2's 0), biases 0, matrices of unit gain, embeddings of unit spread."""

    def make():
        name = path.split("/")[-1]
        if name in ("scale", "bias"):
            is_one = name == "scale" and not key.startswith("model.")
            return np.full(shape, float(is_one), np.float32)
        gain = 1.0 if name in ("embedding", "codebook") else np.prod(shape[1:]) ** -0.5
        dice = np.random.default_rng([seed, zlib.crc32(key.encode())])
        return (dice.standard_normal(shape, np.float32) * np.float32(gain)).astype(dtype)

    is_vector = len(shape) == 1
    return Pending(shape, np.dtype(np.float32) if is_vector else dtype, make)
