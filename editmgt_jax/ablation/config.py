"""The config of an ablation: every key with its type, default, rule and meaning. No jax.

The mechanism is that of training runs (`training/declare.py`). What is recorded is FIXED; what is scored, searched and decoded from
it may change as often as you like.
"""

import ast
import dataclasses
from collections.abc import Mapping

from editmgt_jax.data.scenes.source import CATEGORIES, SPLITS
from editmgt_jax.data.scenes.variety import OBJECTS
from editmgt_jax.declarations import SETTINGS
from editmgt_jax.training import declare
from editmgt_jax.training.declare import FIXED, FREE, Misfit, Rule, above, at_least, between, key, one_of, section

SIGNALS = ("text_to_image", "text_to_image/reference", "image_to_text", "image_to_text/reference", "output_cosine")
GROUPS = ("all", "words", "query", "special")
LOCAL = ("add", "remove", "replace", "colour", "motion")  # categories whose edit is a region
SETS = ("singles", "ranges", "subsets", "released", "default", "random")
INTERVENTIONS = ("bypass", "text_to_image", "image_to_text", "image_to_reference")
MEASURES = ("ap", "auroc", "iou_best", "iou", "f1", "pointing")
_SETTINGS = {setting.name: setting for setting in SETTINGS if setting.about != "result"}


def distinct(*choices: str) -> Rule:
    """The rule of one or several of some names."""
    return Rule(
        f"distinct names, at least one, of {', '.join(choices)}",
        lambda value: len(value) > 0 and len(set(value)) == len(value) and set(value) <= set(choices),
        whole=True,
    )


SOME = Rule(", at least one", lambda value: len(value) > 0)


def read_settings(value: object) -> tuple[tuple[str, object], ...]:
    """{'steps': 4} -> (('steps', 4),), checked. Errors: Misfit."""
    return tuple((name, _value(name, one)) for name, one in _mapping(value).items())


def read_grid(value: object) -> tuple[tuple[str, tuple], ...]:
    """{'hold_threshold': (0.0, 0.2)} -> the values of each setting, checked. Errors: Misfit."""
    found = []
    for name, several in _mapping(value).items():
        if not isinstance(several, (list, tuple)) or not several:
            raise Misfit(f"values in a tuple for each setting; {name} has {several!r}")
        found.append((name, tuple(_value(name, one) for one in several)))
    return tuple(found)


def _mapping(value) -> Mapping:
    if isinstance(value, str):  # of the command line
        try:
            value = ast.literal_eval(value)
        except (ValueError, SyntaxError):
            value = None
    if not isinstance(value, Mapping):
        value = dict(value) if isinstance(value, (list, tuple)) and all(len(one) == 2 for one in value) else None
    if value is None or not all(name in _SETTINGS for name in value):
        unknown = "" if value is None else f" (no {', '.join(name for name in value if name not in _SETTINGS)})"
        raise Misfit(f"a dict of settings of an edit{unknown}: {', '.join(_SETTINGS)}")
    return value


def _value(name, value):
    setting = _SETTINGS[name]
    value = tuple(value) if isinstance(value, list) else value
    if setting.rule is not None and not (value is None and setting.default is None):
        try:
            setting.rule(name, value)
        except ValueError as error:
            raise Misfit(f"values that an edit can have: {error}") from None
    return value


@dataclasses.dataclass(frozen=True)
class Examples:
    folder: str = key(
        "", "the source of raw pairs, as of `editmgt prepare --source`; none draws scenes", change=FIXED, folder=True
    )
    truth: str = key(
        "mask",
        "what is right: the pairs' masks, or where source and target differ",
        one_of("mask", "difference"),
        FIXED,
    )
    count: int = key(200, "the number of examples; even ones choose, odd ones report", at_least(4), FIXED)
    split: str = key("heldout", "the split of the scenes", one_of(*SPLITS), FIXED)
    seed: int = key(0, "the seed of the scenes", at_least(0), FIXED)
    objects: str = key("rich", "the objects that scenes show", one_of(*OBJECTS), FIXED)
    categories: tuple[str, ...] = key(LOCAL, "the categories of the scenes", distinct(*CATEGORIES), FIXED)


@dataclasses.dataclass(frozen=True)
class Record:
    seeds: tuple[int, ...] = key(
        (0, 1, 2), "the seeds of masks and decodes", Rule(", distinct and at least 0", lambda value: len(value) > 0
        and len(set(value)) == len(value) and min(value) >= 0), FIXED,
    )  # fmt: skip
    rates: tuple[float, ...] = key(
        (1.0, 0.5), "the shares of the target's ids that are hidden (teacher-forced)",
        Rule(" above 0 and at most 1", lambda value: all(0 < one <= 1 for one in value)), FIXED,
    )  # fmt: skip
    steps: tuple[int, ...] = key(
        (), "the steps of a decode, from 0", Rule(" of at least 0", lambda value: all(one >= 0 for one in value)), FIXED
    )
    settings: tuple[tuple[str, object], ...] = key(
        (), "the settings of that decode; the model's own by default", change=FIXED, read=read_settings, write=dict
    )
    signals: tuple[str, ...] = key(SIGNALS, "what is measured in each block", distinct(*SIGNALS), FIXED)
    groups: tuple[str, ...] = key(GROUPS, "the groups of text tokens", distinct(*GROUPS), FIXED)
    heads: str = key("mean", "whether heads are averaged or kept apart", one_of("mean", "each"), FIXED)
    chunk: int = key(16, "the number of examples in a file, and in a batch", at_least(1), FIXED)
    dtype: str = key("float16", "how numbers are stored", one_of("float16", "float32"), FIXED)

    def __post_init__(self):
        if not self.rates and not self.steps:
            raise declare.ConfigError("record.rates and record.steps must name a mask rate or a step; got none")


