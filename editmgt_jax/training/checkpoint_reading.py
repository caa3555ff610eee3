"""Reading the parameters of a run's checkpoint, while the run may go on."""

import math
import time
from pathlib import Path

import jax
import numpy as np
from orbax.checkpoint import v1 as ocp

from editmgt_jax import locks
from editmgt_jax.errors import is_of_memory
from editmgt_jax.training.checkpoint import facts_of, fingerprint, short
from editmgt_jax.training.state import Params
from editmgt_jax.weights.trees import CheckpointError, check_name

_READS, _BETWEEN_READS = 10, 0.3  # of a run that goes on; seconds


def restore_params(directory: str | Path, step: int | None = None, average: bool = False) -> tuple[Params, dict, int]:
    """Reads only the parameters (or their moving average) of a run's checkpoint, as host arrays. The run may go on meanwhile.

    Args:
      step: which; None is the best by the metric that the run was monitored by, or the latest if none has it.
    Returns: (parameters, identity of the run, see `Checkpoints`; the step)
    Errors: CheckpointError, also for a damaged one, and when a run deletes its checkpoints faster than they can be read.
    """
    directory = Path(directory)
    check_name(directory)
    if not directory.is_dir():
        raise CheckpointError(f"a run needs a folder of checkpoints; there is none at {directory}")
    for _ in range(_READS):
        chosen = step
        try:
            with ocp.training.Checkpointer(directory) as checkpointer:  # which looks into each of them
                steps = sorted(c.step for c in checkpointer.checkpoints)
                if not steps:
                    raise CheckpointError(f"a run needs a checkpoint; none in {directory}")
                if step is not None and step not in steps:
                    raise CheckpointError(f"step {step} is not kept in {directory}; there are {steps}")
                chosen = steps[-1]
                chosen = _best(checkpointer) if step is None else step
                return *_read_params(checkpointer, chosen, "ema" if average else "params"), chosen
        except CheckpointError:
            raise
        except Exception as error:  # noqa: BLE001  (damaged files raise many kinds)
            if is_of_memory(error):
                raise
            if not (directory.parent / locks.NOTE).exists():
                name = "a checkpoint" if chosen is None else f"checkpoint {chosen}"
                raise CheckpointError(f"{name} in {directory} is damaged, it cannot be read: {short(error)}") from error
        time.sleep(_BETWEEN_READS)  # the run may have deleted it meanwhile, and has a later one
    raise CheckpointError(
        f"the run is writing in {directory}: {_READS} times, a checkpoint was gone before it was read. Try again when the run "
        "has ended, or let it keep more (checkpoint.keep, checkpoint.keep_every)",
        transient=True,
    )


def _read_params(checkpointer, step, name):
    """-> (parameters, identity). Errors: of many kinds."""
    partly = ocp.Context()
    partly.pytree.loading.partial_load = True
    about = checkpointer.metadata(step)
    facts = facts_of(about.custom_metadata)
    abstract = jax.tree.map(lambda x: np.empty(x.shape, x.dtype), about.metadata[name])
    with partly:
        params = checkpointer.load(step, {name: abstract})[name]
    if facts["fingerprints"][name] != fingerprint(params):
        raise ValueError("its numbers are not those that were saved")
    return params, facts["identity"]


def _best(checkpointer) -> int:
    """The step that is best by what the run was monitored by, the latest one of equals. Errors: ValueError."""
    checkpoints = sorted(checkpointer.checkpoints, key=lambda c: c.step)
    for checkpoint in reversed(checkpoints):
        try:
            name, direction = checkpointer.metadata(checkpoint.step).custom_metadata["monitor"]
        except Exception:  # noqa: BLE001  (damaged; another one tells, too)
            continue
        sign = 1 if direction == "max" else -1
        return max(checkpoints, key=lambda c: (sign * (c.metrics or {}).get(name, -sign * math.inf), c.step)).step
    raise ValueError(f"none of {[c.step for c in checkpoints]} can be read")
