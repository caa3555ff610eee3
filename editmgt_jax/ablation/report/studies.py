"""The sections of an ablation's report, from its scores, its search and its decodes. All figures are of the odd examples."""

import dataclasses
import json
from pathlib import Path

import numpy as np

from editmgt_jax.ablation import score as scores
from editmgt_jax.ablation import statistics
from editmgt_jax.ablation.choices import View
from editmgt_jax.ablation.config import AblationConfig, Statistics
from editmgt_jax.ablation.records import Manifest, Records
from editmgt_jax.ablation.scoring import Scorer
from editmgt_jax.ablation.search import FOLDER, LEARNT, SUMMARY, view_of
from editmgt_jax.ablation.sets import name_of
from editmgt_jax.report import figures
from editmgt_jax.report.page import Code, Figure, Section, Table, Text

CURVE = np.linspace(0, 1, 101)
NAMES = {
    "ap": "average precision", "auroc": "AUROC", "iou_best": "IoU at the best threshold", "iou": "IoU", "f1": "F1",
    "pointing": "pointing game",
}  # fmt: skip


@dataclasses.dataclass(frozen=True, eq=False)
class Scores:
    """The objective of every setting, means over seeds, with the settings by what they are."""

    entries: list[dict]
    values: np.ndarray  # [Z n]
    how: Statistics
    objective: str

    @classmethod
    def read(cls, workdir: Path, config: AblationConfig) -> "Scores":
        """Of the first threshold rule."""
        entries = scores.read_settings(workdir)
        rule = entries[0]["threshold_rule"]
        keep = [index for index, entry in enumerate(entries) if entry["threshold_rule"] == rule]
        values = statistics.seed_means(scores.read_scores(workdir, config.search.objective))
        return cls([entries[i] for i in keep], values[keep], config.statistics, config.search.objective)

    def find(self, blocks: tuple[int, ...], view: View) -> int | None:
        """The setting of some blocks in a view."""
        return self._index.get((tuple(blocks), view))

    def __post_init__(self):
        index = {}
        for number, entry in enumerate(self.entries):
            if entry["kind"] != LEARNT:
                index.setdefault((tuple(entry["blocks"]), view_of(entry)), number)
        object.__setattr__(self, "_index", index)

    def point(self, number: int, **more: str) -> dict:
        """Mean and interval, for a figure."""
        found = statistics.interval(self.values[number, 1::2], self.how)
        return {"mean": found.mean, "low": found.low, "high": found.high} | more

    def views(self, **same: str) -> list[View]:
        """The views that were scored with some values of their axes."""
        every = dict.fromkeys(view_of(entry) for entry in self.entries)
        return [view for view in every if all(getattr(view, axis) == value for axis, value in same.items())]


def sections(config: AblationConfig, workdir: Path) -> list[Section]:
    """All that can be told of what is in a work directory. Errors: UserError, RecordError."""
    manifest = Manifest.read(workdir / "records")
    found = Scores.read(workdir, config)
    summary = json.loads((workdir / FOLDER / SUMMARY).read_text())
    best = summary["winner"]
    view = view_of(best)
    parts = [
        Section("Answer", _answer(summary)),
        Section("By block", by_block(found, manifest, best, view)),
        Section("Ranges of blocks", ranges(found, manifest, view)),
        Section("Moments and groups of tokens", _by_axes(found, best, view)),
        Section("ROC and precision against recall", curves(config, workdir, summary)),
        Section("Compared with the winner", [_table(summary)]),
    ]
    return [section for section in parts if section.parts] + [Section("Methods", methods(config, manifest, summary))]


def told(point: dict) -> str:
    """'0.512 [0.498, 0.527]'"""
    return f"{point['mean']:.3f} [{point['low']:.3f}, {point['high']:.3f}]"


def _view_words(entry) -> str:
    return f"{entry['signal']}, {entry['group']} tokens, {entry['window']}, filter {entry['filter']}"


