"""The sections about decodes with other settings and with blocks switched off. Figures are of all examples that were decoded."""

import json
from pathlib import Path

import numpy as np

from editmgt_jax.ablation import decode, statistics
from editmgt_jax.ablation.choices import View
from editmgt_jax.ablation.config import AblationConfig
from editmgt_jax.ablation.score import read_table
from editmgt_jax.errors import UserError
from editmgt_jax.report import figures
from editmgt_jax.report.page import Figure, Section, Table, Text

LEAKAGE = "changed_outside"


def has_decodes(workdir: Path) -> bool:
    """Whether there are decodes to tell of."""
    return any((workdir / decode.FOLDER).glob("part-*.parquet"))


class Decodes:
    """The tables of decodes, means over seeds. Errors: UserError when some are missing."""

    def __init__(self, workdir: Path, config: AblationConfig):
        folder, self.how = workdir / decode.FOLDER, config.statistics
        columns = read_table(folder / decode.VARIANTS)
        self.variants = [dict(zip(columns, values, strict=True)) for values in zip(*columns.values(), strict=True)]
        tables = [read_table(path) for path in sorted(folder.glob("part-*.parquet"))]
        self.columns = {name: np.concatenate([table[name] for table in tables]) for name in tables[0]}
        wanted = len(self.variants) * config.decode.count * len(config.decode.seeds)
        if (found := len(self.columns["variant"])) != wanted:
            raise UserError(f"{found} of {wanted} decodes are in {folder}: go on with `editmgt ablate decode`")

    def values(self, variant: int, name: str) -> np.ndarray:
        """One measure of each example. -> [n]"""
        rows = self.columns["variant"] == variant
        examples = self.columns["example"][rows]
        order = np.argsort(examples, kind="stable")
        return self.columns[name][rows][order].reshape(len(np.unique(examples)), -1).mean(axis=1)

    def point(self, variant: int) -> dict:
        """Success against leakage, with intervals."""
        success, leakage = (statistics.interval(self.values(variant, name), self.how) for name in ("success", LEAKAGE))
        return {"mean": success.mean, "low": success.low, "high": success.high,
                "x": leakage.mean, "x_low": leakage.low, "x_high": leakage.high}  # fmt: skip


def sections(config: AblationConfig, workdir: Path, values_of_blocks: dict | None = None) -> list[Section]:
    """Success against leakage, and causal against read-out.

    Args:
      values_of_blocks: {'view': View, 'objective': name, 'points': {block: point}} of maps of single blocks.
    """
    found = Decodes(workdir, config)
    return [section for section in (_settings(found), _causal(found, values_of_blocks)) if section.parts]


def _settings(found: Decodes) -> Section:
    points, lines = [], []
    for order, variant in enumerate(found.variants):
        if variant["intervention"] != decode.NONE:
            continue
        settings = json.loads(variant["settings"])
        names = list(settings)
        point = found.point(variant["variant"])
        words = ", ".join(f"{name} {value}" for name, value in settings.items()) or "the model's own settings"
        lines.append(
            (
                words,
                _told(point["mean"], point["low"], point["high"]),
                _told(point["x"], point["x_low"], point["x_high"]),
            )
        )
        if names:
            rest = ", ".join(f"{name} {settings[name]}" for name in names[1:]) or names[0]
            points.append(point | {"label": str(settings[names[0]]), "series": rest, "order": order})
    if not points:
        return Section("Settings", [])
    caption = "Success against leakage (share of the ids outside the edit that are not the source's), with 95 % intervals; labels: "
    caption += f"{next(iter(json.loads(found.variants[1]['settings'])))}."
    spec = figures.crosses(points, "leakage", "success", joined=True)
    return Section(
        "Success against leakage", [Figure(spec, caption), Table(("settings", "success", "leakage"), lines, based=True)]
    )


def _causal(found: Decodes, values_of_blocks) -> Section:
    """What switching a block off does to success, beside what its map says."""
    lines, points = [], []
    base = {name: found.values(0, name) for name in ("success", LEAKAGE)}
    for variant in found.variants:
        if variant["intervention"] == decode.NONE:
            continue
        changed = {
            name: statistics.interval(found.values(variant["variant"], name) - base[name], found.how) for name in base
        }
        block, kind = variant["block"], variant["intervention"]
        success = changed["success"]
        told = [_told(one.mean, one.low, one.high) for one in changed.values()]
        map_point = (values_of_blocks or {}).get("points", {}).get(block)
        lines.append(
            (
                str(block),
                kind,
                *told,
                _told(map_point["mean"], map_point["low"], map_point["high"]) if map_point else "",
            )
        )
        if map_point:
            points.append({"x": map_point["mean"], "x_low": map_point["low"], "x_high": map_point["high"],
                           "mean": success.mean, "low": success.low, "high": success.high, "label": str(block),
                           "series": kind})  # fmt: skip
    if not lines:
        return Section("Causal against read-out", [])
    heads = ("block", "what is switched off", "change of success", "change of leakage", "its map")
    parts = [Table(heads, lines)]
    if points:
        view: View = values_of_blocks["view"]
        caption = (
            f"Change of success when a block is switched off against the {values_of_blocks['objective']} of its map "
            f"({view.signal}, {view.group} tokens, {view.window}); labels: blocks; 95 % intervals."
        )
        parts.insert(0, Figure(figures.crosses(points, values_of_blocks["objective"], "change of success"), caption))
        parts.insert(1, Text(_relation(points)))
    return Section("Causal against read-out", parts)


def _relation(points) -> str:
    """The rank correlation of both over blocks, for each intervention."""
    from scipy import stats

    words = []
    for kind in dict.fromkeys(point["series"] for point in points):
        some = [point for point in points if point["series"] == kind]
        losses = [-one["mean"] for one in some]
        if len(set(losses)) == 1:
            words.append(f"{kind} none (every block's loss is the same)")
            continue
        rho = stats.spearmanr([one["x"] for one in some], losses)
        words.append(f"{kind} {rho.statistic:.2f} (p {rho.pvalue:.2g})")
    return (
        "Rank correlation over blocks of the quality of a block's map with the loss of success without it: "
        + ", ".join(words)
        + "."
    )


def _told(mean, low, high) -> str:
    return f"{mean:.3f} [{low:.3f}, {high:.3f}]"
