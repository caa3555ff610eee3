"""The tasks by name. Their configs are in the table of `editmgt_jax.training.config`."""

from editmgt_jax.training.config import TrainConfig
from editmgt_jax.training.tasks.mgt import MGTTask
from editmgt_jax.training.tasks.protocol import Task
from editmgt_jax.training.tasks.vq import VQTask

TASKS: dict[str, type[Task]] = {"mgt": MGTTask, "vq": VQTask}


def make_task(config: TrainConfig) -> Task:
    """The task of a completed config. Errors: UserError, FileNotFoundError."""
    return TASKS[config.task](config)
