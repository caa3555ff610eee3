from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from goldens import commit_surest

from editmgt_jax.sampling import decode as dec
from editmgt_jax.sampling.localize import hold_mask
from editmgt_jax.sampling.masking import decode_schedule

pytestmark = pytest.mark.usefixtures("exact_types")

CODEBOOK, MASK, LENGTH, BATCH = 11, 13, 24, 3


@pytest.fixture(autouse=True)
def strict_promotion():
    with jax.numpy_rank_promotion("raise"), jax.numpy_dtype_promotion("strict"):
        yield


ANGLES = (np.arange(LENGTH * CODEBOOK).reshape(LENGTH, CODEBOOK) * 1.7 % 6.28).astype(np.float32)


def predict(tokens, step):
    """Logits that depend on the position, the sample's own tokens and the time; aux is a score per position in [0, 1]."""
    known = jnp.sum(jnp.where(tokens == MASK, 0, tokens), axis=1) % 7
    phase = 0.3 * known.astype(jnp.float32) + 0.1 * step.time  # [B]
    logits = 3 * jnp.sin(ANGLES[None, : tokens.shape[1]] + phase[:, None, None])
    return dec.Prediction(logits, aux=jax.nn.sigmoid(logits[..., 0]))


def hidden_tokens(batch=BATCH, length=LENGTH):
    return jnp.full((batch, length), MASK, jnp.int32)


def partly_hidden(hidden, batch=1, length=LENGTH):
    """Known ids of 0 ... after the first `hidden` positions."""
    known = jnp.arange(length, dtype=jnp.int32) % CODEBOOK
    return jnp.broadcast_to(jnp.where(jnp.arange(length) < hidden, MASK, known), (batch, length))


def hidden_per_step(result, sample=0):
    return np.sum(np.asarray(result.steps[:, sample]) == MASK, axis=-1).tolist()


REFERENCE = np.arange(BATCH * LENGTH, dtype=np.int32).reshape(BATCH, LENGTH) * 7 % CODEBOOK


def held(threshold, **settings):
    return dec.with_region_hold(predict, lambda relevance: hold_mask(relevance, threshold), REFERENCE, **settings)


def model_of(hold, threshold, step):
    return held(threshold, hold=hold, hold_step=step) if hold else predict


@partial(jax.jit, static_argnames="hold")
def compiled_run(tokens, schedule, key, hold, threshold, step):
    return dec.decode(model_of(hold, threshold, step), tokens, schedule, key, MASK)


def run(tokens, schedule, key, hold=None, threshold=0.4, step=2):
    """A decode with `predict`, compiled once per number of steps and kind of hold."""
    key = key if isinstance(key, dec.Noise) else dec.sample_keys(key, BATCH)
    return compiled_run(tokens, schedule, key, hold, np.broadcast_to(np.float32(threshold), BATCH), step)


@partial(jax.jit, static_argnames="hold")
def run_step(state, step, keys, hold):
    return dec.decode_step(model_of(hold, 0.4, 2), state, step, dec.draw_noise(keys, step.number, LENGTH), MASK)


@pytest.mark.parametrize("kind", ["cosine", "linear"])
@pytest.mark.parametrize("steps", [1, 4, 12])
def test_each_token_is_committed_once_and_never_changes(steps, kind):
    start = hidden_tokens()
    result = run(start, decode_schedule(steps, kind), jax.random.key(0))
    before = start
    for after in result.steps:
        np.testing.assert_array_equal(jnp.where(before == MASK, before, after), before)
        assert (jnp.sum(after == MASK, axis=1) < jnp.sum(before == MASK, axis=1)).all()
        before = after
    np.testing.assert_array_equal(before, result.tokens)


@pytest.mark.parametrize("hidden", [(0, 1, 2), (9, LENGTH - 1, LENGTH)])
@pytest.mark.parametrize("hold", [None, *dec.HOLDS])
def test_nothing_stays_hidden_and_known_tokens_never_change(hold, hidden):
    start = jnp.concatenate([partly_hidden(count) for count in hidden])
    result = run(start, decode_schedule(6), jax.random.key(1), hold)
    assert (result.tokens < CODEBOOK).all()
    np.testing.assert_array_equal(
        jnp.where(start == MASK, MASK, result.steps), jnp.broadcast_to(start, (6, *start.shape))
    )


