"""A step of a run -> a model directory, or the folder of a LoRA."""

import shutil
from pathlib import Path

import jax.numpy as jnp
import numpy as np

from editmgt_jax.errors import UserError
from editmgt_jax.files import new_folder
from editmgt_jax.training.checkpoint import fingerprint
from editmgt_jax.training.conditioning import TrainedText
from editmgt_jax.training.runs import run_config, run_identity, run_params
from editmgt_jax.training.trainer import make_task
from editmgt_jax.weights.components import companion_folders
from editmgt_jax.weights.conversion import save_component
from editmgt_jax.weights.lora import merge, save_lora


def export(workdir, output, step=None, dtype="float32", raw=False, verify=False, merged=False) -> None:
    """Writes a step of a run as a model directory; of a LoRA, as PEFT does.

    Args:
      step: int, or None for the best one; dtype: of the transformer and of the text encoder, or of the image tokenizer that
        the run trains: ids are then those of its rounded weights, so round it before anything is encoded.
      raw: whether to write the parameters even if the run keeps their moving average.
      verify: whether to read the result back and compare every tensor.
      merged: whether to write the model that a LoRA adapts with the LoRA in its weights, in place of the LoRA alone.
    Errors: FileNotFoundError, FileExistsError, CheckpointError; UserError when there is no LoRA that can be merged.
    """
    config = run_config(workdir)
    task = make_task(config)
    if merged and getattr(task, "lora", None) is None:
        raise UserError(f"only the run of a LoRA has something to merge; {workdir} is none")
    average = config.optimizer.ema_decay > 0 and not raw
    params = run_params(workdir, average, step)
    with new_folder(output, workdir) as target:
        if config.task == "vq":
            save_component(target / "vqvae", task.model_config, params, jnp.dtype(dtype), verify)
        elif task.lora is not None and not merged:
            save_lora(target, task.lora, task.mgt_config, params["lora"], verify)
        else:
            if merged:
                base = task.base(lambda _, value: np.asarray(value))
                if fingerprint(base) != run_identity(workdir, step)["base"]:
                    raise UserError(f"{config.start_from} is no longer the model that the LoRA was trained on")
                params = {"mgt": merge(base, params["lora"], task.lora)}
            _write_editor(target, config, task, params, jnp.dtype(dtype), verify)


def _write_editor(target, config, task, params, dtype, verify) -> None:
    """The transformer, and all that goes with it: what was trained along, or the folders of the frozen encoders."""
    save_component(target / "editmgt", task.mgt_config, params["mgt"], dtype, verify)
    if not isinstance(task.text, TrainedText):
        for folder in companion_folders():
            if (Path(config.model.encoders) / folder).is_dir():
                shutil.copytree(Path(config.model.encoders) / folder, target / folder)
        return
    save_component(target / "text_encoder", task.text.config, params["text"], dtype, verify)
    shutil.copytree(task.vq_directory, target / "vqvae")  # as it is: a rounded one would give other ids
    shutil.copytree(config.model.tokenizer, target / "tokenizer")
    (target / "scheduler").mkdir()
    task.scheduler.to_json(target / "scheduler" / "scheduler_config.json")
