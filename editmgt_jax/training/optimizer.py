"""AdamW with the released decay mask, schedules and clipping.

Source  released trainer: betas 0.9 / 0.999, eps 1e-8, weight decay 1e-2, global-norm clipping
"""

import functools
from typing import Any

import jax
import optax

from editmgt_jax.training.config import Optimizer

# Parameters that the released trainer leaves out of weight decay, by the last parts of their path in our tree (Q15).
_UNDECAYED = ("bias", "token_norm/scale", "head_norm/scale", "text_norm/scale", "token_embedding/embedding")


def learning_rate(config: Optimizer) -> optax.Schedule:
    """Linear warm-up over `warmup_steps`, then `schedule`, which must end at `total_steps` unless it is constant.

    'cosine' falls to 0 there. 'wsd' (warm-up, stable, decay) stays at the peak until the last `decay_steps`, then falls
    to 0 in a line: a run can be made longer at any time before its decay begins.
    """
    peak, warmup = config.learning_rate, config.warmup_steps
    if config.schedule == "constant":
        after = optax.constant_schedule(peak)
    elif config.schedule == "cosine":
        after = optax.cosine_decay_schedule(peak, max(1, config.total_steps - warmup))
    else:
        stable = config.total_steps - warmup - config.decay_steps
        decay = optax.linear_schedule(peak, 0.0, config.decay_steps)
        after = optax.join_schedules([optax.constant_schedule(peak), decay], [stable])
    return optax.join_schedules([optax.linear_schedule(0.0, peak, max(1, warmup)), after], [warmup])


def decay_mask(params: Any, undecayed: str = "released") -> Any:
    """A tree like `params`, True where weight decay applies.

    Args:
      undecayed: 'released' spares biases, the token, head and text norms and the token embedding; 'no_norms' all norms, too.
    """
    spared = _UNDECAYED + (("scale",) if undecayed == "no_norms" else ())

    def decayed(path, _):
        name = "/".join(str(key.key) for key in path)
        return not name.endswith(spared)

    return jax.tree_util.tree_map_with_path(decayed, params)


def make_optimizer(config: Optimizer) -> optax.GradientTransformation:
    """The optimizer of `config.optimizer`: clip by global norm, then AdamW on the schedule."""
    return optax.chain(
        optax.clip_by_global_norm(config.clip_norm),
        optax.adamw(
            learning_rate(config),
            b1=config.beta1,
            b2=config.beta2,
            eps=1e-8,
            weight_decay=config.weight_decay,
            mask=functools.partial(decay_mask, undecayed=config.undecayed),
            mu_dtype=config.first_moment,
        ),
    )
