"""Evaluation protocols. `scenes`: held-out procedural edits, where the right answer is known.

Success is measured, by category:

    colour      the measured colour name of the decoded pixels in the true mask is the one asked for
    others      in the true mask, the decoded result is nearer (squared error) to the VQ-decoded target than to the
                VQ-decoded source

Everything that is chosen (the relevance threshold, the best single layer) is chosen on pairs of the training split.
"""

import json
from pathlib import Path

import jax
import numpy as np
from tqdm import tqdm

from editmgt_jax import localize
from editmgt_jax.data.scenes import CATEGORIES, SceneConfig, SceneSource, name_colour
from editmgt_jax.evaluation import metrics
from editmgt_jax.pipeline import EditPipeline

# Categories whose edit is a region; the mask of a style edit is the whole picture, of a background edit most of it.
LOCAL = ("add", "remove", "replace", "colour", "motion")
SELECTION_PAIRS = 128  # training pairs on which the relevance threshold and the best single layer are chosen


class Pairs:
    """The first `count` pairs of a split, stacked."""

    def __init__(self, size: int, split: str, count: int, seed: int = 0, categories=CATEGORIES, first: int = 0):
        source = SceneSource(SceneConfig(size=size, split=split, seed=seed, categories=categories))
        examples = [source[first + index] for index in range(count)]
        self.source = np.stack([e["source"] for e in examples]).astype(np.float32) / 255
        self.target = np.stack([e["target"] for e in examples]).astype(np.float32) / 255
        self.mask = np.stack([e["mask"] for e in examples])
        self.instructions = [e["instruction"] for e in examples]
        self.categories = np.array([e["category"] for e in examples])
        self.facts = [e["facts"] for e in examples]

    def __len__(self) -> int:
        return len(self.instructions)


def _batched(function, array, size):
    """function over slices of `size` rows, the last one padded, so that one shape is compiled."""
    parts = []
    for start in range(0, len(array), size):
        part = array[start : start + size]
        padded = np.concatenate([part, np.repeat(part[-1:], size - len(part), axis=0)])
        parts.append(np.asarray(function(padded))[: len(part)])
    return np.concatenate(parts)


def edit_pairs(pipe, pairs: Pairs, source_ids, batch_size: int, seed: int, **settings) -> dict:
    """Edits every source. -> tokens [n H W], keep, scores, relevance [n K N], as arrays."""
    key, found = jax.random.key(seed), []
    for start in tqdm(range(0, len(pairs), batch_size), unit="batch", disable=None, leave=False):
        rows = np.minimum(np.arange(start, start + batch_size), len(pairs) - 1)
        keys = jax.vmap(lambda index: jax.random.fold_in(key, index))(rows)
        text = [pipe.encode(pairs.instructions[row]) for row in rows]
        edit = jax.device_get(pipe.edit_tokens(source_ids[rows], text, keys=keys, **settings))
        kept = min(batch_size, len(pairs) - start)
        found.append({name: getattr(edit, name)[:kept] for name in ("tokens", "keep", "scores", "relevance")})
    return {name: np.concatenate([part[name] for part in found]) for name in found[0]}


def succeeded(pairs: Pairs, edited, source, target) -> np.ndarray:
    """Success of each pair; pictures are VQ-decoded, float [n Y X 3]. -> bool [n]"""
    success = metrics.nearer_to_target(edited, source, target, pairs.mask)
    for index in np.flatnonzero(pairs.categories == "colour"):
        pixels = np.round(edited[index][pairs.mask[index]] * 255).astype(np.uint8)
        success[index] = name_colour(pixels) == pairs.facts[index]["colour"]
    return success


def score_edits(pipe, pairs: Pairs, edits, source_ids, target_ids, batch_size) -> dict[str, np.ndarray]:
    """Per-pair figures of one operating point. -> {name: [n]}"""
    source, target, edited = (
        _batched(pipe.detokenize, ids, batch_size) for ids in (source_ids, target_ids, edits["tokens"])
    )
    outside_tokens = ~metrics.token_mask(pairs.mask, source_ids.shape[1:])
    return {
        "success": succeeded(pairs, edited, source, target).astype(float),
        "l1_inside": metrics.l1(edited, pairs.target, pairs.mask),
        "l1_outside": metrics.l1(edited, pairs.target, ~pairs.mask),
        "psnr_inside": metrics.psnr(edited, pairs.target, pairs.mask),
        "psnr_outside": metrics.psnr(edited, pairs.target, ~pairs.mask),
        "changed_outside": metrics.share_changed(edits["tokens"], source_ids, outside_tokens),
        "vq_changed_outside": metrics.share_changed(target_ids, source_ids, outside_tokens),
    }


