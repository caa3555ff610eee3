"""AdamW with the released decay mask, schedules and clipping.

Source  released trainer: betas 0.9 / 0.999, eps 1e-8, weight decay 1e-2, global-norm clipping
"""

import jax
import optax

SCHEDULES = ("constant", "cosine")

# Parameters that the released trainer leaves out of weight decay, by the last parts of their path in our tree.
_UNDECAYED = ("bias", "token_norm/scale", "head_norm/scale", "token_embedding/embedding")


def learning_rate(config) -> optax.Schedule:
    """Linear warm-up over `warmup_steps`, then `schedule`: constant, or cosine to 0 at `total_steps`."""
    if config.schedule not in SCHEDULES:
        raise ValueError(f"optimizer.schedule must be one of {SCHEDULES}; got {config.schedule!r}")
    peak, warmup = config.learning_rate, config.warmup_steps
    if config.schedule == "constant":
        after = optax.constant_schedule(peak)
    else:
        after = optax.cosine_decay_schedule(peak, max(1, config.total_steps - warmup))
    return optax.join_schedules([optax.linear_schedule(0.0, peak, max(1, warmup)), after], [warmup])


def decay_mask(params):
    """True where weight decay applies: all but biases, the token and head norms and the token embedding."""

    def decayed(path, _):
        name = "/".join(str(key.key) for key in path)
        return not name.endswith(_UNDECAYED)

    return jax.tree_util.tree_map_with_path(decayed, params)


def make_optimizer(config) -> optax.GradientTransformation:
    """The optimizer of `config.optimizer`: clip by global norm, then AdamW on the schedule."""
    return optax.chain(
        optax.clip_by_global_norm(config.clip_norm),
        optax.adamw(
            learning_rate(config),
            b1=config.beta1,
            b2=config.beta2,
            eps=1e-8,
            weight_decay=config.weight_decay,
            mask=decay_mask,
        ),
    )