@dataclasses.dataclass(frozen=True)
class Score:
    sets: tuple[str, ...] = key(
        ("singles", "ranges", "released", "default", "random"),
        f"sets of blocks: {', '.join(SETS)}, or blocks such as '2-4' or '0,3'", SOME, FREE,
    )  # fmt: skip
    random: int = key(0, "the number of random sets", at_least(0), FREE)
    signals: tuple[str, ...] = key(
        ("text_to_image",), "signals; 'text_to_image+image_to_text' is the mean of the two", SOME, FREE
    )
    groups: tuple[str, ...] = key(("all",), "groups of text tokens", distinct(*GROUPS), FREE)
    windows: tuple[str, ...] = key(
        ("all",), "moments that are averaged: 'all', 'each', or such as 'rate 0.5' or 'rate 1.0+rate 0.5'", SOME, FREE
    )
    heads: tuple[str, ...] = key(("mean",), "heads: 'mean', 'each', or numbers", SOME, FREE)
    filters: tuple[str, ...] = key(("adaptive",), "filters of the maps", distinct("adaptive", "gaussian", "none"), FREE)
    upsamplings: tuple[str, ...] = key(
        ("bicubic",), "how maps come to the grid of the ids", distinct("bicubic", "nearest"), FREE
    )
    thresholds: tuple[str, ...] = key(
        ("selected",), "'selected' on the even examples, or numbers such as '0.3'", SOME, FREE
    )
    part: int = key(64, "the number of settings in a file", at_least(1), FREE)


@dataclasses.dataclass(frozen=True)
class Search:
    objective: str = key("ap", "the measure that sets are chosen by", one_of(*MEASURES), FREE)
    greedy: bool = key(True, "whether blocks are also added and removed one by one", change=FREE)
    weights: bool = key(True, "whether weights of blocks are also learnt", change=FREE)
    trials: int = key(
        0, "the number of trials of an Optuna study over all sets, in all views of the scores", at_least(0), FREE
    )
    shown: int = key(
        20, "the number of settings that are compared with the winner on the odd examples", at_least(1), FREE
    )


@dataclasses.dataclass(frozen=True)
class Statistics:
    confidence: float = key(0.95, "the level of the intervals", between(0.5, 0.999), FREE)
    resamples: int = key(2_000, "the number of bootstrap samples", at_least(100), FREE)
    permutations: int = key(4_000, "the number of sign flips of a paired test", at_least(100), FREE)
    false_discoveries: float = key(0.05, "the share of false discoveries that is allowed", above(0), FREE)
    seed: int = key(0, "the seed of resamples and permutations", at_least(0), FREE)


@dataclasses.dataclass(frozen=True)
class Decode:
    grid: tuple[tuple[str, tuple], ...] = key(
        (), "the values of each setting; all combinations are decoded", change=FREE, read=read_grid, write=dict
    )
    interventions: tuple[str, ...] = key(
        (), f"what is done to one block at a time: {', '.join(INTERVENTIONS)}",
        Rule(f" of {', '.join(INTERVENTIONS)}", lambda value: set(value) <= set(INTERVENTIONS)), FREE,
    )  # fmt: skip
    count: int = key(40, "the number of examples, from the first", at_least(2), FREE)
    seeds: tuple[int, ...] = key((0, 1, 2), "the seeds of the decodes", SOME, FREE)
    batch_size: int = key(16, "the number of decodes in a batch", at_least(1), FREE)


@dataclasses.dataclass(frozen=True, kw_only=True)
class AblationConfig:
    """An ablation of the choices of consolidation."""

    task: str = key(..., "the kind of config", one_of("ablate"), FIXED)
    model: str = key("", "the model directory; the default model by default", change=FIXED, folder=True)
    examples: Examples = section(Examples)
    record: Record = section(Record)
    score: Score = section(Score)
    search: Search = section(Search)
    decode: Decode = section(Decode)
    statistics: Statistics = section(Statistics)

    def to_dict(self) -> dict:
        """What `declare.read` reads, in values that JSON can hold."""
        return declare.plain(self)


ABLATIONS = {"ablate": AblationConfig}


def starting_values() -> dict:
    """All keys with their defaults."""
    return AblationConfig(task="ablate").to_dict()
