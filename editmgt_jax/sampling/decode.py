"""Parallel decoding of masked image tokens. Pure: no model, no text, no I/O.

Every step proposes an id wherever one is hidden and hides the least sure proposals again, fewer each time. The model is a
callback, `predict(tokens [B L], row of the schedule) -> Prediction`; guidance and region hold wrap that callback.

Axes    B batch, L image tokens, C codebook, S steps
Source  MaskGIT (section 3.2); released Scheduler.step
Differs known tokens score +inf (Q4); where nothing is hidden the tokens come back as they are (Q5); the starting share is
        each sample's own (Q6); every sample draws from its own key, so that its result does not depend on its neighbours
Quirks  Q1, Q2, ... in every module: docs/quirks.md
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from editmgt_jax.sampling.masking import Schedule, hidden_count

FREE = -1  # in `Prediction.pinned`: this position takes the id that is drawn
HOLDS = ("released", "from_step")
MIN_PROBABILITY = 1e-20  # released floor below the log of a confidence


class Prediction(NamedTuple):
    """What the model says about a step."""

    logits: jax.Array  # [B L C]
    pinned: jax.Array | None = None  # int32 [B L]: the id that a hidden position must take, or FREE; None pins nothing
    aux: Any = None  # arrays to record with the step, such as localisation scores [B L]
    settled: jax.Array | bool = False  # [] or [B]: this step's pins are committed for good


class Noise(NamedTuple):
    """The draws of a step [B L], or of a whole decode [S B L]."""

    uniform: jax.Array  # picks the id
    gumbel: jax.Array  # perturbs the confidence


class DecodeState(NamedTuple):
    tokens: jax.Array  # int32 [B L], mask_id where hidden
    start_ratio: jax.Array  # float32 [B]: share of L that the schedule's ratio 1 stands for


class Decoded(NamedTuple):
    tokens: jax.Array  # int32 [B L]
    steps: jax.Array  # int32 [S B L]: the tokens after each step
    aux: Any  # Prediction.aux of each step, stacked


Predict = Callable[[jax.Array, Schedule], Prediction]


def decode(
    predict: Predict,
    tokens: jax.Array,
    schedule: Schedule,
    key: jax.Array | Noise,
    mask_id: int,
    *,
    sampling_temperature: jax.Array | float = 1.0,
) -> Decoded:
    """Fill the positions of `tokens` (int32 [B L]) that hold `mask_id`, in one scan over the rows of `schedule`.

    key                   one key (sample i then draws from fold_in(key, i)), a key per sample [B], or the draws themselves
    sampling_temperature  divides the logits before an id is drawn, > 0; the confidence stays the model's own probability,
                          that of the undivided logits, so it changes what is proposed and not how proposals are ranked

    Everything but shapes and `mask_id` may be traced. Each position is written once; none holds `mask_id` at the
    end.
    """
    batch, length = tokens.shape
    noise = key if isinstance(key, Noise) else None
    keys = None if noise else sample_keys(key, batch)
    state = DecodeState(tokens, jnp.sum(tokens == mask_id, axis=1).astype(jnp.float32) / length)

    def step(state, inputs):
        row, draws = inputs
        if draws is None:
            draws = draw_noise(keys, row.step, length)
        state, prediction = decode_step(predict, state, row, draws, mask_id, sampling_temperature)
        return state, (state.tokens, prediction.aux)

    state, (steps, aux) = jax.lax.scan(step, state, (jax.tree.map(jnp.asarray, schedule), noise))
    return Decoded(state.tokens, steps, aux)


def decode_step(
    predict: Predict,
    state: DecodeState,
    row: Schedule,
    noise: Noise,
    mask_id: int,
    sampling_temperature: jax.Array | float = 1.0,
) -> tuple[DecodeState, Prediction]:
    """One step of `decode`, with its draws given."""
    # 1. What the model says of the tokens as they are; guidance and region hold are inside `predict`.
    prediction = predict(state.tokens, row)
    logits = prediction.logits.astype(jnp.float32)
    if logits.shape[-1] > mask_id:
        raise ValueError(
            f"logits over {logits.shape[-1]} ids could draw the mask id {mask_id}: cut them to the codebook"
        )
    # 2. Settled pins become known tokens: from here on the step is one of a decode that began with them.
    if prediction.pinned is not None:
        state = settle(state, prediction.pinned, prediction.settled, mask_id)
    # 3. Every position proposes an id: its pin, else a draw from the tempered logits.
    candidate = choose(draw_ids(logits / sampling_temperature, noise.uniform), prediction.pinned)
    # 4. How sure the model is of the proposals, pins too: by the logits as they are, so tempering ranks nothing.
    confidence = probability_of(candidate, logits)
    # 5. Hidden positions take their proposals, and the least sure are hidden again; known tokens never change.
    tokens = commit(state.tokens, candidate, confidence, noise.gumbel, row, state.start_ratio, mask_id)
    return DecodeState(tokens, state.start_ratio), prediction


def commit(
    tokens: jax.Array,
    candidate: jax.Array,
    probability: jax.Array,
    gumbel: jax.Array,
    row: Schedule,
    start_ratio: jax.Array,
    mask_id: int,
) -> jax.Array:
    """Take the candidates where tokens are hidden, then hide the least sure of them again. -> int32 [B L]

    `probability`, `gumbel` [B L] make the confidence log p + temperature * g. The n-th smallest (from 0) is the cut-off and
    those strictly below it are hidden, so ties with it stay. n = floor(L * start_ratio * hidden_ratio), but at least 1 and
    at most one less than are hidden; the last row (ratio 0) hides none.
    """
    length = tokens.shape[1]
    hidden = tokens == mask_id
    n = jnp.clip(hidden_count(length, start_ratio * row.hidden_ratio), max=jnp.sum(hidden, axis=1) - 1)
    n = jnp.where(row.hidden_ratio > 0, jnp.clip(n, 1, length - 1), 0)  # [B]
    confidence = jnp.log(jnp.maximum(probability, MIN_PROBABILITY)) + row.temperature * gumbel
    confidence = jnp.where(hidden, confidence, jnp.inf)
    cutoff = jnp.take_along_axis(jnp.sort(confidence, axis=1), n[:, None], axis=1)  # [B 1]
    return jnp.where(confidence < cutoff, mask_id, jnp.where(hidden, candidate, tokens))


def settle(state: DecodeState, pinned: jax.Array, settled: jax.Array | bool, mask_id: int) -> DecodeState:
    """Write a settled step's pins into the tokens for good; the rest of the schedule is for the positions that are left.

    What follows is an inpainting of those: settled before the first step, it is the decode that starts from these tokens.
    """
    hidden = state.tokens == mask_id
    written = hidden & (pinned != FREE) & jnp.reshape(jnp.asarray(settled), (-1, 1))
    count, left = jnp.sum(hidden, axis=1), jnp.sum(hidden & ~written, axis=1)  # [B]
    share = left.astype(jnp.float32) / jnp.maximum(count, 1).astype(jnp.float32)
    return DecodeState(jnp.where(written, pinned, state.tokens), state.start_ratio * share)


def choose(drawn: jax.Array, pinned: jax.Array | None) -> jax.Array:
    """The candidates of a step: the drawn id, or the pin. -> int32 [B L]"""
    return drawn if pinned is None else jnp.where(pinned == FREE, drawn, pinned)


def draw_ids(logits: jax.Array, uniform: jax.Array) -> jax.Array:
    """Categorical draws by the inverse of the distribution function: one random number a position, not one per id.

    The number of entries of cumsum(p) that are <= u * sum(p). logits [B L C], uniform [B L] in [0, 1) -> int32 [B L]
    """
    cumulative = jnp.cumsum(jax.nn.softmax(logits, axis=-1), axis=-1)
    drawn = jnp.sum(cumulative <= uniform[..., None] * cumulative[..., -1:], axis=-1, dtype=jnp.int32)
    return jnp.minimum(drawn, logits.shape[-1] - 1)


def probability_of(ids: jax.Array, logits: jax.Array) -> jax.Array:
    """Softmax probability of one id a position. ids [B L], logits [B L C] -> [B L]"""
    picked = jnp.take_along_axis(logits, ids[..., None], axis=-1)[..., 0]
    return jnp.exp(picked - jax.nn.logsumexp(logits, axis=-1))


def sample_keys(key: jax.Array, batch: int) -> jax.Array:
    """A key per sample: fold_in(key, index) of one key; keys that are already per sample come back. -> keys [B]"""
    if not jnp.issubdtype(key.dtype, jax.dtypes.prng_key):
        key = jax.random.wrap_key_data(key)
    if key.ndim == 0:
        return jax.vmap(lambda index: jax.random.fold_in(key, index))(jnp.arange(batch))
    if key.shape != (batch,):
        raise ValueError(f"need one key or one for each of the {batch} samples, got keys of shape {key.shape}")
    return key


def draw_noise(keys: jax.Array, step: jax.Array, length: int) -> Noise:
    """The draws of one step from per-sample keys [B]."""

    def one(key):
        id_key, confidence_key = jax.random.split(jax.random.fold_in(key, step))
        return Noise(
            jax.random.uniform(id_key, (length,), jnp.float32),
            jax.random.gumbel(confidence_key, (length,), jnp.float32),
        )

    return jax.vmap(one)(keys)


def guide(logits: jax.Array, scale: jax.Array | float) -> jax.Array:
    """Classifier-free guidance, unconditional half first. [2B L C] -> float32 [B L C]"""
    unconditional, conditional = jnp.split(logits.astype(jnp.float32), 2)
    return unconditional + scale * (conditional - unconditional)


def with_guidance(predict_both: Predict, scale: jax.Array | float) -> Predict:
    """`predict` from a model called on [unconditional, conditional] copies of the tokens [2B L].

    Only its logits have 2B rows; its pins and aux, if any, are already those of the conditional half.
    """

    def predict(tokens, row):
        prediction = predict_both(jnp.concatenate([tokens, tokens]), row)
        return prediction._replace(logits=guide(prediction.logits, scale))

    return predict


def with_region_hold(
    predict: Predict, keep_of: Callable[[Any], jax.Array], reference: jax.Array, *, hold: str = "released", step=0
) -> Predict:
    """`predict` that also pins hidden positions to the reference's ids (int32 [B L]) where `keep_of(aux)` (bool [B L]).

    'released'   at every step; a held position may be hidden again until the last step, which holds by its own scores
    'from_step'  at step number `step` (may be traced) only, and for good: from then on held positions are known, and the rest
                 of the schedule serves the others

    Both act on hidden positions: what an earlier step committed stays.
    """
    if hold not in HOLDS:
        raise ValueError(f"unknown region hold {hold!r}: choose one of {', '.join(HOLDS)}")

    def held(tokens, row):
        prediction = predict(tokens, row)
        keep = keep_of(prediction.aux)
        if hold == "released":
            return prediction._replace(pinned=jnp.where(keep, reference, FREE))
        now = row.step == step
        return prediction._replace(pinned=jnp.where(keep & now, reference, FREE), settled=now)

    return held
