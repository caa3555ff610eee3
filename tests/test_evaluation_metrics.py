"""Figures of the evaluation against independent formulas."""

import benchmark_data as made
import numpy as np
import pytest
from PIL import Image

from editmgt_jax.evaluation import pixels, stats
from editmgt_jax.evaluation.leakage import band_of, leakage
from editmgt_jax.evaluation.protocol import Traces


def pair(seed=0, size=(24, 20)):
    return (np.asarray(made.picture(seed + i, size), float) / 255 for i in (0, 1))


def test_ssim_is_the_mean_over_windows():
    a, b = pair()
    x = np.arange(-5, 6)
    window = np.exp(-(x[:, None] ** 2 + x[None] ** 2) / (2 * 1.5**2))
    window /= window.sum()
    values = []
    for top in range(20 - 10):
        for left in range(24 - 10):
            for channel in range(3):
                p, q = (array[top : top + 11, left : left + 11, channel] for array in (a, b))
                mean_p, mean_q = (window * p).sum(), (window * q).sum()
                var_p, var_q = (window * (p - mean_p) ** 2).sum(), (window * (q - mean_q) ** 2).sum()
                cov = (window * (p - mean_p) * (q - mean_q)).sum()
                values.append(
                    (2 * mean_p * mean_q + 1e-4) * (2 * cov + 9e-4)
                    / ((mean_p**2 + mean_q**2 + 1e-4) * (var_p + var_q + 9e-4))
                )  # fmt: skip
    assert pixels.ssim(a, b) == pytest.approx(np.mean(values), abs=1e-9)
    assert pixels.ssim(a, a) == pytest.approx(1, abs=1e-12)


def test_errors_by_hand():
    a, b = np.zeros((2, 2, 3)), np.zeros((2, 2, 3))
    b[0, 0] = 0.5
    top = np.array([[True, True], [False, False]])
    assert pixels.l1(a, b) == 0.125 and pixels.mse(a, b) == 0.0625
    assert pixels.mse(a, b, top) == 0.0625 and pixels.mse_where(a, b, top) == 0.125
    assert pixels.mse(a, b, ~top) == 0 and pixels.psnr_where(a, b, ~top) == pixels.EQUAL
    assert pixels.psnr_of(0.01) == pytest.approx(20) and np.isnan(pixels.psnr_where(a, b, top & ~top))
    same = np.full((2, 2, 3), 51, np.uint8)
    assert pixels.l1(same, np.full((2, 2, 3), 0.2)) == pytest.approx(0)


def test_the_leakage_suite_by_hand():
    side, cell = 64, 8
    source = np.full((side, side, 3), 100, np.uint8)
    mask = np.zeros((side, side), bool)
    mask[16:32, 16:32] = True
    edited = source.copy()
    edited[16:32, 16:32] = 200
    edited[40, 60] = 110  # far from the mask
    ids = np.zeros((cell, cell), np.int32)
    changed = ids.copy()
    changed[2:4, 2:4], changed[5, 7], changed[2, 4] = 1, 1, 1
    target = source.copy()
    target[16:32, 16:32] = 190
    pictures = [Image.fromarray(array) for array in (edited, source)]
    found = leakage(*pictures, mask, Image.fromarray(target), Traces(changed, ids, pictures[1]))
    assert band_of(mask).sum() == 4 * 2 * 16 + 4 * 1  # two pixels wide, with city-block corners
    assert found["psnr_band"] == pixels.EQUAL
    outside = (10 / 255) ** 2 / (64 * 64 - 16 * 16)
    assert found["psnr_outside"] == pytest.approx(-10 * np.log10(outside))
    assert found["psnr_far"] < found["psnr_outside"]
    assert found["l1_inside"] == pytest.approx(10 / 255)
    assert found["noop"] == 0 and found["changed_inside"] == found["changed_inside_vq"] == 1
    assert found["flipped_outside"] == pytest.approx(2 / 60)
    assert found["flipped_band"] == pytest.approx(1 / 12) and found["flipped_far"] == pytest.approx(1 / 48)
    assert found["psnr_ceiling"] == pixels.EQUAL


