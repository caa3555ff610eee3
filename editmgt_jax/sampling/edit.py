"""The jitted decode of an edit, from token ids to token ids. No files.

Axes    as in `editmgt_jax.config`
Source  released edit pipeline
Differs a sample's model time under the convention "mask_rate" is its own share of hidden tokens, as in training

Settings are traced or part of the `StaticSettings` (see `sampling.settings`): only a new grid, batch, number of steps or
static setting compiles.
"""

import functools
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from editmgt_jax.declarations import SettingsError
from editmgt_jax.models.attention.signals import TEXT_TO_IMAGE
from editmgt_jax.models.blocks import Probe
from editmgt_jax.models.mgt import MGT
from editmgt_jax.models.traces import traces
from editmgt_jax.sampling import decode, localize
from editmgt_jax.sampling.request import Request
from editmgt_jax.sampling.samplers import SAMPLERS, Context
from editmgt_jax.sampling.settings import StaticSettings, per_sample


class TokenEdit(NamedTuple):
    """What a decode says, on the device."""

    tokens: jax.Array  # int32 [B H W]
    relevance: jax.Array  # float32 [B H W], at the step that held; about 0 to 1
    keep: jax.Array  # bool [B H W]: held at that step, and the source's id in the result
    attention: jax.Array  # float32 [B J N], of text to image at each of the layers, mean over passes or of one step
    step_tokens: jax.Array | None  # int32 [I B H W], recorded
    step_relevance: jax.Array | None  # float32 [I B H W], recorded
    passes: jax.Array  # int32 [B]: decoding steps that the sample took

    def sample(self, index: int) -> "TokenEdit":
        """The arrays of one sample, without the axis B."""
        steps = (None if x is None else x[:, index] for x in (self.step_tokens, self.step_relevance))
        return TokenEdit(*(x[index] for x in self[:4]), *steps, self.passes[index])


class _StepAux(NamedTuple):
    attention: jax.Array  # [B J N]
    relevance: jax.Array  # [B H W]
    keep: jax.Array  # bool [B H W]


@functools.partial(jax.jit, static_argnames=("mgt", "static"))
def decode_edit(variables: Mapping[str, Any], request: Request, mgt: MGT, static: StaticSettings) -> TokenEdit:
    """The decode of a batch of edits: what is constant over the steps once, then the steps in one scan.

    `variables` are the transformer's: {"params": ...} and with a LoRA "lora".
    Errors: SettingsError for a sampler that needs a source where there is none.
    """
    traces["decode"] += 1
    reference, start, knobs = request.reference, request.start, request.knobs
    batch, mask_id, sampler = len(start), mgt.config.mask_token_id, SAMPLERS[static.sampler]
    if sampler.needs_source and reference is None:
        raise SettingsError(f"the sampler {static.sampler} compares with a source image; there is none here")
    source = None if reference is None else reference.reshape(batch, -1)
    predict = guided_model(variables, request, mgt, static)
    if reference is not None:
        keep = lambda aux: aux.keep.reshape(batch, -1)  # noqa: E731
        predict = decode.with_region_hold(predict, keep, source, hold=static.hold, hold_step=knobs.hold_step)
    decoded = decode.decode(
        predict,
        start.reshape(batch, -1),
        knobs.schedule,
        request.keys,
        mask_id,
        sampling_temperature=per_sample(knobs.sampling_temperature, 3),
        sampler=sampler,
        context=Context(
            start.shape[1:],
            source,
            knobs._replace(
                entropy_bound=per_sample(knobs.entropy_bound, 2), copy_penalty=per_sample(knobs.copy_penalty, 2)
            ),
        ),
    )
    tokens, aux = decoded.tokens.reshape(start.shape), decoded.aux
    held_at = knobs.hold_step if static.hold == "from_step" else -1
    keep, weights = _at_step(aux.keep, held_at), request.step_weights[:, None]  # [I 1]
    if sampler.budget is not None:
        # A sample may have ended before the step that holds: then only the user's mask keeps anything.
        keep &= (decoded.passes > held_at)[:, None, None] | (start != mask_id)
        weights = _weights_of_passes(weights, decoded.passes)
    return TokenEdit(
        tokens=tokens,
        relevance=_at_step(aux.relevance, held_at),
        keep=keep & (tokens == (start if reference is None else reference)),
        attention=jnp.einsum("ib,ibjn->bjn", jnp.broadcast_to(weights, (len(weights), batch)), aux.attention),
        step_tokens=decoded.steps.reshape(-1, *start.shape) if static.record else None,
        step_relevance=aux.relevance if static.record else None,
        passes=decoded.passes,
    )


