"""Means with bootstrap intervals.

Axes    n clusters: examples that are resampled together
Source  Efron 1987, bias-corrected and accelerated intervals (BCa), as in scipy
"""

from collections.abc import Mapping, Sequence

import numpy as np
from scipy.stats import bootstrap

RESAMPLES = 2000
LEVEL = 0.95
# Entries of an outcome that are not figures of it.
NOT_FIGURES = frozenset({"key", "group", "instruction", "output", "cluster", "skipped", "notes", "after"})


def mean_of(values: Sequence[float], clusters: Sequence[str]) -> dict[str, float]:
    """Mean of the values that are not NaN, with its interval. -> {mean, low, high, n}; low and high are NaN below two clusters.

    Args:
      clusters: a name for each value; values of one name are resampled together.
    """
    values = np.asarray(values, float)
    kept = ~np.isnan(values)
    if not kept.any():
        return {"mean": float("nan"), "low": float("nan"), "high": float("nan"), "n": 0}
    _, number = np.unique(np.asarray(clusters, object)[kept].astype(str), return_inverse=True)
    sums, counts = np.bincount(number, values[kept]), np.bincount(number).astype(float)
    low, high = interval(sums, counts)
    return {"mean": float(values[kept].mean()), "low": low, "high": high, "n": int(kept.sum())}


def interval(
    sums: np.ndarray, counts: np.ndarray, resamples: int = RESAMPLES, level: float = LEVEL, seed: int = 0
) -> tuple[float, float]:
    """The interval of sum(sums) / sum(counts) under resampling of clusters, both [n]. -> (low, high), NaN below two clusters"""
    if len(sums) < 2:
        return float("nan"), float("nan")
    ratios = sums / counts
    if np.ptp(ratios) <= 1e-9 * np.abs(ratios).max():  # every resample gives this value
        return float(ratios.min()), float(ratios.max())

    def ratio(total, count, axis=-1):
        return total.sum(axis=axis) / count.sum(axis=axis)

    found = bootstrap(
        (sums, counts),
        ratio,
        paired=True,
        vectorized=True,
        n_resamples=resamples,
        confidence_level=level,
        method="BCa",
        batch=max(1, 2_000_000 // len(sums)),
        rng=np.random.default_rng(seed),
    ).confidence_interval
    return float(found.low), float(found.high)


def metrics_of(outcomes: Sequence[Mapping]) -> list[str]:
    """Names of the figures in outcomes, in the order of their first appearance."""
    names = dict.fromkeys(name for outcome in outcomes for name in outcome)
    words = {name for outcome in outcomes for name, value in outcome.items() if isinstance(value, (str, bool))}
    return [name for name in names if name not in NOT_FIGURES and name not in words]


def column(outcomes: Sequence[Mapping], name: str) -> np.ndarray:
    """One figure of each outcome, NaN where it has none. -> float [n]"""
    return np.array([np.nan if outcome.get(name) is None else float(outcome[name]) for outcome in outcomes])


def table(outcomes: Sequence[Mapping]) -> dict[str, dict[str, float]]:
    """{metric: `mean_of` it over the outcomes}."""
    clusters = [outcome.get("cluster") or outcome["key"] for outcome in outcomes]
    return {name: mean_of(column(outcomes, name), clusters) for name in metrics_of(outcomes)}


def mean_of_groups(outcomes: Sequence[Mapping], name: str, groups: Sequence[str]) -> dict[str, float]:
    """The mean over groups of each group's mean; its percentile interval resamples outcomes within each group.

    -> {mean, low, high, n}. A group without a value is left out, as is an outcome without one.
    """
    columns = [column([outcome for outcome in outcomes if outcome["group"] == group], name) for group in groups]
    columns = [values[~np.isnan(values)] for values in columns]
    columns = [values for values in columns if len(values)]
    if not columns:
        return {"mean": float("nan"), "low": float("nan"), "high": float("nan"), "n": 0}
    dice = np.random.default_rng(0)
    draws = np.mean(
        [values[dice.integers(len(values), size=(RESAMPLES, len(values)))].mean(axis=1) for values in columns], axis=0
    )
    mean = float(np.mean([values.mean() for values in columns]))
    return {"mean": mean} | _percentiles(draws) | {"n": sum(map(len, columns))}


def shift_of_groups(outcomes: Sequence[Mapping], name: str, other: str, groups: Sequence[str]) -> dict[str, float]:
    """The mean over groups of `other` minus that of `name`, each as `mean_of_groups` has it; the interval resamples both together.

    -> {mean, low, high, n}. A draw without a value in any group is left out.
    """
    names, dice = (name, other), np.random.default_rng(0)
    before, after = (mean_of_groups(outcomes, metric, groups)["mean"] for metric in names)
    draws = np.full((2, len(groups), RESAMPLES), np.nan)
    for number, group in enumerate(groups):
        members = [outcome for outcome in outcomes if outcome["group"] == group]
        if members:
            chosen = dice.integers(len(members), size=(RESAMPLES, len(members)))
            draws[:, number] = [_means(column(members, metric)[chosen], axis=1) for metric in names]
    shifts = np.diff(_means(draws, axis=1), axis=0)[0]
    return {"mean": after - before} | _percentiles(shifts[~np.isnan(shifts)]) | {"n": len(outcomes)}


def _means(values, axis):
    """Means without NaN along an axis; NaN where there is nothing else."""
    known = ~np.isnan(values)
    return np.where(known, values, 0).sum(axis=axis) / np.where(known.any(axis=axis), known.sum(axis=axis), np.nan)


def _percentiles(draws) -> dict[str, float]:
    if not len(draws):
        return {"low": float("nan"), "high": float("nan")}
    tail = 50 * (1 - LEVEL)
    low, high = np.percentile(draws, [tail, 100 - tail])
    return {"low": float(low), "high": float(high)}
