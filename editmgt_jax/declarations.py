"""The settings of an edit, each declared once. Imports no jax: command lines are built from it.

From a declaration come the check (`check`), the argument of the command line (`cli.shared.add_settings`), the key
`default_NAME` of a model's `scheduler_config.json` (`config.SchedulerConfig`), and the field of `sampling.settings.Settings`
and of its static or traced part.
"""

import dataclasses
import math
import numbers
from collections.abc import Callable, Iterable
from typing import Any, Literal

from editmgt_jax.errors import UserError

MAX_THRESHOLD = 1.5
MAX_STEPS = 10_000  # more than any picture has tokens to decide
MAX_IMAGES = 10_000  # of one call
MAX_SEED = 2**32 - 1
Rule = Callable[[str, Any], None]  # (name, value); errors: SettingsError


class SettingsError(UserError):
    """A setting outside its range: states the rule, what came and what to do."""


@dataclasses.dataclass(frozen=True)
class Setting:
    """One setting of an edit.

    name     in Python, in `default_NAME`, and with dashes on the command line
    kind     type of a value, or of its elements
    rule     of a value; None where the values are the names of `sampling.settings.CHOICES`
    help     of the command line; '%(choices)s' stands for the names
    part     'static': another value is another program; 'traced': it is an input; 'schedule': of `masking.decode_schedule`
    about    what it steers: every 'decode'; the 'reference', where a decode has one; the 'relevance', which no picture
             made from text alone shows; what comes with the 'result' (neither flag nor key)
    default  in models that state none; None means off, and is a value only then
    length   'one' value, 'several', or a 'pair' (first, last), for which one value may stand
    stated   a model's files state it even if it is the default; others are written where they differ from it
    metavar  of the command line
    needs    (setting, value) without which it is not read; None is every value above 0
    """

    name: str
    kind: type
    rule: Rule | None
    help: str
    part: Literal["static", "traced", "schedule"]
    about: Literal["decode", "reference", "relevance", "result"]
    default: Any
    length: Literal["one", "several", "pair"] = "one"
    stated: bool = False
    metavar: str | None = None
    needs: tuple[str, str | None] | None = None

    @property
    def key(self) -> str | None:
        """The key of a scheduler config that holds a model's own value."""
        return None if self.about == "result" else f"default_{self.name}"

    @property
    def key_type(self) -> Any:
        """What JSON values of `key` must be."""
        one = self.kind if self.length == "one" else tuple[self.kind, ...]
        return one | None if self.default is None else one


def is_integer(value: Any) -> bool:
    """Python's and numpy's integers; not bool."""
    return isinstance(value, numbers.Integral) and not isinstance(value, bool)


def check_integer(name: str, value: Any, lowest: int, highest: float = math.inf) -> None:
    """Errors: SettingsError stating the range."""
    if not is_integer(value) or not lowest <= value <= highest:
        upper = "" if highest == math.inf else f" and at most {highest}"
        raise SettingsError(f"{name} must be an integer of at least {lowest}{upper}; got {value!r}")


def check_choice(name: str, value: Any, choices: Iterable[str]) -> None:
    """Errors: SettingsError naming the choices."""
    if not isinstance(value, str) or value not in choices:
        raise SettingsError(f"{name} must be one of {', '.join(choices)}; got {value!r}")


# ---- rules


def _float(value) -> float:
    try:
        return float(value)
    except OverflowError:  # of an integer
        return math.inf


def number(hint: str, *, positive: bool = False, highest: float = math.inf) -> Rule:
    """The rule of a finite number of at least 0, or above it; `hint` is part of its error."""

    def rule(name, value):
        given = _float(value) if isinstance(value, numbers.Real) and not isinstance(value, bool) else math.nan
        in_range = math.isfinite(given) and (given > 0 if positive else given >= 0) and given <= highest
        if not in_range:
            least = "above 0" if positive else "at least 0"
            most = "finite" if highest == math.inf else f"at most {highest:g}"
            raise SettingsError(f"{name} must be a number {least} and {most} ({hint}); got {value!r}")

    return rule


def integer(lowest: int, highest: float = math.inf) -> Rule:
    """The rule of an integer of at least `lowest` and at most `highest`."""
    return lambda name, value: check_integer(name, value, lowest, highest)


def number_or_pair(hint: str) -> Rule:
    """The rule of one number of at least 0, or (first, last)."""
    of_one = number(hint)

    def rule(name, value):
        pair = isinstance(value, tuple)
        if pair and len(value) != 2:
            raise SettingsError(f"{name} must be one number or (first, last), got {value!r}")
        for end in value if pair else (value,):
            of_one(name, end)

    return rule