@pytest.mark.parametrize("hold", [None, *dec.HOLDS])
def test_scan_equals_a_python_loop(hold):
    schedule, keys = decode_schedule(6), dec.sample_keys(jax.random.key(2), BATCH)
    result = run(hidden_tokens(), schedule, keys, hold)
    state = dec.DecodeState(hidden_tokens(), jnp.ones(BATCH))
    for i in range(6):
        state, prediction = run_step(state, jax.tree.map(lambda column, i=i: column[i], schedule), keys, hold)
        np.testing.assert_array_equal(result.steps[i], state.tokens)
        np.testing.assert_allclose(result.aux[i], prediction.aux, atol=1e-5)  # the sine, fused in another way


def test_a_key_and_the_draws_it_makes_give_the_same_result():
    schedule, keys = decode_schedule(6), dec.sample_keys(jax.random.key(3), BATCH)
    noise = jax.jit(jax.vmap(lambda step: dec.draw_noise(keys, step, LENGTH)))(jnp.arange(6))
    by_key = run(hidden_tokens(), schedule, jax.random.key(3))
    by_noise = run(hidden_tokens(), schedule, noise)
    np.testing.assert_array_equal(by_key.steps, by_noise.steps)


def test_an_oracle_is_followed_to_the_end():
    target = jax.random.randint(jax.random.key(4), (3, LENGTH), 0, CODEBOOK)
    oracle = lambda tokens, step: dec.Prediction(50 * jax.nn.one_hot(target, CODEBOOK))
    for steps in (1, 8):
        result = dec.decode(oracle, hidden_tokens(3), decode_schedule(steps), jax.random.key(5), MASK)
        np.testing.assert_array_equal(result.tokens, target)


def test_without_noise_the_surest_positions_come_first():
    certainty = jnp.arange(8, dtype=jnp.float32)
    oracle = lambda tokens, step: dec.Prediction((certainty[:, None] * jax.nn.one_hot(jnp.zeros(8, int), 5))[None])
    noise = dec.Noise(jnp.zeros((4, 1, 8)), jnp.zeros((4, 1, 8)))  # uniform 0 draws the first id
    result = dec.decode(oracle, hidden_tokens(1, 8), decode_schedule(4, "linear"), noise, MASK)
    for step, hidden in enumerate([6, 4, 2, 0]):
        np.testing.assert_array_equal(result.steps[step, 0] == MASK, jnp.arange(8) < hidden)


@pytest.mark.parametrize(
    "unknown, start_ratio, ratio, expected",
    [
        (8, 1.0, 0.5, 4),
        (8, 1.0, 0.99, 7),  # at most one less than are hidden
        (3, 1.0, 0.5, 2),
        (8, 1.0, 0.01, 1),  # at least one
        (1, 0.125, 0.5, 1),  # also where one is left
        (8, 1.0, 0.0, 0),  # but none after the last step
        (0, 0.0, 0.5, 0),
        (0, 1.0, 0.5, 0),
    ],
)
def test_number_hidden_again(unknown, start_ratio, ratio, expected):
    tokens, step = partly_hidden(unknown, length=8), decode_schedule(1)
    step = step._replace(hidden_ratio=jnp.float32(ratio), temperature=jnp.float32(0))
    probability = jnp.linspace(0.1, 0.9, 8)[None]
    after = commit_surest(
        tokens, jnp.zeros((1, 8), int), probability, jnp.zeros((1, 8)), step, jnp.array([start_ratio]), MASK
    )
    assert jnp.sum(after == MASK) == expected
    np.testing.assert_array_equal(after[:, unknown:], tokens[:, unknown:])


def test_a_single_token_is_decoded():
    result = dec.decode(predict, hidden_tokens(1, 1), decode_schedule(3), jax.random.key(0), MASK)
    assert result.tokens[0, 0] < CODEBOOK


