"""What an evaluation found, as a table and as pictures."""

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image, ImageDraw

from editmgt_jax import images
from editmgt_jax.evaluation import leakage

if TYPE_CHECKING:
    from editmgt_jax.evaluation.protocols.scenes_run import Part

_TITLES = {"free": "without region hold", "held": "with region hold, lambda {hold_threshold:.3f}"}


_APART = {*leakage.NAMES} - {"l1_inside", "psnr_outside"}  # figures of scenes that have a table of their own


def table(report: dict) -> str:
    """The report of the protocol `scenes` as lines of text: a block for each mode, a line for each group of pairs; then leakage."""
    localisation = report["localisation"]
    lines = [
        f"protocol {report['protocol']}, {report['pairs']} pairs of the split {report['split']}; "
        f"reconstruction {report['reconstruction_psnr']:.2f} dB",
        f"relevance: consolidated layers {localisation['layers']}, best single layer {localisation['single_layer']}",
    ]
    for mode, title in _TITLES.items():
        groups = report["results"][mode]
        names = [name for name in groups["all"] if name != "pairs" and name not in _APART]
        lines += ["", title.format(**report["settings"])]
        lines.append(f"{'':12}{'pairs':>6}" + "".join(f"{name:>19}" for name in names))
        for group, values in groups.items():
            cells = (f"{values[name]:19.4f}" if name in values else f"{'':19}" for name in names)
            lines.append(f"{group:12}{values['pairs']:6d}" + "".join(cells))
            if group == "all":
                lines.append(f"{'95 % interval':18}" + "".join(_interval(report["intervals"][mode], n) for n in names))
    variants = {name: groups["all"] for name, groups in report["results"].items()}
    lines += ["", f"{'outside of the mask, all':26}" + "".join(f"{name:>19}" for name in variants)]
    for name in (name for name in leakage.NAMES if name != "l1_inside"):
        cells = (f"{values[name]:19.4f}" if name in values else f"{'':19}" for values in variants.values())
        lines.append(f"{name:26}" + "".join(cells))
    return "\n".join(lines)


def _interval(intervals: dict, name: str) -> str:
    low_high = "{:.3f} .. {:.3f}".format(*intervals[name]) if name in intervals else ""
    return f"{low_high:>19}"


def benchmark(summary: dict) -> str:
    """The summary of a benchmark as lines of text: counts, then each figure with its interval, then published numbers."""
    lines = [f"protocol {summary['protocol']} version {summary['version']}: {summary['title']}"]
    lines.append(f"rules of {summary['reference']}")
    whole = summary["examples_of_the_whole_benchmark"]
    part = f" of the benchmark's {whole}" if whole else ""
    lines.append(f"{summary['examples']} examples{part}; {summary['scored']} scored")
    for word in ("skipped", "notes"):
        for reason, found in summary[word].items():
            named = ", ".join(found["keys"][:3]) + (", ..." if found["count"] > 3 else "")
            lines.append(f"  {word.rstrip('s') if word == 'notes' else word}: {found['count']} {reason} ({named})")
    if summary["extra"]["count"]:
        lines.append(
            f"  {summary['extra']['count']} pictures are no example's: {', '.join(summary['extra']['files'][:3])}"
        )
    for name, where in summary["models"].items():
        lines.append(f"  {name}: {where}")
    lines += [f"  not the protocol's model: {text}" for text in summary["differences"]]
    for view, groups in summary["results"].items():
        lines += ["", view, f"{'':44}{'mean':>10}{'95 % interval':>22}{'n':>7}"]
        lines += [f"{name:44}{_figure(figure)}" for name, figure in groups["all"].items()]
    for source in dict.fromkeys(number["source"] for number in summary["published"]):
        lines += ["", f"published by {source}"]
        for number in summary["published"]:
            if number["source"] == source:
                values = ", ".join(f"{name} {value}" for name, value in number["values"].items())
                lines.append(f"  {', '.join(filter(None, (number['system'], number['view'])))}: {values}")
    return "\n".join(lines)


def _figure(figure: dict) -> str:
    interval = f"{figure['low']:.4f} .. {figure['high']:.4f}"
    return f"{figure['mean']:10.4f}{interval:>22}{figure['n']:7d}"


def gallery(found: "Part", show: Callable[[Sequence[int]], dict[str, np.ndarray]], rows_of_each: int) -> Image.Image:
    """The first successes and the first failures (without hold) of each category, `rows_of_each` of either.

    Columns: source, target, what the tokenizer makes of the target, edit, edit with region hold, relevance.

    Args:
      found: of all scenes; show: numbers of scenes -> 'source', 'target', 'best', 'free', 'held' [n Y X 3], 'relevance' [n H W].
    """
    categories, success = found.about["categories"], found.figures["free"]["success"]
    chosen = []
    for category in dict.fromkeys(categories):
        for outcome in (1.0, 0.0):
            hits = np.flatnonzero((categories == category) & (success == outcome))
            chosen += [(int(number), outcome) for number in hits[:rows_of_each]]
    shown = show([number for number, _ in chosen])
    cell, line, gap = 2 * shown["source"].shape[1], 16, 4
    columns = 2
    height = -(-len(chosen) // columns)
    grid = Image.new("RGB", (columns * (6 * (cell + 1) + 3 * gap), height * (cell + line + gap)), "white")
    pen = ImageDraw.Draw(grid)
    for index, (number, outcome) in enumerate(chosen):
        left, top = index // height * (6 * (cell + 1) + 3 * gap), index % height * (cell + line + gap)
        colour, word = ("#116611", "success") if outcome else ("#aa1111", "failure")
        pen.text((left + 2, top + 2), f"{found.about['instructions'][number]}  [{word}]", fill=colour)
        pictures = [shown[name][index] for name in ("source", "target", "best", "free", "held")]
        tiles = [images.to_image(picture, (cell, cell)) for picture in pictures]
        tiles.append(images.overlay(tiles[0], shown["relevance"][index]))
        for column, tile in enumerate(tiles):
            grid.paste(tile, (left + column * (cell + 1), top + line))
    return grid
