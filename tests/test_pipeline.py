import dataclasses
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny
from PIL import Image

from editmgt_jax import images
from editmgt_jax.config import MGTConfig, SchedulerConfig, VQConfig
from editmgt_jax.images import ImageError
from editmgt_jax.models.mgt import MGT, init_mgt
from editmgt_jax.models.prompts import PromptError
from editmgt_jax.models.text import EncodedText, TextEncoder
from editmgt_jax.models.vq import VQModel
from editmgt_jax.pipeline import EditPipeline
from editmgt_jax.sampling import decode
from editmgt_jax.sampling.edit import decode_edit, traces
from editmgt_jax.sampling.settings import SettingsError
from editmgt_jax.weights import conversion
from editmgt_jax.weights.loading import LoadedModel

DATA = Path(__file__).parent / "data"
INSTRUCTION = "make the car red"
MASK_ID = tiny.SCHEDULER_CONFIG.mask_token_id


def picture(size=(32, 32), seed=0):
    """Smooth noise, so that it survives a change of size."""
    pixels = np.random.default_rng(seed).integers(0, 256, (6, 6, 3), np.uint8)
    return Image.fromarray(pixels).resize(size, Image.Resampling.BICUBIC)


def random_ids(batch=2, grid=(8, 8), seed=0):
    return np.random.default_rng(seed).integers(0, 32, (batch, *grid)).astype(np.int32)


# ---- pictures in, pictures out


@pytest.mark.parametrize("size, grid", [((32, 32), (8, 8)), ((61, 47), (8, 10)), ((33, 70), (12, 6))])
def test_result_has_the_size_of_the_input_and_the_grid_its_shape(pipe, size, grid):
    result = pipe(picture(size), INSTRUCTION)
    assert result.images[0].size == size and result.images[0].mode == "RGB"
    for ids in (result.source_ids[None], result.token_ids, result.relevance, result.keep_mask):
        assert ids.shape == (1, *grid)
    assert result.relevance.dtype == np.float32 and result.keep_mask.dtype == bool
    assert result.token_ids.max() < 32


def test_source_ids_are_those_of_the_resized_picture(pipe):
    image = picture((61, 47))
    pixels = np.asarray(image.resize((40, 32), Image.Resampling.LANCZOS), np.float32) / 255
    result = pipe(image, INSTRUCTION)
    np.testing.assert_array_equal(result.source_ids, np.asarray(pipe.encode_image(pixels[None]))[0])


def test_without_hold_the_picture_is_the_decoded_tokens(pipe):
    result = pipe(picture(), INSTRUCTION)
    expected = np.round(np.asarray(pipe.decode_image(result.token_ids))[0] * 255)
    np.testing.assert_array_equal(np.asarray(result.images[0]), expected)
    assert not result.keep_mask.any()


def test_held_pixels_are_exactly_the_input_s(pipe):
    image = picture((64, 64))  # 8 pixels a token
    result = pipe(image, INSTRUCTION, hold_threshold=0.5)
    held = result.keep_mask[0]
    assert 0.1 < held.mean() < 0.9
    np.testing.assert_array_equal(result.token_ids[0][held], result.source_ids[held])
    padded = np.pad(held, 1, mode="edge")
    away = np.min([padded[y : y + 8, x : x + 8] for y in range(3) for x in range(3)], axis=0)  # no edited neighbour
    away = away.repeat(8, axis=0).repeat(8, axis=1)
    assert away.any()
    before, after = np.asarray(image), np.asarray(result.images[0])
    np.testing.assert_array_equal(after[away], before[away])
    edited = (result.token_ids[0] != result.source_ids).repeat(8, axis=0).repeat(8, axis=1)
    plain = np.asarray(pipe(image, INSTRUCTION, hold_threshold=0.5, composite=False).images[0])
    np.testing.assert_array_equal(after[edited], plain[edited])
    assert (plain[away] != before[away]).any()


def test_pixels_outside_the_mask_are_the_input_s_even_if_every_token_is_touched(pipe):
    image = picture((64, 64))
    mask = np.zeros((64, 64), bool)
    mask[::8, ::8] = True
    result = pipe(image, INSTRUCTION, mask=mask, hold_threshold=0.0)
    assert not result.keep_mask.any()
    np.testing.assert_array_equal(np.asarray(result.images[0])[~mask], np.asarray(image)[~mask])


def test_threshold_above_one_returns_the_source(pipe):
    image = picture((61, 47))
    result = pipe(image, INSTRUCTION, hold_threshold=1.1)
    np.testing.assert_array_equal(result.token_ids[0], result.source_ids)
    np.testing.assert_array_equal(np.asarray(result.images[0]), np.asarray(image))


