"""Evaluations side by side: their figures, published numbers, differences of pairs, and pictures in order of difference.

A difference is taken over the examples that both evaluations scored, and its interval resamples these examples.
"""

import base64
import dataclasses
import html
import io
import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from editmgt_jax.errors import UserError
from editmgt_jax.evaluation import outcomes, pixels, stats
from editmgt_jax.evaluation.examples import Example, Unreadable, read_picture
from editmgt_jax.evaluation.protocol import Selection
from editmgt_jax.evaluation.protocols.table import open_protocol
from editmgt_jax.files import write_text

THUMBNAIL = 224  # pixels of the longer side
OUTSIDE = ("outside", "band", "far", "unedit_part")  # in names of figures that an editor which does nothing would win
IDLE = 0.5  # share of edits that change nothing from which a system is pointed out


@dataclasses.dataclass(frozen=True, eq=False)
class Evaluated:
    """A complete evaluation, read from its folder."""

    label: str
    folder: Path
    summary: dict
    outcomes: dict[str, dict]  # by key

    @property
    def outputs(self) -> Path:
        """The folder of its edited pictures."""
        return Path(self.summary["edited"].get("outputs") or self.folder / "outputs")


def read(folders: Sequence[str | Path], labels: Sequence[str] | None = None) -> list[Evaluated]:
    """Reads evaluations of one protocol and version. Errors: UserError, FileNotFoundError."""
    folders = [Path(folder) for folder in folders]
    labels = list(labels) if labels else _labels(folders)
    if len(labels) != len(folders):
        raise UserError(f"every evaluation needs one label; there are {len(folders)} and {len(labels)}")
    found = []
    for label, folder in zip(labels, folders, strict=True):
        if not (folder / "summary.json").is_file():
            raise FileNotFoundError(f"a complete evaluation has summary.json; there is none in {folder}")
        kept = {outcome["key"]: outcome for outcome in outcomes.read(folder / "outcomes.parquet")}
        found.append(Evaluated(label, folder, json.loads((folder / "summary.json").read_text()), kept))
    kinds = {(each.summary["protocol"], each.summary["version"]) for each in found}
    if len(kinds) > 1:
        listed = ", ".join(f"{name} version {version}" for name, version in sorted(kinds))
        raise UserError(f"evaluations side by side must be of one protocol and version; got {listed}")
    return found


def is_evaluation(folder: str | Path) -> bool:
    """Whether a folder holds a complete evaluation."""
    return (Path(folder) / "summary.json").is_file() and (Path(folder) / "outcomes.parquet").is_file()


def _labels(folders) -> list[str]:
    names = [folder.resolve().name for folder in folders]
    return names if len(set(names)) == len(names) else [str(folder) for folder in folders]


def difference(first: Evaluated, second: Evaluated, metric: str, view: str) -> dict[str, float]:
    """`stats.mean_of` the second's value minus the first's, over the examples of a view that have both.

    Where either edit changes nothing inside the mask, figures outside of it are not compared: doing nothing wins nothing.
    """
    prefix, colon, name = metric.rpartition(":")
    noop = f"{prefix}{colon}noop" if any(word in name for word in OUTSIDE) else None
    chosen = open_protocol(first.summary["protocol"]).views().get(view, lambda outcome: True)
    values, clusters = [], []
    for key, one in first.outcomes.items():
        other = second.outcomes.get(key)
        if other is None or one["skipped"] or other["skipped"] or not chosen(one):
            continue
        if noop and 1.0 in (one.get(noop), other.get(noop)):
            continue
        pair = one.get(metric), other.get(metric)
        if None not in pair:
            values.append(pair[1] - pair[0])
            clusters.append(one.get("cluster") or key)
    return stats.mean_of(values, clusters)


def compare(evaluated: Sequence[Evaluated]) -> dict[str, Any]:
    """Everything that `markdown` and `page` show, but the pictures.

    -> {protocol, version, title, reference, systems: [{label, noop, edited, scored, skipped, ...}],
        views: {view: [{metric, direction, values: [figure or None], published: {system: value}, differences: [figure]}]}}
    """
    first = evaluated[0].summary
    views = {}
    for view in dict.fromkeys(view for each in evaluated for view in each.summary["results"]):
        metrics = dict.fromkeys(
            name for each in evaluated for name in each.summary["results"].get(view, {}).get("all", {})
        )
        views[view] = [_entry(evaluated, view, metric, first) for metric in metrics]
    return {name: first[name] for name in ("protocol", "version", "title", "reference", "published")} | {
        "systems": [
            {"label": each.label, "noop": _noop_share(each)}
            | {
                name: each.summary[name]
                for name in ("edited", "examples", "scored", "skipped", "notes", "extra", "models")
            }
            for each in evaluated
        ],
        "views": views,
    }


def _noop_share(evaluated: Evaluated) -> float | None:
    values = [outcome["noop"] for outcome in evaluated.outcomes.values() if outcome.get("noop") is not None]
    return sum(values) / len(values) if values else None