def test_ties_with_the_cutoff_are_kept():
    step = decode_schedule(1)._replace(hidden_ratio=jnp.float32(0.5), temperature=jnp.float32(0))
    probability = jnp.array([[0.1, 0.3, 0.3, 0.3, 0.3, 0.9]])  # n = 3: the cut-off is 0.3
    after = commit_surest(
        hidden_tokens(1, 6), jnp.zeros((1, 6), int), probability, jnp.zeros((1, 6)), step, jnp.ones(1), MASK
    )
    np.testing.assert_array_equal(after, [[MASK, 0, 0, 0, 0, 0]])


def test_impossible_candidates_are_hidden_first_and_known_tokens_outlast_any_noise():
    step = decode_schedule(1)._replace(hidden_ratio=jnp.float32(0.5), temperature=jnp.float32(2))
    gumbel = jnp.array([[0.0, 1e30, 0.0, -1e30]])
    after = commit_surest(
        partly_hidden(2, length=4), jnp.full((1, 4), 5), jnp.array([[0.0, 0.5, 0, 0]]), gumbel, step, jnp.ones(1), MASK
    )
    np.testing.assert_array_equal(after, [[MASK, 5, 2, 3]])


def test_the_schedule_is_for_each_samples_own_hidden_share():
    start = jnp.concatenate([partly_hidden(8), partly_hidden(16), partly_hidden(24)])
    result = run(start, decode_schedule(4, "linear"), jax.random.key(6))
    assert [hidden_per_step(result, sample) for sample in range(3)] == [[6, 4, 2, 0], [12, 8, 4, 0], [18, 12, 6, 0]]


@pytest.mark.parametrize("hold", dec.HOLDS)
def test_a_batch_equals_each_sample_alone(hold):
    start = jnp.concatenate([partly_hidden(9), hidden_tokens(1), partly_hidden(20)])
    keys, schedule = dec.sample_keys(jax.random.key(7), BATCH), decode_schedule(6)
    thresholds = np.array([0.4, 0.6, 0.1], np.float32)
    together = run(start, schedule, keys, hold, thresholds)

    @jax.jit
    def alone(tokens, key, ids, threshold):
        model = dec.with_region_hold(
            predict, lambda relevance: hold_mask(relevance, threshold), ids, hold=hold, hold_step=2
        )
        return dec.decode(model, tokens, schedule, key, MASK).steps

    for i in (slice(0, 1), slice(1, 2), slice(2, 3)):
        np.testing.assert_array_equal(together.steps[:, i], alone(start[i], keys[i], REFERENCE[i], thresholds[i]))


def test_keys_of_either_kind_and_a_wrong_number():
    old, new = dec.sample_keys(jax.random.PRNGKey(8), 3), dec.sample_keys(jax.random.key(8), 3)
    np.testing.assert_array_equal(jax.random.key_data(old), jax.random.key_data(new))
    with pytest.raises(ValueError, match="3 samples"):
        dec.sample_keys(new[:2], 3)


@pytest.mark.parametrize("hold", dec.HOLDS)
def test_threshold_zero_is_off_and_above_one_holds_everything(hold):
    arguments = hidden_tokens(), decode_schedule(6), jax.random.key(9)
    np.testing.assert_array_equal(run(*arguments, hold, 0.0, 0).steps, run(*arguments).steps)
    np.testing.assert_array_equal(run(*arguments, hold, 1.01, 0).tokens, REFERENCE)


def test_released_hold_acts_on_hidden_positions_by_the_relevance_of_the_step():
    before = hidden_tokens()
    result = run(before, decode_schedule(6), jax.random.key(10), "released", 0.5)
    for after, relevance in zip(result.steps, result.aux, strict=True):
        committed = (before == MASK) & (after != MASK)
        keep = committed & (relevance < 0.5)
        assert keep.any()
        np.testing.assert_array_equal(jnp.where(keep, after, 0), jnp.where(keep, REFERENCE, 0))
        before = after


