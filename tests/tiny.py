"""A tiny model directory with random weights, in the released layout: everything works, nothing means anything."""

import dataclasses
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from editmgt_jax.config import CLIPTextConfig, Gemma2Config, LoRAConfig, MGTConfig, SchedulerConfig, VQConfig
from editmgt_jax.models.clip_text import CLIPText
from editmgt_jax.models.mgt import MGT, init_mgt
from editmgt_jax.models.prompts import PromptTokenizer, train_tokenizer
from editmgt_jax.models.vq import VQModel
from editmgt_jax.weights.components import abstract_params, make_module
from editmgt_jax.weights.conversion import save_component
from editmgt_jax.weights.lora import abstract_lora

SENTENCES = ["make the car red", "remove the tree", "add a small blue bird", "turn it into a sketch"]
MGT_CONFIG = MGTConfig(
    num_layers=1,
    num_single_layers=2,
    attention_head_dim=16,
    num_attention_heads=2,
    axes_dims_rope=(4, 6, 6),
    joint_attention_dim=24,
    pooled_projection_dim=20,
    vocab_size=40,
    codebook_size=32,
    connector_type="none",
    text_encoder_architecture="CLIP",
)
VQ_CONFIG = VQConfig(
    block_out_channels=(8, 8, 8),
    layers_per_block=1,
    latent_channels=4,
    num_vq_embeddings=32,
    norm_num_groups=1,
    mid_block_add_attention=False,
)
SCHEDULER_CONFIG = SchedulerConfig(
    mask_token_id=39,
    timestep_convention="mask_rate",
    native_size=32,
    default_steps=4,
    default_guidance_scale=2.0,
    default_reference_strength=1.0,
    negative_prompt="",
)
TEXT_LENGTH = 12


def write_model(directory: Path, text_length: int = TEXT_LENGTH, **scheduler) -> Path:
    """Writes the directory; `scheduler` replaces values of SCHEDULER_CONFIG."""
    train_tokenizer(SENTENCES * 2, directory / "tokenizer", merges=40, length=text_length)
    text_config = CLIPTextConfig(
        hidden_size=24,
        intermediate_size=48,
        projection_dim=20,
        num_hidden_layers=2,
        num_attention_heads=2,
        max_position_embeddings=text_length,
        hidden_act="gelu",
        **PromptTokenizer(directory / "tokenizer").special_ids(),
    )
    text, vq, mgt = CLIPText(text_config), VQModel(VQ_CONFIG), MGT(MGT_CONFIG)
    ids, pixels = jnp.zeros((1, text_length), jnp.int32), jnp.zeros((1, 16, 16, 3))
    # A wide spread, so that tokens, time, text and reference all move the logits.
    save_component(directory / "editmgt", MGT_CONFIG, random_params(lambda key: init_mgt(mgt, key), spread=3.0))
    save_component(directory / "vqvae", VQ_CONFIG, random_params(lambda key: vq.init(key, pixels)["params"]))
    save_component(directory / "text_encoder", text_config, random_params(lambda key: text.init(key, ids)["params"]))
    (directory / "scheduler").mkdir()
    config = dataclasses.replace(SCHEDULER_CONFIG, **scheduler)
    config.to_json(directory / "scheduler" / "scheduler_config.json")
    return directory


def small_presets() -> dict:
    """Presets for `make_random`: "tiny", an editor with both text encoders, and the base that it comes from."""
    mgt = MGTConfig(
        num_layers=2,
        num_single_layers=2,
        attention_head_dim=8,
        num_attention_heads=2,
        axes_dims_rope=(4, 2, 2),
        joint_attention_dim=20,
        pooled_projection_dim=12,
        vocab_size=40,
        codebook_size=32,
    )
    gemma = Gemma2Config(hidden_size=20, num_hidden_layers=3)
    small = {
        "editmgt": mgt,
        "llm_encoder": gemma,
        "vqvae": VQ_CONFIG,
        "text_encoder": CLIPTextConfig(projection_dim=12, eos_token_id=2),
        "scheduler": SCHEDULER_CONFIG,
    }
    base = dataclasses.replace(
        mgt, joint_attention_dim=mgt.width, connector_type="none", text_encoder_architecture="CLIP"
    )
    folders = ("vqvae", "text_encoder", "scheduler")
    return {"tiny": small, "tiny-base": {"transformer": base} | {name: small[name] for name in folders}}


def random_lora() -> tuple:
    """A random LoRA of the tiny model. -> (config, module, parameters, tree)"""
    config, mgt = LoRAConfig(r=3, lora_alpha=6.0), make_module(MGT_CONFIG)
    params = random_params(lambda key: mgt.init(key, method=_touch)["params"])
    dice = np.random.default_rng(0)
    shapes = abstract_lora(config, mgt.config, abstract_params(mgt))
    return config, mgt, params, jax.tree.map(lambda leaf: dice.standard_normal(leaf.shape, np.float32), shapes)


def _touch(module):
    condition = module.condition(jnp.zeros((1, 1, 24)), jnp.zeros((1, 20)), jnp.zeros((1, 5)))
    return module(jnp.zeros((1, 4, 4), jnp.int32), 0.0, condition)


def random_params(init, spread: float = 1.0):
    """Matrices with unit gain times `spread`, norms 1, biases 0. Made in numpy: nothing is compiled."""
    dice = np.random.default_rng(0)

    def draw(path, leaf):
        name = path[-1].key
        if name == "scale":
            return np.ones(leaf.shape, np.float32)
        if name == "bias":
            return np.zeros(leaf.shape, np.float32)
        fan_in = 1 if name in ("codebook", "embedding") else np.prod(leaf.shape[-4 if leaf.ndim == 4 else -2 : -1])
        return (spread * dice.standard_normal(leaf.shape) / np.sqrt(fan_in)).astype(np.float32)

    return jax.tree_util.tree_map_with_path(draw, jax.eval_shape(init, jax.random.key(0)))