def test_more_threshold_holds_more(pipe):
    shares = [from_step(pipe, threshold).keep_mask.mean() for threshold in (0, 0.3, 0.6, 1.1)]
    assert shares[0] == 0 and shares[-1] == 1 and (np.diff(shares) > 0).all()


def from_step(pipe, threshold, step=0):
    return pipe(picture(), INSTRUCTION, hold_threshold=threshold, hold="from_step", hold_step=step, record=True)


def test_from_step_holds_by_the_scores_of_that_step(pipe):
    result = from_step(pipe, 0.5, step=1)
    np.testing.assert_array_equal(result.relevance, result.step_relevance[1])
    keep = (result.relevance < 0.5) & (result.step_tokens[0] == MASK_ID)
    assert 0 < keep.mean() < 1
    np.testing.assert_array_equal(result.keep_mask & keep, keep)
    np.testing.assert_array_equal(result.token_ids[keep], np.broadcast_to(result.source_ids, keep.shape)[keep])
    before = traces.copy()
    assert (from_step(pipe, 0.5, step=2).token_ids != result.token_ids).any()
    assert traces == before


def test_mask_confines_the_edit(pipe):
    image, mask = picture((64, 64)), np.zeros((64, 64), bool)
    mask[10:30, 10:50] = True
    result = pipe(image, INSTRUCTION, mask=mask)
    open_tokens = np.zeros((8, 8), bool)
    open_tokens[1:4, 1:7] = True
    np.testing.assert_array_equal(result.token_ids[0][~open_tokens], result.source_ids[~open_tokens])
    assert (result.token_ids[0] != result.source_ids).any()
    np.testing.assert_array_equal(np.asarray(result.images[0])[~mask], np.asarray(image)[~mask])
    both = pipe(image, INSTRUCTION, mask=mask, hold_threshold=0.5)
    assert both.keep_mask[0][~open_tokens].all()
    assert result.keep_mask.sum() < both.keep_mask.sum() < both.keep_mask.size


def test_an_empty_mask_is_an_error_and_a_full_one_is_said(pipe):
    with pytest.raises(ImageError, match="must be white where the image may change"):
        pipe(picture(), INSTRUCTION, mask=np.zeros((32, 32), bool))
    free = pipe(picture(), INSTRUCTION, steps=3, composite=False)
    with pytest.warns(UserWarning, match="the mask is full"):
        masked = pipe(picture(), INSTRUCTION, mask=np.ones((32, 32), bool), steps=3, composite=False)
    np.testing.assert_array_equal(masked.token_ids, free.token_ids)


def test_recorded_steps(pipe):
    result = pipe(picture((61, 47)), INSTRUCTION, steps=3, record=True, num_images=2)
    assert result.step_tokens.shape == result.step_relevance.shape == (3, 2, 8, 10)
    np.testing.assert_array_equal(result.step_tokens[-1], result.token_ids)
    np.testing.assert_array_equal(result.step_relevance[-1], result.relevance)
    hidden = (result.step_tokens == MASK_ID).sum((2, 3))
    assert (np.diff(hidden, axis=0) < 0).all() and (hidden[-1] == 0).all()
    frames = pipe.paint_steps(result, 1)
    np.testing.assert_array_equal(np.asarray(frames[-1]), np.asarray(result.images[1]))
    first = images.mask_to_pixels(result.step_tokens[0, 1] == MASK_ID, (40, 32))
    small = np.asarray(frames[0].resize((40, 32), Image.Resampling.NEAREST), int)
    assert np.abs(small[first] - 128).mean() < np.abs(small[~first] - 128).mean()
    with pytest.raises(SettingsError, match="record=True"):
        pipe.paint_steps(dataclasses.replace(result, step_tokens=None))


# ---- from text alone


def test_generate(pipe):
    result = pipe.generate("a red car", (40, 24), num_images=2, steps=3, record=True)
    assert [image.size for image in result.images] == [(40, 24)] * 2
    assert result.token_ids.shape == (2, 6, 10) and result.token_ids.max() < 32 and result.source_ids is None
    assert (result.token_ids[0] != result.token_ids[1]).any() and not result.keep_mask.any()
    assert len(pipe.paint_steps(result)) == 3
    alone = pipe.generate(["a red car", "a tree"], (40, 24), steps=3)
    np.testing.assert_array_equal(alone[0].token_ids[0], result.token_ids[0])
    assert pipe.generate("a red car", steps=1).images[0].size == (32, 32)


def test_asking_an_editor_for_pictures_from_text_is_said(pipe):
    with pytest.warns(UserWarning, match="this model is an editor"):
        pipe.generate("a red car", (16, 16), steps=1)


