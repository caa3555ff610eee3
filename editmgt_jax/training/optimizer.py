"""AdamW with the released decay mask, schedules and clipping.

Source  released trainer: betas 0.9 / 0.999, eps 1e-8, weight decay 1e-2, global-norm clipping
"""

import functools

import jax
import optax

from editmgt_jax.errors import UserError

SCHEDULES = ("constant", "cosine", "wsd")

# Parameters that the released trainer leaves out of weight decay, by the last parts of their path in our tree (Q15).
_UNDECAYED = ("bias", "token_norm/scale", "head_norm/scale", "text_norm/scale", "token_embedding/embedding")


def learning_rate(config) -> optax.Schedule:
    """Linear warm-up over `warmup_steps`, then `schedule`, which must end at `total_steps` unless it is constant.

    'cosine' falls to 0 there. 'wsd' (warm-up, stable, decay) stays at the peak until the last `decay_steps`, then falls
    to 0 in a line: a run can be made longer at any time before its decay begins.
    """
    if config.schedule not in SCHEDULES:
        raise UserError(f"optimizer.schedule must be one of {SCHEDULES}; got {config.schedule!r}")
    peak, warmup = config.learning_rate, config.warmup_steps
    if config.schedule == "constant":
        after = optax.constant_schedule(peak)
    elif config.schedule == "cosine":
        after = optax.cosine_decay_schedule(peak, max(1, config.total_steps - warmup))
    else:
        stable = config.total_steps - warmup - config.decay_steps
        if config.decay_steps < 1 or stable < 0:
            raise UserError(
                "schedule wsd needs decay_steps >= 1 and total_steps >= warmup_steps + decay_steps; "
                f"got {config.decay_steps}, {config.total_steps} and {warmup}"
            )
        decay = optax.linear_schedule(peak, 0.0, config.decay_steps)
        after = optax.join_schedules([optax.constant_schedule(peak), decay], [stable])
    return optax.join_schedules([optax.linear_schedule(0.0, peak, max(1, warmup)), after], [warmup])


def decay_mask(params, undecayed: str = "released"):
    """True where weight decay applies.

    Args:
      undecayed: 'released' spares biases, the token, head and text norms and the token embedding; 'no_norms' all norms, too.
    """
    spared = _UNDECAYED + (("scale",) if undecayed == "no_norms" else ())

    def decayed(path, _):
        name = "/".join(str(key.key) for key in path)
        return not name.endswith(spared)

    return jax.tree_util.tree_map_with_path(decayed, params)


def make_optimizer(config) -> optax.GradientTransformation:
    """The optimizer of `config.optimizer`: clip by global norm, then AdamW on the schedule."""
    if config.undecayed not in ("released", "no_norms"):
        raise UserError(f"optimizer.undecayed must be 'released' or 'no_norms'; got {config.undecayed!r}")
    if config.first_moment not in ("float32", "bfloat16"):
        raise UserError(f"optimizer.first_moment must be 'float32' or 'bfloat16'; got {config.first_moment!r}")
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
