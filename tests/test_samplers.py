"""Samplers: against slow and obvious versions, and with planted predictions."""

from fractions import Fraction
from functools import partial
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from editmgt_jax.sampling import decode as dec
from editmgt_jax.sampling.localize import hold_mask
from editmgt_jax.sampling.masking import decode_schedule
from editmgt_jax.sampling.samplers import SAMPLERS, Context, Proposal, halton_ranks

pytestmark = pytest.mark.usefixtures("exact_types")

CODEBOOK, MASK, GRID, BATCH, STEPS = 11, 13, (4, 6), 3, 6
LENGTH = GRID[0] * GRID[1]
SOURCE = np.arange(BATCH * LENGTH, dtype=np.int32).reshape(BATCH, LENGTH) * 7 % CODEBOOK
ANGLES = (np.arange(LENGTH * CODEBOOK).reshape(LENGTH, CODEBOOK) * 1.7 % 6.28).astype(np.float32)
KNOBS = SimpleNamespace(entropy_bound=np.float32(9), copy_penalty=np.float32(3))
EVERY = pytest.mark.parametrize("name", SAMPLERS)
HOLDS = pytest.mark.parametrize("hold", [None, *dec.HOLDS])


def predict(tokens, step):
    """Logits that depend on the position, the sample's own tokens and the time; the relevance of a position is its aux."""
    known = jnp.sum(jnp.where(tokens == MASK, 0, tokens), axis=1) % 7
    phase = 0.3 * known.astype(jnp.float32) + 0.1 * step.time  # [B]
    logits = 3 * jnp.sin(ANGLES[None] + phase[:, None, None])
    relevance = jax.nn.sigmoid(logits[..., 0])
    return dec.Prediction(logits, aux=relevance, priority=relevance)


def model_of(hold, source):
    if hold is None:
        return predict
    return dec.with_region_hold(predict, lambda relevance: hold_mask(relevance, 0.4), source, hold=hold, hold_step=2)


@partial(jax.jit, static_argnames=("name", "hold"))
def run(tokens, keys, source, bound, name, hold):
    knobs = SimpleNamespace(entropy_bound=bound, copy_penalty=KNOBS.copy_penalty)
    return dec.decode(
        model_of(hold, source),
        tokens,
        decode_schedule(STEPS),
        keys,
        MASK,
        sampler=SAMPLERS[name],
        context=Context(GRID, source, knobs),
    )


def decode(name, tokens, seed=0, hold=None, bound=9.0):
    return run(tokens, dec.sample_keys(jax.random.key(seed), BATCH), SOURCE, np.float32(bound), name, hold)


