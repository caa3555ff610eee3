"""The released models by name: the configs of the folders of their model directories. Weights are not here.

Source  config.json files of WeiChow/EditMGT (1024 px editor), MeissonFlow/Meissonic (its 1024 px text-to-image base) and
        Collov-Labs/Monetico (the 512 px sibling)
"""

import dataclasses

from editmgt_jax.config import CLIPTextConfig, Gemma2Config, MGTConfig, SchedulerConfig, VQConfig
from editmgt_jax.errors import UserError

_VQ = VQConfig(
    block_out_channels=(128, 256, 256, 512, 768),
    layers_per_block=2,
    latent_channels=64,
    num_vq_embeddings=8192,
    mid_block_add_attention=False,
)
_CLIP = CLIPTextConfig(  # ViT-H/14
    vocab_size=49408,
    hidden_size=1024,
    intermediate_size=4096,
    projection_dim=1024,
    num_hidden_layers=24,
    num_attention_heads=16,
    hidden_act="gelu",
    bos_token_id=0,
    eos_token_id=2,
    pad_token_id=1,
)
_EDITOR = MGTConfig()
_BASE = dataclasses.replace(_EDITOR, joint_attention_dim=1024, connector_type="none", text_encoder_architecture="CLIP")
_SCHEDULER = SchedulerConfig(mask_token_id=_EDITOR.mask_token_id)
_SHARED = {"vqvae": _VQ, "text_encoder": _CLIP, "scheduler": _SCHEDULER}

PRESETS = {
    "editmgt-1024": {"editmgt": _EDITOR, "llm_encoder": Gemma2Config()} | _SHARED,
    "meissonic-1024": {"transformer": _BASE} | _SHARED,
    "monetico-512": {"transformer": dataclasses.replace(_BASE, downsample=False, upsample=False)} | _SHARED,
}


def preset(name: str) -> dict:
    """{folder: config} of a released model. Errors: UserError listing the names."""
    if name not in PRESETS:
        raise UserError(f"a preset must be one of {', '.join(PRESETS)}; got {name!r}")
    return dict(PRESETS[name])


def with_small_text(configs: dict, clip_vocabulary: int, llm_vocabulary: int) -> dict:
    """The same model with text encoders of a few million parameters, whose outputs have the widths it needs."""
    mgt = configs.get("editmgt") or configs["transformer"]
    clip_width = mgt.joint_attention_dim if "llm_encoder" not in configs else 64
    small = {
        "text_encoder": dataclasses.replace(
            configs["text_encoder"],
            vocab_size=clip_vocabulary,
            hidden_size=clip_width,
            intermediate_size=64,
            num_hidden_layers=2,
            num_attention_heads=4,
        )
    }
    if "llm_encoder" in configs:
        small["llm_encoder"] = dataclasses.replace(
            configs["llm_encoder"],
            vocab_size=llm_vocabulary,
            intermediate_size=64,
            num_hidden_layers=3,
            num_attention_heads=2,
            num_key_value_heads=1,
            head_dim=32,
            layer_types=(),
        )
    return configs | small
