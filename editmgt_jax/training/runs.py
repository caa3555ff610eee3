"""The folder of a run: its config and its checkpoints."""

import json
from pathlib import Path

from ml_collections import ConfigDict

from editmgt_jax.files import mounted, write_json
from editmgt_jax.training.checkpoint import restore_identity, restore_params

CHECKPOINTS = "checkpoints"
CONFIG = "config.json"


def is_run(folder) -> bool:
    """Whether a folder is the workdir of a run."""
    return (Path(folder) / CONFIG).is_file() and (Path(folder) / CHECKPOINTS).is_dir()


def run_config(workdir) -> ConfigDict:
    """The config that a run was last started with; the run may have been moved since. Errors: FileNotFoundError."""
    workdir = mounted(workdir, "a run")
    if not is_run(workdir):
        raise FileNotFoundError(f"a run is a folder with {CONFIG} and {CHECKPOINTS}; {workdir} is none")
    config = ConfigDict(json.loads((workdir / CONFIG).read_text()))
    learnt = workdir / "tokenizer"
    if learnt.is_dir() and not Path(config.model.get("tokenizer", "")).is_dir():
        config.model.tokenizer = str(learnt)
    return config


def write_config(workdir, config) -> None:
    write_json(Path(workdir) / CONFIG, config.to_dict(), indent=2)


def best_params(workdir):
    """What `editmgt export` would write of a run: the best step's parameters, averaged if the run keeps an average."""
    return run_params(workdir, run_config(workdir).optimizer.ema_decay > 0)


def run_params(workdir, average: bool, step: int | None = None):
    """Parameters of a run, or their moving average, as host arrays: those of `step`, or of the best one."""
    return restore_params(Path(workdir).absolute() / CHECKPOINTS, step, average)


def run_identity(workdir, step: int | None = None) -> dict:
    """What the states of a run mean nothing without, such as the model that a LoRA adapts."""
    return restore_identity(Path(workdir).absolute() / CHECKPOINTS, step)
