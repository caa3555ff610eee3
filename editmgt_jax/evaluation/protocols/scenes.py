"""The protocol `scenes`: procedural edits, where the right answer is known.

Success is measured, by category:

    colour      the measured colour name of the decoded pixels in the true mask is the one asked for
    others      in the true mask, the decoded result is nearer (squared error) to the VQ-decoded target than to the
                VQ-decoded source; so too for patterns, black, white and gray, which have no measured name

`recognised` (add and replace) is stricter: the result is nearer to the true target than to what the target would be with
any of nine other objects in place of the new one; a guess is right once in ten.

The relevance threshold and the best single layer are chosen on pairs of the training split. To choose settings, evaluate
on the training split; the held-out split is for reporting.
"""

import dataclasses
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import jax
import numpy as np
from PIL import Image
from tqdm import tqdm

from editmgt_jax import images
from editmgt_jax.batching import in_batches, map_batches
from editmgt_jax.data.scenes.source import CATEGORIES, SceneConfig, SceneSource, name_colour
from editmgt_jax.errors import UserError
from editmgt_jax.evaluation import metrics, report
from editmgt_jax.evaluation.examples import Example, Skipped
from editmgt_jax.evaluation.protocol import Protocol, Scoring, Selection
from editmgt_jax.evaluation.protocols.scenes_run import begun, write_outcomes
from editmgt_jax.files import write_json
from editmgt_jax.pipeline import EditPipeline
from editmgt_jax.sampling import localize
from editmgt_jax.sampling.masking import covered_tokens

# Categories whose edit is a region; the mask of a style edit is the whole picture, of a background edit most of it.
LOCAL = ("add", "remove", "replace", "colour", "motion")
SELECTION_PAIRS = 128  # training pairs on which the relevance threshold and the best single layer are chosen
SELECTION_SEED = 1  # no pair of the default training data, whose seed is 0
SPARED = 0.05  # of the tokens to edit: the share that the default hold threshold may hold
DISTRACTORS = 9
_COLUMNS = ("tokens", "keep", "relevance", "attention", "passes")  # of an edit, that are kept of every batch


def default_batch() -> int:
    """Pairs that are edited at once: few on a CPU, whose caches hold no more, many on accelerators."""
    return 4 if jax.default_backend() == "cpu" else 32


class Pairs:
    """The first `count` pairs of a split, stacked."""

    def __init__(self, size: int, split: str, count: int, objects: str, seed: int = 0, categories=CATEGORIES):
        self.scenes = SceneSource(
            SceneConfig(size=size, split=split, seed=seed, categories=categories, objects=objects)
        )
        examples = [self.scenes[index] for index in range(count)]
        self.source = np.stack([e["source"] for e in examples]).astype(np.float32) / 255
        self.target = np.stack([e["target"] for e in examples]).astype(np.float32) / 255
        self.mask = np.stack([e["mask"] for e in examples])
        self.instructions = [e["instruction"] for e in examples]
        self.categories = np.array([e["category"] for e in examples])
        self.facts = [e["facts"] for e in examples]

    def __len__(self) -> int:
        return len(self.instructions)

    def token_mask(self, grid: tuple[int, int]) -> np.ndarray:
        """bool [n H W]: tokens any of whose pixels may change."""
        return covered_tokens(self.mask, grid)


@dataclasses.dataclass(frozen=True)
class Encoded:
    """Pairs as the model sees them: ids int32 [n H W], and the pictures [n Y X 3] that these ids can show at best."""

    source_ids: np.ndarray
    target_ids: np.ndarray
    source: np.ndarray
    target: np.ndarray


