"""Second stage of the image tokenizer: fewer ids may change where an edit changes no pixel.

editmgt train --config configs/scenes_vq_local.py --workdir runs/vq_local --config.start_from=runs/vq
"""

from ml_collections import ConfigDict

from editmgt_jax.configs import scenes_vq


def get_config() -> ConfigDict:
    """`scenes_vq`, begun from a trained one, with more weight on locality."""
    config = scenes_vq.get_config()
    config.start_from = "runs/vq"
    config.steps = 1_400
    config.optimizer.update(learning_rate=6e-4, warmup_steps=50, total_steps=1_400)
    config.codebook.update(start_step=0, restart_until=400)
    config.loss.locality = 8.0
    return config
