"""Editor for 128 px scenes: an MGT that starts as a copier, a text encoder trained along. For a GPU; its host draws the scenes.

editmgt export --workdir runs/vq_128 --output runs/vq_128_model
editmgt train --config configs/scenes_128_mgt.py --workdir runs/mgt_128
"""

from editmgt_jax.configs import base


def get_config():
    config = base.get_config()
    config.task = "mgt"
    config.sample_edits = 0
    config.batch_size = 256
    config.mesh.update(data=-1, fsdp=1)  # a small model: whole on every device
    config.steps = 5_200
    config.log_every = 50
    config.eval_every = 2_000
    config.eval_batches = 2
    config.checkpoint.every = 1_000
    config.data.update(size=128, objects="rich", workers=14)
    config.optimizer.update(
        learning_rate=1.5e-3,
        schedule="wsd",
        warmup_steps=200,
        total_steps=5_200,
        decay_steps=3_200,
        clip_norm=1.0,
        beta2=0.99,
        ema_decay=0.999,
    )
    config.model = dict(
        vq="runs/vq_128_model/vqvae",
        vq_precision="default",  # of the tokenizer inside the step
        tokenizer="",  # learnt from the instructions
        encoders="",
        encoder_dtype="float32",
        dtype="bfloat16",  # of products in the transformer
        head_precision="default",
        attention="auto",
        reference=True,
        timestep_convention="mask_rate",
        copy_friendly=True,
        remat="none",
        unroll=8,
        mgt=dict(
            num_layers=2,
            num_single_layers=6,
            attention_head_dim=64,
            num_attention_heads=4,
            axes_dims_rope=(16, 24, 24),
            joint_attention_dim=256,  # the width: released classes read no other without a connector
            pooled_projection_dim=256,
            codebook_size=2048,
            vocab_size=2056,
            downsample=True,
            upsample=True,
            connector_type="none",
            text_encoder_architecture="CLIP",
        ),
        text=dict(  # its vocabulary is the tokenizer's
            hidden_size=256,
            intermediate_size=512,
            projection_dim=256,
            num_hidden_layers=2,
            num_attention_heads=4,
            max_position_embeddings=32,
            hidden_act="gelu",
        ),
    )
    config.model.scheduler = dict(  # chosen on pairs of the training split
        default_steps=1,
        default_guidance_scale=2.5,
        default_reference_strength=1.0,
        default_sampling_temperature=0.3,
        default_temperature=(0.5, 0.0),
        default_hold_threshold=0.0,
        default_layers=(2, 3, 4),
    )
    config.loss = dict(
        mean="batch",
        changed_weight=0.75,
        area_power=0.5,
        min_masking_rate=0.0,
        condition_dropout=0.1,
        steered=0.5,  # known tokens are no random ones in a decode: see docs/sampling.md
        corruption=0.3,
    )
    return config