@pytest.mark.parametrize("step", [0, 2, 5])
def test_hold_from_step_freezes_what_it_keeps_for_good(step):
    arguments = hidden_tokens(), decode_schedule(6), jax.random.key(11)
    result, plain = run(*arguments, "from_step", 0.5, step), run(*arguments)
    np.testing.assert_array_equal(result.steps[:step], plain.steps[:step])
    before = result.steps[step - 1] if step else hidden_tokens()
    keep = (before == MASK) & (result.aux[step] < 0.5)
    assert keep.any()
    for after in result.steps[step:]:
        np.testing.assert_array_equal(jnp.where(keep, after, 0), jnp.where(keep, REFERENCE, 0))


def test_hold_from_step_zero_is_an_inpainting_of_the_rest():
    """The model sees its first, wholly hidden tokens as the inpainting does, so that all else must agree."""
    keep = jnp.stack([jnp.arange(LENGTH) % 3 == i for i in range(BATCH)])
    start, schedule, key = jnp.where(keep, REFERENCE, MASK), decode_schedule(6), jax.random.key(12)
    seen = lambda tokens, step: predict(jnp.where(keep, REFERENCE, tokens), step)
    model = dec.with_region_hold(seen, lambda aux: keep, REFERENCE, hold="from_step")
    result = dec.decode(model, hidden_tokens(), schedule, key, MASK)
    np.testing.assert_array_equal(result.steps, run(start, schedule, key).steps)


def test_unknown_hold_is_named():
    with pytest.raises(ValueError, match="released, from_step"):
        held(0.5, hold="frozen")


def test_logits_that_could_draw_the_mask_id_are_refused():
    wide = lambda tokens, step: dec.Prediction(jnp.zeros((*tokens.shape, MASK + 1)))
    with pytest.raises(ValueError, match="cut them to the codebook"):
        dec.decode(wide, hidden_tokens(), decode_schedule(2), jax.random.key(0), MASK)


def test_draws_follow_the_distribution_and_skip_impossible_ids():
    logits = jnp.log(jnp.array([0.0, 0.1, 0.0, 0.6, 0.3, 0.0]))
    uniform = jnp.linspace(0, 1, 10_000, endpoint=False)[None]
    drawn = dec.draw_ids(jnp.broadcast_to(logits, (1, 10_000, 6)), uniform)
    np.testing.assert_allclose(np.bincount(drawn[0], minlength=6) / 10_000, [0, 0.1, 0, 0.6, 0.3, 0], atol=2e-4)
    assert dec.draw_ids(logits[None, None], jnp.ones((1, 1)))[0, 0] == 5  # outside [0, 1): still an id


@pytest.mark.parametrize("codes", [4097, 8192])
def test_draws_among_many_codes_invert_the_distribution_function(codes):
    """Each drawn id is where the exact distribution function passes the random number, but for rounding."""
    dice = np.random.default_rng(0)
    logits = (5 * dice.standard_normal((2, 300, codes))).astype(np.float32)
    uniform = dice.random((2, 300), np.float32)
    uniform[0, :2] = 0.0, np.nextafter(np.float32(1), np.float32(0))
    drawn = np.asarray(dec.draw_ids(jnp.asarray(logits), jnp.asarray(uniform)))
    exact = np.exp(np.float64(logits))
    until = np.cumsum(exact, axis=-1) / exact.sum(axis=-1, keepdims=True)
    upper = np.take_along_axis(until, drawn[..., None], axis=-1)[..., 0]
    lower = np.where(drawn > 0, np.take_along_axis(until, np.maximum(drawn - 1, 0)[..., None], axis=-1)[..., 0], 0.0)
    assert np.all(lower <= uniform + 2e-6) and np.all(uniform <= upper + 2e-6)
    assert codes - 128 <= dec.draw_ids(jnp.asarray(logits[:1, :1]), jnp.ones((1, 1)))[0, 0] < codes  # still an id


def test_probability_of_is_the_softmax():
    logits = jnp.asarray(np.random.default_rng(0).normal(size=(2, 3, CODEBOOK)) * 5, jnp.float32)
    ids = jnp.array([[0, 3, 10], [5, 5, 1]])
    expected = np.take_along_axis(np.asarray(jax.nn.softmax(logits)), np.asarray(ids)[..., None], 2)[..., 0]
    np.testing.assert_allclose(dec.probability_of(ids, logits), expected, rtol=2e-6)


