"""Procedural edits: pictures composed of sprites on panorama views, and instructions that change them.

Example i is a pure function of (seed, split, i). An edit is planned as two scene descriptions and an instruction,
then both are rendered; everything the edit leaves alone is the same to the last bit.

Axes    Y X pixels, of equal number
Splits  'heldout' holds (subject, background, template) combinations that 'train' never holds, and about one in
        ten of its examples is about an object that training has never seen (`facts['novel']`)
"""

import dataclasses
import operator
from collections.abc import Iterator

import numpy as np
from PIL import Image, ImageDraw

from editmgt_jax.data.scenes import drawing, edits, styles
from editmgt_jax.data.scenes.colours import name_colour
from editmgt_jax.data.scenes.variety import OBJECTS, variety
from editmgt_jax.errors import UserError

__all__ = ["CATEGORIES", "OBJECTS", "SceneConfig", "SceneSource", "instruction_corpus", "name_colour", "preview"]

CATEGORIES = ("add", "remove", "replace", "colour", "background", "style", "motion")
SPLITS = ("train", "heldout")
PREVIEW = 100_000_000  # pixels

_ATTEMPTS = 300
_GOLDEN = 2654435769  # the golden ratio's fraction, in units of 2^-32
_CLEAR_SHARE, _PATTERN_SHARE = 0.33, 0.16  # of the mask, that an edit clearly changes; a pattern leaves half as it is


