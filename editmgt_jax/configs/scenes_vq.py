"""Image tokenizer for 64 px scenes: factor 4, 1024 codes. For a CPU.

editmgt train --config configs/scenes_vq.py --workdir runs/vq
"""

from ml_collections import ConfigDict

from editmgt_jax.configs import base


def get_config() -> ConfigDict:
    """`base` with the task 'vq' and a small image tokenizer."""
    config = base.get_config()
    config.task = "vq"
    config.batch_size = 8  # pairs: 16 pictures
    config.mesh.update(data=-1, fsdp=1)  # a small model: whole on every device
    config.steps = 4_000
    config.optimizer.update(
        learning_rate=1.5e-3,
        schedule="cosine",
        warmup_steps=100,
        total_steps=4_000,
        weight_decay=1e-4,
        clip_norm=1.0,
        beta2=0.99,
    )
    config.model.update(
        block_out_channels=(16, 32, 96),
        layers_per_block=1,
        latent_channels=16,
        num_vq_embeddings=1024,
        norm_num_groups=1,
        mid_block_add_attention=False,
    )
    config.codebook = dict(start_step=200, decay=0.98, dead_below=0.05, restart_every=100, restart_until=2_500)
    config.loss.update(locality=0.5, commitment=0.25)
    return config
