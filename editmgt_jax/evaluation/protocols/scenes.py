"""The protocol `scenes`: procedural edits, where the right answer is known. Its figures are in `scenes_figures.py`.

The relevance threshold and the best single layer are chosen on pairs of the training split. To choose settings, evaluate
on the training split; the held-out split is for reporting.
"""

import dataclasses
import functools
import io
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from editmgt_jax import images
from editmgt_jax.data.scenes.source import CATEGORIES
from editmgt_jax.errors import UserError
from editmgt_jax.evaluation import metrics, report, stats
from editmgt_jax.evaluation.devices import SpreadPipeline
from editmgt_jax.evaluation.examples import Example, Skipped, read_picture
from editmgt_jax.evaluation.features import Lpips
from editmgt_jax.evaluation.leakage import DIRECTIONS
from editmgt_jax.evaluation.protocol import Protocol, Scoring, Selection
from editmgt_jax.evaluation.protocols.scenes_figures import ceilings, leaks, mean_over_seeds, score_edits
from editmgt_jax.evaluation.protocols.scenes_pairs import Encoded, Pairs, Runner, default_batch
from editmgt_jax.evaluation.protocols.scenes_run import Part, begun, joined, work, write_outcomes
from editmgt_jax.files import write_json
from editmgt_jax.pipeline import EditPipeline
from editmgt_jax.sampling.settings import Settings

# Categories whose edit is a region; the mask of a style edit is the whole picture, of a background edit most of it.
LOCAL = ("add", "remove", "replace", "colour", "motion")
SELECTION_PAIRS = 128  # training pairs on which the relevance threshold and the best single layer are chosen
SELECTION_SEED = 1  # no pair of the default training data, whose seed is 0
SPARED = 0.05  # of the tokens to edit: the share that the default hold threshold may hold


def choose_localisation(runner: Runner, all_layers: Sequence[int], objects: str, **settings: Any) -> dict:
    """Thresholds of the relevance and the best single layer, on local edits of the training split."""
    pairs = Pairs(runner.size, "train", SELECTION_PAIRS, objects, SELECTION_SEED, LOCAL)
    source_ids = runner.ids(pairs.source)
    attention = runner.attention(pairs, source_ids, **(settings | {"layers": all_layers, "hold_threshold": 0.0}))
    truth = pairs.token_mask(source_ids.shape[1:])

    used = runner.pipe.settings(**settings)
    layers = list(used.layers)

    def relevance(layers):
        return runner.relevance(attention, truth.shape[1:], layers, used.filter)

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
    process: tuple[int, int] = (0, 1),
    **settings: Any,
) -> tuple[dict, Callable[[int], Image.Image]] | None:
    """Runs the protocol `scenes` with and without region hold.

    Args:
      workdir: where to write the outcome of every pair, as other evaluations have it, and the edited pictures. The same
        evaluation goes on there, where it was killed.
      name: the model's, in these files.
      batch_size: pairs at once; None is `default_batch()`.
      count: how many pairs; split: 'heldout', or 'train' to choose settings (pairs that training did not draw).
      objects: what scenes show, as in `SceneConfig`: that of the model's training.
      seeds: of the edits; figures are means over them, pictures are of the first.
      size: side of the scenes, by default the model's own; others are resized for the model, and its edits back.
      lpips: weights that `editmgt convert lpips` wrote, for `lpips_inside`.
      process: number of this one, and of all; they share the work directory.
      settings: of the edits; what is left out is the model's own. The hold threshold, if neither gives one, is such that
        SPARED of the tokens to edit would be held.
    Returns: the report (a dict for JSON), and a function that draws examples of it (see `report.gallery`); None while other
      processes have work left.
    Errors: UserError, SettingsError.
    """
    resolved = pipe.settings(**settings)  # what is wrong with them is found before the work
    if not seeds or len(set(seeds)) < len(seeds):
        raise UserError(f"seeds must be distinct, at least one; got {list(seeds)}")
    if process[1] > 1 and workdir is None:
        raise UserError("several processes evaluate scenes in one work directory: name it with --workdir")
    measure = None if lpips is None else Lpips(str(lpips))
    edited = {"model": str(name), "weights": pipe.model.fingerprint()}
    edited |= {"seeds": list(seeds), "size": size, "settings": _told(resolved) | settings}
    models = {} if measure is None else {"lpips": f"{measure.where} ({measure.variant})"}
    with begun(Scenes, workdir, edited, split, objects, count, models, process) as (identity, store):
        runner = Runner(pipe, batch_size or default_batch(), seeds[0], size)
        pairs_of = functools.partial(_pairs, runner.size, split, objects)
        choice, used = _choice(runner, store, objects, settings)
        job = Job(runner, tuple(seeds), measure, choice, used, settings)
        parts = work(
            count, pairs_of, lambda pairs: _edited(job, pairs), lambda *found: _scored(job, *found), store, process
        )
        if parts is None:
            return None
        whole = joined(parts)
        if workdir is not None:
            write_outcomes(Scenes, Path(workdir), identity, whole)
    draw = functools.partial(report.gallery, whole, lambda numbers: _shown(runner, pairs_of(numbers), whole, numbers))
    return _report(whole, choice, used, split, objects, seeds), draw


