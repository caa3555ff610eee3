"""Intervals and tests over examples. An example's seeds are averaged first: they are repeats of it, not examples of their own.

Axes    n examples; Z settings
Source  paired sign-flip test; Benjamini and Hochberg 1995, by scipy.stats.false_discovery_control
"""

from typing import NamedTuple

import numpy as np

from editmgt_jax.ablation.config import Statistics
from editmgt_jax.errors import UserError
from editmgt_jax.evaluation import stats

AT_ONCE = 2**22  # numbers of a block of sign flips in memory


class Interval(NamedTuple):
    """A mean with its confidence interval."""

    mean: float
    low: float
    high: float
    count: int  # examples


def seed_means(values: np.ndarray) -> np.ndarray:
    """values [... n seeds] -> float64 [... n]; what is not a number in any seed is none."""
    return np.asarray(values, np.float64).mean(axis=-1)


def interval(values: np.ndarray, how: Statistics) -> Interval:
    """The mean of values [n], NaN aside, with its BCa interval. Of paired differences it is the paired interval."""
    values = np.asarray(values, np.float64)
    values = values[~np.isnan(values)]
    if not values.size:
        return Interval(np.nan, np.nan, np.nan, 0)
    mean = float(values.mean())
    if values.size < 2:
        return Interval(mean, mean, mean, int(values.size))
    low, high = stats.interval(values, np.ones_like(values), how.resamples, how.confidence, how.seed)
    return Interval(mean, low, high, int(values.size))


def paired_p_values(better: np.ndarray, others: np.ndarray, how: Statistics) -> np.ndarray:
    """Two-sided p-values that the mean of others [n Z] differs from that of better [n], by flips of the differences' signs.

    At least 1 / (permutations + 1). Examples that lack a number in either are left out of their comparison. -> [Z]
    """
    differences = np.asarray(others, np.float64) - np.asarray(better, np.float64)[:, None]
    if len(differences) < 2:
        raise UserError(f"a paired test needs at least 2 examples; got {len(differences)}")
    differences = np.where(np.isnan(differences), 0.0, differences)
    seen = np.abs(differences.sum(axis=0)) * (1 - 1e-12)
    dice, extreme = np.random.default_rng(how.seed), np.zeros(differences.shape[1])
    rest, at_once = how.permutations, max(1, AT_ONCE // differences.shape[1])
    while rest:
        size = min(rest, at_once)
        signs = dice.integers(0, 2, (size, len(differences))) * 2.0 - 1
        extreme += (np.abs(signs @ differences) >= seen).sum(axis=0)
        rest -= size
    return (1 + extreme) / (how.permutations + 1)


def corrected(p_values: np.ndarray) -> np.ndarray:
    """p-values [Z] adjusted so that a limit on them limits the share of false discoveries."""
    from scipy.stats import false_discovery_control

    p_values = np.asarray(p_values, np.float64)
    return false_discovery_control(p_values) if p_values.size else p_values
