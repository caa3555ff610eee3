"""The protocol `scenes`: procedural edits, where the right answer is known.

Success is measured, by category:

    colour      the measured colour name of the decoded pixels in the true mask is the one asked for
    others      in the true mask, the decoded result is nearer (squared error) to the VQ-decoded target than to the
                VQ-decoded source; so too for patterns, black, white and gray, which have no measured name

`recognised` (add and replace) is stricter: the result is nearer to the true target than to what the target would be with
any of nine other objects in place of the new one; a guess is right once in ten.

Sharpness is measured inside the true mask: `lpips_inside` is the perceptual distance of the target from the target with the edited region
in it, `gradient_share` (add and replace) the gradient energy there as a share of the target's. Noise has gradients, too: read both.

The relevance threshold and the best single layer are chosen on pairs of the training split. To choose settings, evaluate
on the training split; the held-out split is for reporting.
"""

from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from editmgt_jax import images
from editmgt_jax.data.scenes.source import CATEGORIES, name_colour
from editmgt_jax.errors import UserError
from editmgt_jax.evaluation import metrics, report, stats
from editmgt_jax.evaluation.examples import Example, Skipped
from editmgt_jax.evaluation.features import Lpips
from editmgt_jax.evaluation.protocol import Protocol, Scoring, Selection
from editmgt_jax.evaluation.protocols.scenes_pairs import Encoded, Pairs, Runner, default_batch
from editmgt_jax.evaluation.protocols.scenes_run import begun, write_outcomes
from editmgt_jax.files import write_json
from editmgt_jax.pipeline import EditPipeline

# Categories whose edit is a region; the mask of a style edit is the whole picture, of a background edit most of it.
LOCAL = ("add", "remove", "replace", "colour", "motion")
SELECTION_PAIRS = 128  # training pairs on which the relevance threshold and the best single layer are chosen
SELECTION_SEED = 1  # no pair of the default training data, whose seed is 0
SPARED = 0.05  # of the tokens to edit: the share that the default hold threshold may hold
DISTRACTORS = 9


def succeeded(pairs: Pairs, edited: np.ndarray, source: np.ndarray, target: np.ndarray) -> np.ndarray:
    """Success of each pair; pictures are VQ-decoded, float [n Y X 3]. -> bool [n]"""
    success = metrics.nearer_to_target(edited, source, target, pairs.mask)
    for index in np.flatnonzero(pairs.categories == "colour"):
        if pairs.facts[index]["colour"] is None:
            continue
        pixels = np.round(edited[index][pairs.mask[index]] * 255).astype(np.uint8)
        success[index] = name_colour(pixels) == pairs.facts[index]["colour"]
    return success


def recognised(pairs: Pairs, edited: np.ndarray) -> np.ndarray:
    """1 where the new object is the nearest of ten, 0 where it is not, NaN where an edit brings none. -> float [n]"""
    found = np.full(len(pairs), np.nan)
    for index in np.flatnonzero(np.isin(pairs.categories, ("add", "replace"))):
        others = pairs.scenes.distractors(int(index), DISTRACTORS).astype(np.float32) / 255
        candidates = np.stack([pairs.target[index], *others])
        where = (others != pairs.target[index]).any(axis=(0, -1))
        found[index] = metrics.nearest(edited[index], candidates, where) == 0
    return found


def gradient_share(pairs: Pairs, edited: np.ndarray) -> np.ndarray:
    """The gradient energy of a new object as a share of the target's, NaN where an edit brings none. -> float [n]"""
    new = np.isin(pairs.categories, ("add", "replace"))
    ours, theirs = (metrics.gradient_energy(pictures, pairs.mask) for pictures in (edited, pairs.target))
    return np.where(new, ours / np.where(theirs > 0, theirs, np.nan), np.nan)


def lpips_inside(pairs: Pairs, edited: np.ndarray, lpips: Lpips) -> np.ndarray:
    """The perceptual distance of the target from the target with the edited region in it. -> float [n]"""
    mixed = np.where(pairs.mask[..., None], edited, pairs.target)
    return np.array([lpips.distance(*pair) for pair in zip(mixed, pairs.target, strict=True)])


