"""Editor for 128 px scenes, the default model: `scenes_mgt`, wider and deeper. For a GPU; its host draws the scenes.

editmgt export --workdir runs/vq_128 --output runs/vq_128_model --dtype float16
editmgt train --config configs/scenes_128_mgt.py --workdir runs/mgt_128
"""

from ml_collections import ConfigDict

from editmgt_jax.configs import scenes_mgt


def get_config() -> ConfigDict:
    """`scenes_mgt` for 128 px, with the size and the operating point of the default model."""
    config = scenes_mgt.get_config()
    config.sample_edits = 0
    config.batch_size = 256
    config.steps = config.optimizer.total_steps = 5_200
    config.log_every = 50
    config.eval_every = 2_000
    config.eval_batches = 2
    config.checkpoint.every = 1_000
    config.data.update(size=128, objects="rich", workers=14)
    config.data.categories = dict(add=3.0, replace=2.5, motion=1.5, style=0.5)  # new things are hard to learn
    config.optimizer.update(warmup_steps=200, decay_steps=3_200)
    config.model.update(
        vq="runs/vq_128_model/vqvae",
        vq_precision="default",  # of the tokenizer inside the step
        dtype="bfloat16",  # of products in the transformer
        head_precision="default",
        unroll=8,
    )
    config.model.mgt.update(
        num_single_layers=6,
        attention_head_dim=64,
        num_attention_heads=4,
        axes_dims_rope=(16, 24, 24),
        joint_attention_dim=256,  # the width: released classes read no other without a connector
        pooled_projection_dim=256,
        codebook_size=2048,
        vocab_size=2056,
    )
    config.model.text.update(hidden_size=256, projection_dim=256, num_attention_heads=4, max_position_embeddings=32)
    config.model.scheduler.update(  # chosen on pairs of the training split
        default_steps=2,
        default_remask_steps=1,
        default_remask_guidance_scale=2.0,
        default_hold_threshold=0.0,
        default_layers=(2, 3, 4, 6),
        default_signal="image_to_text",
    )
    config.loss.update(
        changed_weight=0.75,
        steered=0.5,  # known tokens are no random ones in a decode: see docs/sampling.md
        corruption=0.3,
    )
    return config
