"""Which blocks of the default model localise an edit? The study of docs/ablation.md.

editmgt ablate run --config configs/ablate_layers.py --workdir runs/ablate_layers
"""

from ml_collections import ConfigDict

from editmgt_jax.ablation.config import starting_values


def get_config() -> ConfigDict:
    """The keys and defaults of `editmgt_jax/ablation/config.py`, and how the study differs."""
    config = ConfigDict(starting_values(), type_safe=False)
    config.examples.update(count=96, split="heldout", objects="rich")
    config.record.update(rates=(1.0, 0.75, 0.5, 0.25), steps=(0,), seeds=(0, 1, 2), settings=dict(steps=1))
    config.score.update(
        sets=("subsets",),
        signals=(
            "text_to_image",
            "text_to_image/reference",
            "image_to_text",
            "image_to_text/reference",
            "text_to_image+image_to_text",
            "output_cosine",
        ),
        groups=("all", "words", "query", "special"),
        windows=("step 0", "rate 0.5"),
        part=255,
    )
    config.decode.update(
        grid={"hold_threshold": (0.0, 0.1, 0.2, 0.3, 0.4)},
        interventions=("bypass", "text_to_image", "image_to_text", "image_to_reference"),
        count=40,
    )
    return config
