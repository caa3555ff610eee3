"""Steps that hide half of the tokens again and decide them anew."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny
from test_sampled_edits import INSTRUCTION, MASK_ID, captured, edit, first_logits, picture, random_ids

from editmgt_jax.cli.shared import check_read
from editmgt_jax.declarations import SettingsError
from editmgt_jax.errors import UserError
from editmgt_jax.models.traces import traces
from editmgt_jax.sampling import decode as dec
from editmgt_jax.sampling.masking import CURVES, decode_schedule, hidden_curve
from editmgt_jax.sampling.samplers import SAMPLERS, Context, halton_ranks
from editmgt_jax.sampling.settings import Settings

CODEBOOK, MASK, GRID, BATCH = 11, 13, (4, 6), 2
LENGTH = 24
SOURCE = np.arange(BATCH * LENGTH, dtype=np.int32).reshape(BATCH, LENGTH) * 7 % CODEBOOK


def predict(tokens, step):
    """Logits that depend on all tokens; aux is what the model saw."""
    seen = jnp.sum(jnp.where(tokens == MASK, 3, tokens), axis=1).astype(jnp.float32)  # [B]
    angles = jnp.arange(LENGTH * CODEBOOK, dtype=jnp.float32).reshape(LENGTH, CODEBOOK) * 1.7
    return dec.Prediction(3 * jnp.sin(angles + seen[:, None, None]), aux=tokens)


def run(model, start, schedule, **settings):
    return jax.jit(lambda start: dec.decode(model, start, schedule, jax.random.key(0), MASK, **settings))(start)


def half(number):
    return (2 * halton_ranks(GRID) // LENGTH) + 1 == number


# ---- the schedule


@pytest.mark.parametrize("kind", CURVES)
def test_the_schedule_is_one_of_fewer_steps_and_then_halves_in_turns(kind):
    schedule, before = decode_schedule(9, kind, (2.0, 0.5), remask_steps=3), decode_schedule(6, kind, (2.0, 0.5))
    for name in ("number", "time", "hidden_ratio", "temperature"):
        np.testing.assert_array_equal(getattr(schedule, name)[:6], getattr(before, name))
    assert schedule.number.tolist() == list(range(9))
    assert schedule.remasked.tolist() == [0] * 6 + [1, 2, 1]
    assert schedule.hidden_ratio[6:].tolist() == [0.0] * 3


@pytest.mark.parametrize("kind", CURVES)
def test_the_time_of_a_remasking_step_is_that_at_which_half_is_hidden(kind):
    steps = 12
    schedule = decode_schedule(steps + 1, kind, remask_steps=1)
    progress = (1 - (schedule.time[-1:] + 1) / steps).astype(np.float32)  # row i of `steps` has the time steps - 1 - i
    np.testing.assert_allclose(hidden_curve(progress, kind), 0.5, atol=1e-6)
    assert decode_schedule(2, kind, remask_steps=1).time.tolist() == [0.0, 0.0]


# ---- the decode


@pytest.mark.parametrize("name", [name for name, sampler in SAMPLERS.items() if sampler.budget is None])
def test_each_half_is_hidden_once_more_and_decided_with_the_other_known(name):
    start = jnp.where(jnp.stack([jnp.ones(LENGTH, bool), jnp.arange(LENGTH) < 9]), MASK, SOURCE)
    model = lambda tokens, step: predict(tokens, step)._replace(priority=jnp.zeros(tokens.shape))
    knobs = dataclasses.make_dataclass("Knobs", ["copy_penalty"])(jnp.float32(3))
    context = Context(GRID, jnp.asarray(SOURCE), knobs)
    found = run(model, start, decode_schedule(5, remask_steps=2), sampler=SAMPLERS[name], context=context)
    plain = run(model, start, decode_schedule(3), sampler=SAMPLERS[name], context=context)
    np.testing.assert_array_equal(found.steps[:3], plain.steps)
    for step, number in ((3, 1), (4, 2)):
        hidden = (start == MASK) & half(number)
        np.testing.assert_array_equal(found.aux[step], jnp.where(hidden, MASK, found.steps[step - 1]))
        np.testing.assert_array_equal(hidden | (found.steps[step] == found.steps[step - 1]), True)
        assert (found.steps[step] != found.steps[step - 1]).any()
    assert (found.tokens < CODEBOOK).all() and found.passes.tolist() == [5, 5]
    np.testing.assert_array_equal(found.tokens, found.steps[-1])


def test_what_is_held_for_good_is_not_hidden_again():
    keep = jnp.arange(LENGTH) % 3 == 0
    model = dec.with_region_hold(
        predict, lambda seen: jnp.broadcast_to(keep, seen.shape), jnp.asarray(SOURCE), hold="from_step", hold_step=0
    )
    start = jnp.full((BATCH, LENGTH), MASK)
    found = run(model, start, decode_schedule(5, remask_steps=2), context=Context(GRID))
    np.testing.assert_array_equal(found.tokens[:, keep], SOURCE[:, keep])
    for step, number in ((3, 1), (4, 2)):
        np.testing.assert_array_equal(found.aux[step] == MASK, jnp.broadcast_to(half(number) & ~keep, start.shape))


def test_a_released_hold_pins_what_is_hidden_again():
    keep = jnp.arange(LENGTH) % 3 == 0
    holds = lambda step: jnp.where(step > 1, keep, False)

    def model(tokens, step):
        said = predict(tokens, step)
        return said._replace(pinned=jnp.where(holds(step.number), SOURCE, dec.FREE))

    found = run(model, jnp.full((BATCH, LENGTH), MASK), decode_schedule(3, remask_steps=1), context=Context(GRID))
    now = np.asarray(keep & half(1))
    np.testing.assert_array_equal(found.tokens[:, now], SOURCE[:, now])


@pytest.mark.parametrize(
    "settings", [{}, {"sampler": SAMPLERS["entropy"], "context": Context(GRID)}], ids=["no grid", "ends early"]
)
def test_a_decode_that_cannot_remask_is_an_error(settings):
    with pytest.raises(ValueError, match="remasking needs the grid"):
        dec.decode(
            predict,
            jnp.full((1, LENGTH), MASK),
            decode_schedule(3, remask_steps=1),
            jax.random.key(0),
            MASK,
            **settings,
        )


# ---- edits


def test_remasking_steps_have_a_guidance_scale_of_their_own(pipe):
    ids = random_ids()
    settings = dict(hold_step=1, steps=4, guidance_scale=3.0)
    plain = edit(pipe, ids, **settings | dict(steps=2))
    same, neutral, other = (
        edit(pipe, ids, remask_steps=2, remask_guidance_scale=scale, **settings) for scale in (None, 3.0, 1.0)
    )
    for found in (same, neutral, other):
        np.testing.assert_array_equal(found.step_tokens[:2], plain.step_tokens)
    np.testing.assert_array_equal(same.tokens, neutral.tokens)
    assert (other.tokens != same.tokens).any()


def test_a_scale_up_to_1_is_the_plain_weight_beside_guided_steps(pipe):
    """Guided remasking after steps at .5 is that after steps at 1, for neither of these is guided."""
    ids = random_ids()
    half_scale, one = (
        edit(pipe, ids, steps=3, remask_steps=2, guidance_scale=scale, remask_guidance_scale=3.0, hold_step=0)
        for scale in (0.5, 1.0)
    )
    np.testing.assert_array_equal(half_scale.tokens, one.tokens)
    unguided = edit(pipe, ids, steps=1, guidance_scale=1.0, hold_step=0)
    np.testing.assert_array_equal(one.step_tokens[0], unguided.tokens)


def test_the_image_counts_as_much_in_steps_that_remask(pipe):
    """Its weight is 1 + image_guidance_scale - guidance_scale."""
    settings = dict(steps=2, remask_steps=1, guidance_scale=3.0, image_guidance_scale=4.5, remask_guidance_scale=2.0)
    request, static = captured(pipe, **settings)
    same, its_static = captured(pipe, steps=2, guidance_scale=2.0, image_guidance_scale=3.5)
    last = jax.tree.map(lambda column: column[-1:], request.knobs.schedule)
    expected = first_logits(
        pipe, same._replace(knobs=same.knobs._replace(schedule=last._replace(remasked=None))), its_static
    )
    found = first_logits(pipe, request._replace(knobs=request.knobs._replace(schedule=last)), static)
    np.testing.assert_allclose(found.logits, expected.logits, rtol=1e-4, atol=1e-4)


def test_a_mask_and_neighbours(pipe):
    ids = random_ids()
    start = np.where(np.arange(8)[None, :, None] < np.array([8, 3])[:, None, None], MASK_ID, ids)
    keys = jax.vmap(jax.random.key)(jnp.arange(2))
    settings = dict(steps=4, remask_steps=2, remask_guidance_scale=1.5, hold_threshold=0.4, hold="released")
    found = edit(pipe, ids, keys, start, **settings)
    np.testing.assert_array_equal(found.tokens[start != MASK_ID], ids[start != MASK_ID])
    last = (found.step_relevance[-1] < 0.4) & (start == MASK_ID) & dec.half_of_grid(2, (8, 8)).reshape(8, 8)
    assert last.any()
    np.testing.assert_array_equal(found.tokens[last], ids[last])
    other = edit(pipe, ids[[1, 1]], keys, start[[1, 1]], **settings)
    np.testing.assert_array_equal(found.tokens[1], other.tokens[1])


def test_pictures_record_and_paint_every_step(pipe):
    result = pipe(picture(), INSTRUCTION, record=True, steps=3, remask_steps=2)
    assert result.passes.tolist() == [3] and len(pipe.paint_steps(result)) == 3
    assert (result.step_tokens != MASK_ID).all()  # recorded after a step, when nothing is hidden


def test_new_scales_compile_nothing(pipe):
    settings = dict(hold_step=1, steps=4, remask_steps=2, guidance_scale=3.0)
    edit(pipe, random_ids(), remask_guidance_scale=2.0, **settings)
    before = traces["decode"]
    edit(pipe, random_ids(), remask_guidance_scale=4.0, **settings)
    edit(pipe, random_ids(), **settings | dict(remask_steps=1))
    assert traces["decode"] == before


# ---- settings


def of_model(**chosen):
    stated = dict(default_steps=3, default_remask_steps=2, default_remask_guidance_scale=2.0)
    return Settings.resolve(dataclasses.replace(tiny.SCHEDULER_CONFIG, **stated), 3, **chosen)


@pytest.mark.parametrize(
    "chosen, steps, remasked",
    [
        ({}, 3, 2),
        ({"steps": 8}, 8, 2),
        ({"steps": 2}, 2, 1),
        ({"steps": 1}, 1, 0),
        ({"sampler": "entropy", "steps": 12}, 12, 0),
        ({"remask_steps": 0}, 3, 0),
    ],
    ids=str,
)
def test_a_model_s_own_number_goes_as_far_as_the_steps_that_were_asked_for(chosen, steps, remasked):
    settings = of_model(**chosen)
    assert (settings.steps, settings.remask_steps, settings.remask_guidance_scale) == (steps, remasked, 2.0)


def test_a_model_cannot_state_more_of_them_than_steps():
    stated = dict(default_steps=2, default_remask_steps=2)
    with pytest.raises(
        UserError, match="default_remask_steps must be fewer than the 2 default_steps, of which .*; got 2"
    ):
        dataclasses.replace(tiny.SCHEDULER_CONFIG, **stated)


@pytest.mark.parametrize(
    "chosen, message",
    [
        ({"remask_steps": 3}, "remask_steps must be fewer than the 3 steps, of which they are the last; got 3"),
        ({"steps": 1, "remask_steps": 1}, "remask_steps must be fewer than the 1 steps"),
        ({"remask_steps": -1}, "remask_steps must be an integer of at least 0"),
        ({"remask_guidance_scale": -1.0}, "remask_guidance_scale must be a number at least 0"),
        ({"sampler": "entropy", "remask_steps": 1}, "entropy ends early: choose another, or 0 remask_steps"),
        (
            {"hold": "from_step", "hold_step": 1},
            "below the 1 steps before those that remask, got 1: choose an earlier one, or fewer remask_steps",
        ),
        ({"hold": "from_step", "hold_step": 3, "remask_steps": 0}, "below the 3 steps, got 3: choose an earlier one$"),
        ({"hold": "from_step", "hold_step": -1}, "hold_step must be an integer of at least 0"),
        ({"steps": "3"}, "steps must be an integer"),
        ({"sampler": "halten"}, "sampler must be one of"),
        ({"sampler": ["halton"]}, "sampler must be one of"),
    ],
    ids=str,
)
def test_wrong_settings_are_named(chosen, message):
    with pytest.raises(SettingsError, match=message):
        of_model(**chosen)


def test_guidance_that_a_caller_switches_off_is_off_in_every_step():
    assert not of_model(guidance_scale=1.0).guided and not of_model(guidance_scale=np.float32(1)).guided
    assert of_model(guidance_scale=3.0).remask_guidance_scale == 2.0


def test_steps_that_remask_may_be_the_only_guided_ones():
    scales = dict(guidance_scale=1.0, remask_guidance_scale=2.0)
    assert of_model(**scales).guided and not of_model(remask_steps=0, **scales).guided


# ---- elsewhere


def test_a_scale_that_nothing_reads_is_refused_on_the_command_line():
    chosen = {"remask_guidance_scale": 2.0}
    with pytest.raises(
        SettingsError, match="--remask-guidance-scale is read with --remask-steps above 0 alone; it is 0"
    ):
        check_read(chosen, Settings.resolve(tiny.SCHEDULER_CONFIG, 3, **chosen))
    check_read(chosen, Settings.resolve(tiny.SCHEDULER_CONFIG, 3, remask_steps=1, steps=2, **chosen))
