"""Files and folders that are whole or not there, and where they may lie.

What is being written has the name `NAME.UNIQUE.tmp` beside the one it gets; a killed process leaves it behind.
"""

import contextlib
import errno
import json
import os
import shutil
from collections.abc import Collection, Iterator
from pathlib import Path

from editmgt_jax.errors import UserError

JOB = "job.json"  # what the files of a folder are made of
_NO_FOLDER_SYNC = {errno.EINVAL, errno.ENOTSUP, errno.EACCES, errno.EBADF}  # of file systems that cannot sync a folder


def mounted(path: str | Path, what: str) -> Path:
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


@contextlib.contextmanager
def replacing(path: str | Path) -> Iterator[Path]:
    """A name to write a file under: the file takes the name of `path` when the block ends, and is removed when it fails.

    It is on the disk by then, not only in memory. A block that leaves no file changes nothing.
    """
    path = Path(path)
    temporary = _temporary(path)
    try:
        yield temporary
        if temporary.exists():
            _sync(temporary)
            temporary.replace(path)
            _sync(path.parent)
    finally:
        temporary.unlink(missing_ok=True)


def write_text(path: str | Path, text: str) -> None:
    """Writes a file, or replaces it, at once."""
    with replacing(path) as temporary:
        temporary.write_text(text)


def write_json(path: str | Path, values: object, indent: int | None = 1, sort_keys: bool = False) -> None:
    """Writes a JSON file, or replaces it, at once."""
    write_text(path, json.dumps(values, indent=indent, sort_keys=sort_keys) + "\n")


@contextlib.contextmanager
def new_folder(output: str | Path, *sources: str | Path) -> Iterator[Path]:
    """A folder to fill: it takes the name of `output` when the block ends, and is removed when it fails.

    Args:
      sources: folders that are read meanwhile; the new one must not lie in them.
    Errors: FileExistsError, UserError.
    """
    output = mounted(output, "a new directory")
    if output.exists():
        raise FileExistsError(f"{output} exists: a new directory is written, name another one")
    for source in sources:
        if output.resolve().is_relative_to(Path(source).resolve()):
            raise UserError(f"the output must lie outside of what is read, {source}; got {output}")
    output.parent.mkdir(parents=True, exist_ok=True)
    temporary = _temporary(output)
    temporary.mkdir()
    try:
        yield temporary
        for folder, _, names in os.walk(temporary):
            for name in names:
                _sync(Path(folder, name))
            _sync(Path(folder))
        temporary.replace(output)
        _sync(output.parent)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def claim(folder: str | Path, job: dict, beside: Collection[str] = ()) -> None:
    """Notes in a folder, created if need be, what its files are made of, or compares it: files of two jobs must not be mixed.

    Several processes of one job may claim a folder at once. What a killed process was writing does not count.

    Args:
      job: values that JSON has.
      beside: names of entries that may be there before.
    Errors: UserError when the folder belongs to another job, or holds files of none.
    """
    folder, text = Path(folder), json.dumps(job, indent=2, sort_keys=True) + "\n"
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / JOB
    # Listed before the note is looked for: another process of this job writes its other files after it.
    holds = [entry for entry in folder.iterdir() if entry.suffix != ".tmp" and entry.name not in beside]
    if path.is_file():
        if path.read_text() != text:
            raise UserError(
                f"{folder} belongs to a job with other {_differing(path, text)} (see {path}): name a new folder, or delete it"
            )
    elif holds:
        raise UserError(f"{folder} is not empty, and has no {JOB}: name a new folder")
    else:
        write_text(path, text)


def _differing(path: Path, text: str) -> str:
    """Names of the values that a note and the text of another do not share."""
    try:
        before, now = dict(json.loads(path.read_text())), json.loads(text)
    except (ValueError, TypeError):
        return "values"
    names = sorted(name for name in before.keys() | now.keys() if before.get(name) != now.get(name))
    return ", ".join(names) or "values"


def _temporary(path: Path) -> Path:
    return path.with_name(f"{path.name}.{os.urandom(6).hex()}.tmp")


def _sync(path: Path) -> None:
    """Waits until a file's bytes, or a folder's names, are on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        if not (path.is_dir() and error.errno in _NO_FOLDER_SYNC):
            raise
    finally:
        os.close(descriptor)
