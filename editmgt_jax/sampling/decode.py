"""Parallel decoding of masked image tokens. Pure: no model, no text, no I/O.

Every step proposes an id wherever one is hidden and hides some of the proposals again, fewer each time: the least sure, or
those that come last in another order (`sampling.samplers`). Steps that remask, if any, follow: each hides one half of what was decided
and decides it anew, all at once, with the other half known. The model is a callback,
`predict(tokens [B L], step of the schedule) -> Prediction`; guidance and region hold wrap that callback.

Axes    B batch, L image tokens, C codebook, I steps
Source  MaskGIT (section 3.2); released Scheduler.step; remasking after Mask-Predict, arXiv 1904.09324
Differs known tokens score +inf (Q4); where nothing is hidden the tokens come back as they are (Q5); the starting share is
        each sample's own (Q6); every sample draws from its own key, so that its result does not depend on its neighbours; what
        is remasked is a half of a fixed pattern, not the least sure
Quirks  Q1, Q2, ... in every module: docs/quirks.md
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from editmgt_jax.sampling.masking import Schedule, hidden_count
from editmgt_jax.sampling.samplers import NOTHING_KNOWN, SAMPLERS, Context, Proposal, Sampler, halton_ranks
from editmgt_jax.shapes import Array, Bool, Float, Int, Key, Scalar, UInt32

_WIDE, _BLOCK = 4096, 128  # codes beyond which ids are drawn by block, and the ids of one
FREE = -1  # in `Prediction.pinned`: this position takes the id that is drawn
HOLDS = ("released", "from_step")
MIN_PROBABILITY = 1e-20  # released floor below the log of a confidence


class Prediction(NamedTuple):
    """What the model says about a step."""

    logits: jax.Array  # [B L C]
    pinned: jax.Array | None = None  # int32 [B L]: the id that a hidden position must take, or FREE; None pins nothing
    aux: Any = None  # arrays [B ...] to record with the step, such as the relevance
    settled: jax.Array | bool = False  # [] or [B]: this step's pins are committed for good
    priority: jax.Array | None = None  # float32 [B L]: an order of the positions, for samplers that follow it


class Noise(NamedTuple):
    """The draws of a step [B L], or of a whole decode [I B L]."""

    uniform: jax.Array  # picks the id
    gumbel: jax.Array  # perturbs the confidence


class DecodeState(NamedTuple):
    tokens: jax.Array  # int32 [B L], mask_id where hidden
    start_ratio: jax.Array  # float32 [B]: share of L that the schedule's ratio 1 stands for
    open: jax.Array | None = None  # bool [B L]: may be hidden again; None where no step remasks


class Decoded(NamedTuple):
    tokens: jax.Array  # int32 [B L]
    steps: jax.Array  # int32 [I B L]: the tokens after each step
    aux: Any  # Prediction.aux of each step, stacked; where a sample had ended, that of its last pass
    passes: jax.Array  # int32 [B]: steps that looked at the sample; the number of steps unless the sampler has a budget


Predict = Callable[[jax.Array, Schedule], Prediction]


def decode(
    predict: Predict,
    tokens: Int[Array, "B L"],
    schedule: Schedule,
    key: Array | Noise,
    mask_id: int,
    *,
    sampling_temperature: Scalar | Float[Array, "B 1 1"] = 1.0,
    sampler: Sampler = SAMPLERS["confidence"],
    context: Context = NOTHING_KNOWN,
) -> Decoded:
    """Fill the positions of `tokens` that hold `mask_id`, in one scan over the steps of `schedule`.

    key                   one key (sample i then draws from fold_in(key, i)), a key per sample [B], or the draws themselves
    sampling_temperature  divides the logits before an id is drawn, > 0; the confidence stays the model's own probability,
                          that of the undivided logits, so it changes what is proposed and not how proposals are ranked
    sampler, context      an entry of `samplers.SAMPLERS`, and what it knows of the decode

    Everything but shapes, `mask_id`, the sampler and the context's grid may be traced. Each position is written once, before steps
    that remask; none holds `mask_id` at the end. A sampler with a budget ends when nothing is hidden: the steps that are left
    call no model.
    Errors: ValueError for a schedule that remasks with such a sampler, or without the context's grid.
    """
    batch, length = tokens.shape
    noise = key if isinstance(key, Noise) else None
    keys = None if noise else sample_keys(key, batch)
    hidden, remasks = tokens == mask_id, schedule.remasked is not None
    if remasks and (sampler.budget is not None or context.grid is None):
        raise ValueError("remasking needs the grid of the tokens, and a sampler that takes every step of the schedule")
    state = DecodeState(tokens, jnp.sum(hidden, axis=1).astype(jnp.float32) / length, hidden if remasks else None)

    def one_step(state, inputs):
        step, draws = inputs
        if draws is None:
            draws = draw_noise(keys, step.number, length)
        state, prediction = decode_step(predict, state, step, draws, mask_id, sampling_temperature, sampler, context)
        return state, (state.tokens, prediction.aux)

    inputs = (jax.tree.map(jnp.asarray, schedule), noise)
    if sampler.budget is not None:
        return _decode_until_done(one_step, state, inputs, mask_id)
    state, (steps, aux) = jax.lax.scan(one_step, state, inputs)
    return Decoded(state.tokens, steps, aux, jnp.full(batch, len(steps), jnp.int32))


def _decode_until_done(one_step, state, inputs, mask_id) -> Decoded:
    """The scan of `decode`, in which steps with nothing hidden do nothing (but for the first, which has an aux to give)."""
    first = jax.tree.map(lambda column: column[0], inputs)
    _, (_, shapes) = jax.eval_shape(one_step, state, first)
    nothing = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), shapes)

    def step_if_needed(carry, inputs):
        state, last = carry
        runs = jnp.any(state.tokens == mask_id, axis=1) | (inputs[0].number == 0)  # [B]
        state, (tokens, aux) = jax.lax.cond(
            jnp.any(runs), one_step, lambda state, inputs: (state, (state.tokens, last)), state, inputs
        )
        aux = jax.tree.map(lambda new, old: jnp.where(jnp.expand_dims(runs, range(1, new.ndim)), new, old), aux, last)
        return (state, aux), (tokens, aux, runs)

    (state, _), (steps, aux, runs) = jax.lax.scan(step_if_needed, (state, nothing), inputs)
    return Decoded(state.tokens, steps, aux, jnp.sum(runs, axis=0, dtype=jnp.int32))


def decode_step(
    predict: Predict,
    state: DecodeState,
    step: Schedule,
    noise: Noise,
    mask_id: int,
    sampling_temperature: Scalar | Float[Array, "B 1 1"] = 1.0,
    sampler: Sampler = SAMPLERS["confidence"],
    context: Context = NOTHING_KNOWN,
) -> tuple[DecodeState, Prediction]:
    """One step of `decode`, with its draws given."""
    # 1. A step that remasks hides its half; then the model's logits: guidance mixes them, region hold pins ids.
    if step.remasked is not None:
        state = state._replace(
            tokens=jnp.where(state.open & half_of_grid(step.remasked, context.grid), mask_id, state.tokens)
        )
    prediction = predict(state.tokens, step)
    logits = prediction.logits.astype(jnp.float32)
    if logits.shape[-1] > mask_id:
        raise ValueError(
            f"logits over {logits.shape[-1]} ids could draw the mask id {mask_id}: cut them to the codebook"
        )
    # 2. Pins that are for good become known tokens.
    if prediction.pinned is not None:
        state = settle(state, prediction.pinned, prediction.settled, mask_id)
    # 3. A candidate for every position.
    candidate = choose(draw_ids(logits / sampling_temperature, noise.uniform), prediction.pinned)
    log_p = jnp.log(jnp.maximum(probability_of(candidate, logits), MIN_PROBABILITY))
    # 4. The sampler's order, and how many of the hidden positions stay so.
    hidden = state.tokens == mask_id
    proposal = Proposal(
        logits, candidate, log_p, _of_samples(step.temperature) * noise.gumbel, hidden, prediction.priority
    )
    priority = sampler.order(proposal, context)
    if not sampler.keeps_ties:
        priority = ranks(priority, noise.gumbel)
    count = stay_hidden(hidden, step, state.start_ratio)
    if sampler.budget is not None:
        left = jnp.sum(hidden, axis=1, dtype=jnp.int32) - sampler.budget(proposal, context)
        count = jnp.where(step.hidden_ratio > 0, left, 0)
    # 5. The candidates that come first are committed.
    return state._replace(tokens=commit(state.tokens, candidate, priority, count, mask_id)), prediction


def half_of_grid(half: int | Int[Array, ""], grid: tuple[int, int]) -> Bool[Array, " L"]:
    """The positions that a step hides again: half 1 or 2 of the Halton order, each of which covers the grid evenly; none for 0."""
    order = halton_ranks(grid)
    return (2 * order // len(order) + 1) == half


def _of_samples(value):
    """A number [] or one of each sample [B], to go with [B L]."""
    return value if jnp.ndim(value) == 0 else value[:, None]


def commit(
    tokens: Int[Array, "B L"],
    candidate: Int[Array, "B L"],
    priority: Float[Array, "B L"],
    count: Int[Array, " B"],
    mask_id: int,
) -> Int[Array, "B L"]:
    """Take the candidates where tokens are hidden, then hide `count` of these again.

    The count-th smallest priority (from 0) is the cut-off; those strictly below it are hidden, so ties with it stay.
    """
    hidden = tokens == mask_id
    priority = jnp.where(hidden, priority, jnp.inf)
    cutoff = jnp.take_along_axis(jnp.sort(priority, axis=1), count[:, None], axis=1)  # [B 1]
    return jnp.where(priority < cutoff, mask_id, jnp.where(hidden, candidate, tokens))


def stay_hidden(hidden: Bool[Array, "B L"], step: Schedule, start_ratio: Float[Array, " B"]) -> Int[Array, " B"]:
    """How many of the `hidden` positions the schedule leaves so.

    floor(L * start_ratio * hidden_ratio), but at least 1 and at most one less than are hidden; the last step (ratio 0) none.
    """
    length = hidden.shape[1]
    count = jnp.clip(hidden_count(length, start_ratio * step.hidden_ratio), max=jnp.sum(hidden, axis=1) - 1)
    return jnp.where(step.hidden_ratio > 0, jnp.clip(count, 1, length - 1), 0)


def ranks(priority: Float[Array, "B L"], tie_break: Float[Array, "B L"]) -> Float[Array, "B L"]:
    """Rank of each position in the order of `priority`, ties by `tie_break`: 0 ... L - 1"""
    order = jnp.lexsort((tie_break, priority), axis=-1)
    return jnp.argsort(order, axis=-1).astype(jnp.float32)


def settle(
    state: DecodeState, pinned: Int[Array, "B L"], settled: bool | Bool[Array, ""] | Bool[Array, " B"], mask_id: int
) -> DecodeState:
    """Write a settled step's pins into the tokens for good; the rest of the schedule is for the positions that are left.

    What follows is an inpainting of those: settled before the first step, it is the decode that starts from these tokens.
    """
    hidden = state.tokens == mask_id
    written = hidden & (pinned != FREE) & jnp.reshape(jnp.asarray(settled), (-1, 1))
    count, left = jnp.sum(hidden, axis=1), jnp.sum(hidden & ~written, axis=1)  # [B]
    share = left.astype(jnp.float32) / jnp.maximum(count, 1).astype(jnp.float32)
    left_open = None if state.open is None else state.open & ~written
    return DecodeState(jnp.where(written, pinned, state.tokens), state.start_ratio * share, left_open)


def choose(drawn: Int[Array, "B L"], pinned: Int[Array, "B L"] | None) -> Int[Array, "B L"]:
    """The candidates of a step: the drawn id, or the pin."""
    return drawn if pinned is None else jnp.where(pinned == FREE, drawn, pinned)


def draw_ids(logits: Float[Array, "B L C"], uniform: Float[Array, "B L"]) -> Int[Array, "B L"]:
    """Categorical draws by the inverse of the distribution function: one random number a position, not one per id.

    The number of entries of cumsum(p) that are <= u * sum(p), u in [0, 1).
    """
    probabilities = jax.nn.softmax(logits, axis=-1)
    if logits.shape[-1] > _WIDE:
        return _draw_by_block(probabilities, uniform)
    cumulative = jnp.cumsum(probabilities, axis=-1)
    drawn = jnp.sum(cumulative <= uniform[..., None] * cumulative[..., -1:], axis=-1, dtype=jnp.int32)
    return jnp.minimum(drawn, logits.shape[-1] - 1)


def _draw_by_block(probabilities, uniform):
    """`draw_ids` from [B L C] in two steps, a block of ids and an id in it: sums along all ids would fill memory thrice."""
    size = probabilities.shape[-1]
    blocks = jnp.pad(probabilities, ((0, 0), (0, 0), (0, -size % _BLOCK)))
    blocks = blocks.reshape(*blocks.shape[:2], -1, _BLOCK)  # [B L blocks ids]
    until = jnp.cumsum(blocks.sum(axis=-1), axis=-1)  # [B L blocks]
    target = uniform * until[..., -1]
    block = jnp.minimum(jnp.sum(until <= target[..., None], axis=-1, dtype=jnp.int32), until.shape[-1] - 1)[..., None]
    before = jnp.where(block > 0, jnp.take_along_axis(until, jnp.maximum(block - 1, 0), axis=-1), 0.0)  # [B L 1]
    inside = jnp.take_along_axis(blocks, block[..., None], axis=2)[:, :, 0]  # [B L ids]
    cumulative = before + jnp.cumsum(inside, axis=-1)
    drawn = jnp.sum(cumulative <= target[..., None], axis=-1, dtype=jnp.int32)
    return jnp.minimum(block[..., 0] * _BLOCK + drawn, size - 1)


def probability_of(ids: Int[Array, "B L"], logits: Float[Array, "B L C"]) -> Float[Array, "B L"]:
    """Softmax probability of one id a position."""
    picked = jnp.take_along_axis(logits, ids[..., None], axis=-1)[..., 0]
    return jnp.exp(picked - jax.nn.logsumexp(logits, axis=-1))


def sample_keys(key: Array, batch: int) -> Key[Array, " {batch}"]:
    """A key per sample: fold_in(key, index) of one key, of any kind; keys that are already per sample come back."""
    if not jnp.issubdtype(key.dtype, jax.dtypes.prng_key):
        key = jax.random.wrap_key_data(key)
    if key.ndim == 0:
        return jax.vmap(lambda index: jax.random.fold_in(key, index))(jnp.arange(batch))
    if key.shape != (batch,):
        raise ValueError(f"need one key or one for each of the {batch} samples, got keys of shape {key.shape}")
    return key


@jax.jit
def picture_keys(seeds: UInt32[Array, " B"], numbers: Int[Array, " B"]) -> Key[Array, " B"]:
    """The keys of pictures by seed and number: fold_in(key(seed), number)."""
    return jax.vmap(lambda seed, number: jax.random.fold_in(jax.random.key(seed), number))(seeds, numbers)


def draw_noise(keys: Key[Array, " B"], step: Int[Array, ""], length: int) -> Noise:
    """The draws of one step from per-sample keys."""

    def one(key):
        id_key, confidence_key = jax.random.split(jax.random.fold_in(key, step))
        return Noise(
            jax.random.uniform(id_key, (length,), jnp.float32),
            jax.random.gumbel(confidence_key, (length,), jnp.float32),
        )

    return jax.vmap(one)(keys)


def guide(logits: Float[Array, "copies L C"], scale: Scalar | Float[Array, "B 1 1"]) -> Float[Array, "B L C"]:
    """Classifier-free guidance, unconditional half of the copies first."""
    unconditional, conditional = jnp.split(logits.astype(jnp.float32), 2)
    return unconditional + scale * (conditional - unconditional)


def guide_image(
    logits: Float[Array, "copies L C"],
    scale: Scalar | Float[Array, "B 1 1"],
    image_scale: Scalar | Float[Array, "B 1 1"],
) -> Float[Array, "B L C"]:
    """Guidance by text and image apart: copies without both, with the image alone, with both.

    With equal scales it is `guide` of the last two. InstructPix2Pix (arXiv 2211.09800) has the same three passes; its
    image scale is 1 + image_scale - scale. As without image guidance, a scale up to 1 gives the text its plain weight.
    """
    neither, image, both = jnp.split(logits.astype(jnp.float32), 3)
    return image + jnp.maximum(scale, 1.0) * (both - image) + (image_scale - scale) * (image - neither)


def with_guidance(
    predict_all: Predict,
    scale: Scalar | Float[Array, "B 1 1"],
    image_scale: Scalar | Float[Array, "B 1 1"] | None = None,
) -> Predict:
    """`predict` from a model called on [unconditional, conditional] copies of the tokens [2B L].

    With an image scale on three [3B L]: see `guide_image`. Only the model's logits are of so many samples; its pins and aux, if
    any, are already those of the last copies.
    """

    def predict(tokens, step):
        if image_scale is None:
            prediction = predict_all(jnp.concatenate([tokens, tokens]), step)
            return prediction._replace(logits=guide(prediction.logits, scale))
        prediction = predict_all(jnp.concatenate([tokens] * 3), step)
        return prediction._replace(logits=guide_image(prediction.logits, scale, image_scale))

    return predict


def with_region_hold(
    predict: Predict,
    keep_of: Callable[[Any], Bool[Array, "B L"]],
    reference: Int[Array, "B L"],
    *,
    hold: str = "released",
    hold_step: int | Int[Array, ""] | Int[Array, " B"] = 0,
) -> Predict:
    """`predict` that also pins hidden positions to the reference's ids where `keep_of(aux)`.

    'released'   at every step; a held position may be hidden again until the last step, which holds by its own relevance
    'from_step'  at step number `hold_step` (may be traced) only, and for good: from then on held positions are known, and the rest
                 of the schedule serves the others

    Both act on hidden positions: what an earlier step committed stays.
    """
    if hold not in HOLDS:
        raise ValueError(f"unknown region hold {hold!r}: choose one of {', '.join(HOLDS)}")

    def held(tokens, step):
        prediction = predict(tokens, step)
        keep = keep_of(prediction.aux)
        if hold == "released":
            return prediction._replace(pinned=jnp.where(keep, reference, FREE))
        now = step.number == hold_step
        return prediction._replace(pinned=jnp.where(keep & jnp.reshape(now, (-1, 1)), reference, FREE), settled=now)

    return held