def _answer(summary) -> list:
    best, measure = summary["winner"], NAMES[summary["objective"]]
    rivals = {one["role"]: one for one in summary["rivals"]}
    lines = [
        f"Chosen on {summary['examples']['even']} examples among {summary['candidates']} settings: blocks {best['set']} "
        f"({_view_words(best)}). On the other {summary['examples']['odd']} examples its {measure} is {told(best['odd'])}."
    ]
    single = rivals.get("best single block")
    if len(best["blocks"]) == 1:
        lines.append("The winner is a single block: consolidation does not beat it.")
    elif single:
        gain = {
            name: -single["difference"][other] for name, other in (("mean", "mean"), ("low", "high"), ("high", "low"))
        }
        verdict = "a difference" if single["differs"] else "no difference that the test finds"
        lines.append(
            f"The best single block, {single['set']} ({_view_words(single)}), has {told(single['odd'])}; the winner is better by "
            f"{told(gain)} (corrected p {single['q']:.2g}): {verdict}."
        )
    own = rivals.get("as the model reads it")
    if own:
        lines.append(
            f"The model's own layers, {own['set']}, as an edit reads them ({_view_words(own)}), have {told(own['odd'])}: "
            f"{told(own['difference'])} against the winner (corrected p {own['q']:.2g})."
        )
    return [Text(line) for line in lines]


def by_block(found: Scores, manifest: Manifest, best: dict, view: View) -> list:
    """The objective of each single block by signal, with the consolidated values dashed."""
    points = []
    for other in found.views(group=view.group, window=view.window, head=view.head, filter=view.filter,
                             upsampling=view.upsampling):  # fmt: skip
        for block in range(manifest.num_blocks):
            number = found.find((block,), other)
            if number is not None:
                points.append(found.point(number, x=str(block), series=other.signal))
    levels = []
    for name, blocks in (("winner", best["blocks"]), ("the model's own layers", manifest.layers)):
        number = found.find(tuple(blocks), view)
        if number is not None:
            levels.append(found.point(number, series=f"{name}: {name_of(blocks)}"))
    if not points:
        return []
    caption = (
        f"{NAMES[found.objective]} of each single block by signal ({view.group} tokens, {view.window}), with 95 % intervals; dashed: "
        "sets of blocks in the winner's view."
    )
    return [Figure(figures.lines(points, "block", NAMES[found.objective], levels), caption)]


def single_blocks(config: AblationConfig, workdir: Path) -> dict:
    """The objective of each block's own map in the winner's view, for `sweeps.sections`."""
    found, m = Scores.read(workdir, config), Manifest.read(workdir / "records")
    view = view_of(json.loads((workdir / FOLDER / SUMMARY).read_text())["winner"])
    numbers = {block: found.find((block,), view) for block in range(m.num_blocks)}
    points = {block: found.point(number) for block, number in numbers.items() if number is not None}
    return {"view": view, "objective": NAMES[found.objective], "points": points}


def ranges(found: Scores, manifest: Manifest, view: View) -> list:
    """The objective of every range, first block by last block."""
    points = []
    for first in range(manifest.num_blocks):
        for last in range(first, manifest.num_blocks):
            number = found.find(tuple(range(first, last + 1)), view)
            if number is not None:
                mean = float(np.nanmean(found.values[number, 1::2]))
                points.append({"x": str(last), "y": str(first), "mean": mean})
    if not points:
        return []
    caption = f"{NAMES[found.objective]} of ranges of blocks in the winner's view: from the first block to the last."
    return [Figure(figures.heat_map(points, "last block", "first block", NAMES[found.objective]), caption)]


def _by_axes(found, best, view) -> list:
    parts = []
    blocks = tuple(best["blocks"])
    for axis, word in (("window", "moment"), ("group", "group of tokens")):
        values = list(dict.fromkeys(getattr(other, axis) for other in found.views()))
        points = []
        for other in found.views(head=view.head, filter=view.filter, upsampling=view.upsampling):
            same = [name for name in ("window", "group") if name != axis]
            if any(getattr(other, name) != getattr(view, name) for name in same):
                continue
            number = found.find(blocks, other)
            if number is not None:
                points.append(found.point(number, x=getattr(other, axis), series=other.signal))
        if len(values) > 1 and points:
            caption = f"{NAMES[found.objective]} of the winner's blocks, {best['set']}, by {word} and signal, with 95 % intervals."
            parts.append(Figure(figures.bars(points, word, NAMES[found.objective]), caption))
    return parts


def curves(config: AblationConfig, workdir: Path, summary: dict) -> list:
    """ROC and precision-recall curves of the winner, the best single block, and what the model and the paper read."""
    records = Records.open(workdir / "records")
    told_of = {"winner": summary["winner"]}
    shown = ("best single block", "as the model reads it", "as the paper reads it")
    told_of |= {one["role"]: one for one in summary["rivals"] if one["role"] in shown}
    roc, pr = [], []
    for role, entry in told_of.items():
        true_rate, precision = _mean_curves(Scorer(records, view_of(entry)), entry["weights"])
        series = f"{role}: {entry['set']}"
        roc += [{"x": float(x), "y": float(y), "series": series} for x, y in zip(CURVE, true_rate, strict=True)]
        pr += [{"x": float(x), "y": float(y), "series": series} for x, y in zip(CURVE, precision, strict=True) if x > 0]
    return [
        Figure(
            figures.curves(roc, "false positive rate", "true positive rate", True), "ROC, mean over the odd examples."
        ),
        Figure(figures.curves(pr, "recall", "precision"), "Precision at each recall, mean over the odd examples."),
    ]