def blocks(name: str, value: Any) -> None:
    """The rule of block numbers, as far as it is the same for every model."""
    if not isinstance(value, tuple) or not all(is_integer(one) for one in value) or len(set(value)) < len(value):
        raise SettingsError(f"{name} must be distinct block numbers; got {value!r}")


def truth(name: str, value: Any) -> None:
    """The rule of a bool."""
    if not isinstance(value, bool):
        raise SettingsError(f"{name} must be true or false; got {value!r}")


# ---- the settings

SETTINGS = (
    Setting("steps", int, integer(1, MAX_STEPS), "decoding steps", "schedule", "decode", 36, stated=True),
    Setting(
        "remask_steps",
        int,
        integer(0, MAX_STEPS),
        "how many of the steps, the last ones, each hide half of the tokens again and decide them anew; 0 is none",
        "schedule",
        "decode",
        0,
    ),
    Setting(
        "sampler",
        str,
        None,
        "which tokens each step decides, as docs/sampling.md explains: %(choices)s",
        "static",
        "decode",
        "confidence",
        metavar="NAME",
    ),
    Setting(
        "guidance_scale",
        float,
        number("6 is usual, up to 1 switches guidance off"),
        "how strictly to follow the text; up to 1 is off, at half the cost",
        "traced",
        "decode",
        6.0,
        stated=True,
    ),
    Setting(
        "remask_guidance_scale",
        float,
        number("the same as guidance_scale is neutral"),
        "the guidance scale of steps that remask; the same if it is left out",
        "traced",
        "decode",
        None,
        needs=("remask_steps", None),
    ),
    Setting(
        "image_guidance_scale",
        float,
        number("the same as guidance_scale is neutral"),
        "how strictly to keep to the source image: more than --guidance-scale keeps more of it, less changes more, at one "
        "more pass a step; the same is neutral",
        "traced",
        "reference",
        None,
    ),
    Setting(
        "sampling_temperature",
        float,
        number("1 draws as the model predicts", positive=True),
        "divides the logits before an id is drawn; 1 as the model predicts",
        "traced",
        "decode",
        1.0,
        stated=True,
    ),
    Setting(
        "temperature",
        float,
        number_or_pair("2 0 is usual: from 2 at the first step to 0 at the last"),
        "noise in the order of the tokens, which adds variety: FIRST LAST, or one number, which falls to 0.01",
        "schedule",
        "decode",
        (2.0, 0.0),
        length="pair",
        stated=True,
    ),
    Setting(
        "entropy_bound",
        float,
        number("60 nats took 4.5 passes over 256 tokens"),
        "nats of entropy that a step of the sampler entropy decides at most",
        "traced",
        "decode",
        60.0,
        needs=("sampler", "entropy"),
    ),
    Setting(
        "copy_penalty",
        float,
        number("3 is usual, 0 is plain confidence"),
        "nats by which the sampler changes_first trusts copies of the source less",
        "traced",
        "reference",
        3.0,
        needs=("sampler", "changes_first"),
    ),
    Setting(
        "reference_strength",
        float,
        number("1 is as trained, 0 ignores the source image"),
        "gamma, weight of attention to the source image; 1 as trained, 0 none",
        "traced",
        "reference",
        1.1,
        stated=True,
    ),
    Setting(
        "hold_threshold",
        float,
        number("0 is off, above 1 holds everything", highest=MAX_THRESHOLD),
        "lambda; tokens of lower relevance stay the source's. 0 is off, above 1 is all",
        "traced",
        "reference",
        0.0,
        stated=True,
    ),
    Setting(
        "hold",
        str,
        None,
        "when to hold: %(choices)s ('released': at every step, 'from_step': once and for good, at --hold-step)",
        "static",
        "reference",
        "released",
        metavar="NAME",
    ),
    Setting(
        "hold_step",
        int,
        integer(0, MAX_STEPS),
        "number of the step, from 0, for --hold from_step",
        "traced",
        "reference",
        0,
        needs=("hold", "from_step"),
    ),
    Setting(
        "layers",
        int,
        blocks,
        "blocks whose attention says where the edit is",
        "static",
        "relevance",
        (),
        length="several",
        stated=True,
        metavar="BLOCK",
    ),
    Setting(
        "signal",
        str,
        None,
        "what of those blocks is read: %(choices)s ('text_to_image' as released; '/reference' counts the source's keys, too)",
        "static",
        "relevance",
        "text_to_image",
        metavar="NAME",
    ),
    Setting("filter", str, None, "of the relevance: %(choices)s", "static", "relevance", "adaptive", metavar="NAME"),
    Setting("record", bool, truth, "also return the tokens and the relevance of every step", "static", "result", False),
)
