"""Measures of maps against scikit-learn and loops; sets of blocks by hand. Tolerance 1e-6."""

import numpy as np
import pytest

from editmgt_jax.ablation import measures, sets
from editmgt_jax.errors import UserError
from editmgt_jax.sampling.localize import hold_mask

CELLS = 60


def draw(seed, maps=20, levels=None):
    """-> relevance float32 [maps CELLS], of some levels only if asked for, and truth [CELLS]"""
    dice = np.random.default_rng(seed)
    relevance = dice.random((maps, CELLS)).astype(np.float32) * 1.4 - 0.2
    if levels:
        relevance = np.round(relevance * levels) / np.float32(levels)
    return relevance, dice.random(CELLS) < dice.uniform(0.05, 0.9)


def ranked(relevance, truth):
    return measures.ranked(np.asarray(measures.to_keys(relevance, truth)), int(truth.sum()))


@pytest.mark.parametrize("levels", [None, 1, 3, 40])
@pytest.mark.parametrize("seed", range(4))
def test_rank_measures_equal_scikit_learn(seed, levels):
    metrics = pytest.importorskip("sklearn.metrics")
    relevance, truth = draw(seed, levels=levels)
    found = measures.rank_measures(ranked(relevance, truth))
    for index, row in enumerate(relevance):
        ious = [metrics.jaccard_score(truth, row >= limit) for limit in np.unique(row)]
        top = row == row.max()
        expected = {
            "ap": metrics.average_precision_score(truth, row),
            "auroc": metrics.roc_auc_score(truth, row),
            "iou_best": max(ious),
            "pointing": truth[top].mean(),
        }
        for name, value in expected.items():
            assert found[name][index] == pytest.approx(value, abs=1e-6), name


@pytest.mark.parametrize("levels", [None, 3])
@pytest.mark.parametrize("seed", range(4))
def test_threshold_measures_equal_scikit_learn_and_the_hold(seed, levels):
    metrics = pytest.importorskip("sklearn.metrics")
    relevance, truth = draw(seed, levels=levels)
    thresholds = np.array([0.05, 0.3, 1 / 3, 0.95, 1.3], np.float32)
    found = measures.threshold_measures(measures.counts(ranked(relevance, truth), thresholds))
    for index, row in enumerate(relevance):
        for t, threshold in enumerate(thresholds[:-1]):
            keep = np.asarray(hold_mask(row[None], threshold))[0]
            assert found["iou"][index, t] == pytest.approx(metrics.jaccard_score(truth, ~keep), abs=1e-6)
            assert found["f1"][index, t] == pytest.approx(metrics.f1_score(truth, ~keep), abs=1e-6)
            assert found["kept_wrongly"][index, t] == pytest.approx(keep[truth].mean(), abs=1e-6)
            assert found["released_wrongly"][index, t] == pytest.approx((~keep)[~truth].mean(), abs=1e-6)


def test_thresholds_of_each_map():
    relevance, truth = draw(0)
    together = measures.counts(ranked(relevance, truth), measures.GRID)
    each = measures.counts(ranked(relevance, truth), measures.GRID[np.arange(20)][:, None])
    np.testing.assert_array_equal(each.chosen[:, 0], np.diagonal(together.chosen))
    np.testing.assert_array_equal(each.right[:, 0], np.diagonal(together.right))


@pytest.mark.parametrize("truth", [np.zeros(CELLS, bool), np.ones(CELLS, bool)])
def test_a_truth_of_nothing_or_everything_measures_nothing(truth):
    found = measures.rank_measures(ranked(draw(0)[0], truth))
    assert all(np.isnan(values).all() for values in found.values())


def test_sets_by_hand():
    found = sets.named_sets(("singles", "ranges", "released", "default", "0,3", "1-2"), 4, (1, 3))
    assert [one.name for one in found] == ["0", "1", "2", "3", "0-1", "0-2", "0-3", "1-2", "1-3", "2-3", "1,3", "0,3"]
    assert found[5].weights == pytest.approx((1 / 3, 1 / 3, 1 / 3, 0)) and found[5].blocks == (0, 1, 2)
    assert len(sets.named_sets(("subsets",), 5, (0,))) == 31
    drawn = sets.random_blocks(8, 100, 0)
    assert len(set(drawn)) == 100 and drawn == sets.random_blocks(8, 100, 0) != sets.random_blocks(8, 100, 1)
    assert len(sets.random_blocks(3, 100, 0)) == 7


@pytest.mark.parametrize(
    "name, message",
    [
        ("8", "blocks from 0 to 7"),
        ("3-2", "at least one"),
        ("", "such as '2-4'"),
        ("single", "one of singles, ranges"),
        ("1,1", "distinct"),
    ],
)
def test_a_wrong_set_is_one_line(name, message):
    with pytest.raises(UserError, match=message) as error:
        sets.named_sets((name,), 8, (2,))
    assert "\n" not in str(error.value)
