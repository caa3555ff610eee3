"""Evaluations side by side: their figures, published numbers, differences of pairs, and the order of pictures by difference.

A difference is taken over the examples that both evaluations scored, and its interval resamples these examples.
"""

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from editmgt_jax.errors import UserError
from editmgt_jax.evaluation import outcomes, pixels, stats
from editmgt_jax.evaluation.examples import read_picture
from editmgt_jax.evaluation.protocols.table import open_protocol
from editmgt_jax.files import read_json, real

OUTSIDE = ("outside", "band", "far", "unedit_part")  # in names of figures that an editor which does nothing would win


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
        found.append(Evaluated(label, folder, read_json(folder / "summary.json", dict), kept))
    kinds = {(each.summary["protocol"], each.summary["version"]) for each in found}
    if len(kinds) > 1:
        listed = ", ".join(f"{name} version {version}" for name, version in sorted(kinds))
        raise UserError(f"evaluations side by side must be of one protocol and version; got {listed}")
    return found


def is_evaluation(folder: str | Path) -> bool:
    """Whether a folder holds a complete evaluation."""
    return (Path(folder) / "summary.json").is_file() and (Path(folder) / "outcomes.parquet").is_file()


def _labels(folders) -> list[str]:
    names = [real(folder).name for folder in folders]
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
    """Everything that a report shows but the pictures.

    -> {protocol, version, title, reference, systems: [{label, noop, edited, scored, skipped, ...}],
        published: [as in `published.Published`],
        views: {view: [{metric, direction, values: [figure or None], differences: [figure]}]}}
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
        "differences": [difference(evaluated[0], other, metric, view) for other in evaluated[1:]],
    }


def ordered(evaluated: Sequence[Evaluated], metric: str | None = None) -> list[tuple[str, float]]:
    """(key, difference) of the examples that the first two evaluations scored, the largest absolute difference first.

    Args:
      metric: whose values differ; None compares the edited pictures themselves. Of one evaluation, its worst come first, and without a
        metric the order of its data.
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
            value = 0.0 if second is first else _picture_difference(first, second, one, other)
        else:
            pair = one.get(metric), other.get(metric)
            value = None if None in pair else pair[1] - pair[0] if second is not first else pair[0]
        if value is not None:
            found.append((key, float(value)))
    if second is first:
        sign = 1 if metric is None else first.summary["directions"].get(metric.rpartition(":")[2]) or -1
        return sorted(found, key=lambda each: sign * each[1])
    return sorted(found, key=lambda each: (-abs(each[1]), each[0]))


def _picture_difference(first, second, one, other) -> float:
    pictures = [read_picture(each.outputs / outcome["output"])[0] for each, outcome in ((first, one), (second, other))]
    return pixels.l1(pixels.resized_to(pictures[0], pictures[1]), pictures[1])