def test_inpaint_fills_the_mask_and_nothing_else(pipe):
    image, mask = picture(), np.zeros((32, 32), bool)
    mask[8:20, 4:16] = True
    result = pipe.inpaint(image, "a tree", mask)
    inside = images.mask_to_grid(mask, (8, 8))
    np.testing.assert_array_equal(result.token_ids[0][~inside], result.source_ids[~inside])
    np.testing.assert_array_equal(np.asarray(result.images[0])[~mask], np.asarray(image)[~mask])
    bare = pipe.inpaint(image, "a tree", mask, composite=False)
    assert (np.asarray(bare.images[0])[~mask] != np.asarray(image)[~mask]).any()


def test_outpaint_extends(pipe):
    image = picture()
    result = pipe.outpaint(image, "a tree", (8, 0, 16, 4), steps=3)
    assert result.images[0].size == (56, 36)
    np.testing.assert_array_equal(np.asarray(result.images[0])[:32, 8:40], np.asarray(image))
    white = np.asarray(images.padding_mask((32, 32), (8, 0, 16, 4))) == 255
    assert not white[:32, 8:40].any() and white.sum() == 56 * 36 - 32 * 32


@pytest.mark.parametrize(
    "call, error, words",
    [
        (lambda pipe: pipe.generate("a car", (33, 32)), SettingsError, "multiples of 8 pixels; got 33 x 32"),
        (lambda pipe: pipe.generate("a car", hold_threshold=0.1), SettingsError, "hold_threshold.*source image"),
        (lambda pipe: pipe.generate("  "), PromptError, "what to show"),
        (lambda pipe: pipe.inpaint(picture(), "a car", None), ImageError, "needs a mask"),
        (lambda pipe: pipe.outpaint(picture(), "a car", (0, 0, 0, 0)), ImageError, "at least one above 0"),
        (lambda pipe: pipe.outpaint(picture(), "a car", (0, -4, 0, 0)), ImageError, "four numbers of pixels"),
    ],
)
def test_wrong_input_of_the_text_to_image_jobs(pipe, call, error, words):
    with pytest.raises(error, match=words):
        call(pipe)


# ---- what the settings mean


def test_no_reference_strength_ignores_the_reference(pipe):
    text = [pipe.encode(INSTRUCTION)] * 2
    one, other = random_ids(seed=1), random_ids(seed=2)
    without = [pipe.edit_tokens(ids, text, reference_strength=0.0) for ids in (one, other)]
    np.testing.assert_array_equal(without[0].tokens, without[1].tokens)
    with_it = [pipe.edit_tokens(ids, text, reference_strength=1.0) for ids in (one, other)]
    assert (with_it[0].tokens != with_it[1].tokens).any()


def test_guidance_of_one_is_no_guidance(pipe):
    request, static = captured(pipe, guidance_scale=1.0)
    assert not static.guided
    plain = pipe.edit_tokens(random_ids(), [pipe.encode(INSTRUCTION)] * 2, guidance_scale=0.5)
    guided = decode_edit(pipe._mgt_variables, request, pipe.model.mgt, static._replace(guided=True))
    np.testing.assert_array_equal(plain.tokens, guided.tokens)
    np.testing.assert_allclose(plain.relevance, guided.relevance, atol=1e-5)


def captured(pipe, **settings):
    """The request and static settings of an edit of random ids."""
    calls = []
    spy = EditPipeline(pipe.model)
    spy._run = lambda request, static, progress: calls.append((request, static))
    spy.edit_tokens(random_ids(), [pipe.encode(INSTRUCTION)] * 2, **settings)
    return calls[0]


def test_negative_prompt_matters_under_guidance_only(pipe):
    text = [pipe.encode(INSTRUCTION)] * 2

    def tokens(negative, scale):
        return np.asarray(pipe.edit_tokens(random_ids(), text, negative=negative, guidance_scale=scale).tokens)

    assert (tokens("", 4.0) != tokens("a sketch", 4.0)).any()
    np.testing.assert_array_equal(tokens("", 1.0), tokens("a sketch", 1.0))


def test_a_query_is_whole_words(pipe):
    shorter = pipe.query_weights(pipe.encode("make the scar red car"), "car")
    longer = pipe.query_weights(pipe.encode("make the scar red car"), "red car")
    assert (shorter > 0).sum() < (longer > 0).sum() and not (shorter > 0)[np.flatnonzero(longer)[0]]
    with pytest.raises(PromptError, match="'car' is not among"):
        pipe.query_weights(pipe.encode("make the scar red"), "car")


