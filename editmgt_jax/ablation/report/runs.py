"""The sections of a training run's or an evaluation's report, from the files that these write."""

import json
from pathlib import Path

from editmgt_jax.errors import UserError
from editmgt_jax.report import figures
from editmgt_jax.report.page import Code, Figure, Section, Table, Text

MOST_POINTS = 400  # of a line


def of_training(workdir: Path) -> list[Section]:
    """Every metric over the steps, in groups by the first part of its name. Errors: UserError."""
    lines = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
    series: dict[str, list[dict]] = {}
    for line in lines:
        for name, value in line.items():
            if name != "step" and isinstance(value, int | float):
                series.setdefault(name, []).append({"x": line["step"], "mean": value, "low": value, "high": value})
    if not series:
        raise UserError(f"{workdir / 'metrics.jsonl'} must hold metrics of a run; it has none")
    parts = []
    for name, points in series.items():
        kept = points[:: max(1, len(points) // MOST_POINTS)]
        values = [point | {"series": name} for point in kept]
        parts.append(
            Figure(figures.lines(values, "step", name, ordinal=False), f"{name}: last {points[-1]['mean']:.4g}")
        )
    last = lines[-1]
    found = [Section("Metrics", [Text(f"{len(lines)} lines of metrics, up to step {last['step']}."), *parts])]
    config = workdir / "config.json"
    if config.is_file():
        found.append(Section("Config", [Code(config.read_text().strip())]))
    return found


def of_evaluation(path: Path) -> list[Section]:
    """The tables of an evaluation's JSON file. Errors: UserError."""
    try:
        values = json.loads(path.read_text())
        groups = values["results"]
        modes = groups if isinstance(groups, dict) and all(isinstance(one, dict) for one in groups.values()) else None
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(f"{path} must be the JSON file of `editmgt evaluate`, with 'results'; it is not") from error
    if modes is None:
        raise UserError(f"{path} must hold a dict of results; it holds {type(groups).__name__}")
    found = []
    for mode, lines in modes.items():
        names = list(dict.fromkeys(name for line in lines.values() for name in line))
        cells = [(group, *(_cell(line.get(name)) for name in names)) for group, line in lines.items()]
        found.append(Section(f"Results: {mode}", [Table(("group", *names), cells)]))
    about = {name: value for name, value in values.items() if name != "results"}
    return [*found, Section("What was measured", [Code(json.dumps(about, indent=1))])]


def _cell(value) -> str:
    return "" if value is None else f"{value:.4g}" if isinstance(value, float) else str(value)