def score_edits(
    pairs: Pairs, tokens: np.ndarray, edited: np.ndarray, encoded: Encoded, lpips: Lpips | None = None
) -> dict[str, np.ndarray]:
    """Figures of each pair, from the ids [n H W] of the edits and their pictures [n Y X 3]. -> {name: [n]}"""
    outside = ~pairs.token_mask(tokens.shape[1:])
    perceptual = {"lpips_inside": lpips_inside(pairs, edited, lpips)} if lpips else {}
    return perceptual | {
        "success": succeeded(pairs, edited, encoded.source, encoded.target).astype(float),
        "recognised": recognised(pairs, edited),
        "l1_inside": metrics.l1(edited, pairs.target, pairs.mask),
        "l1_outside": metrics.l1(edited, pairs.target, ~pairs.mask),
        "psnr_inside": metrics.psnr(edited, pairs.target, pairs.mask),
        "psnr_outside": metrics.psnr(edited, pairs.target, ~pairs.mask),
        "gradient_share": gradient_share(pairs, edited),
        "changed_outside": metrics.share_changed(tokens, encoded.source_ids, outside),
        "vq_changed_outside": metrics.share_changed(encoded.target_ids, encoded.source_ids, outside),
    }


def choose_localisation(runner: Runner, all_layers: Sequence[int], objects: str, **settings: Any) -> dict:
    """Thresholds of the relevance and the best single layer, on local edits of the training split."""
    pairs = Pairs(runner.size, "train", SELECTION_PAIRS, objects, SELECTION_SEED, LOCAL)
    source_ids = runner.ids(pairs.source)
    edits = runner.edit(pairs, source_ids, **(settings | {"layers": all_layers, "hold_threshold": 0.0}))
    truth = pairs.token_mask(source_ids.shape[1:])

    used = runner.pipe.settings(**settings)
    layers = list(used.layers)

    def relevance(layers):
        return runner.relevance(edits["attention"], truth.shape[1:], layers, used.filter)

    threshold, value = metrics.best_threshold(relevance(layers), truth)
    singles = {layer: metrics.best_threshold(relevance([layer]), truth) for layer in all_layers}
    best = max(singles, key=lambda layer: singles[layer][1])
    return {
        "layers": layers,
        "threshold": threshold,
        "selection_iou": round(value, 4),
        # A filter overshoots below 0, which is no threshold.
        "hold_threshold": round(max(0.0, float(np.quantile(relevance(layers)[truth], SPARED))), 3),
        "single_layer": best,
        "single_threshold": singles[best][0],
        "selection_iou_of_single_layers": {str(layer): round(value, 4) for layer, (_, value) in singles.items()},
    }


def evaluate(
    pipe: EditPipeline,
    count: int = 500,
    batch_size: int | None = None,
    seeds: Sequence[int] = (0,),
    split: str = "heldout",
    objects: str = "rich",
    workdir: str | Path | None = None,
    name: str = "default",
    size: int | None = None,
    lpips: str | Path | None = None,
    **settings: Any,
) -> tuple[dict, Callable[[int], Image.Image]]:
    """Runs the protocol `scenes` with and without region hold.

    Args:
      workdir: where to write the outcome of every pair, as other evaluations have it, and the edited pictures.
      name: the model's, in these files.
      batch_size: pairs at once; None is `default_batch()`.
      count: how many pairs; split: 'heldout', or 'train' to choose settings (pairs that training did not draw).
      objects: what scenes show, as in `SceneConfig`: that of the model's training.
      seeds: of the edits; figures are means over them, pictures are of the first.
      size: side of the scenes, by default the model's own; others are resized for the model, and its edits back.
      lpips: weights that `editmgt convert lpips` wrote, for `lpips_inside`.
      settings: of the edits; what is left out is the model's own. The hold threshold, if neither gives one, is such that
        SPARED of the tokens to edit would be held.
    Returns: the report (a dict for JSON), and a function that draws examples of it (see `report.gallery`).
    """
    pipe.settings(**settings)  # what is wrong with them is found before the work
    measure = None if lpips is None else Lpips(str(lpips))
    edited = {"model": str(name), "seeds": list(seeds), "size": size, "settings": settings}
    models = {} if measure is None else {"lpips": f"{measure.where} ({measure.variant})"}
    with begun(Scenes, workdir, edited, split, objects, count, models) as identity:
        runner = Runner(pipe, batch_size or default_batch(), seeds[0], size)
        summary, found, draw = _evaluate(runner, seeds, count, split, objects, measure, settings)
        if workdir is not None:
            write_outcomes(Scenes, Path(workdir), identity, *found)
    return summary, draw


