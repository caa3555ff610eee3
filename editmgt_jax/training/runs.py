"""The folder of a run: its config and its checkpoints."""

from pathlib import Path
from typing import TypeVar

from editmgt_jax.errors import UserError
from editmgt_jax.files import JOB, mounted, read_json, write_json
from editmgt_jax.training import declare
from editmgt_jax.training.checkpoint_reading import restore_params
from editmgt_jax.training.config import RUNS, MGTRun, TrainConfig, read_config
from editmgt_jax.training.declare import ConfigError
from editmgt_jax.training.state import Params

Run = TypeVar("Run", bound=TrainConfig)
CHECKPOINTS = "checkpoints"
CONFIG = "config.json"


def is_run(folder: str | Path) -> bool:
    """Whether a folder is the workdir of a run."""
    return (Path(folder) / CONFIG).is_file() and (Path(folder) / CHECKPOINTS).is_dir()


def is_begun(workdir: str | Path) -> bool:
    """Whether a folder is that of a run with a checkpoint, from which it goes on."""
    return is_run(workdir) and any(path.name.isdigit() for path in (Path(workdir) / CHECKPOINTS).iterdir())


def check_not_another_s(workdir: Path) -> None:
    """Errors: UserError for a folder that is no run's and that another command wrote: records, an ablation, an evaluation."""
    theirs = [name for name in (JOB, "evaluation.json") if (workdir / name).is_file()]
    if theirs and not is_run(workdir):
        raise UserError(f"{workdir} holds {', '.join(theirs)} of another job: name a new folder for the run")


def run_config(workdir: str | Path) -> TrainConfig:
    """The config that a run was last started with; the run may have been moved since.

    Errors: FileNotFoundError; ConfigError when the config is no longer understood.
    """
    workdir = mounted(workdir, "a run")
    if not is_run(workdir):
        raise FileNotFoundError(f"a run is a folder with {CONFIG} and {CHECKPOINTS}; {workdir} is none")
    try:
        config = read_config(read_json(workdir / CONFIG, dict))
    except ValueError as error:
        raise ConfigError(f"{workdir / CONFIG}: {error}") from error
    learnt = workdir / "tokenizer"
    if isinstance(config, MGTRun) and learnt.is_dir() and not Path(config.model.tokenizer or learnt).is_dir():
        config = declare.replaced(config, {"model.tokenizer": str(learnt)})
    return config


def config_of_task(workdir: str | Path, kind: type[Run]) -> Run:
    """The config of a run that another one starts from, which must be of the same task.

    Errors: as `run_config`; UserError for another task.
    """
    config = run_config(workdir)
    if not isinstance(config, kind):
        task = next(name for name, each in RUNS.items() if each is kind)
        raise UserError(f"start_from must be a run of task {task}; {workdir} is one of task {config.task}")
    return config


def changed_keys(workdir: str | Path, config: TrainConfig) -> list[str]:
    """What a run that goes on is told: keys that may differ from those it was last started with, and do.

    Errors: ConfigError when a key differs that a run must keep.
    """
    workdir = Path(workdir)
    if not is_begun(workdir):
        return []
    fixed, noted = declare.changes(run_config(workdir), config)
    if fixed:
        raise ConfigError(
            f"the run in {workdir} was begun with another config: {'; '.join(fixed)}. Go on with what it was begun with, or "
            "take a new workdir"
        )
    return noted


def write_config(workdir: str | Path, config: TrainConfig) -> None:
    """Writes what `run_config` reads."""
    write_json(Path(workdir) / CONFIG, config.to_dict(), indent=2)


def best_params(workdir: str | Path) -> Params:
    """What `editmgt export` would write of a run: the best step's parameters, averaged if the run keeps an average.

    Errors: FileNotFoundError, ConfigError, CheckpointError.
    """
    return run_params(workdir, run_config(workdir).optimizer.ema_decay > 0)


def run_params(workdir: str | Path, average: bool, step: int | None = None) -> Params:
    """Parameters of a run, or their moving average, as host arrays: those of `step`, or of the best one.

    Errors: CheckpointError.
    """
    return read_run(workdir, average, step)[0]


def read_run(workdir: str | Path, average: bool, step: int | None = None) -> tuple[Params, dict, int]:
    """-> (what `run_params` gives, what its states mean nothing without, such as the model that a LoRA adapts, the step)

    Errors: CheckpointError.
    """
    return restore_params(Path(workdir).absolute() / CHECKPOINTS, step, average)
