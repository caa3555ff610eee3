"""What a decode is asked for: every input of the jitted edit, made in one place for the product, training and benchmarks.

Axes    as in `editmgt_jax.config`
"""

from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from editmgt_jax.config import SchedulerConfig, micro_conditions
from editmgt_jax.declarations import SettingsError
from editmgt_jax.models.blocks import Interventions
from editmgt_jax.models.text import TextStates
from editmgt_jax.sampling import decode
from editmgt_jax.sampling.settings import Knobs, Settings, StaticSettings, side_by_side


class Request(NamedTuple):
    """The traced inputs of a decode."""

    reference: jax.Array | None  # int32 [B H W]; None is text-to-image
    start: jax.Array  # int32 [B H W], the mask id where to edit
    text: TextStates
    negative: TextStates
    micro: jax.Array  # float32 [5], see `micro_conditions`
    text_weights: jax.Array  # float32 [B 1 T]: weights of the text tokens in the attention that is read
    keys: jax.Array | decode.Noise  # [B], or the draws themselves
    step_weights: jax.Array  # float32 [I]: of the steps in the attention that is returned
    knobs: Knobs  # each [] or [B]
    interventions: Interventions | None = None  # [J B], for research


def make_request(
    settings: Settings | Sequence[Settings],
    scheduler: SchedulerConfig,
    factor: int,
    text: TextStates,
    negative: TextStates,
    *,
    keys: int | jax.Array | decode.Noise,
    reference: np.ndarray | jax.Array | None = None,
    start: np.ndarray | jax.Array | None = None,
    text_weights: np.ndarray | jax.Array | None = None,
    attention_step: int | None = None,
    interventions: Interventions | None = None,
) -> tuple[Request, StaticSettings]:
    """A decode of whole pictures on one grid, on arrays of the host or traced ones.

    Args:
      settings: of all samples, or of each of them; then they may differ in what is traced.
      factor: pixels that a side of a token stands for; text, negative: of B samples.
      keys: a seed or a key (sample i draws from fold_in(key, i)), keys [B], or the draws.
      reference: int32 [B H W], or None for text-to-image, which needs `start`.
      start: int32 [B H W], the mask id where to edit; by default everywhere.
      text_weights: float [B T], weights of the text tokens in the attention that is read; by default all weigh the same (Q8).
      attention_step: the step whose attention is returned; None is the mean over the steps.
    Errors: SettingsError for a step that there is not.
    """
    several = [settings] if isinstance(settings, Settings) else list(settings)
    first, schedule = several[0], scheduler.masking_schedule
    knobs = first.knobs(schedule) if isinstance(settings, Settings) else side_by_side(several, schedule)
    if start is None:
        start = jnp.full(jnp.shape(reference), scheduler.mask_token_id)
    batch, *grid = jnp.shape(start)
    length = text.states.shape[1]
    if text_weights is None:
        text_weights = np.full((batch, length), 1 / length)
    if attention_step is None:
        step_weights = np.full(first.steps, 1 / first.steps)
    elif attention_step in range(first.steps):
        step_weights = np.eye(first.steps)[attention_step]
    else:
        raise SettingsError(f"attention_step must lie in 0..{first.steps - 1}; got {attention_step}")
    height, width = (side * factor for side in grid)
    request = Request(
        reference=None if reference is None else _put(reference, np.int32),
        start=_put(start, np.int32),
        text=text,
        negative=negative,
        micro=_put(micro_conditions(width, height), np.float32),
        text_weights=_put(text_weights[:, None], np.float32),
        keys=_sample_keys(keys, batch),
        step_weights=_put(step_weights, np.float32),
        knobs=knobs,
        interventions=interventions,
    )
    return request, first.static(scheduler.timestep_convention)


def _put(x, dtype) -> jax.Array:
    """A value of the host on the device without a program, or an array as it is, in a type."""
    return x.astype(dtype) if isinstance(x, jax.Array) else jax.device_put(np.asarray(x, dtype))


def _sample_keys(keys, batch):
    if isinstance(keys, decode.Noise):
        return keys
    return decode.sample_keys(jax.random.key(keys) if isinstance(keys, int) else keys, batch)
