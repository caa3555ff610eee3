"""Stage 2: the editor, all of its weights, on millions of edits.

Data    mkdir crisp_heldout && mv CrispEdit-2M/data/*_00000.parquet crisp_heldout     (a file of each category)
        editmgt prepare CrispEdit-2M --output pairs
        editmgt tokenize --records pairs --model models/editmgt-base --output data/edits
        editmgt prepare crisp_heldout --output heldout_pairs
        editmgt tokenize --records heldout_pairs --model models/editmgt-base --output data/edits_heldout
Run     editmgt train --config configs/stage2_finetune.py --workdir runs/stage2 --distributed
Needs   50 000 steps of 256: 3.9 h on 64 TPU v5e if a step takes the 284 ms that their compiler estimates
        for 4 samples a chip (docs/tpu.md); no TPU has run it.
        `python benchmarks/stages.py --config configs/stage2_finetune.py` prints FLOPs, hours at 40 % of the peak and the state's memory on other chips
"""

from ml_collections import ConfigDict

from editmgt_jax.configs import editmgt_1024


def get_config() -> ConfigDict:
    """`editmgt_1024`, begun from stage 1, on edits."""
    config = editmgt_1024.get_config()
    config.steps = 50_000
    config.start_from = "runs/stage1"
    config.data.update(tokens=({"path": "data/edits"},), heldout=({"path": "data/edits_heldout"},))
    config.optimizer.update(warmup_steps=1_000, total_steps=50_000)
    return config
