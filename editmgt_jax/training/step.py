"""The train state and one optimizer step, shared by all tasks."""

from typing import Any

import jax
import jax.numpy as jnp
import optax
from flax import struct


@struct.dataclass
class TrainState:
    """Everything a run needs to go on: saved and restored whole."""

    step: jax.Array  # int32, steps done
    params: Any
    opt_state: Any
    ema: Any  # moving average of params, or None
    extra: Any = None  # what a task updates without gradients (codebook statistics)


def new_state(params, optimizer, ema: bool, extra=None) -> TrainState:
    """State at step 0; the moving average starts at the parameters."""
    return TrainState(
        step=jnp.zeros((), jnp.int32),
        params=params,
        opt_state=optimizer.init(params),
        ema=jax.tree.map(jnp.copy, params) if ema else None,
        extra=extra,
    )


def apply_gradients(state: TrainState, gradients, optimizer, ema_decay: float) -> TrainState:
    """One optimizer update. The average's decay warms up as (1 + step) / (10 + step), up to `ema_decay`."""
    updates, opt_state = optimizer.update(gradients, state.opt_state, state.params)
    params = optax.apply_updates(state.params, updates)
    ema = state.ema
    if ema is not None:
        decay = jnp.minimum(ema_decay, (1.0 + state.step) / (10.0 + state.step))
        ema = jax.tree.map(lambda old, new: decay * old + (1 - decay) * new, ema, params)
    return state.replace(step=state.step + 1, params=params, opt_state=opt_state, ema=ema)


def masked_cross_entropy(logits, targets, mask, weights=None):
    """Mean cross-entropy over masked positions of the batch.

    Args:
      logits: [B L C]; targets: [B L] int32; mask: [B L] bool, True where the token was hidden.
      weights: [B L] positive weights of the masked positions, or None for the released plain mean.
    """
    logits = logits.astype(jnp.float32)
    # A sum over the codebook, not a gather: its gradient fuses with the softmax's, where a gather's is a scatter.
    picked = jnp.sum(jnp.where(jnp.arange(logits.shape[-1]) == targets[..., None], logits, 0.0), axis=-1)
    loss = jax.nn.logsumexp(logits, axis=-1) - picked
    weights = mask if weights is None else weights * mask
    return jnp.sum(loss * weights) / jnp.maximum(jnp.sum(weights), 1)
