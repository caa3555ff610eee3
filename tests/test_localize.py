"""Localisation against scipy.ndimage, numpy and a loop over bicubic taps. Float32 against float64: 2e-6."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import ndimage

from editmgt_jax.sampling import localize as loc

pytestmark = pytest.mark.usefixtures("exact_types")

GRIDS = [(9, 9), (5, 14), (3, 7), (1, 6)]  # the smallest are narrower than the blur
TOLERANCE = 2e-6


@pytest.fixture(autouse=True)
def strict_promotion():
    with jax.numpy_rank_promotion("raise"), jax.numpy_dtype_promotion("strict"):
        yield


def random_relevance(grid, batch=3, seed=0):
    return np.random.default_rng(seed).random((batch, *grid)).astype(np.float32) ** 4


def slow_rescale(relevance):
    return (relevance - relevance.min()) / (relevance.max() - relevance.min() + 1e-8)


def slow_filter(relevance, kind, strength, keep_peaks):
    """One sample, in float64, by the library calls that the released code makes."""
    relevance = relevance.astype(np.float64)
    if kind == "gaussian":
        smooth = ndimage.gaussian_filter(relevance, 2 * strength, mode="reflect")
    else:
        variance = slow_rescale(ndimage.generic_filter(relevance, np.var, size=5, mode="reflect"))
        weight = 1 - 0.7 * variance
        smooth = weight * ndimage.gaussian_filter(relevance, 1.5 * strength, mode="reflect") + (1 - weight) * relevance
    if keep_peaks:
        peaks = relevance > np.percentile(relevance, 90)
        smooth[peaks] = 0.7 * relevance[peaks] + 0.3 * smooth[peaks]
    return relevance.min() + (smooth - smooth.min()) / np.ptp(smooth) * np.ptp(relevance)


def slow_bicubic(relevance, grid, a=-0.75):
    def cubic(x):
        x = abs(x)
        if x <= 1:
            return (a + 2) * x**3 - (a + 3) * x**2 + 1
        return a * x**3 - 5 * a * x**2 + 8 * a * x - 4 * a if x < 2 else 0.0

    def along_last(values, new):
        old, out = values.shape[-1], []
        for i in range(new):
            x = (i + 0.5) * old / new - 0.5
            taps = range(int(np.floor(x)) - 1, int(np.floor(x)) + 3)
            out.append(sum(cubic(x - tap) * values[..., min(max(tap, 0), old - 1)] for tap in taps))
        return np.stack(out, -1)

    return along_last(along_last(relevance.astype(np.float64), grid[1]).swapaxes(-1, -2), grid[0]).swapaxes(-1, -2)


@pytest.mark.parametrize("grid", GRIDS)
@pytest.mark.parametrize("kind", ["gaussian", "adaptive"])
@pytest.mark.parametrize("strength, keep_peaks", [(1.0, True), (0.5, False)])
def test_filter_equals_scipy(grid, kind, strength, keep_peaks):
    relevance = random_relevance(grid)
    expected = np.stack([slow_filter(sample, kind, strength, keep_peaks) for sample in relevance])
    np.testing.assert_allclose(loc.filter_relevance(relevance, kind, strength, keep_peaks), expected, atol=TOLERANCE)


def test_filter_none_leaves_the_scores():
    relevance = random_relevance((4, 6))
    np.testing.assert_array_equal(loc.filter_relevance(relevance, "none"), relevance)


@pytest.mark.parametrize("kind", ["gaussian", "adaptive"])
def test_strength_zero_does_not_blur(kind):
    relevance = random_relevance((4, 6))
    np.testing.assert_allclose(loc.filter_relevance(relevance, kind, 0.0), relevance, atol=TOLERANCE)


@pytest.mark.parametrize("kind", loc.FILTERS)
def test_constant_scores_stay_constant_and_finite(kind):
    np.testing.assert_allclose(loc.filter_relevance(jnp.full((2, 4, 6), 0.3), kind), 0.3, atol=TOLERANCE)
    np.testing.assert_array_equal(loc.rescale(jnp.full((2, 24), 0.3)), 0)


@pytest.mark.parametrize("grid", GRIDS)
@pytest.mark.parametrize("factor", [2, 3])
def test_upsample_equals_a_loop_over_taps(grid, factor):
    relevance = random_relevance(grid)
    bigger = (grid[0] * factor, grid[1] * factor)
    np.testing.assert_allclose(loc.upsample(relevance, bigger), slow_bicubic(relevance, bigger), atol=TOLERANCE)


def test_bicubic_is_not_clipped():
    relevance = np.zeros((1, 4, 4), np.float32)
    relevance[:, :, 2:] = 1
    upsampled = loc.upsample(relevance, (8, 8))
    assert upsampled.min() < 0
    assert upsampled.max() > 1


@pytest.mark.parametrize("kind", loc.FILTERS)
def test_localize_each_sample_alone_equals_the_batch(kind):
    attention = np.random.default_rng(1).random((3, 2, 5, 4 * 6)).astype(np.float32) * np.float32(
        [[[[1]]], [[[9]]], [[[0.1]]]]
    )
    together = loc.localize(attention, (4, 6), (8, 12), kind=kind)
    alone = jnp.concatenate([loc.localize(attention[i : i + 1], (4, 6), (8, 12), kind=kind) for i in range(3)])
    assert together.shape == (3, 8, 12)
    np.testing.assert_allclose(together, alone, atol=1e-6)


def test_localize_is_its_stages_in_order():
    attention = np.random.default_rng(2).random((2, 3, 5, 7, 24)).astype(np.float32)
    relevance = np.stack([slow_rescale(sample.mean((0, 1, 2))) for sample in attention]).reshape(2, 4, 6)
    expected = slow_bicubic(np.stack([slow_filter(sample, "adaptive", 1.0, True) for sample in relevance]), (8, 12))
    np.testing.assert_allclose(loc.localize(attention, (4, 6), (8, 12)), expected, atol=2e-5)  # the mean is nearly flat


def test_localize_keeps_the_range_and_stays_on_the_grid_by_default():
    relevance = loc.localize(np.random.default_rng(3).random((2, 24)).astype(np.float32), (4, 6))
    assert relevance.shape == (2, 4, 6)
    np.testing.assert_allclose(relevance.min((1, 2)), 0, atol=TOLERANCE)
    np.testing.assert_allclose(relevance.max((1, 2)), 1, atol=TOLERANCE)


def test_wrong_settings_are_named():
    relevance = random_relevance((4, 6))
    with pytest.raises(ValueError, match="adaptive, gaussian, none"):
        loc.filter_relevance(relevance, "bilateral")
    with pytest.raises(ValueError, match="negative"):
        loc.filter_relevance(relevance, "gaussian", -1.0)
    with pytest.raises(ValueError, match="24 positions, got 25"):
        loc.localize(jnp.ones((2, 25)), (4, 6))


def test_hold_mask_thresholds():
    relevance = jnp.array([[-0.1, 0.2, 0.6, 1.1]])
    for threshold, keep in [(0, [0, 0, 0, 0]), (0.4, [1, 1, 0, 0]), (1, [1, 1, 1, 0]), (1.05, [1, 1, 1, 1])]:
        np.testing.assert_array_equal(loc.hold_mask(relevance, threshold), np.array([keep], bool))


def test_hold_mask_takes_a_threshold_per_sample_and_keeps_what_the_user_did_not_mark():
    relevance = jnp.broadcast_to(jnp.array([[0.2, 0.6]]), (3, 2)).reshape(3, 1, 2)
    keep = loc.hold_mask(relevance, jnp.array([0.0, 0.4, 2.0]))
    np.testing.assert_array_equal(keep[:, 0], [[False, False], [True, False], [True, True]])
    editable = jnp.zeros((3, 1, 2), bool).at[:, :, 0].set(True)
    np.testing.assert_array_equal(loc.hold_mask(relevance, 0.4, editable)[:, 0], [[True, True]] * 3)
    np.testing.assert_array_equal(loc.hold_mask(relevance, 0.0, editable), ~editable)