def test_sampling_temperature_moves_the_draw_but_not_the_confidence():
    two_ids, ten_ids = [1.0, 0.0] + [-np.inf] * 8, [3.0] + [0.0] * 9  # id 0: p = 0.73 and 0.69; halved, 0.88 and 0.98
    oracle = lambda tokens, step: dec.Prediction(jnp.array([[two_ids, ten_ids]], jnp.float32))

    @jax.jit
    def decode_two(uniform, temperature):
        noise = dec.Noise(jnp.full((2, 1, 2), uniform), jnp.zeros((2, 1, 2)))
        schedule = decode_schedule(2, "linear")
        return dec.decode(oracle, hidden_tokens(1, 2), schedule, noise, MASK, sampling_temperature=temperature).steps[
            :, 0
        ]

    for temperature, drawn in [(1.0, [1, 4]), (0.5, [0, 0])]:
        first_is_surer = decode_two(0.0, temperature)[0]
        np.testing.assert_array_equal(first_is_surer, [0, MASK])
        np.testing.assert_array_equal(decode_two(0.8, temperature)[1], drawn)


def test_guidance_mixes_the_halves_unconditional_first():
    logits = np.random.default_rng(1).normal(size=(4, 3, CODEBOOK)).astype(np.float32)
    np.testing.assert_allclose(dec.guide(logits, 6.0), logits[:2] + 6 * (logits[2:] - logits[:2]), rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(dec.guide(logits, 1.0), logits[2:], atol=1e-6)
    np.testing.assert_array_equal(dec.guide(logits, 0.0), logits[:2])


def test_guided_predict_sees_the_tokens_twice_and_keeps_the_aux():
    def both(tokens, step):
        np.testing.assert_array_equal(tokens[:BATCH], tokens[BATCH:])
        single = predict(tokens[:BATCH], step)
        return dec.Prediction(jnp.concatenate([jnp.zeros_like(single.logits), single.logits]), aux=single.aux)

    step = jax.tree.map(lambda column: column[0], decode_schedule(3))
    guided, single = dec.with_guidance(both, 2.0)(REFERENCE, step), predict(REFERENCE, step)
    np.testing.assert_allclose(guided.logits, 2 * single.logits, rtol=1e-6)
    np.testing.assert_array_equal(guided.aux, single.aux)


def test_new_values_never_recompile():
    traces = []

    @jax.jit
    def edit(tokens, schedule, key, scale, threshold, hold_step, sampling_temperature):
        traces.append(tokens.shape)
        both = lambda tokens, step: predict(tokens, step)._replace(aux=predict(tokens, step).aux[:BATCH])
        model = dec.with_region_hold(
            dec.with_guidance(both, scale),
            lambda aux: hold_mask(aux, threshold),
            REFERENCE,
            hold="from_step",
            hold_step=hold_step,
        )
        return dec.decode(model, tokens, schedule, key, MASK, sampling_temperature=sampling_temperature).tokens

    start = hidden_tokens()
    results = [
        edit(start, decode_schedule(4), jax.random.key(0), 6.0, jnp.array([0.4, 0.1, 0.3]), 1, 1.0),
        edit(
            start, decode_schedule(4, "linear", (3.0, 1.0)), jax.random.key(0), 3.0, jnp.array([0.0, 2.0, 0.5]), 0, 1.0
        ),
        edit(start, decode_schedule(4, temperature=0.5), jax.random.key(1), 1.5, jnp.ones(3), 3, 0.7),
    ]
    assert len(traces) == 1
    assert len({bytes(np.asarray(tokens)) for tokens in results}) == 3


def test_no_two_samples_or_steps_share_their_draws():
    keys = dec.sample_keys(jax.random.key(3), 3)
    noise = jax.jit(jax.vmap(lambda step: dec.draw_noise(keys, step, 8)))(np.arange(2))
    draws_of_samples = [bytes(sample) for draws in noise for sample in np.asarray(draws).reshape(6, 8)]
    assert len(set(draws_of_samples)) == 12
