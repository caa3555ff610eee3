"""The Emu Edit test set, under two protocols that papers confuse.

    emu_paper     the edited picture against the input picture, as Emu Edit reports
    emu_anybench  against Emu Edit's own generation, as AnyBench's code and the papers that use it report

Data    DATA/**/SPLIT-*.parquet of facebook/emu_edit_test_set (emu_paper) or facebook/emu_edit_test_set_generations
        (emu_anybench): instruction, image, task, split, idx, hash, input_caption, output_caption, and edited_image. The test set
        has 3 589 examples; in the copy with generations it has the name `validation`
Outputs OUTPUTS/IDX.png
Source  Sheynin et al. 2023; anybench/eval/emu_gen_eval.py of AnySD
Rules   pictures that are all black are left out by AnyBench's code. Its later version prints the CLIP-T of Emu Edit's generation
        under the name of the edited picture's; here `clip_t` is of the edited picture and `clip_t_other` of the other one
"""

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from editmgt_jax.evaluation import features, pixels
from editmgt_jax.evaluation.examples import Example, Skipped, Unreadable, parquet_entries, read_picture
from editmgt_jax.evaluation.protocol import Protocol, Scoring, Selection

NEEDED = ("instruction", "idx", "task", "input_caption", "output_caption")
BLACK = "all black, as the reference skips"


def check_not_black(edited: Image.Image, name: str) -> None:
    """Errors: Unreadable for a picture that is all black, which some editors give instead of an answer."""
    if not np.asarray(edited).any():
        raise Unreadable(BLACK, f"{name} is all black")


class EmuPaper(Protocol):
    """Against the input picture."""

    name, version, examples = "emu_paper", "1", 3589
    title = "Emu Edit test set, against the input picture"
    reference = "Emu Edit, Sheynin et al. 2023, section 4"
    clip, dino = "openai/clip-vit-base-patch32", "facebook/dino-vits16"
    directions = {"clip_i": 1, "clip_t": 1, "clip_dir": 1, "dino": 1, "l1": -1, "l2": -1}
    chosen_by = ("split",)
    split, against = "test", "image"

    def read(self, data: Path, selection: Selection) -> Iterable[Example | Skipped]:
        """See `Protocol.read`."""
        split = selection.split or self.split
        files = sorted(data.rglob(f"{split}-*.parquet"))
        if not files:
            raise FileNotFoundError(f"the split {split!r} is in files {split}-*.parquet; {data} has none")
        for entry in parquet_entries(files, tuple({"image", self.against}), NEEDED):
            yield Example(
                key=str(entry["idx"]),
                group=entry["task"],
                instruction=entry["instruction"],
                output=f"{entry['idx']}.png",
                source=entry["image"],
                target=entry[self.against],
                caption=entry["output_caption"],
                source_caption=entry["input_caption"],
            )

    def score(self, example: Example, edited: Image.Image, given: Scoring) -> dict[str, Any]:
        """See `Protocol.score`."""
        other, _ = read_picture(example.target, f"the picture that {example.key} is compared with")
        resized = pixels.resized_to(edited, other)
        found = {
            "l1": pixels.l1(resized, other),
            "l2": pixels.mse(resized, other),
            **features.pair_metrics(given.models, edited, other),
            **features.caption_metric(given.models, edited, example.caption),
        }
        if given.models.clip:
            source, _ = read_picture(example.source, f"the source of {example.key}")
            found |= features.direction_metric(given.models, edited, source, example.caption, example.source_caption)
        if resized is not edited:
            found["notes"] = ["another size, resized"]
        return found


class EmuAnyBench(EmuPaper):
    """Against Emu Edit's own generation."""

    name, version = "emu_anybench", "1"
    title = "Emu Edit test set, against Emu Edit's own generation"
    reference = "AnySD, anybench/eval/emu_gen_eval.py"
    split, against = "validation", "edited_image"

    def score(self, example: Example, edited: Image.Image, given: Scoring) -> dict[str, Any]:
        """See `Protocol.score`."""
        check_not_black(edited, example.output)
        other, _ = read_picture(example.target, f"Emu Edit's generation of {example.key}")
        against = features.caption_metric(given.models, other, example.caption)
        return super().score(example, edited, given) | {f"{name}_other": value for name, value in against.items()}
