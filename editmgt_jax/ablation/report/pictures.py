"""The best and the worst examples of an ablation with the winner's maps."""

from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw

from editmgt_jax import images
from editmgt_jax.ablation import measures
from editmgt_jax.ablation.config import AblationConfig
from editmgt_jax.ablation.examples import ExampleSource
from editmgt_jax.ablation.records import Records
from editmgt_jax.ablation.scoring import Scorer, relevance_maps
from editmgt_jax.ablation.search import view_of
from editmgt_jax.report.page import Picture, Section

SHOWN, CELL, GAP, LINE = 4, 150, 6, 20


def sections(config: AblationConfig, workdir: Path, summary: dict) -> list[Section]:
    """The examples whose map is best and worst by average precision, of the odd ones."""
    records, best = Records.open(workdir / "records"), summary["winner"]
    scorer, weights = Scorer(records, view_of(best)), np.float32([best["weights"]])
    rows = range(1, records.manifest.examples, 2)
    found = {
        row: float(measures.rank_measures(ranked)["ap"][0])
        for (row, seed), ranked in scorer.ranked(weights, rows)
        if seed == 0
    }
    order = sorted((row for row in found if not np.isnan(found[row])), key=lambda row: -found[row])
    source = ExampleSource(config.examples, records.manifest.size)
    parts = []
    for word, some in (("best", order[:SHOWN]), ("worst", order[::-1][:SHOWN])):
        maps = {row: _map(scorer, weights, row) for row in some}
        caption = f"The {len(some)} {word} of the odd examples: source, target, truth, relevance of the winner (light is high)."
        parts.append(Picture(_sheet(source, some, maps, found), caption))
    return [Section("Best and worst examples", parts)] if order else []


def _map(scorer, weights, row) -> np.ndarray:
    m, view = scorer.manifest, scorer.view
    attention = scorer.attention(range(row, row + 1), 0)
    return np.asarray(relevance_maps(attention, weights, m.grid, m.token_grid, view.filter, view.upsampling))[0]


def _sheet(source, rows, maps, found) -> Image.Image:
    """One line for each example."""
    sheet = Image.new("RGB", (4 * (CELL + GAP) - GAP, len(rows) * (CELL + LINE + GAP)), "white")
    pen = ImageDraw.Draw(sheet)
    for line, row in enumerate(rows):
        example, top = source[row], line * (CELL + LINE + GAP)
        pen.text((2, top + 4), f"{example.instruction}   (example {row}, AP {found[row]:.2f})", fill="black")
        truth = np.repeat(example.truth[..., None], 3, axis=-1).astype(np.float32)
        heat = np.repeat(np.clip(maps[row], 0, 1)[..., None], 3, axis=-1)
        for column, pixels in enumerate((example.source, example.target, truth, heat)):
            tile = images.to_image(pixels).resize((CELL, CELL), Image.Resampling.NEAREST)
            sheet.paste(tile, (column * (CELL + GAP), top + LINE))
    return sheet
