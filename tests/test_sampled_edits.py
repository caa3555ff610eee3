"""Samplers and both guidances in whole edits, on the tiny model and on that of the package."""

import dataclasses
import json
import shutil
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny
from PIL import Image

import editmgt_jax
from editmgt_jax.pipeline import EditPipeline
from editmgt_jax.sampling.decode import guide_image
from editmgt_jax.sampling.edit import guided_model, traces
from editmgt_jax.sampling.samplers import SAMPLERS, halton_ranks
from editmgt_jax.sampling.settings import SettingsError

INSTRUCTION = "make the car red"
DEFAULT_MODEL = Path(editmgt_jax.__file__).parent / "assets" / "default"
MASK_ID = tiny.SCHEDULER_CONFIG.mask_token_id


def picture(size=(32, 32), seed=0):
    pixels = np.random.default_rng(seed).integers(0, 256, (6, 6, 3), np.uint8)
    return Image.fromarray(pixels).resize(size, Image.Resampling.BICUBIC)


def random_ids(batch=2, grid=(8, 8), seed=0):
    return np.random.default_rng(seed).integers(0, 32, (batch, *grid)).astype(np.int32)


def edit(pipe, ids, keys=0, start=None, **settings):
    """One program for each sampler: the hold is off by its threshold, which is traced."""
    settings = dict(hold="from_step", hold_step=1, hold_threshold=0.0, record=True) | settings
    text = [pipe.encode(INSTRUCTION)] * len(ids)
    return jax.device_get(pipe.edit_tokens(ids, text, keys=keys, start_ids=start, **settings))


# ---- samplers


def test_a_model_s_scheduler_sets_the_sampler(tmp_path):
    """The model of the package with one key more in its scheduler: every step then follows the Halton order."""
    shutil.copytree(DEFAULT_MODEL, tmp_path / "model")
    path = tmp_path / "model" / "scheduler" / "scheduler_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"default_sampler": "halton", "default_steps": 3}))
    pipe = EditPipeline.from_pretrained(tmp_path / "model")
    result = pipe(picture((64, 64)), "make the chick pink", hold_threshold=0.0, record=True)
    assert result.settings.sampler == "halton"
    ranks = halton_ranks(result.token_ids.shape[1:])
    for ids in result.step_tokens.reshape(3, -1):
        known = ids != pipe.mask_token_id
        np.testing.assert_array_equal(known, ranks < known.sum())


@pytest.mark.parametrize("name", SAMPLERS)
def test_with_hold_mask_and_neighbours(pipe, name):
    ids = random_ids()
    start = np.where(np.arange(8)[None, :, None] < np.array([8, 3])[:, None, None], MASK_ID, ids)
    keys = jax.vmap(jax.random.key)(jnp.arange(2))
    settings = dict(sampler=name, hold_threshold=0.4, temperature=(0.0, 0.0), entropy_bound=20.0)
    found = edit(pipe, ids, keys, start, **settings)
    # The user's mask and the hold.
    np.testing.assert_array_equal(found.tokens[start != MASK_ID], ids[start != MASK_ID])
    assert found.tokens.max() < 32 and found.keep[start != MASK_ID].all()
    np.testing.assert_array_equal(found.tokens[found.keep], ids[found.keep])
    # The second sample beside another first one, which has less to do.
    other = edit(pipe, ids[[1, 1]], keys, start[[1, 1]], **settings)
    for field in ("tokens", "keep", "passes"):
        np.testing.assert_array_equal(getattr(found, field)[1], getattr(other, field)[1])
    for field in ("relevance", "attention"):
        np.testing.assert_allclose(getattr(found, field)[1], getattr(other, field)[1], atol=1e-5)


@pytest.mark.parametrize("name", [name for name in SAMPLERS if name != "confidence"])
def test_each_sampler_has_its_own_order(pipe, name):
    ids = random_ids()
    assert (edit(pipe, ids, sampler=name).tokens != edit(pipe, ids).tokens).any()


def test_changes_first_without_penalty_is_confidence(pipe):
    ids = random_ids()
    plain = edit(pipe, ids)
    np.testing.assert_array_equal(edit(pipe, ids, sampler="changes_first", copy_penalty=0.0).tokens, plain.tokens)


def test_relevance_commits_where_the_instruction_points(pipe):
    found = edit(pipe, random_ids(), sampler="relevance")
    first = found.step_tokens[0] != MASK_ID
    for relevance, known in zip(found.step_relevance[0], first, strict=True):
        assert 0 < known.sum() < 64 and relevance[known].min() >= relevance[~known].max()


def test_entropy_ends_early_and_says_so(pipe):
    everything, one_by_one = (edit(pipe, random_ids(), sampler="entropy", entropy_bound=bound) for bound in (1e6, 0.0))
    assert everything.passes.tolist() == [1, 1] and one_by_one.passes.tolist() == [4, 4]
    assert [(ids == MASK_ID).sum() for ids in one_by_one.step_tokens[:, 0]] == [63, 62, 61, 0]
    np.testing.assert_array_equal(everything.step_tokens[0], everything.tokens)
    at_first = edit(pipe, random_ids(), sampler="entropy", entropy_bound=1e6, attention_step=0)
    np.testing.assert_allclose(everything.attention, at_first.attention, atol=1e-6)
    np.testing.assert_allclose(everything.relevance, everything.step_relevance[0])


