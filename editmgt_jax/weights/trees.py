"""Whole trees of arrays as Orbax checkpoints, on machines that barely hold them."""

from pathlib import Path

import jax
import numpy as np
from orbax.checkpoint import v1 as ocp

from editmgt_jax.errors import EditMGTError

_IN_FLIGHT = 1 << 30  # bytes that a whole tree is written and read with


class CheckpointError(EditMGTError, RuntimeError):
    """A checkpoint that cannot be written or read."""


def save_tree(directory: str | Path, tree: dict) -> None:
    """Writes a tree of host arrays as an Orbax checkpoint, a new folder, without a second copy of them in memory."""
    with _lean():
        ocp.save(Path(directory).absolute(), tree)


def load_tree(directory: str | Path) -> dict:
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
