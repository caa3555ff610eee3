"""Saving and restoring runs. The one module that talks to Orbax.

A checkpoint holds the train state, the data iterator and, as metadata, the run's config: a run resumed from it equals
one that was never stopped.
"""

import math
from pathlib import Path

import jax
import numpy as np
from orbax.checkpoint import v1 as ocp

_IN_FLIGHT = 1 << 30  # bytes that a whole tree is written and read with


class CheckpointError(RuntimeError):
    """A checkpoint that cannot be written or read."""


class Checkpoints:
    """Checkpoints of one run in `directory`, asynchronous, keeping the latest `keep` and the best one.

    Args:
      directory: folder of the run's checkpoints (created).
      config: JSON-able dict stored beside every checkpoint.
      monitor: (metric name, "max" or "min") that decides which checkpoint is best.
    """

    def __init__(self, directory, config: dict, monitor: tuple[str, str], keep: int = 2):
        name, direction = monitor
        policies = ocp.training.preservation_policies
        best = policies.BestN(get_metric_fn=lambda metrics: metrics[name], reverse=direction == "min", n=1)
        self._checkpointer = ocp.training.Checkpointer(
            directory,
            save_decision_policy=ocp.training.save_decision_policies.AnySavePolicy([]),
            preservation_policy=policies.AnyPreservationPolicy([policies.LatestN(keep), best]),
            custom_metadata={"config": config},
            cleanup_tmp_directories=True,
        )

    @property
    def latest_step(self) -> int | None:
        latest = self._checkpointer.latest
        return None if latest is None else latest.step

    def save(self, step: int, state, data, metrics: dict) -> None:
        """Saves state and data iterator together; returns while the files are still being written."""
        self._checkpointer.save_checkpointables_async(
            step, {"state": _arrays(state), "data": data}, metrics=metrics, force=True
        )

    def restore(self, step: int, state, data):
        """-> state of `step`, with the shardings of `state`; `data` is moved to its place in place."""
        abstract = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), _arrays(state))
        try:
            loaded = self._checkpointer.load_checkpointables(step, {"state": abstract, "data": data})
        except (ValueError, KeyError, FileNotFoundError) as error:
            raise CheckpointError(
                f"checkpoint {step} in {self._checkpointer.directory} does not fit this run: {error}. "
                "Use the config it was written with, or a new workdir"
            ) from error
        return state.replace(**loaded["state"])

    def close(self) -> None:
        """Waits for writes under way."""
        self._checkpointer.close()


def _arrays(state) -> dict:
    """The state as a dict without empty entries (Orbax has no place for None)."""
    return {k: v for k, v in vars(state).items() if v is not None}


def restore_params(directory, step: int | None = None, monitor=None, average: bool = False):
    """Reads only the parameters (or their moving average) of a run's checkpoint, as host arrays.

    Args:
      step: which; None is the best by `monitor` (metric name, "max" or "min"), or without monitor the latest.
    """
    if not Path(directory).is_dir():
        raise CheckpointError(f"a run needs a folder of checkpoints; there is none at {directory}")
    with ocp.training.Checkpointer(directory) as checkpointer:
        steps = {c.step: c for c in checkpointer.checkpoints}
        if not steps:
            raise CheckpointError(f"a run needs a checkpoint; none in {directory}")
        if step is None:
            step = _best(steps.values(), monitor) if monitor else max(steps)
        if step not in steps:
            raise CheckpointError(f"step {step} is not kept in {directory}; there are {sorted(steps)}")
        name = "ema" if average else "params"
        metadata = checkpointer.metadata(step).metadata
        abstract = jax.tree.map(lambda x: np.empty(x.shape, x.dtype), metadata[name])
        partly = ocp.Context()
        partly.pytree.loading.partial_load = True
        with partly:
            return checkpointer.load(step, {name: abstract})[name]


def _best(checkpoints, monitor) -> int:
    name, direction = monitor
    sign = 1 if direction == "max" else -1
    return max(checkpoints, key=lambda c: sign * (c.metrics or {}).get(name, -sign * math.inf)).step


def save_tree(directory, tree) -> None:
    """Writes a tree of host arrays as an Orbax checkpoint, a new folder, without a second copy of them in memory."""
    with _lean():
        ocp.save(Path(directory).absolute(), tree)


def load_tree(directory):
    """Reads what `save_tree` wrote, as host arrays. Errors: CheckpointError."""
    directory = Path(directory).absolute()
    try:
        metadata = ocp.metadata(directory).metadata
        with _lean():
            return ocp.load(directory, jax.tree.map(lambda x: np.empty(x.shape, x.dtype), metadata))
    except (ValueError, KeyError, FileNotFoundError, ocp.errors.InvalidLayoutError) as error:
        raise CheckpointError(f"{directory} is not a complete Orbax checkpoint: {error}") from error


def _lean() -> ocp.Context:
    """For trees that no one changes while they are written, on machines that barely hold them."""
    context = ocp.Context()
    context.memory.deepcopy_host_arrays = False
    context.memory.write_concurrent_bytes = context.memory.read_concurrent_bytes = _IN_FLIGHT
    return context
