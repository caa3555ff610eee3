"""Ratings from pairwise judgements: known abilities, and a closed form."""

import math

import numpy as np
import pytest

from editmgt_jax.evaluation.ratings import Comparison, ratings


def test_ratings_recover_known_abilities():
    abilities, dice = {"a": 0.8, "b": 0.0, "c": -0.8}, np.random.default_rng(0)
    comparisons = []
    for query in range(400):
        for first, second in (("a", "b"), ("b", "c"), ("c", "a")):
            weights = np.exp(
                [abilities[first], abilities[second], np.log(2 * 0.3) + (abilities[first] + abilities[second]) / 2]
            )
            result = (1.0, 0.0, 0.5)[dice.choice(3, p=weights / weights.sum())]
            comparisons.append(Comparison(str(query), first, second, result))
    found = ratings(comparisons, bootstraps=100)
    for name, ability in abilities.items():
        figure = found[name]
        assert figure["mean"] == pytest.approx(1000 + 400 / np.log(10) * ability, abs=25)
        assert figure["low"] < figure["mean"] < figure["high"] and figure["n"] == 800


def test_two_systems_without_ties_have_the_closed_form():
    comparisons = [Comparison(str(n), "a", "b", float(n < 30)) for n in range(40)]
    found = ratings(comparisons, bootstraps=50)
    # the ridge of weight 1 holds back the odds of 3 a little: the slope of its penalty is the ability difference
    difference = (found["a"]["mean"] - found["b"]["mean"]) * np.log(10) / 400
    assert 40 / (1 + math.exp(-difference)) - 30 + difference == pytest.approx(0, abs=1e-3)
    assert ratings(comparisons[:0]) == {}