def relevance_scores(pipe, relevance, grid, layers: slice | list):
    """Consolidated, filtered and upsampled scores [n H W] of some of the layers in `relevance` [n K N]."""
    mgt_grid = tuple(side // pipe.model.mgt.config.stride for side in grid)
    return np.asarray(localize.localize(relevance[:, layers], mgt_grid, grid))


def choose_layers(pipe, batch_size: int, seed: int, size: int, **settings) -> dict:
    """Threshold of the consolidated relevance, and the best single layer with its own, on training pairs."""
    pairs = Pairs(size, "train", SELECTION_PAIRS, seed=1, categories=LOCAL)
    source_ids = _batched(pipe.tokenize, pairs.source, batch_size)
    blocks = list(range(pipe.model.mgt.config.num_blocks))
    chosen = list(pipe.settings(**settings).layers)
    edits = edit_pairs(
        pipe, pairs, source_ids, batch_size, seed, **(settings | {"layers": blocks, "hold_threshold": 0.0})
    )
    truth = metrics.token_mask(pairs.mask, source_ids.shape[1:])

    def fit(layers):
        scores = relevance_scores(pipe, edits["relevance"], source_ids.shape[1:], layers)
        return metrics.best_threshold(scores, truth)

    singles = {block: fit([block]) for block in blocks}
    best = max(singles, key=lambda block: singles[block][1])
    threshold, value = fit(chosen)
    return {
        "layers": chosen,
        "threshold": threshold,
        "selection_iou": value,
        "single_layer": best,
        "single_threshold": singles[best][0],
        "selection_iou_of_single_layers": {str(block): round(value, 4) for block, (_, value) in singles.items()},
    }


def evaluate(pipe, count: int = 500, batch_size: int = 32, seed: int = 0, **settings) -> dict:
    """Runs the protocol `scenes` with and without region hold. -> a report, JSON-able"""
    size = pipe.model.scheduler.native_size
    pairs = Pairs(size, "heldout", count)
    source_ids = _batched(pipe.tokenize, pairs.source, batch_size)
    target_ids = _batched(pipe.tokenize, pairs.target, batch_size)
    resolved = pipe.settings(**settings)
    choice = choose_layers(pipe, batch_size, seed, size, **settings)
    blocks = list(range(pipe.model.mgt.config.num_blocks))

    free = edit_pairs(
        pipe, pairs, source_ids, batch_size, seed, **(settings | {"layers": blocks, "hold_threshold": 0.0})
    )
    columns = {"free": score_edits(pipe, pairs, free, source_ids, target_ids, batch_size)}
    threshold = resolved.hold_threshold or choice["threshold"] / 2
    held = edit_pairs(pipe, pairs, source_ids, batch_size, seed, **(settings | {"hold_threshold": threshold}))
    columns["held"] = score_edits(pipe, pairs, held, source_ids, target_ids, batch_size)

    truth = metrics.token_mask(pairs.mask, source_ids.shape[1:])
    for name, layers, cut in (
        ("iou_consolidated", choice["layers"], choice["threshold"]),
        ("iou_single_layer", [choice["single_layer"]], choice["single_threshold"]),
    ):
        scores = relevance_scores(pipe, free["relevance"], source_ids.shape[1:], layers)
        columns["free"][name] = metrics.iou(scores, truth, cut)
    return {
        "protocol": "scenes",
        "pairs": count,
        "seed": seed,
        "settings": {k: v for k, v in vars(resolved).items() if k != "record"} | {"hold_threshold": threshold},
        "localisation": choice,
        "reconstruction_psnr": float(
            np.mean(
                metrics.psnr(_batched(pipe.detokenize, target_ids, batch_size), pairs.target, np.ones_like(pairs.mask))
            )
        ),
        "results": {mode: _summary(pairs, values) for mode, values in columns.items()},
    }


def _summary(pairs: Pairs, values: dict) -> dict:
    """Means per category, over all, over local categories, and over pairs about an object unseen in training."""
    novel = np.array([facts["novel"] for facts in pairs.facts])
    groups = {category: pairs.categories == category for category in CATEGORIES}
    groups |= {"all": np.ones(len(pairs), bool), "local": np.isin(pairs.categories, LOCAL), "novel": novel}
    return {
        group: {"pairs": int(rows.sum())}
        | {
            name: round(float(np.nanmean(column[rows])), 4)
            for name, column in values.items()
            if not np.isnan(column[rows]).all()
        }
        for group, rows in groups.items()
        if rows.any()
    }


def table(report: dict) -> str:
    """The report as lines of text."""
    lines = [
        f"protocol {report['protocol']}, {report['pairs']} held-out pairs; "
        f"reconstruction {report['reconstruction_psnr']:.2f} dB; single layer {report['localisation']['single_layer']}, "
        f"consolidated {report['localisation']['layers']}"
    ]
    for mode, groups in report["results"].items():
        title = (
            "without region hold"
            if mode == "free"
            else f"with region hold, lambda {report['settings']['hold_threshold']:.3f}"
        )
        names = [name for name in groups["all"] if name != "pairs"]
        lines += ["", title, f"{'':12}{'pairs':>6}" + "".join(f"{name:>20}" for name in names)]
        for group, values in groups.items():
            cells = (f"{values[name]:20.4f}" if name in values else f"{'':>20}" for name in names)
            lines.append(f"{group:12}{values['pairs']:6d}" + "".join(cells))
    return "\n".join(lines)


def evaluate_scenes(model, output, count: int, batch_size: int, seed: int, **settings) -> None:
    """Evaluates a model directory (None: the default), prints the table and writes the JSON to `output`, if given."""
    if output and not Path(output).absolute().parent.is_dir():
        raise FileNotFoundError(f"the report's folder must exist; there is no {Path(output).absolute().parent}")
    report = evaluate(EditPipeline.from_pretrained(model), count, batch_size, seed, **settings)
    print(table(report))
    if output:
        temporary = Path(output).with_suffix(".tmp")
        temporary.write_text(json.dumps(report, indent=2) + "\n")
        temporary.replace(output)
