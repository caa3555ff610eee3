"""How well maps find a true mask: measures of many maps of one example at once, exact, from one sort of integers.

Axes    Z maps; L cells of the token grid; P cells of the truth; t thresholds
Source  average precision and AUROC as scikit-learn defines them; pointing game: Zhang et al., arXiv 1608.00507
Differs relevances that differ by less than 2 / SCALE are equal

A relevance becomes an integer whose last bit is the truth, so that sorting integers sorts both. All else follows from the ranks
of the true cells, which are few.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

SCALE = 2.0**28  # of a relevance in an integer: 30 bits for -2 to 2, one for the sign, one for the truth
LIMIT = 1.999
GRID = np.round(np.linspace(0.05, 0.95, 37), 4)  # thresholds that a choice is made of


class Ranked(NamedTuple):
    """Maps [Z] of one example, sorted."""

    keys: np.ndarray  # int32 [Z L]: ascending in -relevance, true cells first where equal
    places: np.ndarray  # int32 [Z P]: ranks of the true cells from 1, best first


class Counts(NamedTuple):
    """What thresholds choose, relevance >= threshold, of L cells of which P are true."""

    chosen: np.ndarray  # int32 [Z t]
    right: np.ndarray  # int32 [Z t]: of these, the true ones
    true: int  # P
    cells: int  # L


def to_keys(relevance: jax.Array, truth: jax.Array) -> jax.Array:
    """Relevance [... L] and truth bool [... L] -> int32 keys [... L] to be sorted. Pure."""
    scaled = jnp.round(jnp.clip(-relevance, -LIMIT, LIMIT) * SCALE).astype(jnp.int32)
    return 2 * scaled + jnp.where(truth, 0, 1)


def ranked(keys: np.ndarray, true: int) -> Ranked:
    """Sorts the keys [Z L] of maps of one example, of which `true` cells are true."""
    keys = np.sort(keys, axis=-1)
    places = np.flatnonzero((keys & 1).reshape(-1) == 0).astype(np.int64) % keys.shape[1] + 1
    return Ranked(keys, places.reshape(len(keys), true).astype(np.int32))


def rank_measures(maps: Ranked) -> dict[str, np.ndarray]:
    """Measures that need no threshold: ap, auroc, iou_best (over all thresholds) and pointing. -> {name: float32 [Z]}

    NaN where the truth is empty or everything. pointing: the share of true cells among those of the highest relevance.
    """
    keys, places = maps
    count, cells, true = len(keys), keys.shape[1], places.shape[1]
    if true in (0, cells):
        return {name: np.full(count, np.nan, np.float32) for name in ("ap", "auroc", "iou_best", "pointing")}
    found = np.arange(1, true + 1, dtype=np.float32)
    ranks = places.astype(np.float32)
    measures = {
        "ap": (found / ranks).mean(axis=1),
        "auroc": 1 - (ranks - found).sum(axis=1) / np.float32(true * (cells - true)),
        "iou_best": (found / (ranks + true - found)).max(axis=1),
        "pointing": (places[:, 0] == 1).astype(np.float32),
    }
    at = places - 1
    own = np.take_along_axis(keys, at, axis=1)
    following = np.take_along_axis(keys, np.minimum(at + 1, cells - 1), axis=1)
    tied = ((own >> 1 == following >> 1) & (places < cells)).any(axis=1)
    for index in np.flatnonzero(tied):
        for name, value in _with_ties(keys[index], true).items():
            measures[name][index] = value
    return measures


def _with_ties(keys, true) -> dict[str, float]:
    """The measures of one map in which cells of equal relevance count together."""
    values, truth = keys >> 1, 1 - (keys & 1)
    ends = np.append(np.flatnonzero(values[1:] != values[:-1]), len(keys) - 1)  # the last cell of each value
    right, chosen = np.cumsum(truth)[ends], ends + 1
    new = np.diff(right, prepend=0)
    wrong = chosen - right
    below = np.diff(wrong, prepend=0)  # false cells of the value
    area = (new * ((len(keys) - true) - wrong + below / 2)).sum() / (true * (len(keys) - true))
    return {
        "ap": float((new * right / chosen).sum() / true),
        "auroc": float(area),
        "iou_best": float((right / (chosen + true - right)).max()),
        "pointing": float(right[0] / chosen[0]),
    }


def counts(maps: Ranked, thresholds: np.ndarray) -> Counts:
    """What each threshold chooses of each map: thresholds [t] for all, or [Z t] of each."""
    keys, places = maps
    limits = 2 * np.round(np.clip(-np.asarray(thresholds, np.float32), -LIMIT, LIMIT) * SCALE).astype(np.int32) + 1
    limits = np.broadcast_to(limits, (len(keys), limits.shape[-1]))
    chosen = _count_sorted(keys, limits)
    right = _count_sorted(places, chosen)
    return Counts(chosen, right, places.shape[1], keys.shape[1])


def _count_sorted(values, limits) -> np.ndarray:
    """How many of the ascending values [Z L] are <= each limit [Z t]: a binary search of all together. -> int32 [Z t]"""
    length = values.shape[1]
    found = np.zeros(limits.shape, np.int32)
    step = 1 << max(length.bit_length() - 1, 0)
    while step and length:
        tried = found + step
        inside = np.take_along_axis(values, np.minimum(tried, length) - 1, axis=1) <= limits
        found = np.where((tried <= length) & inside, tried, found)
        step //= 2
    return found


def threshold_measures(counted: Counts) -> dict[str, np.ndarray]:
    """Measures of hold with some thresholds. -> {name: float32 [Z t]}

    iou, f1  of what is released (relevance >= threshold) with the truth
    kept_wrongly      share of the true cells that a hold would keep
    released_wrongly  share of the other cells that it would release
    """
    chosen, right = (x.astype(np.float32) for x in counted[:2])
    true, others = np.float32(counted.true), np.float32(counted.cells - counted.true)
    with np.errstate(invalid="ignore", divide="ignore"):
        return {
            "iou": right / (chosen + true - right),
            "f1": 2 * right / (chosen + true),
            "kept_wrongly": (true - right) / true,
            "released_wrongly": (chosen - right) / others,
        }
