"""A step of a run -> a model directory, or the folder of a LoRA."""

import json
import sys
from pathlib import Path

import jax.numpy as jnp
from jax.typing import DTypeLike

from editmgt_jax.files import new_folder
from editmgt_jax.training.metrics import METRICS, keep_lines
from editmgt_jax.training.runs import read_run, run_config
from editmgt_jax.training.tasks.table import make_task
from editmgt_jax.weights import cards


def export(
    workdir: str | Path,
    output: str | Path,
    step: int | None = None,
    dtype: DTypeLike = "float32",
    raw: bool = False,
    verify: bool = False,
    merged: bool = False,
    licence: str = "",
) -> None:
    """Writes a step of a run as a model directory; of a LoRA, as PEFT does.

    Args:
      step: None is the best one; dtype: of the transformer and of the text encoder, or of the image tokenizer that
        the run trains: ids are then those of its rounded weights, so round it before anything is encoded.
      raw: whether to write the parameters even if the run keeps their moving average.
      verify: whether to read the result back and compare every tensor.
      merged: whether to write the model that a LoRA adapts with the LoRA in its weights, in place of the LoRA alone.
      licence: of the result, for its card, as the hub calls it.
    Errors: FileNotFoundError, FileExistsError, CheckpointError; UserError when there is no LoRA that can be merged.
    """
    config = run_config(workdir)
    task = make_task(config)
    for note in task.notes():
        print(f"editmgt: note: {note}", file=sys.stderr)
    average = config.optimizer.ema_decay > 0 and not raw
    params, identity, step = read_run(workdir, average, step)
    with new_folder(output, workdir) as target:
        task.save(target, task.merged(params, identity) if merged else params, jnp.dtype(dtype), verify)
        facts = _facts(Path(workdir), config, step, licence, average, merged)
        cards.complete(target, Path(output).name, facts)


def _facts(workdir, config, step, licence, average, merged) -> cards.Facts:
    """What the card says, by the run's config and its metrics."""
    drawn = (
        f"scenes of {config.data.size} px that editmgt draws ({config.data.objects} objects, seed {config.data.seed})"
    )
    data = [f"{Path(folder.path).name}, weight {folder.weight:g}" for folder in config.data.tokens] or [drawn]
    evaluations = [values for line in keep_lines(workdir / METRICS, step, write=False) if (values := json.loads(line))]
    metrics: dict[str, float] = {}
    for values in evaluations:
        metrics |= {name[5:]: value for name, value in values.items() if name.startswith("eval/") and value is not None}
    training = {
        "task": config.task,
        "steps": step,
        "samples a step": config.batch_size,
        "peak learning rate": config.optimizer.learning_rate,
        "seed": config.seed,
        "parameters": "moving average" if average else "of the step",
    }
    flags = " --merge" if merged else ""
    return cards.Facts(
        licence=licence,
        base=Path(config.start_from).name,
        data=data,
        training=training | ({"LoRA rank": config.lora.rank} if config.lora.rank else {}),
        metrics=metrics,
        commands=(
            f"editmgt train --config CONFIG --workdir {workdir.name}",
            f"editmgt export --workdir {workdir.name} --step {step}{flags} --output MODEL",
        ),
    )
