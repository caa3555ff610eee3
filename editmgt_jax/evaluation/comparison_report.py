"""The report on evaluations side by side: tables of a comparison, then the edits that differ most."""

import math
from collections.abc import Sequence
from pathlib import Path

from PIL import Image

from editmgt_jax.evaluation.comparison import Evaluated, compare, ordered
from editmgt_jax.evaluation.examples import Unreadable, read_picture
from editmgt_jax.evaluation.protocols.table import open_protocol
from editmgt_jax.files import write_text
from editmgt_jax.report.page import Part, Picture, Row, Section, Table, Text, to_html, to_markdown

THUMBNAIL = 224  # pixels of the longer side
IDLE = 0.5  # share of edits that change nothing from which a system is pointed out
LEGEND = (
    "Brackets: 95 % bootstrap intervals, examples of one cluster resampled together. Differences are over the examples that both "
    "systems scored, and outside of masks over those that both changed; a star marks an interval without 0."
)


def write(evaluated: Sequence[Evaluated], folder: str | Path, metric: str | None = None, pictures: int = 24) -> Path:
    """Writes report.html and report.md into a folder. -> the former. Errors: UserError for a metric that there is not.

    Args:
      metric: whose values order the edits, see `comparison.ordered`; pictures: how many edits are shown.
    """
    folder = Path(folder)
    comparison = compare(evaluated)
    title, tables = title_of(comparison), sections(comparison)
    page = to_html(title, [*tables, edits(evaluated, metric, pictures)])
    folder.mkdir(parents=True, exist_ok=True)
    write_text(folder / "report.md", to_markdown(title, tables))
    write_text(folder / "report.html", page)
    return folder / "report.html"


def title_of(comparison: dict) -> str:
    """The protocol and its version."""
    return f"{comparison['protocol']} version {comparison['version']}"


def sections(comparison: dict) -> list[Section]:
    """The tables of `compare`: the systems, then for each view a line for each metric."""
    systems, published = comparison["systems"], comparison["published"]
    labels = [each["label"] for each in systems]
    found = [
        Section("", [Text(comparison["title"]), Text(f"Rules of {comparison['reference']}."), _systems(systems)]),
        *(_view(view, entries, labels, published) for view, entries in comparison["views"].items()),
    ]
    idle = [Text(_idle(each)) for each in systems if _idle(each)]
    known = {entry["metric"] for entries in comparison["views"].values() for entry in entries}
    named = dict.fromkeys(each["source"] for each in published if known & each["values"].keys())
    sources = [Text(f"Published: {source}.") for source in named]
    return [*found, Section("", [*idle, Text(LEGEND), *sources])]


def _systems(systems) -> Table:
    cells = []
    for each in systems:
        skipped = ", ".join(f"{found['count']} {reason}" for reason, found in each["skipped"].items()) or "none"
        edited = each["edited"].get("model") or each["edited"].get("outputs")
        cells.append([each["label"], str(each["examples"]), str(each["scored"]), skipped, str(edited)])
    return Table(["system", "examples", "scored", "skipped", "edited by"], cells)


def _view(view, entries, labels, published) -> Section:
    known = {entry["metric"] for entry in entries}
    variants = [e for e in entries if ":" in e["metric"] and e["metric"].split(":", 1)[1] in known]
    heads = ["metric", *labels, *(f"{label} - {labels[0]}" for label in labels[1:])]
    cells = [
        [
            entry["metric"] + _arrow(entry["direction"]),
            *map(figure_text, entry["values"]),
            *(_difference_text(each, entry["direction"]) for each in entry["differences"]),
        ]
        for entry in entries
        if entry not in variants
    ]
    of_variants = [part for i, label in enumerate(labels) for part in variant_table(variants, i, label)]
    return Section(view, [Table(heads, cells), *_published_table(view, entries, labels, published), *of_variants])


def _published_table(view, entries, labels, published) -> list[Part]:
    """A line for each system and for each published one, a column for each metric that papers print. -> no parts without any"""
    shown = [each for each in published if each.get("view") in (None, view)]
    printed = [entry for entry in entries if any(entry["metric"] in each["values"] for each in shown)]
    shown = [each for each in shown if any(entry["metric"] in each["values"] for entry in printed)]
    if not shown:
        return []
    cells = [[label, *(figure_text(entry["values"][i]) for entry in printed)] for i, label in enumerate(labels)]
    cells += [
        [f"{each['system']} (published)", *(_number(each["values"].get(entry["metric"])) for entry in printed)]
        for each in shown
    ]
    heads = ["system", *(entry["metric"] + _arrow(entry["direction"]) for entry in printed)]
    return [Text("Beside published numbers:"), Table(heads, cells)]


