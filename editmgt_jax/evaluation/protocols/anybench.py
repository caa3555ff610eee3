"""AnyBench (AnyEdit-Test): 25 types of edits, against the targets.

Data    DATA/TYPE/edit_result.json: [{edit, input, output, image_file, edited_file, edit_type, visual_input}]; the files are named
        from the folder above DATA, or from DATA
Outputs OUTPUTS/TYPE/NAME with the name of the source's file
Source  anybench/eval/anybench_gen_eval.py of AnySD
Rules   the reference resizes the target to the edited picture's size for L1, and leaves out pictures that are all black. Types
        without captions have no clip_t. An editor without visual inputs cannot do the types `visual_*`
"""

from collections.abc import Iterable
from pathlib import Path
from typing import Any

from PIL import Image

from editmgt_jax.evaluation import features, pixels
from editmgt_jax.evaluation.examples import Example, Skipped, fields, find_file, read_picture
from editmgt_jax.evaluation.protocol import Protocol, Scoring, Selection
from editmgt_jax.evaluation.protocols.emu import check_not_black
from editmgt_jax.files import read_json

TYPES = {
    "local": (
        "replace", "add", "remove", "color_alter", "appearance_alter", "material_change", "action_change", "counting",
        "textual_change",
    ),
    "global": ("tone_transfer", "background_change", "style_change"),
    "camera": ("movement", "outpaint", "resize", "rotation_change"),
    "implicit": ("relation", "implicit_change"),
    "visual": (
        "visual_material_transfer", "visual_reference", "visual_bbox", "visual_depth", "visual_scribble", "visual_segment",
        "visual_sketch",
    ),
}  # fmt: skip
DOMAIN_OF = {kind: domain for domain, kinds in TYPES.items() for kind in kinds}
VISUAL = "needs a visual input"


class AnyBench(Protocol):
    """See the module."""

    name, version, examples = "anybench", "1", None
    title = "AnyBench, 25 types of edits, against the target"
    reference = "AnySD, anybench/eval/anybench_gen_eval.py"
    clip, dino = "openai/clip-vit-base-patch32", "facebook/dino-vits16"
    directions = {"clip_i": 1, "clip_t": 1, "dino": 1, "l1": -1}

    def read(self, data: Path, selection: Selection) -> Iterable[Example | Skipped]:
        """See `Protocol.read`."""
        found = [kind for kind in DOMAIN_OF if (data / kind / "edit_result.json").is_file()]
        if not found:
            find_file(data / next(iter(DOMAIN_OF)), "edit_result.json")
        for kind in found:
            for number, item in enumerate(read_json(data / kind / "edit_result.json", list)):
                fields(
                    item,
                    f"entry {number} of {data / kind / 'edit_result.json'}",
                    edit=str,
                    image_file=str,
                    edited_file=str,
                )
                name = Path(item["image_file"]).name
                yield Example(
                    key=f"{kind}/{name}",
                    group=kind,
                    instruction=item["edit"],
                    output=f"{kind}/{name}",
                    source=_find(data, item["image_file"]),
                    target=_find(data, item["edited_file"]),
                    caption=item.get("output"),
                    source_caption=item.get("input"),
                    unfit=VISUAL if DOMAIN_OF[kind] == "visual" else None,
                )

    def score(self, example: Example, edited: Image.Image, given: Scoring) -> dict[str, Any]:
        """See `Protocol.score`."""
        check_not_black(edited, example.output)
        target, _ = read_picture(example.target, f"the target of {example.key}")
        resized = pixels.resized_to(target, edited)
        found = {
            "domain": DOMAIN_OF[example.group],
            "l1": pixels.l1(resized, edited),
            **features.pair_metrics(given.models, edited, target),
            **features.caption_metric(given.models, edited, example.caption),
        }
        if resized is not target:
            found["notes"] = ["another size, the target resized"]
        return found

    def views(self) -> dict[str, Any]:
        """All types, and each of the five domains."""
        chosen = {domain: lambda outcome, domain=domain: outcome["domain"] == domain for domain in TYPES}
        return {"all": lambda outcome: True} | chosen


def _find(data: Path, name: str) -> Path:
    """A file that is named from the folder above the data, or from the data."""
    above = data.parent / name
    return above if above.is_file() else data / name
