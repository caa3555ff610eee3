"""Saving and restoring runs. The one module that talks to Orbax.

A checkpoint holds the train state, the data iterator and, as metadata, the run's config: a run resumed from it equals
one that was never stopped.
"""

import jax
from orbax.checkpoint import v1 as ocp


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
        self._name = name
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

    @property
    def best_step(self) -> int | None:
        """The kept step with the best monitored metric, None without checkpoints."""
        scored = [c for c in self._checkpointer.checkpoints if c.metrics]
        return max(scored, key=lambda c: c.metrics[self._name]).step if scored else None

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


def restore_params(directory, step: int | None, params):
    """Reads only the parameters (or a tree of their shapes) of a run's checkpoint; the latest by default."""
    with ocp.training.Checkpointer(directory) as checkpointer:
        latest = checkpointer.latest
        if latest is None:
            raise CheckpointError(f"no checkpoint in {directory}")
        abstract = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), params)
        loading = ocp.options.PyTreeOptions.Loading(partial_load=True)
        with ocp.Context(pytree_options=ocp.options.PyTreeOptions(loading=loading)):
            return checkpointer.load(latest.step if step is None else step, abstract)