def variant_table(entries: Sequence[dict], number: int, label: str) -> list[Part]:
    """One system's figures of the variants of its edits: a line for each figure, a column for each variant.

    Args:
      entries: of `compare`, whose metrics are 'variant:figure'; number: of the system. -> no parts where it has no variants
    """
    values = {tuple(entry["metric"].split(":", 1)): entry["values"][number] for entry in entries}
    values = {key: figure for key, figure in values.items() if figure and figure["n"]}
    if not values:
        return []
    names, figures = (list(dict.fromkeys(key[i] for key in values)) for i in (0, 1))
    signs = {entry["metric"].rpartition(":")[2]: entry["direction"] for entry in entries}
    cells = [
        [figure + _arrow(signs[figure]), *(figure_text(values.get((name, figure))) for name in names)]
        for figure in figures
    ]
    return [Text(f"Variants of {label}:"), Table(["figure", *names], cells)]


def _idle(system) -> str | None:
    """A sentence about a system that mostly changes nothing, None for others."""
    share = system["noop"]
    if share is None or share < IDLE:
        return None
    return f"{system['label']} changes nothing inside the mask in {100 * share:.0f} % of its edits: its figures outside say nothing."


def figure_text(figure: dict | None) -> str:
    """'0.878 [0.870, 0.886]' of a figure; '-' where there is none."""
    if not figure or not figure["n"] or figure["mean"] is None:
        return "-"
    return _number(figure["mean"]) + _bracket(figure)


def _difference_text(figure, direction) -> str:
    if not figure["n"]:
        return "-"
    apart = not math.isnan(figure["low"]) and (figure["low"] > 0 or figure["high"] < 0)
    word = "" if not (apart and direction) else " better" if figure["mean"] * direction > 0 else " worse"
    return f"{figure['mean']:+.4g}{_bracket(figure)}{' *' if apart else ''}{word}"


def _bracket(figure) -> str:
    low, high = figure["low"], figure["high"]
    return "" if low is None or math.isnan(low) else f" [{_number(low)}, {_number(high)}]"


def _number(value) -> str:
    return "-" if value is None else f"{value:.4g}"


def _arrow(direction) -> str:
    return {1: " ↑", -1: " ↓", 0: ""}[direction]


# ---- pictures


def edits(evaluated: Sequence[Evaluated], metric: str | None = None, count: int = 24) -> Section:
    """The `count` examples that differ most: source, target, every system's edit. Of one evaluation its worst, or the first ones.

    Errors: see `ordered`.
    """
    found = ordered(evaluated, metric)[:count]
    about = f"by {metric}" if metric else "by the mean absolute difference of the pictures"
    title = f"Edits, those that differ most first, {about}"
    if len(evaluated) == 1:
        title = f"Edits, the worst first, {about}" if metric else "Edits"
    protocol, first = open_protocol(evaluated[0].summary["protocol"]), evaluated[0]
    examples = protocol.examples_again(first.summary, [key for key, _ in found], first.outputs)
    return Section(title, [_row(evaluated, protocol, examples.get(key), key, value, metric) for key, value in found])


def _row(evaluated, protocol, example, key, value, metric) -> Row:
    shown = []
    if example is not None:
        shown.append(("source", example.source))
        if example.target is not None:
            shown.append(("target", example.target))
    for each in evaluated:
        outcome = each.outcomes.get(key)
        if outcome and not outcome["skipped"]:
            measured = "" if metric is None or outcome.get(metric) is None else f": {metric} {outcome[metric]:.4g}"
            for word, file in protocol.pictures_of(outcome).items():
                of_it = metric is not None and word in ("", metric.rpartition(":")[0])
                shown.append((" ".join(filter(None, (each.label, word))) + measured * of_it, each.outputs / file))
    pictures, absent = [], []
    for caption, path in shown:
        try:
            pictures.append(Picture(_thumbnail(read_picture(path)[0]), caption, photograph=True))
        except Unreadable as error:
            absent.append(f"{caption}: {error.reason}")
    instruction = evaluated[0].outcomes[key].get("instruction") or ""
    text = f"{instruction} ({key}{f', difference {value:+.4g}' if len(evaluated) > 1 else ''})"
    return Row(". ".join([text, *absent]), pictures)


def _thumbnail(image: Image.Image) -> Image.Image:
    scale = THUMBNAIL / max(image.size)
    return image.resize([max(1, round(side * scale)) for side in image.size], Image.Resampling.LANCZOS)
