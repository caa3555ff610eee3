"""Decodes of encoded pairs one step at a time, in orders that are numpy functions: what `decode_steps.py` measures with.

Axes    n pairs, L image tokens, I steps, C codebook, E channels of a latent
"""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from editmgt_jax.batching import in_batches
from editmgt_jax.data.scenes.source import CATEGORIES
from editmgt_jax.evaluation import metrics
from editmgt_jax.evaluation.features import Lpips
from editmgt_jax.evaluation.protocols import scenes
from editmgt_jax.models.text import stack
from editmgt_jax.pipeline import EditPipeline
from editmgt_jax.sampling import decode, masking, samplers
from editmgt_jax.sampling.edit import condition_inputs
from editmgt_jax.sampling.request import make_request


class Seen(NamedTuple):
    """What the model says of every position in one forward pass, under guidance [n L]."""

    candidate: np.ndarray  # int32: the id drawn
    log_p: np.ndarray  # of the candidate, from the undivided logits
    log_p_source: np.ndarray
    log_p_target: np.ndarray
    entropy: np.ndarray  # nats
    best: np.ndarray  # int32: the likeliest id
    latent: np.ndarray  # float32 [n L E]: the expected latent


class Trace(NamedTuple):
    """A decode: its tokens after each step, and what the model said before it."""

    tokens: np.ndarray  # int32 [I n L]
    seen: list[Seen]
    passes: np.ndarray  # [n] forward passes that a pair needed


@functools.partial(jax.jit, static_argnames="mgt")
def _condition(variables, mgt, request):
    """Of [unconditional, conditional] copies of a batch."""
    return mgt.apply(variables, *condition_inputs(request, copies=2), method="condition")


@functools.partial(jax.jit, static_argnames="mgt")
def _look(
    variables, codebook, mgt, condition, tokens, source, target, guidance, sampling_temperature, uniform, copy_bias
):
    """One forward pass of a batch of tokens [B H W] -> Seen [B L]"""
    time = jnp.mean(tokens == mgt.config.mask_token_id, axis=(1, 2))
    logits, _ = mgt.apply(variables, jnp.concatenate([tokens, tokens]), jnp.concatenate([time, time]), condition)
    logits = decode.guide(logits.reshape(len(logits), -1, logits.shape[-1]), guidance)
    logits = logits - copy_bias * (jnp.arange(logits.shape[-1]) == source[..., None])
    log_p = jax.nn.log_softmax(logits, axis=-1)

    def of(ids):
        return jnp.take_along_axis(log_p, ids[..., None], axis=-1)[..., 0]

    candidate = decode.draw_ids(logits / sampling_temperature, uniform)
    p = jnp.exp(log_p)
    entropy = -jnp.sum(p * log_p, axis=-1)
    return Seen(candidate, of(candidate), of(source), of(target), entropy, jnp.argmax(log_p, axis=-1), p @ codebook)


