"""What the trainer asks of a task. A task inherits from `Task`, which has the defaults of what it may leave out.

Axes    B samples of a batch
"""

import abc
from collections.abc import Callable
from pathlib import Path
from typing import Any, ClassVar, Protocol

import jax
from jax.typing import DTypeLike

from editmgt_jax.errors import UserError
from editmgt_jax.training import inputs
from editmgt_jax.training.config import TrainConfig
from editmgt_jax.training.sharding import Put
from editmgt_jax.training.state import Metrics, Params, TrainState


class Task(Protocol):
    """A kind of model and how it is trained. It is made of a config that its `resolve` has completed.

    Attributes:
      rules: where its parameters lie, see `sharding.Layout`.
      config: the run's; monitor: (metric, "max" or "min") that decides which checkpoint is best.
      encode_prompts: texts -> {name: int32 [B T]}, on the host; None where text plays no part.
      edits: whether its model can edit pictures, as `Samples` does.
    """

    rules: ClassVar[tuple]
    config: TrainConfig
    monitor: tuple[str, str]
    encode_prompts: Callable[[list[str]], dict] | None = None
    edits: bool = False

    @classmethod
    def resolve(cls, config: TrainConfig, workdir: Path, make: bool) -> TrainConfig:
        """The config with absolute folders, and with what it leaves to be found or made.

        Args:
          make: whether this process makes it; another one then does.
        Errors: UserError, FileNotFoundError.
        """
        return inputs.resolve(config, workdir)

    def notes(self) -> list[str]:
        """What a user may not have meant, about the model."""
        return []

    # ---- parameters

    @abc.abstractmethod
    def init(self, key: jax.Array) -> Params:
        """Random parameters. Traced."""

    @abc.abstractmethod
    def start(self, key: jax.Array, put: Put) -> Params | None:
        """Parameters that are not random, on the mesh; None where a run starts from random ones."""

    def extra(self, params: Params) -> Params | None:
        """What `after` updates and the optimizer does not, for a run that starts from `params`. Traced."""
        return None

    def frozen(self, put: Put, encodes: set[str]) -> dict:
        """What steps need and do not train, on the mesh.

        Args:
          encodes: what steps must encode, see `inputs.encoded_in_steps`.
        """
        return {}

    def identity(self, frozen: dict) -> dict:
        """JSON-able facts without which the states mean nothing: a run goes on with the same alone."""
        return {}

    # ---- steps

    @abc.abstractmethod
    def gradients(
        self, params: Params, frozen: dict, batch: dict, key: jax.Array, step: jax.Array, extra: Params | None = None
    ) -> tuple[Params, Metrics, Any]:
        """-> (gradients, metrics with 'loss', what `after` needs). Traced.

        Args:
          extra: of the state, see the method `extra`.
        """

    def after(self, state: TrainState, updates: Any) -> tuple[TrainState, Metrics]:
        """The state after an optimizer step, with what the optimizer does not update. Traced.

        Returns: (state, metrics); one that ends in 'gradient_norm' and is not finite makes the step a bad one.
        """
        return state, {}

    @abc.abstractmethod
    def evaluate(self, params: Params, frozen: dict, batch: dict, key: jax.Array) -> Metrics:
        """Metrics of a held-out batch, without the noise of training. Traced."""

    def flops(self, batch: dict) -> int | None:
        """FLOPs of a step on a batch of arrays or shapes; None where they are not counted."""
        return None

    # ---- export

    @abc.abstractmethod
    def save(self, folder: Path, params: Params, dtype: DTypeLike, verify: bool) -> None:
        """Writes parameters as a model directory, or as the folder of a LoRA, into an empty folder.

        Args:
          params: host arrays; dtype: of the files' tensors; verify: whether to read them back and compare.
        """

    def merged(self, params: Params, identity: dict) -> Params:
        """Parameters of the model that a LoRA adapts, with it merged in.

        Args:
          identity: of the run, as it was when `params` were saved.
        Errors: UserError where there is no LoRA that can be merged.
        """
        raise UserError(f"only the run of a LoRA has something to merge; task {self.config.task} trains a whole model")
