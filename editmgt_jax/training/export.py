"""A step of a run -> a model directory, or the folder of a LoRA."""

import sys
from pathlib import Path

import jax.numpy as jnp
from jax.typing import DTypeLike

from editmgt_jax.files import new_folder
from editmgt_jax.training.runs import read_run, run_config
from editmgt_jax.training.tasks.table import make_task


def export(
    workdir: str | Path,
    output: str | Path,
    step: int | None = None,
    dtype: DTypeLike = "float32",
    raw: bool = False,
    verify: bool = False,
    merged: bool = False,
) -> None:
    """Writes a step of a run as a model directory; of a LoRA, as PEFT does.

    Args:
      step: None is the best one; dtype: of the transformer and of the text encoder, or of the image tokenizer that
        the run trains: ids are then those of its rounded weights, so round it before anything is encoded.
      raw: whether to write the parameters even if the run keeps their moving average.
      verify: whether to read the result back and compare every tensor.
      merged: whether to write the model that a LoRA adapts with the LoRA in its weights, in place of the LoRA alone.
    Errors: FileNotFoundError, FileExistsError, CheckpointError; UserError when there is no LoRA that can be merged.
    """
    config = run_config(workdir)
    task = make_task(config)
    for note in task.notes():
        print(f"editmgt: note: {note}", file=sys.stderr)
    average = config.optimizer.ema_decay > 0 and not raw
    params, identity = read_run(workdir, average, step)
    with new_folder(output, workdir) as target:
        task.save(target, task.merged(params, identity) if merged else params, jnp.dtype(dtype), verify)
