"""The train state, and the types of what a step gives.

Metrics are pairs (sum, count): they add up over the parts of a batch, over devices and over steps.
"""

from typing import Any

import jax
import jax.numpy as jnp
import optax
from flax import struct

Params = Any  # a tree of arrays
Metric = tuple[jax.Array, jax.Array]  # (sum, count)
Metrics = dict[str, Metric]


@struct.dataclass
class TrainState:
    """Everything a run needs to go on: saved and restored whole."""

    step: jax.Array  # int32, steps done
    params: Params
    opt_state: Any
    ema: Params | None  # moving average of params
    extra: Any = (
        None  # what a task updates itself: statistics of the codebook, a discriminator with its optimizer's state
    )


def new_state(
    params: Params, optimizer: optax.GradientTransformation, ema: bool, extra: Params | None = None
) -> TrainState:
    """State at step 0; the moving average starts at the parameters."""
    return TrainState(
        step=jnp.zeros((), jnp.int32),
        params=params,
        opt_state=optimizer.init(params),
        ema=jax.tree.map(jnp.copy, params) if ema else None,
        extra=extra,
    )