def starts():
    """Wholly hidden; the user's mask over half of the grid; three positions left."""
    hidden = jnp.stack([jnp.arange(LENGTH) < count for count in (LENGTH, LENGTH // 2, 3)])
    return jnp.where(hidden, MASK, jnp.asarray(SOURCE))


# ---- every sampler


@HOLDS
@EVERY
def test_each_position_is_committed_once_and_known_ones_never_change(name, hold):
    before = start = starts()
    result = decode(name, start, hold=hold)
    for after in result.steps:
        np.testing.assert_array_equal(jnp.where(before == MASK, before, after), before)
        fewer = jnp.sum(after == MASK, axis=1) < jnp.sum(before == MASK, axis=1)
        assert (fewer | (jnp.sum(before == MASK, axis=1) <= 1)).all()
        before = after
    np.testing.assert_array_equal(before, result.tokens)
    assert (result.tokens < CODEBOOK).all()


@HOLDS
@EVERY
def test_scan_equals_a_python_loop(name, hold):
    keys = dec.sample_keys(jax.random.key(1), BATCH)
    result = decode(name, starts(), seed=1, hold=hold)
    state = dec.DecodeState(starts(), jnp.sum(starts() == MASK, axis=1).astype(jnp.float32) / LENGTH)

    @jax.jit
    def one_step(state, step):
        draws, context = dec.draw_noise(keys, step.number, LENGTH), Context(GRID, SOURCE, KNOBS)
        return dec.decode_step(model_of(hold, SOURCE), state, step, draws, MASK, 1.0, SAMPLERS[name], context)[0]

    passes = np.zeros(BATCH, int)
    for step in range(STEPS):
        passes += step == 0 or np.asarray(state.tokens == MASK).any(axis=1)
        state = one_step(state, jax.tree.map(lambda column, step=step: column[step], decode_schedule(STEPS)))
        np.testing.assert_array_equal(result.steps[step], state.tokens)
    np.testing.assert_array_equal(result.passes, passes if SAMPLERS[name].budget else [STEPS] * BATCH)


@EVERY
def test_a_sample_does_not_depend_on_its_neighbours(name):
    keys = dec.sample_keys(jax.random.key(2), BATCH)
    together = decode(name, starts(), seed=2)
    for i in range(BATCH):
        one = slice(i, i + 1)
        alone = run(starts()[one], keys[one], SOURCE[one], np.float32(9), name, None)
        np.testing.assert_array_equal(together.steps[:, one], alone.steps)
        np.testing.assert_array_equal(together.passes[one], alone.passes)
        np.testing.assert_allclose(together.aux[:, one], alone.aux, atol=1e-5)


@pytest.mark.parametrize("name", [name for name, sampler in SAMPLERS.items() if sampler.budget is None])
def test_a_step_commits_what_the_schedule_says(name):
    result = decode(name, jnp.full((BATCH, LENGTH), MASK, jnp.int32))
    ratios = decode_schedule(STEPS).hidden_ratio
    hidden = np.sum(np.asarray(result.steps) == MASK, axis=2)  # [S B]
    np.testing.assert_array_equal(hidden, np.floor(LENGTH * ratios).astype(int)[:, None].repeat(BATCH, 1))


def test_confidence_is_the_default():
    keys = dec.sample_keys(jax.random.key(3), BATCH)
    plain = jax.jit(lambda tokens: dec.decode(predict, tokens, decode_schedule(STEPS), keys, MASK))(starts())
    np.testing.assert_array_equal(plain.steps, decode("confidence", starts(), seed=3).steps)


@EVERY
def test_ties_are_broken_or_kept_as_released(name):
    """A model that says the same of every position, and draws that are the same: one more than asked may not slip in."""
    flat = lambda tokens, step: dec.Prediction(jnp.zeros((*tokens.shape, CODEBOOK)), priority=jnp.zeros(tokens.shape))
    noise = dec.Noise(jnp.zeros((2, 1, LENGTH)), jnp.zeros((2, 1, LENGTH)))
    tokens, knobs = jnp.full((1, LENGTH), MASK, jnp.int32), SimpleNamespace(entropy_bound=3.0, copy_penalty=0.0)
    context = Context(GRID, jnp.zeros((1, LENGTH), jnp.int32), knobs)
    schedule = decode_schedule(2, "linear", (0.0, 0.0))
    steps = dec.decode(flat, tokens, schedule, noise, MASK, sampler=SAMPLERS[name], context=context).steps
    left = {"confidence": 0, "entropy": LENGTH - 2}.get(name, LENGTH // 2)  # two of log 11 = 2.4 nats each
    assert np.sum(np.asarray(steps[0]) == MASK) == left


# ---- halton


def _naive_ranks(rows, columns):
    """The first point of each cell, by mirrored digits and exact fractions."""

    def inverse(number, base):
        digits = []
        while number:
            digits.append(number % base)
            number //= base
        return sum((Fraction(digit, base ** (place + 1)) for place, digit in enumerate(digits)), Fraction(0))

    order, number = [], 1
    while len(order) < rows * columns:
        cell = int(inverse(number, 2) * rows), int(inverse(number, 3) * columns)
        if cell not in order:
            order.append(cell)
        number += 1
    return [order.index((row, column)) for row in range(rows) for column in range(columns)]


@pytest.mark.parametrize("grid", [(1, 1), (1, 7), (4, 6), (9, 3), (16, 16), (5, 11)])
def test_halton_ranks_are_those_of_exact_fractions(grid):
    assert halton_ranks(grid).tolist() == _naive_ranks(*grid)


def test_halton_begins_as_the_paper_does():
    """Points 1 to 4 are (1/2 1/3), (1/4 2/3), (3/4 1/9), (1/8 4/9)."""
    ranks = halton_ranks((8, 9)).reshape(8, 9)
    assert [tuple(np.argwhere(ranks == n)[0]) for n in range(4)] == [(4, 3), (2, 6), (6, 1), (1, 4)]


def test_halton_commits_in_its_order_whatever_is_predicted():
    ranks = halton_ranks(GRID)
    for seed in (4, 5):
        result = decode("halton", jnp.full((BATCH, LENGTH), MASK, jnp.int32), seed)
        for after in np.asarray(result.steps).reshape(-1, LENGTH):
            known = np.sum(after != MASK)
            np.testing.assert_array_equal(after != MASK, ranks < known)


@pytest.mark.parametrize("grid", [(16, 16), (32, 48)])
def test_halton_is_spread_evenly(grid):
    """Of a quarter of the order, each of 16 blocks of the grid has its sixteenth, give or take a half of it."""
    first = (halton_ranks(grid) < grid[0] * grid[1] // 4).reshape(4, grid[0] // 4, 4, grid[1] // 4).sum(axis=(1, 3))
    share = grid[0] * grid[1] / 64
    assert (abs(first - share) <= share / 2).all()


# ---- entropy


def planted(probabilities):
    """A model that says these distributions [L C] whatever it sees."""
    logits = jnp.log(jnp.asarray(probabilities, jnp.float32))
    return lambda tokens, step: dec.Prediction(jnp.broadcast_to(logits, (len(tokens), *logits.shape)))


def two_way(nats):
    """Distributions over 5 ids with these entropies: even over so many, or a mixture of two with the given entropy."""
    rows = []
    for wanted in nats:
        low, high = 0.5, 1.0  # of the likelier of two ids; entropy falls from log 2 to 0
        for _ in range(60):
            p = (low + high) / 2
            entropy = -p * np.log(p) - (1 - p) * np.log(max(1 - p, 1e-300))
            low, high = (p, high) if entropy > wanted else (low, p)
        rows.append([p, 1 - p, 0, 0, 0])
    return np.array(rows)


@pytest.mark.parametrize(
    "bound, committed",
    [
        (0.0, [1, 2, 3, 4, 5, 6]),  # one at a time
        (0.101, [2, 3, 4, 5, 6]),  # .1 is within, .1 + .2 is not
        (0.301, [3, 4, 5, 6]),  # .1 + .2, without the third; then .4 alone with .5 beyond it is too much
        (0.601, [4, 6]),  # .1 + .2 + .3, then .5
        (0.901, [4, 6]),
        (1.001, [5, 6]),
        (9.0, [6]),
    ],
)
def test_entropy_commits_the_longest_run_within_the_bound(bound, committed):
    model, tokens = planted(two_way([0.5, 0.1, 0.4, 0.2, 0.6, 0.3])), jnp.full((1, 6), MASK, jnp.int32)
    context = Context(knobs=SimpleNamespace(entropy_bound=jnp.float32(bound)))
    result = dec.decode(
        model, tokens, decode_schedule(9), jax.random.key(0), MASK, sampler=SAMPLERS["entropy"], context=context
    )
    known = np.sum(np.asarray(result.steps[:, 0]) != MASK, axis=1)
    assert known.tolist() == committed + [6] * (9 - len(committed))
    assert result.passes.tolist() == [len(committed)]
    order = [1, 3, 5, 2, 0, 4]  # by rising entropy
    for tokens, count in zip(np.asarray(result.steps[:, 0]), known, strict=True):
        assert set(np.flatnonzero(tokens != MASK)) == set(order[:count])


def test_entropy_commits_all_that_is_left_at_the_last_step():
    model, tokens = planted(two_way([0.5] * 6)), jnp.full((1, 6), MASK, jnp.int32)
    context = Context(knobs=SimpleNamespace(entropy_bound=0.0))
    sampler = SAMPLERS["entropy"]
    result = dec.decode(model, tokens, decode_schedule(3), jax.random.key(0), MASK, sampler=sampler, context=context)
    assert np.sum(np.asarray(result.steps[:, 0]) == MASK, axis=1).tolist() == [5, 4, 0]
    assert result.passes.tolist() == [3]


def test_steps_with_nothing_hidden_do_not_call_the_model():
    calls = []

    def counted(tokens, step):
        jax.debug.callback(lambda step: calls.append(int(step)), step.number)
        return planted(two_way([0.1, 0.5]))(tokens, step)

    tokens, context = jnp.array([[MASK, MASK], [MASK, 1]]), Context(knobs=SimpleNamespace(entropy_bound=0.0))
    result = dec.decode(
        counted, tokens, decode_schedule(7), jax.random.key(0), MASK, sampler=SAMPLERS["entropy"], context=context
    )
    jax.block_until_ready(result)
    jax.effects_barrier()
    assert sorted(calls) == [0, 1] and result.passes.tolist() == [2, 1]


def test_what_a_sample_says_last_is_kept_when_it_has_ended():
    says_step = lambda tokens, step: planted(two_way([0.1, 0.5]))(tokens, step)._replace(
        aux=jnp.broadcast_to(step.number, (len(tokens), 1))
    )
    tokens, context = jnp.array([[MASK, MASK], [MASK, 1], [1, 1]]), Context(knobs=SimpleNamespace(entropy_bound=0.0))
    result = dec.decode(
        says_step, tokens, decode_schedule(4), jax.random.key(0), MASK, sampler=SAMPLERS["entropy"], context=context
    )
    np.testing.assert_array_equal(result.aux[..., 0].T, [[0, 1, 1, 1], [0, 0, 0, 0], [0, 0, 0, 0]])
    assert result.passes.tolist() == [2, 1, 1]


# ---- orders of editors


def committed_order(name, logits, source, penalty=0.0, uniform=0.0, steps=4):
    """The order in which four positions are committed, one a step, without noise; uniform 0 draws the first id."""
    noise = dec.Noise(jnp.full((steps, 1, 4), uniform), jnp.zeros((steps, 1, 4)))
    model = lambda tokens, step: dec.Prediction(jnp.asarray([logits], jnp.float32))
    knobs, schedule = SimpleNamespace(copy_penalty=jnp.float32(penalty)), decode_schedule(steps, "linear")
    context, tokens = Context((2, 2), jnp.asarray([source]), knobs), jnp.full((1, 4), MASK, jnp.int32)
    result = dec.decode(model, tokens, schedule, noise, MASK, sampler=SAMPLERS[name], context=context)
    known = np.asarray(result.steps[:, 0]) != MASK
    return np.argsort(known.argmax(axis=0)).tolist()


# Candidates are id 0. Position 0 is a sure copy, 1 an unsure copy, 2 a sure change, 3 an unsure one.
LOGITS = np.log([[0.9, 0.05, 0.05], [0.5, 0.3, 0.2], [0.7, 0.2, 0.1], [0.4, 0.3, 0.3]])
COPIED = [0, 0, 1, 1]


def test_confidence_takes_copies_as_they_come():
    assert committed_order("confidence", LOGITS, COPIED) == [0, 2, 1, 3]


@pytest.mark.parametrize("name", ["confidence", "margin", "changes_first"])
def test_noise_is_added_to_what_orders(name):
    """Gumbel noise has a long tail on one side, so its sign matters."""
    proposal = Proposal(*(jnp.asarray(x) for x in (LOGITS[None].astype(np.float32), np.zeros((1, 4), np.int32), np.full((1, 4), -0.5, np.float32))),
                        jnp.zeros((1, 4)), jnp.ones((1, 4), bool), None)  # fmt: skip
    context = Context(source=jnp.ones((1, 4), jnp.int32), knobs=KNOBS)
    noise = jnp.array([[0.5, -1.0, 2.0, 0.0]])
    plain, noisy = (SAMPLERS[name].order(one, context) for one in (proposal, proposal._replace(noise=noise)))
    np.testing.assert_allclose(noisy - plain, noise, atol=1e-6)


def test_margin_is_relative_to_the_source_s_own_id():
    assert committed_order("margin", LOGITS, COPIED)[:2] == [2, 3]  # log 3.5, log 4/3; copies 0
    assert committed_order("margin", LOGITS, [0, 2, 1, 0])[:2] == [2, 1]  # log 3.5, log 2.5
    assert committed_order("margin", LOGITS, [1, 1, 1, 2]) == [0, 2, 1, 3]  # 18, 3.5, 5/3, 4/3


@pytest.mark.parametrize(
    "penalty, order", [(0.0, [0, 2, 1, 3]), (0.3, [2, 0, 3, 1]), (3.0, [2, 3, 0, 1]), (0.15, [0, 2, 1, 3])]
)
def test_changes_first_penalises_copies_by_so_many_nats(penalty, order):
    # log p: -.105, -.693 (copies), -.357, -.916
    assert committed_order("changes_first", LOGITS, COPIED, penalty) == order


def test_relevance_follows_the_prediction_s_priority():
    relevance = jnp.asarray([0.2, 0.9, 0.1, 0.5])
    model = lambda tokens, step: dec.Prediction(jnp.zeros((1, 4, 3)), priority=relevance[None])
    tokens, schedule = jnp.full((1, 4), MASK, jnp.int32), decode_schedule(4, "linear")
    steps = dec.decode(model, tokens, schedule, jax.random.key(0), MASK, sampler=SAMPLERS["relevance"]).steps[:, 0]
    assert np.argsort((np.asarray(steps) != MASK).argmax(axis=0)).tolist() == [1, 3, 0, 2]


def test_new_amounts_never_recompile():
    before = run._cache_size()
    tokens = [decode("entropy", starts(), seed=9, bound=bound).tokens for bound in (8.0, 1.0)]
    assert run._cache_size() <= before + 1 and (tokens[0] != tokens[1]).any()
