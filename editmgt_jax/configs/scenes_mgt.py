"""Editor for 64 px scenes, on a CPU: an MGT that starts as a copier, a small text encoder trained along.

editmgt train --config configs/scenes_mgt.py --workdir runs/mgt --config.data.tokens=runs/tokens
"""

from ml_collections import ConfigDict

from editmgt_jax.configs import base


def get_config() -> ConfigDict:
    """`base` with the task 'mgt' and a small editor that reads 64 px scenes."""
    config = base.get_config()
    config.task = "mgt"
    config.sample_edits = 8
    config.batch_size = 32
    config.mesh.update(data=-1, fsdp=1)  # a small model: whole on every device
    config.steps = 10_500
    config.optimizer.update(
        learning_rate=1.5e-3,
        schedule="wsd",
        warmup_steps=300,
        total_steps=10_500,
        decay_steps=3_000,
        clip_norm=1.0,
        beta2=0.99,
        ema_decay=0.999,
    )
    config.model = dict(
        vq="runs/vq_model/vqvae",
        tokenizer="",  # learnt from the instructions, or that of the token records
        encoders="",  # a model directory's text encoders in place of `text`, which is trained along
        encoder_dtype="float32",
        dtype="float32",  # of products in the transformer
        reference=True,  # False trains text-to-image
        timestep_convention="mask_rate",
        copy_friendly=True,
        attention="auto",  # the backend: fused on GPUs in half precision, plain products elsewhere
        remat="none",
        unroll=4,
        mgt=_transformer(),
        text=_text_encoder(),
    )
    config.model.scheduler = _operating_point()
    # Adding a small object is harder to learn than a style, and changes a sixth as many ids. Changed ids weigh less than kept
    # ones: what lies outside an edit then stays as it is, and guidance brings the edit out.
    config.loss = dict(mean="batch", changed_weight=0.5, area_power=0.5, min_masking_rate=0.0, condition_dropout=0.1)
    return config


def _transformer() -> dict:
    return dict(
        num_layers=2,
        num_single_layers=4,
        attention_head_dim=32,
        num_attention_heads=6,
        axes_dims_rope=(4, 14, 14),
        joint_attention_dim=192,  # the width: released classes read no other without a connector
        pooled_projection_dim=192,
        codebook_size=1024,
        vocab_size=1032,
        downsample=True,
        upsample=True,
        connector_type="none",
        text_encoder_architecture="CLIP",
    )


def _text_encoder() -> dict:
    """The text encoder that is trained along; its vocabulary is the tokenizer's."""
    return dict(
        hidden_size=192,
        intermediate_size=512,
        projection_dim=192,
        num_hidden_layers=2,
        num_attention_heads=6,
        max_position_embeddings=24,
        hidden_act="gelu",
    )


def _operating_point() -> dict:
    """Chosen on pairs of the training split: `editmgt evaluate scenes --split train`."""
    return dict(
        default_steps=12,
        default_guidance_scale=2.5,
        default_reference_strength=1.0,
        default_sampling_temperature=0.3,
        default_temperature=(0.5, 0.0),
        default_hold_threshold=0.06,
        default_layers=(1, 2),
    )