@dataclasses.dataclass(frozen=True)
class SceneConfig:
    """What to draw. `objects` is one of `variety.OBJECTS`; `categories` is drawn evenly, or as `weights` say, one each."""

    size: int = 64
    split: str = "train"
    seed: int = 0
    length: int = 1_000_000_000
    objects: str = "core"
    categories: tuple[str, ...] = CATEGORIES
    weights: tuple[float, ...] = dataclasses.field(default=(), repr=False)

    def __post_init__(self):
        if self.size < 32:
            raise UserError(f"size must be at least 32 pixels, got {self.size}; objects would be specks")
        if self.split not in SPLITS:
            raise UserError(f"split must be one of {SPLITS}, got {self.split!r}")
        if self.objects not in OBJECTS:
            raise UserError(f"objects must be one of {OBJECTS}, got {self.objects!r}")
        if self.seed < 0 or self.length < 1:
            raise UserError(f"seed must be >= 0 and length >= 1, got seed={self.seed}, length={self.length}")
        unknown = [name for name in self.categories if name not in CATEGORIES]
        if unknown or not self.categories or len(set(self.categories)) < len(self.categories):
            raise UserError(f"categories must be distinct, at least one, of {CATEGORIES}; got {self.categories!r}")
        if self.weights and (
            len(self.weights) != len(self.categories) or min(self.weights) < 0 or not any(self.weights)
        ):
            raise UserError(
                f"weights must be one of at least 0 for each of {self.categories}, not all 0; got {self.weights!r}"
            )

    def category(self, index: int) -> str:
        """The category of an example. Any run of examples has each nearly as often as its weight says."""
        count = len(self.categories)
        if not self.weights:
            return self.categories[(index + index // count) % count]
        ends = np.cumsum(self.weights)
        turn = (index + 1) * _GOLDEN % 2**32 / 2**32  # multiples of the golden ratio cover [0, 1) evenly
        return self.categories[int(np.searchsorted(ends, turn * ends[-1], side="right"))]


def _edit_mask(plan, size, hidden):
    """The pixels that the edit is free to change, shadows included; with `hidden`, without what other things hide.

    -> (bool [Y X], share of the least visible edited thing that is seen)
    """
    seen = 1.0
    if plan.kind == "style":
        return np.ones((size, size), bool), seen
    if plan.kind == "background":
        return ~drawing.opaque(plan.source.things, size), seen
    mask = np.zeros((size, size), bool)
    for scene, other in ((plan.source, plan.target), (plan.target, plan.source)):
        for thing in {*scene.things} - {*other.things}:
            region = drawing.footprint(thing, size, whole=plan.kind not in ("recolour", "pattern"))
            front = hidden and drawing.in_front(thing, scene)
            if front:
                covered = drawing.opaque(front, size)
                body = drawing.footprint(thing, size, whole=False)
                seen = min(seen, 1 - (body & covered).sum() / body.sum())
                region &= ~covered
            mask |= region
    return mask, seen


def _is_visible(source, target, mask, share):
    """Whether an edit can be seen: at least 1.5 % of the picture and a `share` of the mask clearly differ."""
    rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
    if not rows.size:
        return False
    box = slice(rows[0], rows[-1] + 1), slice(columns[0], columns[-1] + 1)
    before, after = source[box], target[box]
    clear = np.maximum(before, after) - np.minimum(before, after) > 20  # [h w 3]
    clear = (clear[..., 0] | clear[..., 1] | clear[..., 2]).sum()  # outside the mask nothing differs
    return clear > 0.015 * mask.size and clear > share * mask.sum()


def _facts(plan, template, varied):
    return {
        "kind": plan.kind,
        "subject": plan.subject,
        "background": plan.source.background,
        "template": template,
        "objects": tuple(thing.name for thing in plan.source.things),
        "novel": edits.is_novel(plan, varied),
        **{name: plan.facts.get(name) for name in ("old", "new", "colour", "colour_before", "position")},
    }


def _reads_as_said(plan, target, mask):
    """Whether a new colour is still measured as its name in the light of the scene."""
    colour = plan.facts.get("colour")
    return plan.kind != "recolour" or colour is None or name_colour(target[mask]) == colour


class SceneSource:
    """Random access to edit pairs: a sequence of `config.length` examples, picklable, the same in every process.

    An example is a dict: 'source' and 'target' uint8 [Y X 3]; 'mask' bool [Y X], outside of which the two are
    equal; 'instruction'; 'category'; 'query', the words of the instruction that say what it is about; 'facts', what
    is known about the edit: kind, subject, background, template, objects in the source, novel, and where they
    apply old, new, colour, colour_before and position (else None). colour is one that `name_colour` can measure, so
    patterns, black, white and gray leave it None.
    """

    def __init__(self, config: SceneConfig):
        self.config = config

    def __len__(self):
        return self.config.length

    def __repr__(self):
        return f"SceneSource({self.config})"

    def plan(self, index: int) -> Iterator[tuple[str, edits.Plan, str, str]]:
        """Yield (category, Plan, template, instruction) for one attempt after another at an example, undrawn.

        The example is the first attempt whose edit can be seen once it is drawn, nearly always the very first.
        """
        config, index = self.config, operator.index(index)
        if not 0 <= index < config.length:
            raise IndexError(f"index must be in [0, {config.length}), got {index}")
        category = config.category(index)
        composer = edits.Composer(config, edits.Dice(config.seed, SPLITS.index(config.split), index))
        for _ in range(_ATTEMPTS):
            plan = getattr(composer, category)()
            worded = plan and edits.worded(plan, config, composer.dice)
            if worded:
                yield category, plan, *worded

    def __getitem__(self, index: int) -> dict:
        return self.drawn(index)[0]

    def distractors(self, index: int, count: int, plan: edits.Plan | None = None) -> np.ndarray:
        """What the target of an add or replace example would be with each of `count` other objects in place of the new
        one: a result that is recognisable is nearest to the true target. -> uint8 [count Y X 3]

        Args:
          plan: of the example, from `drawn`; without it the example is drawn to find it.
        """
        category = self.config.category(index)
        if category not in ("add", "replace"):
            raise ValueError(f"only add and replace bring a new object; example {index} is {category!r}")
        plan = plan or self.drawn(index)[1]
        dice = edits.Dice(self.config.seed, SPLITS.index(self.config.split), index, count)
        others = edits.Composer(self.config, dice).distractors(plan.target, count)
        return np.stack([drawing.render(scene, self.config.size) for scene in others])

    def drawn(self, index: int) -> tuple[dict, edits.Plan]:
        """An example, and the plan that it was drawn from."""
        size, varied = self.config.size, variety(self.config.objects)
        for category, plan, template, instruction in self.plan(index):
            mask, seen = _edit_mask(plan, size, hidden=varied.visible > 0)
            if seen < varied.visible:
                continue
            source = drawing.render(plan.source, size)
            target = styles.apply(plan.style, source) if plan.style else drawing.render(plan.target, size)
            share = _PATTERN_SHARE if plan.kind == "pattern" else _CLEAR_SHARE
            if _is_visible(source, target, mask, share) and (not varied.light or _reads_as_said(plan, target, mask)):
                example = {
                    "source": source,
                    "target": target,
                    "mask": mask,
                    "instruction": instruction,
                    "category": category,
                    "query": plan.query,
                    "facts": _facts(plan, template, varied),
                }
                return example, plan
        raise UserError(f"no visible edit in {_ATTEMPTS} draws for example {index} of {self.config}")


def instruction_corpus(n: int, config: SceneConfig) -> list[str]:
    """The first `n` instructions, for training a tokenizer; pictures are not drawn."""
    source = SceneSource(config)
    for index in range(n):
        yield next(source.plan(index))[-1]


def preview(config: SceneConfig, rows: int = 8, columns: int = 3) -> Image.Image:
    """A labelled grid of examples: source, target and mask under the instruction. -> RGB picture. Errors: UserError."""
    source, gap, line = SceneSource(config), 4, 14
    scale = 2 if config.size <= 128 else 1
    cell = config.size * scale
    size = columns * (3 * cell + 2 * gap), rows * (cell + line + gap)
    if size[0] * size[1] > PREVIEW:
        raise UserError(
            f"a preview must have at most {PREVIEW} pixels; {rows} x {columns} scenes have {size[0] * size[1]}: draw fewer, or "
            "smaller ones"
        )
    grid = Image.new("RGB", size, "white")
    pen = ImageDraw.Draw(grid)
    for index in range(rows * columns):
        example = source[index]
        left, top = index % columns * (3 * cell + 2 * gap), index // columns * (cell + line + gap)
        pen.text((left + 2, top + 1), example["instruction"], fill="black")
        for position, name in enumerate(("source", "target", "mask")):
            picture = example[name] if name != "mask" else example[name].astype(np.uint8) * 255
            tile = Image.fromarray(picture).resize((cell, cell), Image.Resampling.NEAREST)
            grid.paste(tile, (left + position * (cell + 1), top + line))
    return grid
