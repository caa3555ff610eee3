"""The search for the best set of blocks: chosen on the even examples, tested on the odd ones, in RUN/search/summary.json.

Every set that was scored is a candidate, and so are sets that are grown, shrunk or learnt for the best view, and the best trial of
an Optuna study, if there is one. Learnt weights are an upper
bound: they are told in the summary and cannot win.

Axes    n examples; Z candidates; J blocks; N positions
"""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np

from editmgt_jax.ablation import score as scores
from editmgt_jax.ablation import statistics
from editmgt_jax.ablation.choices import View
from editmgt_jax.ablation.config import AblationConfig, Statistics
from editmgt_jax.ablation.records import Records
from editmgt_jax.ablation.scoring import Scorer
from editmgt_jax.ablation.sets import BlockSet, name_of, of_blocks
from editmgt_jax.ablation.study import KIND as STUDY
from editmgt_jax.ablation.study import Study, optuna
from editmgt_jax.errors import UserError
from editmgt_jax.files import write_json
from editmgt_jax.sampling.settings import released_layers

FOLDER, SUMMARY = "search", "summary.json"
AXES = ("signal", "group", "window", "head", "filter", "upsampling")
LEARNT = "learnt"
SAME = 1e-9  # of an objective: a change that is none


@dataclasses.dataclass(frozen=True, eq=False)
class Candidates:
    """Settings with their objective."""

    entries: list[dict]  # as `choices.Setting.columns`
    values: np.ndarray  # float [Z n], means over seeds

    def chosen_by(self, keep: Callable[[dict], bool]) -> int | None:
        """The one with the highest mean over the even examples among those that `keep` keeps."""
        means = self.even
        allowed = [index for index, entry in enumerate(self.entries) if keep(entry) and not np.isnan(means[index])]
        return max(allowed, key=lambda index: means[index], default=None)

    @property
    def even(self) -> np.ndarray:
        """Means over the examples that choose. [Z]"""
        return _means(self.values[:, ::2])


def _means(values) -> np.ndarray:
    known = ~np.isnan(values)
    count = known.sum(axis=1)
    return np.where(count > 0, np.where(known, values, 0).sum(axis=1) / np.maximum(count, 1), np.nan)


def search(config: AblationConfig, workdir: Path) -> Path:
    """Searches the scores in a work directory. -> the file of the summary. Errors: UserError, RecordError."""
    check(config)
    entries = scores.read_settings(workdir)
    rule = entries[0]["threshold_rule"]
    values = statistics.seed_means(scores.read_scores(workdir, config.search.objective))
    of_rule = [index for index, entry in enumerate(entries) if entry["threshold_rule"] == rule]
    found = Candidates([entries[index] for index in of_rule], values[of_rule])
    best = found.chosen_by(lambda entry: True)
    if best is None:
        raise UserError("a search needs scores that are numbers; here every truth is empty or full")
    scorer = Scorer(Records.open(workdir / "records"), view_of(found.entries[best]))
    found = with_improved(found, scorer, config, rule)
    path = workdir / FOLDER / SUMMARY
    path.parent.mkdir(exist_ok=True)
    if config.search.trials:
        found = with_study(found, Study(config, scorer.records, path.parent, rule), config.search.trials)
    m = scorer.manifest
    readings = {
        "as the model reads it": (m.layers, m.signal),
        "as the paper reads it": (released_layers(m.num_blocks), "text_to_image"),
    }
    write_json(path, summary(found, config, readings), indent=2)
    return path


def check(config: AblationConfig) -> None:
    """Errors: UserError when a search would need what is not installed."""
    if config.search.trials:
        optuna()


def view_of(entry: dict) -> View:
    """The view of a setting."""
    return View(*(entry[name] for name in AXES))


# ---- sets that are not on any list


def with_improved(found: Candidates, scorer: Scorer, config: AblationConfig, rule: str) -> Candidates:
    """The candidates and those that are grown, shrunk and learnt for one view."""
    new: list[BlockSet] = []
    if config.search.greedy:
        new += [grown(scorer, config.search.objective, rule), shrunk(scorer, config.search.objective, rule)]
    if config.search.weights:
        new.append(learnt(scorer))
    if not new:
        return found
    return _with(found, new, scorer.view, rule, objective_of(scorer, new, config.search.objective, rule))


