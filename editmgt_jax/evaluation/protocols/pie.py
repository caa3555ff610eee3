"""PIE-Bench: 700 edits with masks, scored outside of the mask against the source.

Data    DATA/mapping_file.json: {key: {image_path, original_prompt, editing_prompt, editing_instruction, editing_type_id, mask}},
        DATA/annotation_images/IMAGE_PATH, 512 x 512
Outputs OUTPUTS/IMAGE_PATH. Of a picture that is not square the last 512 x 512 pixels count. The names end in
        .jpg as those of the sources: a model's edits are written as JPEG of quality 95
Source  evaluation/evaluate.py of PnP Inversion (Ju et al. 2023)
Rules   masks are runs (start, length) over 512 x 512, outcomes first. The reference then sets the outermost pixels to 1: figures named
        `*_unedit_part` follow it, figures named `*_unedit_part_no_border` do not. The mean of a masked error is over all pixels
"""

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from editmgt_jax.errors import UserError
from editmgt_jax.evaluation import pixels
from editmgt_jax.evaluation.examples import Example, Skipped, Unreadable, check_extra, fields, find_file, read_picture
from editmgt_jax.evaluation.features import cosine
from editmgt_jax.evaluation.leakage import DIRECTIONS, leakage
from editmgt_jax.evaluation.protocol import Protocol, Scoring, Selection
from editmgt_jax.files import read_json

SIDE = 512
TYPES = (
    "random", "change_object", "add_object", "delete_object", "change_attribute_content", "change_attribute_pose",
    "change_attribute_color", "change_attribute_material", "change_background", "change_style",
)  # fmt: skip
MASKED = {"mse": pixels.mse, "ssim": pixels.ssim}


def decode_mask(runs: list[int], border: bool = False) -> np.ndarray:
    """Runs (start, length, start, length, ...) -> bool [512 512]; with `border`, the outermost pixels are True."""
    flat = np.zeros(SIDE * SIDE, bool)
    for start, length in zip(runs[::2], runs[1::2], strict=True):
        flat[start : start + length] = True
    mask = flat.reshape(SIDE, SIDE)
    if border:
        mask[[0, -1]] = True
        mask[:, [0, -1]] = True
    return mask


def plain_prompt(prompt: str) -> str:
    """A prompt without the brackets that mark what changes."""
    return prompt.replace("[", "").replace("]", "")


class Pie(Protocol):
    """See the module."""

    name, version, examples = "pie", "2", 700
    title = "PIE-Bench, outside of the mask against the source"
    reference = "PnP Inversion, evaluation/evaluate.py; with and without its border rule"
    clip, structure, lpips, resizes = "openai/clip-vit-large-patch14", "facebook/dino-vitb8", "squeezenet", False
    directions = DIRECTIONS | {
        "structure_distance": -1,
        "clip_similarity_target_image": 1,
        "clip_similarity_target_image_edit_part": 1,
        **{
            f"{name}_unedit_part{rule}": sign
            for rule in ("", "_no_border")
            for name, sign in {"psnr": 1, "mse": -1, "ssim": 1, "lpips": -1}.items()
        },
    }

    def read(self, data: Path, selection: Selection) -> Iterable[Example | Skipped]:
        """See `Protocol.read`."""
        check_extra("skimage")
        for key, item in read_json(find_file(data, "mapping_file.json"), dict).items():
            where = f"{key} of mapping_file.json in {data}"
            if not str(fields(item, where).get("editing_instruction") or "").strip():
                yield Skipped(key, "no instruction")
                continue
            fields(
                item,
                where,
                editing_type_id=(str, int),
                image_path=str,
                mask=list,
                editing_prompt=str,
                original_prompt=str,
            )
            if not str(item["editing_type_id"]).isdecimal():
                raise UserError(f"{where} must have a number as 'editing_type_id'; got {item['editing_type_id']!r}")
            number = int(item["editing_type_id"])
            yield Example(
                key=key,
                group=f"{number}_{TYPES[number]}" if number < len(TYPES) else str(number),
                instruction=item["editing_instruction"],
                output=item["image_path"],
                source=data / "annotation_images" / item["image_path"],
                mask=lambda runs=item["mask"]: decode_mask(runs),
                caption=plain_prompt(item["editing_prompt"]),
                source_caption=plain_prompt(item["original_prompt"]),
                facts={"runs": item["mask"]},
            )

    def score(self, example: Example, edited: Image.Image, given: Scoring) -> dict[str, Any]:
        """See `Protocol.score`."""
        if edited.width != edited.height:
            edited = edited.crop((edited.width - SIDE, edited.height - SIDE, edited.width, edited.height))
        source, _ = read_picture(example.source, f"the source of {example.key}")
        if not edited.size == source.size == (SIDE, SIDE):
            raise Unreadable(
                "wrong size", f"{example.output} must be {SIDE} x {SIDE} pixels as its source; got {edited.size}"
            )
        found = {}
        for rule, border in (("", True), ("_no_border", False)):
            found |= _outside(edited, source, ~decode_mask(example.facts["runs"], border), given.models, rule)
        if given.models.structure:
            found["structure_distance"] = given.models.structure.distance(source, edited)
        if given.models.clip:
            found |= _similarities(given.models.clip, example, edited, source)
        return found | leakage(edited, source, example.mask(), None, given.traces)


def _outside(edited, source, outside, models, rule) -> dict[str, float]:
    """The reference's figures of what a mask spares; NaN where it spares nothing."""
    names = [*MASKED, "psnr", *(["lpips"] if models.lpips else [])]
    if not outside.any():
        return {f"{name}_unedit_part{rule}": float("nan") for name in names}
    a, b = np.asarray(source), np.asarray(edited)
    found = {name: measure(a, b, outside) for name, measure in MASKED.items()}
    found["psnr"] = pixels.psnr_of(found["mse"])
    if models.lpips:
        found["lpips"] = models.lpips.distance(*(pixels.unit(x) * outside[..., None] for x in (a, b)))
    return {f"{name}_unedit_part{rule}": found[name] for name in names}


def _similarities(clip, example, edited, source) -> dict[str, float]:
    """CLIP scores as torchmetrics has them: 100 times the cosine, at least 0. The edited part has zeros around it."""
    inside = decode_mask(example.facts["runs"], border=True)
    part = Image.fromarray(np.asarray(edited) * inside[..., None].astype(np.uint8))
    before, after, masked = clip.images([source, edited, part])
    old, new = clip.texts([example.source_caption, example.caption])
    pairs = {"source_image": (before, old), "target_image": (after, new), "target_image_edit_part": (masked, new)}
    found = {f"clip_similarity_{name}": max(0.0, 100 * cosine(*pair)) for name, pair in pairs.items()}
    if not inside.any():
        found["clip_similarity_target_image_edit_part"] = float("nan")
    return found
