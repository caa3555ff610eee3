import jax
import jax.numpy as jnp
import numpy as np
import pytest

from editmgt_jax.sampling import masking

pytestmark = pytest.mark.usefixtures("exact_types")

random_mask = jax.jit(masking.random_mask, static_argnums=(1, 2))


@pytest.mark.parametrize(
    "kind, expected",
    [("cosine", [14, 11, 6, 0]), ("linear", [12, 8, 4, 0])],
)
def test_hidden_counts_of_four_steps_over_sixteen_tokens(kind, expected):
    np.testing.assert_array_equal(masking.hidden_count(16, masking.decode_schedule(4, kind).hidden_ratio), expected)


def test_float32_product_loses_one_token_at_two_thirds_as_released():
    assert masking.hidden_count(4096, masking.decode_schedule(6).hidden_ratio)[3] == 2047


@pytest.mark.parametrize("kind", masking.CURVES)
@pytest.mark.parametrize("steps", [1, 2, 7, 36])
def test_ratios_fall_to_exactly_zero(kind, steps):
    ratio = masking.decode_schedule(steps, kind).hidden_ratio
    assert ratio[-1] == 0
    assert (np.diff(ratio) < 0).all()
    assert (ratio[:-1] > 0).all()


def test_time_counts_down_and_training_has_its_own():
    np.testing.assert_array_equal(masking.decode_schedule(4, "linear").time, [3, 2, 1, 0])
    assert masking.training_time(0.25, "released") == 250 and masking.training_time(0.25, "mask_rate") == 0.25


def test_a_token_is_covered_when_any_of_its_pixels_is():
    pixels = np.zeros((1, 8, 12), bool)
    pixels[0, 4, 11] = True
    expected = np.zeros((1, 2, 3), bool)
    expected[0, 1, 2] = True
    np.testing.assert_array_equal(masking.covered_tokens(pixels, (2, 3)), expected)
    np.testing.assert_array_equal(masking.covered_tokens(jnp.asarray(pixels), (2, 3)), expected)


@pytest.mark.parametrize(
    "temperature, steps, expected",
    [((2, 0), 5, [2, 1.5, 1, 0.5, 0]), (1.01, 3, [1.01, 0.51, 0.01]), ((2, 0), 1, [2]), ((0, 0), 2, [0, 0])],
)
def test_temperature_is_linear(temperature, steps, expected):
    np.testing.assert_allclose(masking.decode_schedule(steps, temperature=temperature).temperature, expected, rtol=1e-6)


def test_schedule_is_host_arrays_one_row_per_step():
    dtypes = ("int32", "float32", "float32", "float32", "int32")
    assert masking.decode_schedule(3).remasked is None
    for leaf, dtype in zip(masking.decode_schedule(3, remask_steps=1), dtypes, strict=True):
        assert isinstance(leaf, np.ndarray)
        assert (leaf.shape, leaf.dtype) == ((3,), dtype)


@pytest.mark.parametrize(
    "arguments, message",
    [
        ({"steps": 0}, "at least one"),
        ({"steps": 2, "kind": "sine"}, "cosine, linear"),
        ({"steps": 2, "remask_steps": 2}, "of 2 steps, 0 to 1 can remask, got 2"),
        ({"steps": 2, "remask_steps": -1}, "got -1"),
    ],
)
def test_wrong_settings_are_named(arguments, message):
    with pytest.raises(ValueError, match=message):
        masking.decode_schedule(**arguments)


@pytest.mark.parametrize("kind", masking.CURVES)
def test_training_and_decoding_share_the_curve(kind):
    schedule = masking.decode_schedule(8, kind)
    t = jnp.asarray((schedule.number[:-1] + 1) / 8, jnp.float32)
    np.testing.assert_allclose(masking.hidden_curve(t, kind), schedule.hidden_ratio[:-1], atol=1e-7)


def test_mask_rates_have_the_arccos_density():
    rate = jax.jit(jax.vmap(masking.sample_mask_rate))(jax.random.split(jax.random.key(0), 20_000))
    grid = np.linspace(0, 1, 21)
    below = np.searchsorted(np.sort(rate), grid) / rate.size
    np.testing.assert_allclose(below, 1 - 2 / np.pi * np.arccos(grid), atol=0.015)  # 4 sigma


@pytest.mark.parametrize("length", [1, 7, 64])
def test_masked_positions_are_counted_by_the_rate(length):
    mask, rate = random_mask(jax.random.key(1), 500, length)
    np.testing.assert_array_equal(mask.sum(1), np.maximum(1, np.round(length * np.asarray(rate))))


def test_every_position_is_equally_likely():
    mask, rate = random_mask(jax.random.key(2), 20_000, 12)
    np.testing.assert_allclose(mask.mean(0), rate.mean(), atol=0.02)


def test_min_masking_rate_clips_below():
    _, free = random_mask(jax.random.key(3), 200, 16, 0.0)
    _, clipped = random_mask(jax.random.key(3), 200, 16, 0.5)
    np.testing.assert_array_equal(clipped, np.maximum(free, 0.5))


def test_a_sample_is_masked_alike_in_any_batch():
    key = jax.random.key(4)
    whole = random_mask(key, 6, 40)
    part = random_mask(key, 2, 40)
    jax.tree.map(np.testing.assert_array_equal, part, jax.tree.map(lambda x: x[:2], whole))
    assert len({bytes(np.asarray(row)) for row in whole[0]}) == 6


def test_a_leaning_mask_hides_first_where_it_leans_to():
    changed = jnp.zeros((64, 100)).at[:, :30].set(1.0)
    plain, _ = masking.random_mask(jax.random.key(0), 64, 100)
    _, rate = masking.random_mask(jax.random.key(0), 64, 100, lean=0 * changed)
    towards, same_rate = masking.random_mask(jax.random.key(0), 64, 100, lean=-changed)
    away, _ = masking.random_mask(jax.random.key(0), 64, 100, lean=changed)
    np.testing.assert_array_equal(rate, same_rate)
    np.testing.assert_array_equal(towards.sum(1), plain.sum(1))
    np.testing.assert_array_equal(towards[:, :30].sum(1), np.minimum(plain.sum(1), 30))
    np.testing.assert_array_equal(away[:, 30:].sum(1), np.minimum(plain.sum(1), 70))


def test_temperature_that_nobody_states_falls_from_2_to_0():
    np.testing.assert_array_equal(masking.decode_schedule(3).temperature, [2.0, 1.0, 0.0])
