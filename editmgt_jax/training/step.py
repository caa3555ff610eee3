"""One optimizer step, shared by all tasks, and what their losses have in common.

Axes    as in `editmgt_jax.config`
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax

from editmgt_jax.training.config import TrainConfig
from editmgt_jax.training.state import Metric, Metrics, Params, TrainState
from editmgt_jax.training.tasks.protocol import Task

GRADIENT_NORM = "gradient_norm"  # the metric, and the end of the names of those of what `task.after` trains


def train_step(
    task: Task,
    optimizer: optax.GradientTransformation,
    config: TrainConfig,
    state: TrainState,
    frozen: dict,
    batch: dict[str, jax.Array],
    key: jax.Array,
) -> tuple[TrainState, Metrics]:
    """One step of a task.

    Args:
      frozen: what the task needs and does not train; batch: arrays [B ...].
    Returns: (state, metrics). Where the loss or a gradient, also of what `task.after` trains, is not finite, or the loss exceeds
      `config.guard.max_loss`, only the step of the state moves on; the metric 'bad' then counts 1.
    """
    gradients, metrics, updates = task.gradients(state.params, frozen, batch, key, state.step, state.extra)
    norm, loss = optax.tree.norm(gradients), mean(metrics["loss"])
    new = apply_gradients(state, gradients, optimizer, config.optimizer.ema_decay)
    new, more = task.after(new, updates)
    good = jnp.isfinite(loss) & jnp.isfinite(norm) & (loss <= config.guard.max_loss)
    for name in more:
        if name.endswith(GRADIENT_NORM):
            good &= jnp.isfinite(mean(more[name]))
    new = jax.tree.map(lambda one, other: jnp.where(good, one, other), new, state.replace(step=new.step))
    return new, metrics | more | {GRADIENT_NORM: once(norm), "bad": once(jnp.where(good, 0.0, 1.0))}


def apply_gradients(
    state: TrainState, gradients: Params, optimizer: optax.GradientTransformation, ema_decay: float
) -> TrainState:
    """One optimizer update. The average's decay warms up as (1 + step) / (10 + step), up to `ema_decay`."""
    updates, opt_state = optimizer.update(gradients, state.opt_state, state.params)
    params = optax.apply_updates(state.params, updates)
    ema = state.ema
    if ema is not None:
        decay = jnp.minimum(ema_decay, (1.0 + state.step) / (10.0 + state.step))
        ema = jax.tree.map(lambda old, new: decay * old + (1 - decay) * new, ema, params)
    return state.replace(step=state.step + 1, params=params, opt_state=opt_state, ema=ema)


def accumulate(function: Callable[[Any], Any], batch: Any, parts: int) -> Any:
    """The sum of a function's results over `parts` equal parts of a batch, one after another.

    Args:
      function: part -> tree of arrays; batch: a tree of arrays [B ...], B a multiple of `parts`.
    """
    if parts == 1:
        return function(batch)

    def split(x):  # [B ...] -> [parts B/parts ...]; neighbours stay on their device
        return x.reshape(-1, parts, *x.shape[1:]).swapaxes(0, 1)

    def add(sums, part):
        return jax.tree.map(jnp.add, sums, function(part)), None

    split_batch = jax.tree.map(split, batch)
    shapes = jax.eval_shape(function, jax.tree.map(lambda x: x[0], split_batch))
    zeros = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), shapes)
    return jax.lax.scan(add, zeros, split_batch)[0]


def once(value: jax.typing.ArrayLike) -> Metric:
    """A metric that counts as one observation."""
    return jnp.asarray(value, jnp.float32), jnp.float32(1)


def mean(metric: Metric) -> jax.Array:
    """Of all observations of a metric; 0 where there are none."""
    total, count = metric
    return total / jnp.maximum(count, 1e-9)


def loss_weights(mask: jax.Array, weights: jax.Array | None = None, over: str = "batch") -> jax.Array:
    """Weights [B L] whose sum with the cross-entropy is the mean over masked positions.

    Args:
      mask: [B L] bool, True where the token was hidden; weights: [B L] positive, or None for the released plain mean.
      over: 'batch' (released): all masked positions of the batch alike; 'sample': the mean of each sample's mean.
    """
    weights = mask.astype(jnp.float32) if weights is None else weights * mask
    if over == "sample":
        return weights / jnp.maximum(weights.sum(axis=1, keepdims=True), 1e-9) / len(weights)
    return weights / jnp.maximum(weights.sum(), 1e-9)