def _entry(evaluated, view, metric, first) -> dict[str, Any]:
    values = [each.summary["results"].get(view, {}).get("all", {}).get(metric) for each in evaluated]
    return {
        "metric": metric,
        "direction": first["directions"].get(metric.rpartition(":")[2], 0),
        "values": values,
        "published": {
            each["system"]: each["values"][metric] for each in first["published"] if metric in each["values"]
        },
        "differences": [difference(evaluated[0], other, metric, view) for other in evaluated[1:]],
    }


# ---- as text


def markdown(comparison: dict) -> str:
    """Tables in Markdown: a block for each view, an entry for each metric."""
    lines = [f"# {comparison['protocol']} version {comparison['version']}", "", comparison["title"], ""]
    lines += [
        f"Rules of {comparison['reference']}.",
        "",
        "| system | examples | scored | skipped | edited by |",
        "|---|---|---|---|---|",
    ]
    for each in comparison["systems"]:
        skipped = ", ".join(f"{found['count']} {reason}" for reason, found in each["skipped"].items()) or "none"
        edited = each["edited"].get("model") or each["edited"].get("outputs")
        lines.append(f"| {each['label']} | {each['examples']} | {each['scored']} | {skipped} | {edited} |")
    labels = [each["label"] for each in comparison["systems"]]
    published = [each["system"] for each in comparison["published"]]
    for view, entries in comparison["views"].items():
        known = {entry["metric"] for entry in entries}
        variants = [e for e in entries if ":" in e["metric"] and e["metric"].split(":", 1)[1] in known]
        entries = [entry for entry in entries if entry not in variants]
        heads = ["metric", *labels, *(f"{name} (published)" for name in published), *_difference_heads(labels)]
        lines += ["", f"## {view}", "", f"| {' | '.join(heads)} |", "|---" * len(heads) + "|"]
        for entry in entries:
            cells = [f"{entry['metric']}{_arrow(entry['direction'])}", *map(figure_text, entry["values"])]
            cells += [_number(entry["published"].get(name)) for name in published]
            cells += [_difference_text(each, entry["direction"]) for each in entry["differences"]]
            lines.append(f"| {' | '.join(cells)} |")
        for number, label in enumerate(labels):
            lines += _variants(variants, number, f"{view}, {label}")
    lines += [f"{_idle(each)}." for each in comparison["systems"] if _idle(each)]
    lines += ["", "Brackets: 95 % bootstrap intervals, examples of one cluster resampled together. Differences are over the examples "
              "that both systems scored, and outside of masks over those that both changed; a star marks an interval without 0."]  # fmt: skip
    lines += [f"Published: {each['system']}: {each['source']}." for each in comparison["published"]]
    return "\n".join(lines) + "\n"


def _variants(entries, number: int, title: str) -> list[str]:
    """One system's figures of the variants of its edits: an entry for each figure, a column for each variant."""
    values = {tuple(entry["metric"].split(":", 1)): entry["values"][number] for entry in entries}
    values = {key: figure for key, figure in values.items() if figure and figure["n"]}
    if not values:
        return []
    names, figures = (list(dict.fromkeys(key[i] for key in values)) for i in (0, 1))
    signs = {entry["metric"].rpartition(":")[2]: entry["direction"] for entry in entries}
    lines = ["", f"### {title}", "", f"| figure | {' | '.join(names)} |", "|---" * (len(names) + 1) + "|"]
    return lines + [
        f"| {figure}{_arrow(signs[figure])} | {' | '.join(figure_text(values.get((name, figure))) for name in names)} |"
        for figure in figures
    ]


def _idle(system: dict) -> str | None:
    """A sentence about a system that mostly changes nothing, None for others."""
    share = system["noop"]
    if share is None or share < IDLE:
        return None
    return f"{system['label']} changes nothing inside the mask in {100 * share:.0f} % of its edits: its figures outside say nothing"


def _difference_heads(labels) -> list[str]:
    return [f"{label} - {labels[0]}" for label in labels[1:]]


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


# ---- as a page with pictures


def ordered(evaluated: Sequence[Evaluated], metric: str | None = None) -> list[tuple[str, float]]:
    """(key, difference) of the examples that the first two evaluations scored, the largest absolute difference first.

    Args:
      metric: whose values differ; None compares the edited pictures themselves. Of one evaluation, its worst come first.
    Errors: UserError for a metric that neither has.
    """
    first, second = evaluated[0], evaluated[min(1, len(evaluated) - 1)]
    if metric is not None and not any(metric in outcome for outcome in first.outcomes.values()):
        raise UserError(f"a metric must be one of {stats.metrics_of(list(first.outcomes.values()))}; got {metric!r}")
    found = []
    for key, one in first.outcomes.items():
        other = second.outcomes.get(key)
        if other is None or one["skipped"] or other["skipped"]:
            continue
        if metric is None:
            value = _picture_difference(first, second, one, other)
        else:
            pair = one.get(metric), other.get(metric)
            value = None if None in pair else pair[1] - pair[0] if second is not first else pair[0]
        if value is not None:
            found.append((key, float(value)))
    return sorted(found, key=lambda each: (-abs(each[1]), each[0]))