def _evaluate(runner, seeds, count, split, objects, lpips, settings) -> tuple[dict, tuple, Callable]:
    """-> (the report, (pairs, {mode: {figure: [n]}}, {mode: pictures}), the function that draws examples)"""
    pipe = runner.pipe
    layers = list(range(pipe.model.mgt.config.num_blocks))
    with ThreadPoolExecutor(1) as host:  # scenes are drawn while the device chooses
        drawn = host.submit(Pairs, runner.size, split, count, objects, SELECTION_SEED + 1 if split == "train" else 0)
        choice = choose_localisation(runner, layers, objects, **settings)
        pairs = drawn.result()
    encoded = runner.encode(pairs)
    threshold = settings.get("hold_threshold")
    if threshold is None:
        threshold = pipe.settings().hold_threshold or choice["hold_threshold"]

    several = []
    for seed in seeds:
        free, held, used = _edit_both(runner.with_seed(seed), pairs, encoded.source_ids, layers, threshold, settings)
        pictures = {"free": runner.decode(free["tokens"]), "held": runner.decode(held["tokens"])}
        scored = {
            mode: score_edits(pairs, edits["tokens"], pictures[mode], encoded, lpips)
            | {"passes": edits["passes"].astype(float)}
            for mode, edits in (("free", free), ("held", held))
        }
        relevance = _localised(runner, pairs, free, choice, used, scored["free"])
        several.append((scored, pictures, relevance))
    results = _mean_over_seeds([scored for scored, _, _ in several])
    results["free"] |= _ceilings(pairs, encoded, lpips)
    summary = _report(pairs, encoded, results, choice, used, split, objects, seeds)
    scored, pictures, relevance = several[0]

    def draw(rows_of_each: int):
        return report.gallery(pairs, encoded.target, pictures, scored, relevance, rows_of_each)

    return summary, (pairs, results, pictures), draw


def _localised(runner, pairs, free, choice, used, figures) -> np.ndarray:
    """Adds the localisation of edits to their figures. -> relevance of the model's own layers together [n H W]"""
    truth = pairs.token_mask(free["tokens"].shape[1:])
    consolidated, single = (
        runner.relevance(free["attention"], truth.shape[1:], some, used.filter)
        for some in (choice["layers"], [choice["single_layer"]])
    )
    figures["iou_consolidated"] = metrics.iou(consolidated, truth, choice["threshold"])
    figures["iou_single_layer"] = metrics.iou(single, truth, choice["single_threshold"])
    return consolidated


def _mean_over_seeds(several: list[dict]) -> dict[str, dict[str, np.ndarray]]:
    """{mode: {figure: [n]}} of each seed -> of all"""
    return {
        mode: {name: np.mean([one[mode][name] for one in several], axis=0) for name in columns}
        for mode, columns in several[0].items()
    }


def _ceilings(pairs, encoded, lpips) -> dict[str, np.ndarray]:
    """What the target as the tokenizer shows it has: the sharpness that no edit passes but by chance."""
    perceptual = {"vq_lpips_inside": lpips_inside(pairs, encoded.target, lpips)} if lpips else {}
    return perceptual | {"vq_gradient_share": gradient_share(pairs, encoded.target)}