@dataclasses.dataclass(frozen=True, eq=False)
class Job:
    """What all pairs are edited and scored with."""

    runner: Runner
    seeds: tuple[int, ...]
    lpips: Lpips | None
    choice: dict  # of `choose_localisation`
    used: Settings  # of the edits with hold
    settings: dict[str, Any]  # that were asked for


def _pairs(size, split, objects, numbers) -> Pairs:
    return Pairs(size, split, numbers, objects, SELECTION_SEED + 1 if split == "train" else 0)


def _choice(runner, store, objects, settings) -> tuple[dict, Settings]:
    """The choice of `choose_localisation`, from the work directory where it is there, and the settings of edits with hold."""
    choice = store.choice()
    if choice is None:
        choice = choose_localisation(runner, range(runner.pipe.model.mgt.config.num_blocks), objects, **settings)
        store.keep_choice(choice)
    threshold = settings.get("hold_threshold")
    if threshold is None:
        threshold = runner.pipe.settings().hold_threshold or choice["hold_threshold"]
    return choice, runner.pipe.settings(**(settings | {"hold_threshold": threshold}))


def _edited(job: Job, pairs: Pairs) -> tuple[Encoded, list[dict]]:
    """What the device makes of some pairs: their ids, and of each seed {mode: (edits, pictures)}."""
    encoded = job.runner.encode(pairs)
    several = []
    for seed in job.seeds:
        both = dict(zip(("free", "held"), _edit_both(job, seed, pairs, encoded.source_ids), strict=True))
        several.append({mode: (edits, job.runner.decode(edits["tokens"])) for mode, edits in both.items()})
    return encoded, several


def _scored(job: Job, pairs: Pairs, encoded: Encoded, several: list[dict]) -> tuple[Part, dict[str, np.ndarray]]:
    """-> (the figures of some pairs, {mode: pictures of the first seed})"""
    figures, relevances = [], []
    for edited in several:
        found = {}
        for mode, (edits, pictures) in edited.items():
            scores = score_edits(pairs, edits["tokens"], pictures, encoded, job.lpips)
            plain, composited = leaks(pairs, edits["tokens"], pictures, encoded)
            found[mode] = scores | {"passes": edits["passes"].astype(float)}
            found[mode] |= {name: values for name, values in plain.items() if name not in scores}
            found[f"{mode}+composite"] = composited
        relevances.append(_localised(job, pairs, edited["free"][0], found["free"]))
        figures.append(found)
    results = mean_over_seeds(figures)
    results["free"] |= ceilings(pairs, encoded, job.lpips)
    shown = {mode: edits["tokens"] for mode, (edits, _) in several[0].items()}
    about = {
        "instructions": np.array(pairs.instructions),
        "categories": pairs.categories,
        "novel": np.array([facts["novel"] for facts in pairs.facts]),
        "reconstruction_psnr": metrics.psnr(encoded.target, pairs.target, np.ones_like(pairs.mask)),
    }
    part = Part(about, results, shown | {"target": encoded.target_ids, "relevance": relevances[0]})
    return part, {mode: pictures for mode, (_, pictures) in several[0].items()}


def _shown(runner, pairs: Pairs, whole: Part, numbers: Sequence[int]) -> dict[str, np.ndarray]:
    """The pictures of some pairs, and the relevance of their edits, for `report.gallery`."""
    at = np.asarray(numbers)
    painted = {name: runner.decode(whole.shown[name][at]) for name in ("target", "free", "held")}
    return {
        "source": pairs.source,
        "target": pairs.target,
        "best": painted.pop("target"),
        **painted,
        "relevance": whole.shown["relevance"][at],
    }


def _localised(job: Job, pairs, free, figures) -> np.ndarray:
    """Adds the localisation of edits to their figures. -> relevance of the model's own layers together [n H W]"""
    truth = pairs.token_mask(free["tokens"].shape[1:])
    consolidated, single = (
        job.runner.relevance(free["attention"], truth.shape[1:], some, job.used.filter)
        for some in (job.choice["layers"], [job.choice["single_layer"]])
    )
    figures["iou_consolidated"] = metrics.iou(consolidated, truth, job.choice["threshold"])
    figures["iou_single_layer"] = metrics.iou(single, truth, job.choice["single_threshold"])
    return consolidated


