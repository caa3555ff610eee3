"""Whole trees of arrays as Orbax checkpoints, on machines that barely hold them."""

import errno
import logging
import os
import shutil
import sys
from collections.abc import Callable
from pathlib import Path

import jax
import numpy as np
from orbax.checkpoint import v1 as ocp

from editmgt_jax.errors import EditMGTError, UserError
from editmgt_jax.files import system_errors

_PATTERNS = "[]*?\\"
_READERS = ("tensorstore", "ocdbt", "/orbax/")  # as asyncio's messages name them
_IN_FLIGHT = 1 << 30  # bytes that a whole tree is written and read with


def _is_of_others(record: logging.LogRecord) -> bool:
    return not ("/orbax/" in record.pathname and record.levelno < logging.CRITICAL)


def _is_new(record: logging.LogRecord) -> bool:
    """asyncio repeats the errors of each array of a checkpoint that cannot be read."""
    message = record.getMessage()
    return not ("never retrieved" in message and any(name in message.lower() for name in _READERS))


def _of_others(report: Callable) -> Callable:
    """`sys.unraisablehook` without the reads that Orbax leaves behind when another one fails, dozens of them: they are dropped
    before they end, or end when the loop of events is closed that they would tell."""

    def hook(unraisable: "sys.UnraisableHookArgs") -> None:
        code = getattr(unraisable.object, "cr_code", None)
        dropped = code is not None and "/orbax/" in code.co_filename
        too_late = unraisable.object is None and str(unraisable.exc_value) == "Event loop is closed"
        if not (dropped or too_late):
            report(unraisable)

    return hook


logging.getLogger("absl").addFilter(_is_of_others)  # Orbax prints tracebacks of the errors that it raises, too
logging.getLogger("asyncio").addFilter(_is_new)
sys.unraisablehook = _of_others(sys.unraisablehook)


class CheckpointError(EditMGTError, RuntimeError):
    """A checkpoint that cannot be written or read."""


def check_name(directory: str | Path) -> None:
    """Errors: UserError for a folder in which Orbax would not find what it wrote: it takes these characters for patterns."""
    directory = Path(directory).absolute()
    if set(str(directory)) & set(_PATTERNS) or any(part.endswith(":") for part in directory.parts):
        raise UserError(
            f"the path of a folder with checkpoints must be without {' '.join(_PATTERNS)} and parts that end with a colon, for "
            f"Orbax could not read them back; got {directory}: take another name"
        )


def save_tree(directory: str | Path, tree: dict) -> None:
    """Writes a tree of host arrays as an Orbax checkpoint, a new folder, without a second copy of them in memory.

    Errors: UserError for its name; OSError, such as for a full disk.
    """
    check_name(directory)
    directory = Path(directory).absolute()
    needed, free = sum(leaf.nbytes for leaf in jax.tree.leaves(tree)), shutil.disk_usage(directory.parent).free
    if needed > free:
        raise OSError(
            errno.ENOSPC, f"{os.strerror(errno.ENOSPC)}: {needed} bytes are needed, {free} are free", str(directory)
        )
    with system_errors(directory), _lean():
        ocp.save(directory, tree)


def load_tree(directory: str | Path) -> dict:
    """Reads what `save_tree` wrote, as host arrays. Errors: CheckpointError; UserError for its name."""
    check_name(directory)
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