def _mean_curves(scorer, weights) -> tuple[np.ndarray, np.ndarray]:
    """True positive rate at each false positive rate of CURVE, precision at each recall. -> [101], [101]"""
    rates, precisions = [], []
    rows = range(1, scorer.manifest.examples, 2)
    for _, ranked in scorer.ranked(np.float32([weights]), rows):
        keys, true = ranked.keys[0], ranked.places.shape[1]
        if true in (0, len(keys)):
            continue
        values = keys >> 1
        chosen = (
            np.append(np.flatnonzero(values[1:] != values[:-1]), len(keys) - 1) + 1
        )  # cells of a value count together
        right = np.cumsum(1 - (keys & 1))[chosen - 1]
        rates.append(_along(np.append(0, chosen - right) / (len(keys) - true), np.append(0, right) / true))
        best_after = np.maximum.accumulate((right / chosen)[::-1])[::-1]  # the highest precision at this recall or more
        precisions.append(best_after[np.searchsorted(right / true, CURVE - 1e-9)])
    return np.mean(rates, axis=0), np.mean(precisions, axis=0)


def _along(x, y) -> np.ndarray:
    """The curve through points of rising x at CURVE; where several have one x, from the last on."""
    at = np.searchsorted(x, CURVE, side="right") - 1
    following = np.minimum(at + 1, len(x) - 1)
    width = x[following] - x[at]
    part = np.where(width > 0, (CURVE - x[at]) / np.where(width > 0, width, 1), 0)
    return y[at] + part * (y[following] - y[at])


def _table(summary) -> Table:
    heads = ("role", "blocks", "odd examples", "minus the winner", "corrected p", "p", "view")
    best = summary["winner"]
    lines = [("winner", best["set"], told(best["odd"]), "", "", "", _view_words(best))]
    for one in summary["rivals"]:
        figures_of = (told(one["odd"]), told(one["difference"]), f"{one['q']:.2g}", f"{one['p']:.2g}")
        lines.append((one["role"], one["set"], *figures_of, _view_words(one)))
    return Table(heads, lines, based=True)


def methods(config: AblationConfig, manifest: Manifest, summary: dict) -> list:
    """Everything that is needed to do it again."""
    examples, how = config.examples, config.statistics
    drawn = (
        f"pairs of {examples.folder}" if examples.folder
        else f"procedural scenes ({examples.objects} objects, split {examples.split}, seed {examples.seed}, categories "
        f"{', '.join(examples.categories)})"
    )  # fmt: skip
    truth = "the pairs' masks" if manifest.truth == "mask" else "where source and target differ (no mask)"
    lines = [
        f"Model {manifest.model} (weights {manifest.fingerprint}), {manifest.num_blocks} blocks, double-stream first. "
        f"{manifest.examples} examples: {drawn}. Truth: {truth}; a cell of the {manifest.token_grid[0]} x "
        f"{manifest.token_grid[1]} grid is true if any of its pixels is. Seeds {', '.join(map(str, manifest.seeds))}: of the hidden "
        "ids and of decodes; an example's seeds are averaged before any statistic.",
        f"Recorded moments: {', '.join(manifest.moments)} ('rate r' hides a random share r of the target's ids, 'step i' is a step "
        f"of a decode). Signals: {', '.join(manifest.signals)}, stored as {manifest.dtype}. A map is the weighted mean of the "
        "attention over blocks, scaled to 0 to 1, filtered and upsampled as in an edit.",
        f"Even examples choose settings and thresholds, odd examples report. Intervals: {how.confidence:.0%} BCa bootstrap of the "
        f"mean over examples, {how.resamples} resamples, seed {how.seed}. Tests: paired sign flips against the winner, "
        f"{how.permutations} flips, corrected by Benjamini and Hochberg at {how.false_discoveries:g} over the table's comparisons.",
    ]
    return [*(Text(line) for line in lines), Code(json.dumps(config.to_dict(), indent=1))]