def test_a_hold_after_the_end_holds_nothing_but_what_the_mask_spares(pipe):
    ids = random_ids()
    start = ids.copy()
    start[:, :4] = MASK_ID
    settings = dict(sampler="entropy", entropy_bound=1e6, hold_step=2, hold_threshold=0.6)
    np.testing.assert_array_equal(edit(pipe, ids, start=start, **settings).keep, start != MASK_ID)


def test_passes_and_painted_steps_of_a_picture(pipe):
    settings = dict(record=True, num_images=2, hold="from_step", hold_step=1)
    result = pipe(picture(), INSTRUCTION, sampler="entropy", entropy_bound=1e6, **settings)
    assert result.passes.tolist() == [1, 1] and len(pipe.paint_steps(result)) == 1
    result = pipe(picture(), INSTRUCTION, **settings)
    assert result.passes.tolist() == [4, 4] and len(pipe.paint_steps(result)) == 4


def test_samplers_that_compare_with_a_source_need_one(pipe):
    with pytest.raises(SettingsError, match="margin compares with a source image"):
        pipe.generate("a car", sampler="margin")
    assert pipe.generate("a car", sampler="halton", seed=1).token_ids.max() < 32


# ---- guidance by text and image


def captured(pipe, **settings):
    """The request and static settings of an edit of random ids."""
    calls = []
    spy = EditPipeline(pipe.model)
    spy._run = lambda request, static, progress: calls.append((request, static))
    spy.edit_tokens(random_ids(), [pipe.encode(INSTRUCTION)] * 2, negative="a sketch", **settings)
    return calls[0]


def first_logits(pipe, request, static):
    step = jax.tree.map(lambda column: column[0], request.knobs.schedule)
    tokens = request.start.reshape(len(request.start), -1)
    predict = jax.jit(lambda request: guided_model(pipe._mgt_variables, request, pipe.model.mgt, static)(tokens, step))
    return predict(request)


def test_three_passes_are_the_sum_of_single_ones(pipe):
    request, static = captured(pipe, guidance_scale=2.0, image_guidance_scale=3.5, reference_strength=1.3)
    alone = static._replace(guided=False, image_guided=False)
    without_image = request._replace(knobs=request.knobs._replace(reference_strength=jnp.float32(0)))
    neither, image, both = (
        np.asarray(first_logits(pipe, one, alone).logits)
        for one in (without_image._replace(text=request.negative), request._replace(text=request.negative), request)
    )
    assert min(np.abs(neither - image).max(), np.abs(both - image).max()) > 0.1
    text_scale, image_scale = 2.0, 1 + 3.5 - 2.0  # of InstructPix2Pix
    expected = neither + image_scale * (image - neither) + text_scale * (both - image)
    guided = first_logits(pipe, request, static)
    np.testing.assert_allclose(guided.logits, expected, rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(guided.aux.relevance, first_logits(pipe, request, alone).aux.relevance, atol=1e-5)


def test_equal_scales_give_the_tokens_of_two_passes(pipe):
    ids = random_ids()
    plain = edit(pipe, ids, guidance_scale=3.0)
    for scale in (3.0, None):
        np.testing.assert_array_equal(
            edit(pipe, ids, guidance_scale=3.0, image_guidance_scale=scale).tokens, plain.tokens
        )
    assert (edit(pipe, ids, guidance_scale=3.0, image_guidance_scale=5.0).tokens != plain.tokens).any()


@pytest.mark.parametrize("scale", [3.0, 1.0, 0.5])
def test_scales_that_are_almost_equal_give_almost_the_same(pipe, scale):
    nearly, static = captured(pipe, guidance_scale=scale, image_guidance_scale=scale + 1e-5)
    assert static.image_guided
    request, two = captured(pipe, guidance_scale=scale)
    one = first_logits(pipe, request, two).logits
    np.testing.assert_allclose(first_logits(pipe, nearly, static).logits, one, rtol=1e-4, atol=1e-3)


def test_guide_image_on_numbers():
    logits = jnp.array([1.0, 2.0, 5.0])[:, None, None]  # neither, image, both
    np.testing.assert_allclose(guide_image(logits, 2.0, 2.0), [[[8.0]]])  # 2 + 2 * 3
    np.testing.assert_allclose(guide_image(logits, 2.0, 4.0), [[[10.0]]])  # ... + 2 * 1
    np.testing.assert_allclose(guide_image(logits, 0.5, 0.5), [[[5.0]]])  # no guidance: both


def test_a_picture_from_text_alone_has_no_image_guidance(pipe):
    scheduler = dataclasses.replace(pipe.model.scheduler, default_image_guidance_scale=5.0)
    other = EditPipeline(dataclasses.replace(pipe.model, scheduler=scheduler))
    np.testing.assert_array_equal(other.generate("a car").token_ids, pipe.generate("a car").token_ids)
    with pytest.raises(SettingsError, match="image_guidance_scale"):
        pipe.generate("a car", image_guidance_scale=2.0)


def test_new_amounts_compile_nothing(pipe):
    ids = random_ids()
    edit(pipe, ids, guidance_scale=3.0, image_guidance_scale=5.0), edit(pipe, ids, sampler="changes_first")
    before = traces["decode"]
    edit(pipe, ids, guidance_scale=4.0, image_guidance_scale=1.0)
    edit(pipe, ids, sampler="changes_first", copy_penalty=1.0)
    assert traces["decode"] == before