def with_study(found: Candidates, study: Study, trials: int) -> Candidates:
    """The candidates and the best trial of a study."""
    best = study.run(trials)
    if best is None:
        return found
    blocks, view, values = best
    return _with(found, [blocks], view, study.rule, values[None])


def _with(found, sets, view, rule, values) -> Candidates:
    """Candidates and some sets of one view."""
    entries = [
        {"setting": -1, "set": one.name, "kind": one.kind, "blocks": list(one.blocks), "weights": list(one.weights),
         **dataclasses.asdict(view), "threshold_rule": rule} for one in sets
    ]  # fmt: skip
    return Candidates(found.entries + entries, np.concatenate([found.values, values]))


def objective_of(scorer: Scorer, sets: Sequence[BlockSet], objective: str, rule: str) -> np.ndarray:
    """An objective of some sets, means over seeds. -> float64 [Z n]"""
    return statistics.seed_means(scorer.score(sets, (rule,)).columns[objective][:, 0])


def grown(scorer: Scorer, objective: str, rule: str) -> BlockSet:
    """Forward selection on the even examples: the block that helps most is added until none does."""
    return _greedy(scorer, objective, rule, "forward", (), lambda blocks, block: block not in blocks, _added)


def shrunk(scorer: Scorer, objective: str, rule: str) -> BlockSet:
    """Backward selection on the even examples: the block that harms most is removed until none does."""
    every = tuple(range(scorer.manifest.num_blocks))
    return _greedy(
        scorer, objective, rule, "backward", every, lambda blocks, block: block in blocks and len(blocks) > 1, _without
    )


def _added(blocks, block):
    return tuple(sorted((*blocks, block)))


def _without(blocks, block):
    return tuple(one for one in blocks if one != block)


def _greedy(scorer, objective, rule, kind, blocks, may, change) -> BlockSet:
    num_blocks = scorer.manifest.num_blocks

    def value(several):
        sets = [of_blocks(one, num_blocks, kind) for one in several]
        return _means(objective_of(scorer, sets, objective, rule)[:, ::2])

    best = value([blocks])[0] if blocks else -np.inf
    while True:
        options = [change(blocks, block) for block in range(num_blocks) if may(blocks, block)]
        if not options:
            break
        values = np.nan_to_num(value(options), nan=-np.inf)
        if blocks and values.max() <= best + SAME:
            break
        blocks, best = options[int(np.argmax(values))], values.max()
    return of_blocks(blocks, num_blocks, kind)


