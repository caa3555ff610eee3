"""MagicBrush: 535 sessions of 1 053 turns, single- and multi-turn, against the targets.

Data    DATA/edit_sessions.json: {id: [{input, mask, output, instruction}]}, DATA/images/ID/FILE, and
        DATA/local_captions.json or local_descriptions.json: {id: {file: caption}}. A mask is the picture with a transparent
        hole where to edit
Outputs OUTPUTS/ID/ID_1.png, ID_inde_K.png (turn K from the true picture before it), ID_iter_K.png (from the edited one)
Source  evaluation/image_eval.py and edit_cli_single_multi_turn.py of MagicBrush
Rules   `all_turn` has every turn edited on its own, `final_turn` the last turn of every session edited in sequence. The edited
        picture is resized to the target's size, bicubic, for L1 and L2. L1, L2: mean over RGB in [0, 1]
"""

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from editmgt_jax.errors import UserError
from editmgt_jax.evaluation import features, pixels
from editmgt_jax.evaluation.examples import Example, Skipped, fields, find_file, read_alpha, read_picture
from editmgt_jax.evaluation.leakage import DIRECTIONS, leakage
from editmgt_jax.evaluation.protocol import Protocol, Scoring, Selection
from editmgt_jax.files import read_json

VIEWS = ("all_turn", "final_turn")


class MagicBrush(Protocol):
    """See the module."""

    name, version = "magicbrush", "2"
    examples = 1053 + 518  # turns on their own, and later turns of sessions in sequence
    title = "MagicBrush test set, against the target; all turns on their own, and the final turn of sessions"
    reference = "MagicBrush, evaluation/image_eval.py"
    clip, dino = "openai/clip-vit-base-patch32", "facebook/dino-vits16"
    directions = DIRECTIONS | {"l1": -1, "l2": -1, "clip_i": 1, "clip_t": 1, "dino": 1}

    def read(self, data: Path, selection: Selection) -> Iterable[Example | Skipped]:
        """See `Protocol.read`."""
        sessions = read_json(find_file(data, "edit_sessions.json"), dict)
        captions = read_json(find_file(data, "local_captions.json", "local_descriptions.json"), dict)
        for session, turns in sessions.items():
            where = f"session {session} of edit_sessions.json in {data}"
            if not isinstance(turns, list):
                raise UserError(f"{where} must be a list of turns; got {turns!r}")
            fields(captions, f"the captions in {data}", **({session: dict} if session in captions else {}))
            folder, last = str(session), len(turns)
            for number, turn in enumerate(turns, 1):
                fields(turn, f"turn {number} of {where}", input=str, output=str, instruction=str)
                name = f"{folder}_1" if number == 1 else f"{folder}_inde_{number}"
                yield _example(data, folder, name, number, turn, captions, {"all_turn": True, "final_turn": last == 1})
            for number, turn in enumerate(turns[1:], 2):
                before = f"{folder}_1" if number == 2 else f"{folder}_iter_{number - 1}"
                facts = {"all_turn": False, "final_turn": number == last, "after_output": f"{folder}/{before}.png"}
                yield _example(data, folder, f"{folder}_iter_{number}", number, turn, captions, facts, before)

    def score(self, example: Example, edited: Image.Image, given: Scoring) -> dict[str, Any]:
        """See `Protocol.score`."""
        target, _ = read_picture(example.target, f"the target of {example.key}")
        resized = pixels.resized_to(edited, target)
        found = {name: example.facts[name] for name in VIEWS} | {
            "l1": pixels.l1(resized, target),
            "l2": pixels.mse(resized, target),
            **features.pair_metrics(given.models, edited, target),
            **features.caption_metric(given.models, edited, example.caption),
        }
        if resized is not edited:
            found["notes"] = ["another size, resized"]
        if example.mask is not None:
            source, _ = read_picture(example.source, f"the source of {example.key}")
            if source.size == target.size:
                found |= leakage(resized, source, example.mask(), target, given.traces)
        return found

    def views(self) -> dict[str, Any]:
        """Turns on their own, and final turns."""
        return {view: lambda outcome, view=view: outcome[view] for view in VIEWS}


def _example(data, folder, key, number, turn, captions, facts, after=None) -> Example:
    """A turn. One that builds on an edited picture has no mask: its source is not the benchmark's."""
    images, named = data / "images" / folder, captions.get(folder, captions)
    mask = turn.get("mask")
    return Example(
        key=key,
        group=f"turn_{number}",
        instruction=turn["instruction"],
        output=f"{folder}/{key}.png",
        source=images / turn["input"],
        target=images / turn["output"],
        mask=None if after or not mask else lambda: read_hole(images / mask),
        caption=named.get(turn["output"]),
        source_caption=named.get(turn["input"]),
        after=after,
        cluster=folder,
        facts=facts,
    )


def read_hole(path: Path) -> np.ndarray:
    """bool [Y X] of a mask picture: True where it is transparent. Errors: Unreadable."""
    return read_alpha(path) < 128