class Lab:
    """A model and encoded pairs, and decodes of them one step at a time.

    Args:
      model: directory, None is the default; split, count, objects, seed: which pairs.
      lpips: weights that `editmgt convert lpips` wrote, for `lpips_inside`.
    """

    def __init__(
        self,
        model,
        split: str,
        count: int,
        objects: str,
        seed: int,
        categories=CATEGORIES,
        batch_size: int = 35,
        lpips: str | None = None,
    ):
        self.lpips = None if lpips is None else Lpips(lpips)
        batch_size = min(batch_size, count)
        self.pipe = EditPipeline.from_pretrained(model)
        self.mgt, self.mask_id = self.pipe.model.mgt, self.pipe.mask_token_id
        self.codebook = self.pipe._vq_params["codebook"]  # [C E]
        self.pairs = scenes.Pairs(self.pipe.model.scheduler.native_size, split, count, objects, seed, categories)
        self.runner = scenes.Runner(self.pipe, batch_size, 0)
        self.encoded = self.runner.encode(self.pairs)
        self.grid, self.batch_size = self.encoded.source_ids.shape[1:], batch_size
        self.source, self.target = (
            ids.reshape(count, -1) for ids in (self.encoded.source_ids, self.encoded.target_ids)
        )
        self.inside = self.pairs.token_mask(self.grid).reshape(count, -1)
        self.changed = self.source != self.target
        self.keys = jax.vmap(lambda index: jax.random.fold_in(jax.random.key(0), index))(jnp.arange(count))
        self._conditions = [self._condition(indices) for indices in self._batches()]

    def __len__(self):
        return len(self.source)

    @property
    def length(self) -> int:
        return self.source.shape[1]

    def _batches(self):
        """Indices of the pairs of each batch; the last is filled with the last pair."""
        return (np.array(indices) for indices, _ in in_batches(range(len(self)), self.batch_size))

    def _condition(self, indices):
        model = self.pipe.model
        request, _ = make_request(
            self.pipe.settings(reference_strength=1.0),
            model.scheduler,
            model.vq.config.factor,
            stack(self.pipe.encode([self.pairs.instructions[index] for index in indices])),
            stack([self.pipe.encode(model.scheduler.negative_prompt)] * len(indices)),
            reference=self.encoded.source_ids[indices],
            keys=0,
        )
        return _condition(self.pipe._mgt_variables, self.mgt, request)

    def look(self, tokens, guidance: float, sampling_temperature: float = 1.0, uniform=None, copy_bias=0.0) -> Seen:
        """What the model says of `tokens` [n L]; `uniform` [n L] draws the candidates; `copy_bias` (nats) is taken off the
        logit of the source's id."""
        uniform = np.full(tokens.shape, 0.5, np.float32) if uniform is None else uniform
        models = self.pipe._mgt_variables, self.codebook, self.mgt
        parts = []
        for indices, condition in zip(self._batches(), self._conditions, strict=True):
            batch = tokens[indices].reshape(-1, *self.grid)
            sides = self.source[indices], self.target[indices]
            knobs = jnp.float32(guidance), jnp.float32(sampling_temperature)
            parts.append(_look(*models, condition, batch, *sides, *knobs, uniform[indices], jnp.float32(copy_bias)))
        return Seen(*(np.concatenate(column)[: len(self)] for column in zip(*jax.device_get(parts), strict=True)))

    def noise(self, step: int) -> decode.Noise:
        return decode.Noise(*(np.asarray(x) for x in decode.draw_noise(self.keys, step, self.length)))

    def decode(
        self,
        steps: int,
        order=None,
        *,
        guidance: float | None = None,
        sampling_temperature: float | None = None,
        temperature=None,
        schedule: str = "cosine",
        copy_bias: float = 0.0,
        remask_steps: int = 0,
        remask_guidance: float | None = None,
    ) -> Trace:
        """Decodes all pairs from hidden tokens.

        Args:
          order: (lab, Seen, Noise, temperature of the step, step) -> priority [n L], the highest is committed first; or with
            an attribute `accept`, bool [n L] of what to commit; None is the package's confidence.
          remask_steps: how many of the steps remask; remask_guidance: their scale, by default that of the others.
          Others are the model's own if None.
        """
        own, order = self.pipe.settings(), order or confidence
        guidance = own.guidance_scale if guidance is None else guidance
        sampling_temperature = own.sampling_temperature if sampling_temperature is None else sampling_temperature
        noise_of_order = own.temperature if temperature is None else temperature
        values = masking.decode_schedule(steps, schedule, noise_of_order, remask_steps)
        first = steps - remask_steps
        tokens = np.full_like(self.source, self.mask_id)
        history, seen, passes = [], [], np.zeros(len(self), int)
        for step in range(steps):
            draws = self.noise(step)
            if step >= first:
                tokens = np.where(decode.half_of_grid(int(values.remasked[step]), self.grid), self.mask_id, tokens)
                guidance = guidance if remask_guidance is None else remask_guidance
            hidden = tokens == self.mask_id
            passes += hidden.any(axis=1)
            said = self.look(tokens, guidance, sampling_temperature, draws.uniform, copy_bias)
            priority = np.where(hidden, order(self, said, draws, values.temperature[step], step), np.inf)
            if hasattr(order, "accept") and step < first - 1:
                stay = hidden & ~order.accept(self, said, priority, hidden)
            else:
                stay = _least(priority, hidden, values.hidden_ratio[step])
            tokens = np.where(hidden & ~stay, said.candidate, tokens)
            history.append(tokens)
            seen.append(said)
            if not remask_steps and not (tokens == self.mask_id).any():
                break
        return Trace(np.stack(history), seen, passes)

    def score(self, tokens) -> dict[str, np.ndarray]:
        """Figures of each pair from the ids of its edit [n L] -> {name: [n]}"""
        ids = tokens.reshape(-1, *self.grid)
        pictures = self.runner.decode(ids)
        scores = scenes.score_edits(self.pairs, ids, pictures, self.encoded, self.lpips)
        scores["changed_inside"] = metrics.masked_mean((tokens != self.source).astype(float), self.inside)
        scores["right_changed"] = metrics.masked_mean((tokens == self.target).astype(float), self.changed)
        scores["edges"] = _edges(pictures, self.pairs.mask) / _edges(self.encoded.target, self.pairs.mask)
        return scores