@pytest.mark.parametrize("noise", [0, 12])
def test_an_editor_that_does_nothing_wins_nothing(noise):
    source = np.asarray(made.picture(3, (64, 64)))
    mask = np.zeros((64, 64), bool)
    mask[20:40, 20:40] = True
    dice = np.random.default_rng(0)
    ceiling = Image.fromarray(np.clip(source + dice.integers(-noise, noise + 1, source.shape), 0, 255).astype(np.uint8))
    ids = np.zeros((8, 8), np.int32)
    for idle in (ceiling, Image.fromarray(source)):  # the tokenizer's picture, and the source composited back
        found = leakage(idle, Image.fromarray(source), mask, None, Traces(ids, ids, ceiling))
        assert found["noop"] == 1 and found["changed_inside_vq"] == 0
        assert found["changed_inside"] == leakage(idle, Image.fromarray(source), mask)["changed_inside"]
        assert np.isnan(found["psnr_outside_edited"]) and np.isnan(found["flipped_outside_edited"])


def test_intervals_cover_the_mean_of_normal_samples():
    dice, covered = np.random.default_rng(1), 0
    for _ in range(60):
        values = dice.normal(3, 1, 40)
        found = stats.mean_of(values, [str(i) for i in range(40)])
        assert found["mean"] == pytest.approx(values.mean()) and found["n"] == 40
        covered += found["low"] <= 3 <= found["high"]
        # of a mean of normal values the interval is about that of Student's formula
        assert found["high"] - found["low"] == pytest.approx(2 * 1.96 * values.std() / np.sqrt(40), rel=0.15)
    assert covered >= 52


def test_rows_of_one_cluster_are_resampled_together():
    values = np.repeat([0.0, 1.0, 0.5, 0.2, 0.9, 0.4], 20)
    apart = stats.mean_of(values, [str(i) for i in range(120)])
    together = stats.mean_of(values, [str(i // 20) for i in range(120)])
    assert apart["mean"] == together["mean"]
    assert together["high"] - together["low"] > 3 * (apart["high"] - apart["low"])


def test_missing_values_and_single_clusters():
    found = stats.mean_of([1.0, np.nan, 3.0], list("abc"))
    assert found["mean"] == 2 and found["n"] == 2
    assert np.isnan(stats.mean_of([1.0, 2.0], ["a", "a"])["low"])
    assert stats.mean_of([np.nan], ["a"])["n"] == 0
    assert stats.mean_of([2.0, 2.0], list("ab")) == {"mean": 2, "low": 2, "high": 2, "n": 2}


def test_the_mean_of_groups_weighs_groups_alike():
    outcomes = [{"group": "a", "x": 1.0}] * 9 + [{"group": "b", "x": 5.0}]
    found = stats.mean_of_groups(outcomes, "x", ("a", "b", "c"))
    assert found == {"mean": 3, "low": 3, "high": 3, "n": 10}


def test_the_shift_of_groups_and_its_interval():
    dice, outcomes = np.random.default_rng(2), []
    for number in range(300):
        value = dice.normal(5, 1)
        known = dice.random() < 0.8
        outcomes.append({"group": "ab"[number % 2], "x": value if known else np.nan, "y": value if known else 3.0})
    found = stats.shift_of_groups(outcomes, "x", "y", ("a", "b", "c"))
    means = [stats.mean_of_groups(outcomes, name, ("a", "b"))["mean"] for name in ("x", "y")]
    assert found["mean"] == pytest.approx(means[1] - means[0]) and found["n"] == 300
    assert found["low"] < found["mean"] < found["high"] < 0
    # a share of 0.2 is moved by -2: its standard error is 2 sqrt(0.2 * 0.8 / 300) and little more
    assert (found["high"] - found["low"]) / 2 / 1.96 == pytest.approx(2 * np.sqrt(0.2 * 0.8 / 300), rel=0.25)
    same = stats.shift_of_groups(outcomes, "y", "y", ("a", "b"))
    assert (same["mean"], same["low"], same["high"]) == (0, 0, 0)
    assert np.isnan(stats.shift_of_groups([], "x", "y", ("a",))["mean"])
