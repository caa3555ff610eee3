"""Second stage of the 128 px image tokenizer: fewer ids may change where an edit changes no pixel.

editmgt train --config configs/scenes_128_vq_local.py --workdir runs/vq_128_local --config.start_from=runs/vq_128
"""

from configs import scenes_128_vq


def get_config():
    config = scenes_128_vq.get_config()
    config.start_from = "runs/vq_128"
    config.steps = 1_500
    config.optimizer.update(learning_rate=8e-4, warmup_steps=50, total_steps=1_500)
    config.codebook.update(start_step=0, restart_until=400)
    config.loss.locality = 8.0
    return config