class Runner:
    """Runs a pipeline over many pairs, in batches of one shape."""

    def __init__(self, pipe: EditPipeline, batch_size: int, seed: int):
        self.pipe, self.batch_size, self.seed = pipe, batch_size, seed

    def ids(self, pictures: np.ndarray) -> np.ndarray:
        """float32 [n Y X 3] in [0, 1] -> int32 [n H W]"""
        return map_batches(self.pipe.encode_image, pictures, self.batch_size)

    def encode(self, pairs: Pairs) -> Encoded:
        """The ids of both pictures, and these ids decoded."""
        ids = [self.ids(pictures) for pictures in (pairs.source, pairs.target)]
        return Encoded(*ids, *(self.decode(each) for each in ids))

    def decode(self, ids: np.ndarray) -> np.ndarray:
        """int32 [n H W] -> float32 [n Y X 3] in [0, 1]"""
        return map_batches(self.pipe.decode_image, ids, self.batch_size)

    def edit(self, pairs: Pairs, source_ids: np.ndarray, **settings: Any) -> dict:
        """Edits every source; pair i draws from (seed, i). -> tokens, keep, relevance [n H W], attention [n J N] and passes [n]"""
        key, found = jax.random.key(self.seed), []
        for batch, count in tqdm(list(in_batches(range(len(pairs)), self.batch_size)), disable=None, leave=False):
            indices = np.array(batch)
            keys = jax.vmap(lambda index: jax.random.fold_in(key, index))(indices)
            text = [self.pipe.encode(pairs.instructions[index]) for index in indices]
            edit = jax.device_get(self.pipe.edit_tokens(source_ids[indices], text, keys=keys, **settings))
            found.append({name: getattr(edit, name)[:count] for name in _COLUMNS})
        return {name: np.concatenate([part[name] for part in found]) for name in found[0]}

    def relevance(self, attention: np.ndarray, grid: tuple[int, int], layers: Sequence[int], kind: str) -> np.ndarray:
        """Relevance [n H W], filtered as `kind` says, of some of the layers in `attention` [n J N]."""
        mgt_grid = tuple(side // self.pipe.model.mgt.config.stride for side in grid)
        return np.asarray(localize.localize(attention[:, layers], mgt_grid, grid, kind=kind))

    def hold(self, free: dict, source_ids: np.ndarray, threshold: float, **settings: Any) -> dict:
        """What `edit` gives with this hold threshold, from `free`, an edit of one step without hold that read all layers.

        The only step of a decode commits every token, and what it draws for one does not depend on what is held elsewhere.
        """
        used = self.pipe.settings(**settings)
        relevance = self.relevance(free["attention"], source_ids.shape[1:], list(used.layers), used.filter)
        keep = np.asarray(localize.hold_mask(relevance, threshold))
        tokens = np.where(keep, source_ids, free["tokens"])
        return free | {"tokens": tokens, "keep": keep, "relevance": relevance}


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


def score_edits(pairs: Pairs, tokens: np.ndarray, edited: np.ndarray, encoded: Encoded) -> dict[str, np.ndarray]:
    """Figures of each pair, from the ids [n H W] of the edits and their pictures [n Y X 3]. -> {name: [n]}"""
    outside = ~pairs.token_mask(tokens.shape[1:])
    return {
        "success": succeeded(pairs, edited, encoded.source, encoded.target).astype(float),
        "recognised": recognised(pairs, edited),
        "l1_inside": metrics.l1(edited, pairs.target, pairs.mask),
        "l1_outside": metrics.l1(edited, pairs.target, ~pairs.mask),
        "psnr_inside": metrics.psnr(edited, pairs.target, pairs.mask),
        "psnr_outside": metrics.psnr(edited, pairs.target, ~pairs.mask),
        "changed_outside": metrics.share_changed(tokens, encoded.source_ids, outside),
        "vq_changed_outside": metrics.share_changed(encoded.target_ids, encoded.source_ids, outside),
    }


def choose_localisation(runner: Runner, size: int, all_layers: Sequence[int], objects: str, **settings: Any) -> dict:
    """Thresholds of the relevance and the best single layer, on local edits of the training split."""
    pairs = Pairs(size, "train", SELECTION_PAIRS, objects, SELECTION_SEED, LOCAL)
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
        "hold_threshold": round(float(np.quantile(relevance(layers)[truth], SPARED)), 3),
        "single_layer": best,
        "single_threshold": singles[best][0],
        "selection_iou_of_single_layers": {str(layer): round(value, 4) for layer, (_, value) in singles.items()},
    }


def evaluate(
    pipe: EditPipeline,
    count: int = 500,
    batch_size: int | None = None,
    seed: int = 0,
    split: str = "heldout",
    objects: str = "rich",
    workdir: str | Path | None = None,
    name: str = "default",
    **settings: Any,
) -> tuple[dict, Callable[[int], Image.Image]]:
    """Runs the protocol `scenes` with and without region hold.

    Args:
      workdir: where to write the outcome of every pair, as other evaluations have it, and the edited pictures.
      name: the model's, in these files.
      batch_size: pairs at once; None is `default_batch()`.
      count: how many pairs; split: 'heldout', or 'train' to choose settings (pairs that training did not draw).
      objects: what scenes show, as in `SceneConfig`: that of the model's training.
      settings: of the edits; what is left out is the model's own. The hold threshold, if neither gives one, is such that
        SPARED of the tokens to edit would be held.
    Returns: the report (a dict for JSON), and a function that draws examples of it (see `report.gallery`).
    """
    pipe.settings(**settings)  # what is wrong with them is found before the work
    edited = {"model": str(name), "seed": seed, "settings": settings}
    with begun(Scenes, workdir, edited, split, objects, count) as identity:
        runner = Runner(pipe, batch_size or default_batch(), seed)
        summary, found, draw = _evaluate(runner, count, split, objects, settings)
        if workdir is not None:
            write_outcomes(Scenes, Path(workdir), identity, *found)
    return summary, draw