def _least(priority, hidden, ratio):
    """What stays hidden: the positions below the n-th smallest priority, as in `decode.commit`. -> bool [n L]"""
    if ratio == 0:
        return np.zeros_like(hidden)
    n = np.floor(np.float32(hidden.shape[1]) * np.float32(ratio)).astype(int)
    n = np.clip(np.minimum(n, hidden.sum(axis=1) - 1), 1, hidden.shape[1] - 1)
    cutoff = np.take_along_axis(np.sort(priority, axis=1), n[:, None], axis=1)
    return priority < cutoff


def _edges(pictures, mask):
    """Mean absolute difference of neighbours inside the mask [n]: sharpness."""
    across = np.abs(np.diff(pictures, axis=2)).mean(-1), mask[:, :, 1:] & mask[:, :, :-1]
    down = np.abs(np.diff(pictures, axis=1)).mean(-1), mask[:, 1:] & mask[:, :-1]
    return (metrics.masked_mean(*across) + metrics.masked_mean(*down)) / 2


# ---- orders: (lab, seen, noise, temperature, step) -> priority [n L]


def confidence(lab, seen, noise, temperature, step):
    """The package's: log p of the candidate, and Gumbel noise."""
    return seen.log_p + temperature * noise.gumbel


def margin(lab, seen, noise, temperature, step):
    """How much likelier the candidate is than the source's id; a copy has 0."""
    return seen.log_p - seen.log_p_source + temperature * noise.gumbel


def changes_first(penalty):
    """Confidence, less for candidates that are the source's ids."""

    def order(lab, seen, noise, temperature, step):
        return seen.log_p - penalty * (seen.candidate == lab.source) + temperature * noise.gumbel

    return order


def shuffled(lab, seen, noise, temperature, step):
    """A random order."""
    return noise.gumbel


def halton(lab, seen, noise, temperature, step):
    """A fixed low-discrepancy order of the grid's cells."""
    return -np.broadcast_to(samplers.halton_ranks(lab.grid), seen.log_p.shape)


def entropy_bound(bound):
    """Of the surest, as many as have a summed entropy (without the largest) of at most `bound` nats."""

    def order(lab, seen, noise, temperature, step):
        return -seen.entropy

    def accept(lab, seen, priority, hidden):
        by_entropy = np.argsort(np.where(hidden, seen.entropy, np.inf), axis=1)
        entropy = np.take_along_axis(np.where(hidden, seen.entropy, np.inf), by_entropy, axis=1)
        taken = np.concatenate([np.zeros((len(entropy), 1)), np.cumsum(entropy, axis=1)[:, :-1]], axis=1) <= bound
        accepted = np.zeros_like(hidden)
        np.put_along_axis(accepted, by_entropy, taken, axis=1)
        return accepted & hidden

    order.accept = accept
    return order