def _at_step(values, step):
    """[I B ...] at one step, or at one of each sample [B]. -> [B ...]"""
    return values[step] if jnp.ndim(step) == 0 else values[step, jnp.arange(len(step))]


def _weights_of_passes(weights, passes):
    """Weights of the steps [I 1] for samples that took `passes` [B] of them; past the end the last pass stands. -> [I B]"""
    taken = weights * (jnp.arange(len(weights))[:, None] < passes)
    total = jnp.sum(taken, axis=0)
    return jnp.where(total > 0, taken / jnp.where(total > 0, total, 1.0), weights)


def guided_model(variables: Mapping[str, Any], request: Request, mgt: MGT, static: StaticSettings) -> decode.Predict:
    """`predict` of a decode: logits under guidance, and attention, relevance and keep mask of the conditional half."""
    knobs, mask_id = request.knobs, mgt.config.mask_token_id
    grid = request.start.shape[1:]
    mgt_grid = tuple(side // mgt.config.stride for side in grid)
    editable = request.start == mask_id
    image_guided = static.image_guided and request.reference is not None
    copies = 3 if image_guided else 2 if static.guided else 1
    condition = mgt.apply(variables, *condition_inputs(request, copies), method="condition")
    of_copies = jax.tree.map(lambda x: jnp.concatenate([x] * copies, axis=1), request.interventions)
    signals = () if static.signal == TEXT_TO_IMAGE else (static.signal,)
    probe = Probe(signals, interventions=of_copies)

    def predict(tokens, step):
        time = step.time if static.timestep_convention == "released" else jnp.mean(tokens == mask_id, axis=1)
        logits, attention = mgt.apply(
            variables, tokens.reshape(-1, *grid), time, condition, request.text_weights, static.layers, probe
        )
        if signals:
            attention = attention[:, :, 0, 0]  # [B J F A' R N] of one signal, heads averaged
        relevance = localize.localize(attention, mgt_grid, grid, kind=static.filter)
        keep = localize.hold_mask(relevance, knobs.hold_threshold, editable)
        aux = _StepAux(attention.mean(axis=2), relevance, keep)
        logits = logits.reshape(len(tokens), -1, logits.shape[-1])
        return decode.Prediction(logits, aux=aux, priority=relevance.reshape(len(relevance), -1))

    if copies == 1:
        return predict

    def guided(tokens, step):
        scale, image_scale = (per_sample(scale, 3) for scale in _scales(knobs, step))
        return decode.with_guidance(predict, scale, image_scale if image_guided else None)(tokens, step)

    return guided


def _scales(knobs, step):
    """The guidance scales of text and image at a step: one that remasks has a text scale of its own, and lets the image count as much."""
    if step.remasked is None:
        return knobs.guidance_scale, knobs.image_guidance_scale
    chosen = jnp.where(step.remasked > 0, knobs.remask_guidance_scale, knobs.guidance_scale)
    scale = jnp.maximum(chosen, 1.0)  # up to 1 is the plain weight, and another step may be guided
    return scale, knobs.image_guidance_scale + (scale - knobs.guidance_scale)


def condition_inputs(request: Request, copies: int) -> tuple:
    """The arguments of `MGT.condition` for 1, 2 or 3 copies of the batch.

    Under guidance the copies with the negative prompt come first, and of three the first does not see the reference.
    """
    texts = [request.negative] * (copies - 1) + [request.text]
    text = jax.tree.map(lambda *parts: jnp.concatenate(parts), *texts)
    reference = None if request.reference is None else jnp.concatenate([request.reference] * copies)
    micro = jnp.broadcast_to(request.micro, (len(text.states), 5))
    strength = request.knobs.reference_strength
    if copies == 3 or strength.ndim == 1:
        whole = jnp.broadcast_to(strength, len(request.start))
        strength = jnp.concatenate([jnp.zeros_like(whole) if copies == 3 else whole, *[whole] * (copies - 1)])
    return text.states, text.pooled, micro, reference, strength