def _evaluate(runner: Runner, count: int, split: str, objects: str, settings: dict) -> tuple[dict, tuple, Callable]:
    """-> (the report, (pairs, {mode: {figure: [n]}}, {mode: pictures}), the function that draws examples)"""
    pipe = runner.pipe
    size, layers = pipe.model.scheduler.native_size, list(range(pipe.model.mgt.config.num_blocks))
    with ThreadPoolExecutor(1) as host:  # scenes are drawn while the device chooses
        drawn = host.submit(Pairs, size, split, count, objects, SELECTION_SEED + 1 if split == "train" else 0)
        choice = choose_localisation(runner, size, layers, objects, **settings)
        pairs = drawn.result()
    encoded = runner.encode(pairs)
    threshold = settings.get("hold_threshold")
    if threshold is None:
        threshold = pipe.settings().hold_threshold or choice["hold_threshold"]

    free, held, used = _edit_both(runner, pairs, encoded.source_ids, layers, threshold, settings)
    pictures = {"free": runner.decode(free["tokens"]), "held": runner.decode(held["tokens"])}
    results = {
        mode: score_edits(pairs, edits["tokens"], pictures[mode], encoded) | {"passes": edits["passes"].astype(float)}
        for mode, edits in (("free", free), ("held", held))
    }
    truth = pairs.token_mask(free["tokens"].shape[1:])
    consolidated = runner.relevance(free["attention"], truth.shape[1:], choice["layers"], used.filter)
    single = runner.relevance(free["attention"], truth.shape[1:], [choice["single_layer"]], used.filter)
    results["free"]["iou_consolidated"] = metrics.iou(consolidated, truth, choice["threshold"])
    results["free"]["iou_single_layer"] = metrics.iou(single, truth, choice["single_threshold"])

    summary = _report(pairs, encoded, results, choice, used, split, objects, runner.seed)

    def draw(rows_of_each: int):
        return report.gallery(pairs, encoded.target, pictures, results, consolidated, rows_of_each)

    return summary, (pairs, results, pictures), draw


class Scenes(Protocol):
    """What evaluations side by side ask of the protocol. Its examples are drawn, not read."""

    name, version, examples = "scenes", "1", None
    title = "procedural scenes with known targets, without (free) and with region hold (held)"
    reference = "this package"
    directions = {"success": 1, "recognised": 1, "psnr_inside": 1, "psnr_outside": 1} | {
        name: -1 for name in ("l1_inside", "l1_outside", "changed_outside", "passes")
    } | {"iou_consolidated": 1, "iou_single_layer": 1}  # fmt: skip

    def read(self, data: Path, selection: Selection) -> Iterable[Example | Skipped]:
        """Errors: UserError."""
        raise UserError("scenes are drawn, not read from a folder: run editmgt evaluate scenes")

    def score(self, example: Example, edited: Image.Image, given: Scoring) -> dict[str, Any]:
        """Errors: UserError."""
        raise UserError("scenes are scored by editmgt evaluate scenes")


def _report(pairs, encoded, results, choice, used, split, objects, seed) -> dict:
    """The report of `evaluate`."""
    full = np.ones_like(pairs.mask)
    return {
        "protocol": "scenes",
        "version": Scenes.version,
        "split": split,
        "objects": objects,
        "pairs": len(pairs),
        "seed": seed,
        "settings": {name: value for name, value in vars(used).items() if name != "record"},
        "localisation": choice,
        "reconstruction_psnr": round(float(metrics.psnr(encoded.target, pairs.target, full).mean()), 3),
        "results": {mode: _summary(pairs, columns) for mode, columns in results.items()},
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


def evaluate_scenes(
    model: str | None,
    output: str | None = None,
    gallery: str | None = None,
    count: int = 500,
    batch_size: int | None = None,
    seed: int = 0,
    split: str = "heldout",
    objects: str = "rich",
    workdir: str | Path | None = None,
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
        seed,
        split,
        objects,
        workdir,
        model or "default",
        **settings,
    )
    print(report.table(summary))
    if output:
        write_json(output, summary, indent=2)
    if gallery:
        images.save(draw(2), gallery)