def learnt(scorer: Scorer) -> BlockSet:
    """Non-negative weights with the least squared error to the truth on the even examples, attention standardised for each."""
    from scipy.optimize import nnls

    m, rows = scorer.manifest, range(0, scorer.manifest.examples, 2)
    (h, w), (height, width) = m.grid, m.token_grid
    truth = scorer.truth[::2].reshape(len(rows), h, height // h, w, width // w).mean(axis=(2, 4)).reshape(len(rows), -1)
    truth = truth - truth.mean(axis=1, keepdims=True)
    products, wanted = np.zeros((m.num_blocks, m.num_blocks)), np.zeros(m.num_blocks)
    for seed in range(len(m.seeds)):
        maps = np.asarray(scorer.attention(rows, seed), np.float64)  # [b J N]
        maps = maps - maps.mean(axis=2, keepdims=True)
        maps /= np.maximum(maps.std(axis=(1, 2), keepdims=True), 1e-30)
        products += np.einsum("bjn,bkn->jk", maps, maps)
        wanted += np.einsum("bjn,bn->j", maps, truth)
    values, vectors = np.linalg.eigh(products)
    root = vectors * np.sqrt(np.maximum(values, values.max() * 1e-12))  # products = root @ root.T
    weights, _ = nnls(root.T, np.linalg.lstsq(root, wanted, rcond=None)[0])
    if not weights.any():
        weights[:] = 1.0
    weights /= weights.sum()
    members = np.flatnonzero(weights > 1e-6)
    return BlockSet(f"{LEARNT} {name_of(members.tolist())}", LEARNT, tuple(weights.tolist()))


# ---- what is told


Readings = Mapping[str, tuple[Sequence[int], str]]  # {role: (blocks, signal)} of edits


def summary(found: Candidates, config: AblationConfig, readings: Readings | None = None) -> dict:
    """The winner and what it is compared with, on the odd examples."""
    winner = found.chosen_by(lambda entry: entry["kind"] != LEARNT)
    told = compared(found, winner, rivals(found, winner, config.search.shown, readings), config.statistics)
    return {
        "objective": config.search.objective,
        "candidates": len(found.entries),
        "examples": {"even": int(found.values[:, ::2].shape[1]), "odd": int(found.values[:, 1::2].shape[1])},
        "statistics": dataclasses.asdict(config.statistics),
        "winner": told[0],
        "rivals": told[1:],
    }


def rivals(found: Candidates, winner: int, shown: int, readings: Readings | None = None) -> dict[str, int]:
    """{role: candidate} that the winner is compared with: of each kind and of each value of each axis, the best.

    Args:
      readings: what the model itself reads, and what the paper does at this depth.
    """
    best = found.entries[winner]
    own = {"group": "all", "head": "mean", "filter": "adaptive", "upsampling": "bicubic"}
    same_view = [entry for entry in found.entries if view_of(entry) == view_of(best)]
    roles: dict[str, int | None] = {"best single block": found.chosen_by(lambda entry: len(entry["blocks"]) == 1)}
    for role, (layers, signal) in (readings or {}).items():
        roles[role] = found.chosen_by(
            lambda entry, layers=layers, signal=signal: (
                tuple(entry["blocks"]) == tuple(layers)
                and entry["kind"] != LEARNT
                and all(entry[axis] == value for axis, value in (own | {"signal": signal}).items())
            )
        )
    of_view = {id(entry) for entry in same_view}
    for kind in dict.fromkeys(entry["kind"] for entry in same_view):
        roles[f"{kind}, same view"] = found.chosen_by(
            lambda entry, kind=kind: entry["kind"] == kind and id(entry) in of_view
        )
    roles["best trial of the study"] = found.chosen_by(lambda entry: entry["kind"] == STUDY)
    roles["best range"] = found.chosen_by(lambda entry: "-" in entry["set"] and entry["kind"] != LEARNT)
    for axis in AXES:
        for value in dict.fromkeys(entry[axis] for entry in found.entries):
            if value != best[axis]:
                roles[f"best with {axis} {value}"] = found.chosen_by(
                    lambda entry, axis=axis, value=value: entry[axis] == value and entry["kind"] != LEARNT
                )
    order = np.argsort(-np.nan_to_num(found.even, nan=-np.inf), kind="stable")
    for place, index in enumerate(order[: shown + 1]):
        roles[f"number {place + 1}"] = int(index)
    picked: dict[int, str] = {}
    for role, index in roles.items():
        if index is not None and index != winner:
            picked.setdefault(index, role)
    return {role: index for index, role in picked.items()}


def compared(found: Candidates, winner: int, roles: dict[str, int], how: Statistics) -> list[dict]:
    """The winner and its rivals on the odd examples: intervals, paired differences, corrected p-values."""
    odd = found.values[:, 1::2]
    others = list(roles.values())
    p_values = statistics.paired_p_values(odd[winner], odd[others].T, how) if others else np.zeros(0)
    adjusted = statistics.corrected(p_values)
    told = [_told("winner", found, winner, how)]
    for role, index, p_value, q_value in zip(roles, others, p_values, adjusted, strict=True):
        difference = statistics.interval(odd[index] - odd[winner], how)
        told.append(
            _told(role, found, index, how)
            | {"difference": difference._asdict(), "p": float(p_value), "q": float(q_value)}
            | {"differs": bool(q_value <= how.false_discoveries)}
        )
    return told


def _told(role, found, index, how) -> dict:
    entry = found.entries[index]
    return {
        "role": role,
        **{name: entry[name] for name in ("set", "kind", "blocks", "weights", *AXES, "threshold_rule")},
        "even": float(found.even[index]),
        "odd": statistics.interval(found.values[index, 1::2], how)._asdict(),
    }