class Scenes(Protocol):
    """What evaluations side by side ask of the protocol. Its examples are drawn, not read."""

    name, version, examples = "scenes", "1", None
    title = "procedural scenes with known targets, without (free) and with region hold (held)"
    reference = "this package"
    directions = {"success": 1, "recognised": 1, "psnr_inside": 1, "psnr_outside": 1, "gradient_share": 1} | {
        name: -1 for name in ("l1_inside", "l1_outside", "lpips_inside", "changed_outside", "passes")
    } | {"iou_consolidated": 1, "iou_single_layer": 1}  # fmt: skip

    def read(self, data: Path, selection: Selection) -> Iterable[Example | Skipped]:
        """Errors: UserError."""
        raise UserError("scenes are drawn, not read from a folder: run editmgt evaluate scenes")

    def score(self, example: Example, edited: Image.Image, given: Scoring) -> dict[str, Any]:
        """Errors: UserError."""
        raise UserError("scenes are scored by editmgt evaluate scenes")


def _report(pairs, encoded, results, choice, used, split, objects, seeds) -> dict:
    """The report of `evaluate`."""
    full = np.ones_like(pairs.mask)
    return {
        "protocol": "scenes",
        "version": Scenes.version,
        "split": split,
        "objects": objects,
        "pairs": len(pairs),
        "seeds": list(seeds),
        "settings": {name: value for name, value in vars(used).items() if name != "record"},
        "localisation": choice,
        "reconstruction_psnr": round(float(metrics.psnr(encoded.target, pairs.target, full).mean()), 3),
        "results": {mode: _summary(pairs, columns) for mode, columns in results.items()},
        "intervals": {mode: _intervals(columns) for mode, columns in results.items()},
    }


def _edit_both(runner, pairs, source_ids, layers, threshold, settings) -> tuple[dict, dict, Any]:
    """-> (edits without hold, that read all layers; edits with hold; the settings of these)"""
    free = runner.edit(pairs, source_ids, **(settings | {"layers": layers, "hold_threshold": 0.0}))
    used = runner.pipe.settings(**(settings | {"hold_threshold": threshold}))
    if used.steps == 1:
        return free, runner.hold(free, source_ids, threshold, **settings), used
    return free, runner.edit(pairs, source_ids, **(settings | {"hold_threshold": threshold})), used


def _summary(pairs: Pairs, columns: dict) -> dict:
    """Means per category, over all, over local categories, and over pairs about an object unseen in training."""
    novel = np.array([facts["novel"] for facts in pairs.facts])
    groups = {category: pairs.categories == category for category in CATEGORIES}
    groups |= {"all": np.ones(len(pairs), bool), "local": np.isin(pairs.categories, LOCAL), "novel": novel}
    return {
        group: {"pairs": int(chosen.sum())}
        | {
            name: round(float(np.nanmean(column[chosen])), 4)
            for name, column in columns.items()
            if not np.isnan(column[chosen]).all()
        }
        for group, chosen in groups.items()
        if chosen.any()
    }


def _intervals(columns: dict) -> dict[str, list[float]]:
    """The 95 % interval of each mean over all pairs."""
    found = {name: stats.mean_of(column, np.arange(len(column))) for name, column in columns.items()}
    return {name: [round(one["low"], 4), round(one["high"], 4)] for name, one in found.items() if one["n"] > 1}


def evaluate_scenes(
    model: str | None,
    output: str | None = None,
    gallery: str | None = None,
    count: int = 500,
    batch_size: int | None = None,
    seeds: Sequence[int] = (0,),
    split: str = "heldout",
    objects: str = "rich",
    workdir: str | Path | None = None,
    size: int | None = None,
    lpips: str | None = None,
    **settings: Any,
) -> None:
    """Evaluates a model directory (None: the default) and prints the table.

    Args:
      output: where to write the numbers as JSON; gallery: where to draw successes and failures of each category.
    """
    if output:
        images.check_output(output, {".json": "JSON"})
    if gallery:
        images.check_output(gallery)
    summary, draw = evaluate(
        EditPipeline.from_pretrained(model),
        count,
        batch_size,
        seeds,
        split,
        objects,
        workdir,
        model or "default",
        size,
        lpips,
        **settings,
    )
    print(report.table(summary))
    if output:
        write_json(output, summary, indent=2)
    if gallery:
        images.save(draw(2), gallery)
