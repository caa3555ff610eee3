"""Stage 1: the text-to-image base learns to read Gemma 2. Text-to-image pairs, no source image.

Data    captioned pictures, prepared as pairs of a picture with itself:
        editmgt prepare CAPTIONED --column source=image --column target=image --column instruction=caption \
            --min-changed 0 --max-instruction 2000 --output pictures
        editmgt tokenize --records pictures --model models/editmgt-base --output data/captions
        and the same of other pictures for data/captions_heldout
Start   editmgt convert editor MEISSONIC models/editmgt-base --llm-encoder GEMMA_2_2B
Run     editmgt train --config configs/stage1_adapt.py --workdir runs/stage1 --distributed
Needs   5 000 steps of 256: 13 min on 64 TPU v5e if a step takes the 155 ms that their compiler estimates
        for 4 samples a chip (docs/tpu.md); no TPU has run it.
        `python benchmarks/stages.py --config configs/stage1_adapt.py` prints FLOPs, hours at 40 % of the peak and the state's memory on other chips
"""

from ml_collections import ConfigDict

from editmgt_jax.configs import editmgt_1024


def get_config() -> ConfigDict:
    """`editmgt_1024` without a reference, on captioned pictures."""
    config = editmgt_1024.get_config()
    config.steps = 5_000
    config.start_from = "models/editmgt-base"
    config.data.update(tokens=({"path": "data/captions"},), heldout=({"path": "data/captions_heldout"},))
    config.model.reference = False
    config.sample_edits = 0  # it does not edit yet
    config.optimizer.update(warmup_steps=500, total_steps=5_000)
    return config