def test_query_selects_text_tokens(pipe):
    text = pipe.encode(INSTRUCTION)
    uniform, car = pipe.query_weights(text), pipe.query_weights(text, "car")
    np.testing.assert_allclose([uniform.sum(), car.sum()], 1, rtol=1e-6)
    assert (uniform > 0).all() and 0 < (car > 0).sum() < len(car) / 2
    # Attention is linear in the weights: the mean over single tokens is that of equal weights.
    ids, length = random_ids(1).repeat(len(car), axis=0), len(car)
    keys = jnp.broadcast_to(jax.random.key(0), (length,))
    each = pipe.edit_tokens(ids, [text] * length, text_weights=np.eye(length), keys=keys)
    mean = pipe.edit_tokens(ids[:1], [text], text_weights=uniform[None], keys=keys[:1])
    np.testing.assert_allclose(each.attention.mean(0), mean.attention[0], atol=1e-6)
    phrase = pipe(picture(), text, query="car")
    assert np.abs(phrase.relevance - pipe(picture(), text).relevance).max() > 1e-3


def test_attention_by_layer_and_step(pipe):
    text = [pipe.encode(INSTRUCTION)] * 2
    steps = [
        pipe.edit_tokens(random_ids(), text, steps=3, layers=(0, 1, 2), attention_step=step).attention
        for step in range(3)
    ]
    mean = pipe.edit_tokens(random_ids(), text, steps=3, layers=(0, 1, 2)).attention
    assert mean.shape == (2, 3, 16)
    np.testing.assert_allclose(np.mean(steps, axis=0), mean, atol=1e-6)
    reordered = pipe.edit_tokens(random_ids(), text, steps=3, layers=(2, 0)).attention
    np.testing.assert_allclose(reordered, mean[:, [2, 0]], atol=1e-6)


def test_model_time_is_the_share_of_hidden_tokens(pipe):
    """Under 'mask_rate' a half-open sample starts at time 0.5, as if its only step were told so, and not at 1."""
    request, static = captured(pipe, steps=1, guidance_scale=1.0)
    start = jnp.where(jnp.arange(8)[:, None] < 4, request.reference, request.start)
    request = request._replace(start=start)

    def relevance(static, time):
        schedule = request.knobs.schedule._replace(time=jnp.full(1, time))
        told = request._replace(knobs=request.knobs._replace(schedule=schedule))
        return decode_edit(pipe._mgt_variables, told, pipe.model.mgt, static).relevance

    told = static._replace(timestep_convention="released")
    np.testing.assert_allclose(relevance(static, 1.0), relevance(told, 0.5), atol=1e-6)
    assert np.abs(relevance(told, 1.0) - relevance(told, 0.5)).max() > 1e-4


def test_bfloat16_stays_close(tiny_model, pipe):
    half = EditPipeline.from_pretrained(tiny_model, dtype=jnp.bfloat16)
    ids = random_ids(1)

    def attention(pipe, strength=1.0):
        text = pipe.encode([INSTRUCTION])
        return pipe.edit_tokens(ids, text, attention_step=0, reference_strength=strength).attention

    ours, exact, other = attention(half), attention(pipe), attention(pipe, 1.3)
    assert ours.dtype == jnp.float32
    assert np.abs(ours - exact).mean() < 0.5 * np.abs(other - exact).mean()


# ---- the released implementation


@pytest.mark.parametrize("case", ["plain", "hold"])
def test_whole_edit_of_the_released_code(case):
    """The pipeline's own wiring reproduces stored edits, with their draws: at most one token in a thousand differs."""
    with np.load(DATA / f"edit_1024_{case}.npz") as file:
        golden = dict(file)
    mgt = MGT(MGTConfig.from_json(DATA / "mgt_1024" / "config.json"))
    vq = VQModel(VQConfig.from_json(DATA / "vqvae" / "config.json"))
    params = conversion.load_params(
        DATA / "mgt_1024", mgt.config, jax.eval_shape(lambda key: init_mgt(mgt, key), jax.random.key(0))
    )
    pipe = EditPipeline(LoadedModel(mgt, params, vq, {}, TextEncoder({}), SchedulerConfig(mask_token_id=71)))

    def encoded(prefix):
        return EncodedText("", *(jnp.asarray(golden[f"{prefix}{name}"][0]) for name in ("text_states", "pooled_text")))

    edit = pipe.edit_tokens(
        golden["reference_token_ids"],
        [encoded("")],
        negative=encoded("negative_"),
        keys=decode.Noise(golden["uniform"][:, None], golden["gumbel"][:, None]),
        steps=len(golden["tokens"]),
        guidance_scale=float(golden["guidance_scale"]),
        reference_strength=float(golden["reference_strength"]),
        hold_threshold=float(golden["threshold"]) if case == "hold" else 0.0,
        layers=tuple(golden["capture_blocks"].tolist()),
        record=True,
    )
    differing = (np.asarray(edit.step_tokens) != golden["tokens"]).mean((1, 2, 3))
    assert differing.max() <= 1e-3
