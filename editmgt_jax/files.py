"""Where files may lie."""

from pathlib import Path

from editmgt_jax.errors import UserError


def mounted(path, what: str) -> Path:
    """A path, absolute. Errors: UserError for an address such as gs://bucket/folder, of which `Path` would make a local folder.

    Args:
      what: says in the message whose path it is.
    """
    if "://" in str(path):
        raise UserError(
            f"{what} must lie in a file system that this machine mounts, and every other one of its job; got {path}. A bucket "
            "is mounted with gcsfuse and the like"
        )
    return Path(path).absolute()
