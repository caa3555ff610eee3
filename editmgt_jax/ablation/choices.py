"""What is scored: every combination of a set of blocks with a way to make a map of its attention. No jax.

Axes    Z sets; J blocks
"""

import dataclasses
import itertools
from collections.abc import Sequence

from editmgt_jax.ablation.config import Score
from editmgt_jax.ablation.records import EACH_HEAD, Manifest, RecordError
from editmgt_jax.ablation.sets import BlockSet, named_sets
from editmgt_jax.errors import UserError

SELECTED = "selected"


@dataclasses.dataclass(frozen=True)
class View:
    """How attention of a set of blocks becomes a map: everything but the set and the threshold."""

    signal: str  # one that was recorded, or several with '+': their mean
    group: str
    window: str  # one moment, or several with '+': their mean
    head: str  # 'mean' or a number
    filter: str
    upsampling: str

    @property
    def signals(self) -> tuple[str, ...]:
        """Those that are averaged."""
        return tuple(self.signal.split("+"))

    @property
    def moments(self) -> tuple[str, ...]:
        """Those that are averaged."""
        return tuple(self.window.split("+"))


@dataclasses.dataclass(frozen=True)
class Setting:
    """One of the settings that are scored."""

    number: int
    blocks: BlockSet
    view: View
    threshold: str  # 'selected' or a number

    def columns(self) -> dict:
        """As an entry of a table."""
        return {
            "setting": self.number,
            "set": self.blocks.name,
            "kind": self.blocks.kind,
            "blocks": list(self.blocks.blocks),
            "weights": list(self.blocks.weights),
            **dataclasses.asdict(self.view),
            "threshold_rule": self.threshold,
        }


@dataclasses.dataclass(frozen=True)
class Part:
    """Settings that are scored together and written to one file: sets x thresholds, of one view."""

    number: int
    first: int  # number of its first setting
    view: View
    sets: tuple[BlockSet, ...]
    thresholds: tuple[str, ...]

    def settings(self) -> list[Setting]:
        """Sets are the slower axis."""
        pairs = itertools.product(self.sets, self.thresholds)
        return [Setting(self.first + i, blocks, self.view, rule) for i, (blocks, rule) in enumerate(pairs)]


def parts(score: Score, manifest: Manifest, seed: int) -> list[Part]:
    """All that a config asks to score of some records, in its order. Errors: UserError, RecordError."""
    sets = named_sets(score.sets, manifest.num_blocks, manifest.layers, score.random, seed)
    found, first = [], 0
    for view in views(score, manifest):
        for start in range(0, len(sets), score.part):
            some = tuple(sets[start : start + score.part])
            found.append(Part(len(found), first, view, some, checked_thresholds(score.thresholds)))
            first += len(some) * len(score.thresholds)
    return found


def views(score: Score, manifest: Manifest) -> list[View]:
    """Every combination of the other axes. Errors: RecordError for what was not recorded."""
    for signal in score.signals:
        _check("signal", signal.split("+"), manifest.signals)
    _check("group", score.groups, manifest.groups)
    windows = _windows(score.windows, manifest.moments)
    heads = _expanded(score.heads, EACH_HEAD, [head for head in manifest.heads if head != "mean"])
    _check("head", [head for head in heads if head != "mean"], manifest.heads)
    axes = (score.signals, score.groups, windows, heads, score.filters, score.upsamplings)
    return [View(*one) for one in itertools.product(*axes)]


def _windows(names, moments) -> list[str]:
    expanded = _expanded(names, "each", moments)
    windows = ["+".join(moments) if name == "all" else name for name in expanded]
    for window in windows:
        _check("moment", window.split("+"), moments)
    return list(dict.fromkeys(windows))


def _expanded(names, word, everything) -> list[str]:
    found = [one for name in names for one in (everything if name == word else [name])]
    return list(dict.fromkeys(found))


def _check(kind: str, names: Sequence[str], known: Sequence[str]) -> None:
    for name in names:
        if name not in known:
            raise RecordError(f"a {kind} must have been recorded: {', '.join(known)}; got {name!r}")


def checked_thresholds(rules: Sequence[str]) -> tuple[str, ...]:
    """Errors: UserError for one that is no number from 0 to 1.5."""
    for rule in rules:
        try:
            right = rule == SELECTED or 0 <= float(rule) <= 1.5
        except ValueError:
            right = False
        if not right:
            raise UserError(f"score.thresholds must be '{SELECTED}' or numbers from 0 to 1.5; got {rule!r}")
    return tuple(rules)
