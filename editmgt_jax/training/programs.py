"""The compiled programs of a run: a train step and an evaluation step, as the trainer runs them."""

from collections.abc import Callable

import jax
import optax

from editmgt_jax.training import compiler
from editmgt_jax.training.config import TrainConfig
from editmgt_jax.training.sharding import Layout
from editmgt_jax.training.state import TrainState
from editmgt_jax.training.step import train_step
from editmgt_jax.training.tasks.protocol import Task


def jitted_steps(
    task: Task, optimizer: optax.GradientTransformation, config: TrainConfig, layout: Layout, shardings: TrainState
) -> tuple[Callable, Callable]:
    """The jitted programs of a run, to be traced inside of `layout.active()`.

    Args:
      shardings: of the leaves of the train state.
    Returns: (state, frozen, batch) -> (state, metrics), which takes the state's memory, and (params, frozen, batch, key) ->
      metrics.
    """
    options = compiler.options(config.compiler, layout.mesh.devices.flat[0].platform)

    def one_step(state, frozen, batch):
        key = jax.random.fold_in(jax.random.key(config.seed), state.step)
        return train_step(task, optimizer, config, state, frozen, batch, key)

    more = {"compiler_options": options} if options else {}
    return (
        jax.jit(one_step, donate_argnums=0, out_shardings=(shardings, layout.replicated), **more),
        jax.jit(task.evaluate, out_shardings=layout.replicated, **more),
    )