def _picture_difference(first, second, one, other) -> float:
    pictures = [read_picture(each.outputs / outcome["output"])[0] for each, outcome in ((first, one), (second, other))]
    return pixels.l1(pixels.resized_to(pictures[0], pictures[1]), pictures[1])


def page(evaluated: Sequence[Evaluated], metric: str | None = None, pictures: int = 24) -> str:
    """The comparison as one HTML page, with the `pictures` examples that differ most: source, target, every system's edit."""
    comparison = compare(evaluated)
    examples, found = _examples(evaluated[0]), ordered(evaluated, metric)[:pictures]
    cards = [_card(evaluated, examples.get(key), key, value, metric) for key, value in found]
    about = f"by {metric}" if metric else "by the mean absolute difference of the pictures"
    title = html.escape(f"{comparison['protocol']} version {comparison['version']}")
    parts = [f"<!doctype html><html lang=en><meta charset=utf-8><title>{title}</title><style>{_STYLE}</style>"]
    parts += [
        _tables(markdown(comparison)),
        f"<h2>Edits, those that differ most first, {html.escape(about)}</h2>",
        *cards,
        "</html>",
    ]
    return "\n".join(parts)


def write(evaluated: Sequence[Evaluated], folder: str | Path, metric: str | None = None, pictures: int = 24) -> Path:
    """Writes report.html and report.md into a folder. -> the former. Errors: UserError for a metric that there is not."""
    folder, text = Path(folder), page(evaluated, metric, pictures)
    folder.mkdir(parents=True, exist_ok=True)
    write_text(folder / "report.md", markdown(compare(evaluated)))
    write_text(folder / "report.html", text)
    return folder / "report.html"


_STYLE = """
body { font: 15px/1.45 system-ui, sans-serif; margin: 2em auto; max-width: 1500px; padding: 0 1em; color: #222 }
table { border-collapse: collapse; margin: 1em 0; font-variant-numeric: tabular-nums; display: block; overflow-x: auto }
th, td { border: 1px solid #ccc; padding: .25em .6em; text-align: left }
th { background: #f3f3f3 }
.card { border-top: 1px solid #ddd; padding: .6em 0 }
.card div { display: flex; flex-wrap: wrap; gap: .6em }
figure { margin: 0 } figcaption { font-size: 12px; color: #555 }
"""


def _tables(text: str) -> str:
    """The Markdown of `markdown` as HTML: headings, tables, paragraphs."""
    parts, table = [], []
    for line in [*text.splitlines(), ""]:
        if line.startswith("|"):
            table.append([html.escape(cell.strip()) for cell in line.strip("|").split("|")])
            continue
        if table:
            head, _, *body = table
            cells = "".join("<tr>" + "".join(f"<td>{cell}</td>" for cell in each) + "</tr>" for each in body)
            parts.append("<table><tr>" + "".join(f"<th>{cell}</th>" for cell in head) + f"</tr>{cells}</table>")
            table = []
        level = len(line) - len(line.lstrip("#"))
        if line.strip():
            parts.append(
                f"<h{level}>{html.escape(line[level:].strip())}</h{level}>" if level else f"<p>{html.escape(line)}</p>"
            )
    return "\n".join(parts)


def _examples(evaluated: Evaluated) -> dict[str, Example]:
    """The benchmark's examples by key; none where its data are gone."""
    summary = evaluated.summary
    data = Path(summary["data"])
    if not data.is_dir():
        return {}
    entries = open_protocol(summary["protocol"]).read(data, Selection(**summary["selection"]))
    return {entry.key: entry for entry in entries if isinstance(entry, Example)}


def _card(evaluated, example, key, value, metric) -> str:
    shown = []
    if example is not None:
        shown.append(("source", example.source))
        if example.target is not None:
            shown.append(("target", example.target))
    for each in evaluated:
        outcome = each.outcomes.get(key)
        if outcome and not outcome["skipped"]:
            measured = "" if metric is None or outcome.get(metric) is None else f": {metric} {outcome[metric]:.4g}"
            shown.append((f"{each.label}{measured}", each.outputs / outcome["output"]))
    figures = "".join(_figure(caption, picture) for caption, picture in shown)
    instruction = evaluated[0].outcomes[key].get("instruction") or ""
    return (
        f"<section class=card><p><b>{html.escape(instruction)}</b> <small>{html.escape(key)}, difference {value:+.4g}</small></p>"
        f"<div>{figures}</div></section>"
    )


def _figure(caption, picture) -> str:
    try:
        image, _ = read_picture(picture)
    except Unreadable as error:
        return f"<figure><figcaption>{html.escape(caption)}: {html.escape(error.reason)}</figcaption></figure>"
    image = image.copy()
    scale = THUMBNAIL / max(image.size)
    image = image.resize([max(1, round(side * scale)) for side in image.size], Image.Resampling.LANCZOS)
    file = io.BytesIO()
    image.save(file, "JPEG", quality=90)
    data = base64.b64encode(file.getvalue()).decode()
    width, height = np.array(image.size)
    return (
        f'<figure><img width={width} height={height} src="data:image/jpeg;base64,{data}" alt="{html.escape(caption)}">'
        f"<figcaption>{html.escape(caption)}</figcaption></figure>"
    )
