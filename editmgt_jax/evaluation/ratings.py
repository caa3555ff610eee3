"""Ratings from pairwise judgements: the Bradley-Terry model with ties, and a bootstrap over queries.

Axes    m systems, n comparisons
Source  Davidson 1970; GEditBench v2: ridge of weight 1 on abilities, queries resampled, ratings 1000 + 400 / ln 10 times ability

    P(first) : P(second) : P(tie)  =  exp(a) : exp(b) : 2 nu exp((a + b) / 2)
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from scipy.optimize import minimize
from scipy.special import logsumexp

MIDDLE, SCALE = 1000.0, 400 / np.log(10)
RIDGE = 1.0
BOOTSTRAPS = 1000
_NU = (-12.0, 8.0)  # of the logarithm of nu


class Comparison(NamedTuple):
    """The judgement of one query about two systems. `result`: 1 first, 0 second, 0.5 a tie."""

    query: str
    first: str
    second: str
    result: float


def abilities(
    first: np.ndarray, second: np.ndarray, counts: np.ndarray, start: np.ndarray, ridge: float = RIDGE
) -> tuple[np.ndarray, np.ndarray]:
    """Abilities of mean 0 that fit the counts best.

    Args:
      first, second: int [n] systems compared; counts: float [n 3] of first, second, tie.
      start: float [m] to search from: of all but the last system the ability, whose own is 0, then the logarithm of nu.
      ridge: weight of the squared abilities, that of the last system being 0, as in the reference.
    Returns: (float [m], what was found, as `start`)
    """

    def loss(values):
        theta, nu = np.append(values[:-1], 0.0), values[-1]
        logits = np.stack([theta[first], theta[second], nu + np.log(2) + (theta[first] + theta[second]) / 2], axis=1)
        excess = counts.sum(axis=1, keepdims=True) * np.exp(logits - logsumexp(logits, axis=1, keepdims=True)) - counts
        slope = ridge * theta
        np.add.at(slope, first, excess[:, 0] + excess[:, 2] / 2)
        np.add.at(slope, second, excess[:, 1] + excess[:, 2] / 2)
        value = ridge * (theta @ theta) / 2 - (counts * (logits - logsumexp(logits, axis=1, keepdims=True))).sum()
        return value, np.append(slope[:-1], excess[:, 2].sum())

    bounds = [(None, None)] * (len(start) - 1) + [_NU]
    found = minimize(loss, start, jac=True, method="L-BFGS-B", bounds=bounds)
    theta = np.append(found.x[:-1], 0.0)
    return theta - theta.mean(), found.x


def ratings(
    comparisons: Sequence[Comparison], bootstraps: int | None = None, seed: int = 0
) -> dict[str, dict[str, float]]:
    """{system: {mean, low, high, n}}: its rating, the 95 % interval under resampling of queries, its comparisons."""
    systems = sorted({name for each in comparisons for name in (each.first, each.second)})
    if len(systems) < 2:
        return {}
    number = {name: i for i, name in enumerate(systems)}
    pairs = sorted({(number[each.first], number[each.second]) for each in comparisons})
    pair_number = {pair: i for i, pair in enumerate(pairs)}
    queries = {query: i for i, query in enumerate(dict.fromkeys(each.query for each in comparisons))}
    counts = np.zeros((len(queries), len(pairs), 3))
    kinds = {1.0: 0, 0.0: 1, 0.5: 2}
    for each in comparisons:
        counts[queries[each.query], pair_number[number[each.first], number[each.second]], kinds[each.result]] += 1
    first, second = np.array(pairs).T
    dice = np.random.default_rng(seed)

    def fit(weights, start):
        return abilities(first, second, np.einsum("q,qpk->pk", weights, counts), start)

    main, start = fit(np.ones(len(queries)), np.zeros(len(systems)))
    resampled = (
        dice.integers(len(queries), size=len(queries)) for _ in range(BOOTSTRAPS if bootstraps is None else bootstraps)
    )
    draws = [fit(np.bincount(kept, minlength=len(queries)).astype(float), start)[0] for kept in resampled]
    low, high = np.percentile(draws, [2.5, 97.5], axis=0) if draws else (main * np.nan, main * np.nan)
    return {
        name: {
            "mean": MIDDLE + SCALE * main[i],
            "low": MIDDLE + SCALE * low[i],
            "high": MIDDLE + SCALE * high[i],
            "n": sum(name in (each.first, each.second) for each in comparisons),
        }
        for name, i in number.items()
    }
