"""Stage 3: a short refinement on few, excellent edits that people preferred.

Data    as in stage 2, of the chosen pairs: data/best, data/best_heldout. Mixed with the others it forgets less:
        --config.data.tokens=data/best:3,data/edits
Run     editmgt train --config configs/stage3_refine.py --workdir runs/stage3 --distributed
        editmgt export --workdir runs/stage3 --output models/editmgt
Needs   1 000 steps of 256: 5 min on 64 TPU v5e if a step takes the 284 ms that their compiler estimates
        for 4 samples a chip (docs/tpu.md); no TPU has run it.
        `python benchmarks/stages.py --config configs/stage3_refine.py` prints FLOPs, hours at 40 % of the peak and the state's memory on other chips
"""

from ml_collections import ConfigDict

from editmgt_jax.configs import editmgt_1024


def get_config() -> ConfigDict:
    """`editmgt_1024`, begun from stage 2, on the best edits at a low learning rate."""
    config = editmgt_1024.get_config()
    config.steps = 1_000
    config.start_from = "runs/stage2"
    config.data.update(tokens=({"path": "data/best"},), heldout=({"path": "data/best_heldout"},))
    config.optimizer.update(learning_rate=2e-5, schedule="cosine", warmup_steps=50, total_steps=1_000, ema_decay=0.999)
    config.checkpoint.update(every=250, keep_every=0)
    config.eval_every = 250
    return config
