"""Where the scalars of a run go, besides its own files: TensorBoard always, Weights & Biases if asked for."""

import os
import secrets
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

from editmgt_jax.errors import UserError
from editmgt_jax.files import write_text

TRACKERS = ("wandb",)  # that must be asked for
PROJECT = "editmgt_jax"
RUN_ID = "wandb_run.txt"


class Tracker(Protocol):
    """What takes the scalars of a run."""

    def scalars(self, step: int, values: Mapping[str, float]) -> None:
        """Those of one step."""

    def close(self) -> None:
        """Writes what is still held back."""


class TensorBoard:
    """Event files in `directory`/tensorboard; points after `resume_step` of an earlier run are not shown."""

    def __init__(self, directory: Path, resume_step: int):
        from tensorboardX import SummaryWriter

        self._board = SummaryWriter(str(directory / "tensorboard"), purge_step=resume_step + 1)

    def scalars(self, step: int, values: Mapping[str, float]) -> None:
        """See `Tracker`."""
        for name, value in values.items():
            self._board.add_scalar(name, float(value), step)

    def close(self) -> None:
        """See `Tracker`."""
        self._board.close()


class Wandb:
    """A run of Weights & Biases that a later call for the same directory goes on with.

    WANDB_PROJECT, WANDB_MODE=offline and the package's other variables hold. Its files lie in `directory`/wandb.

    Args:
      config: of the run; directory: whose name is that of the run.
    Errors: UserError when the package is missing, or cannot begin.
    """

    def __init__(self, directory: Path, config: Mapping[str, Any]):
        wandb, path = package(), directory / RUN_ID
        directory.mkdir(parents=True, exist_ok=True)
        if not path.is_file():
            write_text(path, secrets.token_hex(8) + "\n")
        try:
            self.run = wandb.init(
                project=os.environ.get("WANDB_PROJECT", PROJECT), name=directory.resolve().name, dir=str(directory),
                id=path.read_text().strip(), resume="allow", config=dict(config),
            )  # fmt: skip
        except wandb.errors.Error as error:
            first_line = str(error).strip().splitlines()[0].rstrip(".")
            raise UserError(
                f"--track wandb cannot begin: {first_line}; WANDB_MODE=offline needs no network", transient=True
            ) from error
        self.run.define_metric(
            "*", step_metric="step"
        )  # of the run's own: steps that come again after a restart are kept

    def scalars(self, step: int, values: Mapping[str, float]) -> None:
        """See `Tracker`."""
        self.run.log({"step": step} | {name: float(value) for name, value in values.items()})

    def page(self, name: str, html: str) -> None:
        """A page of HTML."""
        self.run.log({name: package().Html(html)})

    def close(self) -> None:
        """See `Tracker`."""
        self.run.finish()


def package() -> Any:
    """wandb. Errors: UserError when it is not installed."""
    try:
        import wandb
    except ImportError as error:
        raise UserError("--track wandb needs the package: pip install 'editmgt_jax[wandb]'") from error
    return wandb


def opened(names: Sequence[str], directory: Path, config: Mapping[str, Any]) -> list[Wandb]:
    """The trackers of `TRACKERS` that were asked for. Errors: those of `Wandb`."""
    return [Wandb(directory, config) for _ in dict.fromkeys(names)]