class Scenes(Protocol):
    """What evaluations side by side ask of the protocol. Its examples are drawn, not read."""

    name, version, examples = "scenes", "4", None
    title = "procedural scenes with known targets, without (free) and with region hold (held)"
    reference = "this package"
    directions = DIRECTIONS | {"success": 1, "success_smoothed": 1, "recognised": 1, "psnr_inside": 1, "psnr_outside": 1, "gradient_share": 1} | {
        name: -1 for name in ("l1_inside", "l1_outside", "lpips_inside", "changed_outside", "passes")
    } | {"iou_consolidated": 1, "iou_single_layer": 1}  # fmt: skip

    def read(self, data: Path, selection: Selection) -> Iterable[Example | Skipped]:
        """Errors: UserError."""
        raise UserError("scenes are drawn, not read from a folder: run editmgt evaluate scenes")

    def score(self, example: Example, edited: Image.Image, given: Scoring) -> dict[str, Any]:
        """Errors: UserError."""
        raise UserError("scenes are scored by editmgt evaluate scenes")

    def examples_again(self, summary: dict, keys: Sequence[str], outputs: Path) -> dict[str, Example]:
        """Draws them: see `Protocol.examples_again`."""
        _, objects, split = summary["data"].split()
        found = {}
        for key in keys:
            edited, _ = read_picture(outputs / self.pictures_of({"output": f"free/{key}.png"})["free"])
            pair = _pairs(edited.width, split, objects, [int(key)])
            source, target = (_png(images.to_image(picture[0])) for picture in (pair.source, pair.target))
            found[key] = Example(key, pair.categories[0], pair.instructions[0], "", source, target)
        return found

    def pictures_of(self, outcome: dict) -> dict[str, str]:
        """The edits without and with hold."""
        return {mode: f"{mode}/{Path(outcome['output']).name}" for mode in ("free", "held")}


def _png(image: Image.Image) -> bytes:
    file = io.BytesIO()
    image.save(file, "PNG")
    return file.getvalue()


def _report(whole: Part, choice, used, split, objects, seeds) -> dict:
    """The report of `evaluate`."""
    return {
        "protocol": "scenes",
        "version": Scenes.version,
        "split": split,
        "objects": objects,
        "pairs": len(whole),
        "seeds": list(seeds),
        "settings": _told(used),
        "localisation": choice,
        "reconstruction_psnr": round(float(whole.about["reconstruction_psnr"].mean()), 3),
        "results": {mode: _summary(whole, columns) for mode, columns in whole.figures.items()},
        "intervals": {mode: _intervals(columns) for mode, columns in whole.figures.items()},
    }


def _told(settings: Settings) -> dict[str, Any]:
    return {name: value for name, value in vars(settings).items() if name != "record"}


def _edit_both(job: Job, seed, pairs, source_ids) -> tuple[dict, dict]:
    """-> (edits without hold, that read all layers; edits with hold)"""
    runner, threshold = job.runner.with_seed(seed), job.used.hold_threshold
    layers = list(range(runner.pipe.model.mgt.config.num_blocks))
    free = runner.edit(pairs, source_ids, **(job.settings | {"layers": layers, "hold_threshold": 0.0}))
    if job.used.steps == 1:
        return free, runner.hold(free, source_ids, threshold, **job.settings)
    return free, runner.edit(pairs, source_ids, **(job.settings | {"hold_threshold": threshold}))


def _summary(whole: Part, columns: dict) -> dict:
    """Means per category, over all, over local categories, and over pairs about an object unseen in training."""
    categories = whole.about["categories"]
    groups = {category: categories == category for category in CATEGORIES}
    groups |= {"all": np.ones(len(whole), bool), "local": np.isin(categories, LOCAL), "novel": whole.about["novel"]}
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
    process: tuple[int, int] = (0, 1),
    **settings: Any,
) -> None:
    """Evaluates a model directory (None: the default) on all devices of this process, and prints the table.

    Args:
      output: where to write the numbers as JSON; gallery: where to draw successes and failures of each category.
      others: see `evaluate`.
    """
    if output:
        images.check_output(output, {".json": "JSON"})
    if gallery:
        images.check_output(gallery)
    pipe = SpreadPipeline.from_pretrained(model)
    reading = count, batch_size, seeds, split, objects, workdir, model or "default", size, lpips, process
    found = evaluate(pipe, *reading, **settings)
    if found is None:
        print("this process is done; others have work left")
        return
    summary, draw = found
    print(report.table(summary))
    if output:
        write_json(output, summary, indent=2)
    if gallery:
        images.save(draw(2), gallery)
