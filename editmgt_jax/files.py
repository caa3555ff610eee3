"""Files and folders that are whole or not there, and where they may lie.

What is being written has the name `NAME.OWNER-UNIQUE.tmp` beside the one it gets. A process that is killed leaves it behind;
the next one that writes there, on the same machine, removes it.
"""

import contextlib
import errno
import functools
import json
import os
import re
import shutil
import stat
import zlib
from collections.abc import Callable, Collection, Iterator
from pathlib import Path
from typing import Any

from editmgt_jax import locks
from editmgt_jax.errors import EditMGTError, UserError

_POINTER = b"version https://git-lfs.github.com/spec/"
JOB = "job.json"  # what the files of a folder are made of
_TOLD = [
    errno.ENOSPC,
    errno.EDQUOT,
    errno.EFBIG,
    errno.EROFS,
    errno.EIO,
    errno.ESTALE,
]  # by libraries, in their own words
_KINDS = {dict: "object", list: "list"}
_NO_FOLDER_SYNC = {errno.EINVAL, errno.ENOTSUP, errno.EACCES, errno.EBADF}  # of file systems that cannot sync a folder


def mounted(path: str | Path, what: str) -> Path:
    """A path, absolute. Errors: UserError for an address such as gs://bucket/folder, of which `Path` would make a local folder.

    Args:
      what: says in the message whose path it is.
    """
    if not isinstance(path, (str, os.PathLike)):
        raise UserError(f"{what} must be a path; got {path!r}")
    if "://" in str(path):
        raise UserError(
            f"{what} must lie in a file system that this machine mounts, and every other one of its job; got {path}. A bucket "
            "is mounted with gcsfuse and the like"
        )
    if "\0" in str(path):
        raise UserError(f"{what} must have a name that files can have; got {str(path)!r}")
    return Path(path).absolute()


def real(path: str | Path) -> Path:
    """A path without links, absolute. A loop of links stays as it is: whatever opens it, tells."""
    return Path(os.path.realpath(path))


@contextlib.contextmanager
def replacing(path: str | Path) -> Iterator[Path]:
    """A name to write a file under: the file takes the name of `path` when the block ends, and is removed when it fails.

    It is on the disk by then, not only in memory. A block that leaves no file changes nothing. A file that is replaced keeps its
    permissions and its owner, and of a link the target is replaced.
    Errors: PermissionError for a file that is read-only; OSError naming the file.
    """
    path = Path(os.path.realpath(path)) if os.path.islink(path) else Path(path)
    before = _status(path)
    if before is not None and not (before.st_mode & 0o222 and os.access(path, os.W_OK)):
        raise PermissionError(errno.EACCES, "the file is read-only, and is not replaced", str(path))
    with _pending(path) as temporary:
        try:
            if before is not None and not before.st_mode & 0o077:  # private while it is written, too
                os.close(os.open(temporary, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600))
            yield temporary
            written = _status(temporary)
            if written is not None and (written.st_size or before is None or before.st_mode & 0o077):
                if before is not None:
                    _copy_owner(temporary, before)
                _sync(temporary)
                temporary.replace(path)
                _sync(path.parent)
        except OSError as error:
            raise _naming(error, path, temporary) from error


@contextlib.contextmanager
def system_errors(path: str | Path) -> Iterator[None]:
    """Around a library that writes `path`: its errors that quote one of the system's, such as a full disk, are raised as that OSError."""
    try:
        yield
    except EditMGTError:
        raise
    except (RuntimeError, ValueError) as error:
        for code in _TOLD:
            if os.strerror(code) in str(error):
                raise OSError(code, os.strerror(code), str(path)) from error
        raise


def check_writable(path: str | Path) -> None:
    """Whether a file can be written, before the work whose result it takes. Errors: OSError naming it."""
    if Path(path).is_dir():
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), str(path))
    with replacing(path) as temporary:
        temporary.write_bytes(b"?")  # so that a full disk is found
        temporary.unlink()


def remove_pending() -> None:
    """Removes what this process is writing, for one that ends in the middle."""
    for path in list(_PENDING):
        _remove(path)


def parse_json(text: str | bytes) -> Any:
    """The value of a JSON text. Errors: ValueError, also for one that is nested too deep."""
    try:
        return json.loads(text)
    except RecursionError as error:
        raise ValueError("it is nested too deep") from error


def read_json(path: str | Path, kind: type = object) -> Any:
    """The value of a JSON file, of a kind that JSON has. Errors: UserError naming the file; OSError."""
    try:
        value = parse_json(Path(path).read_bytes())
    except ValueError as error:
        raise UserError(f"{path} must be JSON: it is cut off or damaged ({error})") from error
    if not isinstance(value, kind):
        raise UserError(f"{path} must be a JSON {_KINDS[kind]}; got {type(value).__name__}")
    return value


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
    if os.path.lexists(output):
        raise FileExistsError(f"{output} exists: a new directory is written, name another one")
    check_outside(output, *sources)
    output.parent.mkdir(parents=True, exist_ok=True)
    with _pending(output) as temporary:
        try:
            temporary.mkdir()
            yield temporary
            for folder, _, names in os.walk(temporary):
                for name in names:
                    _sync(Path(folder, name))
                _sync(Path(folder))
            temporary.replace(output)
            _sync(output.parent)
        except OSError as error:
            raise _naming(error, output, temporary) from error


def check_outside(output: str | Path, *sources: str | Path) -> None:
    """Errors: UserError when what is written lies in a folder that is read meanwhile, or is it."""
    for source in sources:
        if real(output).is_relative_to(real(source)):
            raise UserError(f"the output must lie outside of what is read, {source}; got {output}")


@contextlib.contextmanager
def temporary_folder(path: str | Path) -> Iterator[Path]:
    """A private folder with a name like that of `path`, which is removed when the block ends."""
    with _pending(Path(path)) as temporary:
        temporary.mkdir(mode=0o700)
        yield temporary


def copy_files(source: str | Path, target: str | Path, left_out: Callable[[Path], bool] = lambda _: False) -> None:
    """Copies every file with the folders around it, links as what they point to. Copies of what is read-only can be written.

    Args:
      left_out: whether a path, relative to the source, is not copied.
    """
    for folder, _, names in os.walk(source, followlinks=True):
        for name in names:
            path = Path(folder, name)
            inside = path.relative_to(source)
            if path.is_file() and not left_out(inside):
                (Path(target) / inside).parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(path, Path(target) / inside)


def is_pointer(file: str | Path | bytes) -> bool:
    """Whether a file, or the bytes of one, only points to what Git LFS has not fetched. Errors: OSError."""
    if isinstance(file, bytes):
        return file.startswith(_POINTER)
    with open(file, "rb") as opened:
        return opened.read(len(_POINTER)) == _POINTER


def claim(folder: str | Path, job: dict, beside: Collection[str] = (), note: str = JOB) -> None:
    """Notes in a folder, created if need be, what its files are made of, or compares it: files of two jobs must not be mixed.

    Several processes of one job may claim a folder at once. What a killed process was writing does not count. That two jobs do
    not write at the same time, `locks.held` sees to.

    Args:
      job: values that JSON has.
      beside: names of entries that may be there before; note: name of the file.
    Errors: UserError when the folder belongs to another job, or holds files of none.
    """
    folder, job = Path(folder), json.loads(json.dumps(job))
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / note
    # Listed before the note is looked for: another process of this job writes its other files after it.
    others = [entry for entry in folder.iterdir() if entry.suffix != ".tmp" and entry.name not in (*beside, locks.NOTE)]
    if path.is_file():
        if differing := _differing(path, job):
            raise UserError(
                f"{folder} belongs to a job with other {differing} (see {path}): name a new folder, or delete it"
            )
    elif others:
        raise UserError(f"{folder} is not empty, and has no {note}: name a new folder")
    else:
        write_json(path, job, indent=2, sort_keys=True)


def _differing(path: Path, now: dict) -> str:
    """Names of the values that a note and another do not share; empty when they are the same."""
    try:
        before = dict(parse_json(path.read_text()))
    except (ValueError, TypeError):
        return "values"
    missing = object()
    return ", ".join(sorted(n for n in before.keys() | now.keys() if before.get(n, missing) != now.get(n, missing)))


# ---- what is being written

_PENDING = set()  # by this process
_SWEPT = set()  # folders in which this process has removed what dead ones left


@contextlib.contextmanager
def _pending(path: Path) -> Iterator[Path]:
    """A name beside `path` that no other process has; what has it at the end of the block is removed."""
    if path.parent not in _SWEPT:
        _SWEPT.add(path.parent)
        _sweep(path.parent)
    temporary = path.with_name(f"{path.name}.{_owner(os.getpid())}-{os.urandom(4).hex()}.tmp")
    _PENDING.add(temporary)
    try:
        yield temporary
    finally:
        _remove(temporary)
        _PENDING.discard(temporary)


def _sweep(folder: Path) -> None:
    """Removes what processes of this machine that are dead were writing in a folder."""
    with contextlib.suppress(OSError):
        for name in os.listdir(folder):
            found = re.search(r"\.([0-9a-f]{8})-(\d+)-[0-9a-f]{8}\.tmp$", name)
            if found and _owner(pid := int(found[2])) == f"{found[1]}-{pid}" and not _lives(pid):
                _remove(folder / name)


def _owner(pid: int) -> str:
    """A process among those of all machines that may share a folder."""
    return f"{zlib.crc32(repr(_machine()).encode()):08x}-{pid}"


@functools.cache
def _machine() -> tuple:
    """This machine, as it was started, and the numbering of its processes: containers have their own."""
    found = [os.uname().nodename]
    with contextlib.suppress(OSError):
        found += [Path("/proc/sys/kernel/random/boot_id").read_text(), os.stat("/proc/self/ns/pid").st_ino]
    return tuple(found)


def _lives(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except OSError:
        pass
    return True


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        with contextlib.suppress(OSError):
            path.unlink()


def _status(path: Path) -> os.stat_result | None:
    """Of a file; None if there is none."""
    try:
        found = path.stat()
    except (FileNotFoundError, NotADirectoryError):
        return None
    return found if stat.S_ISREG(found.st_mode) else None


def _copy_owner(path: Path, of: os.stat_result) -> None:
    """Gives a file the owner and the permissions of another, as far as this process may."""
    with contextlib.suppress(OSError):
        os.chown(path, of.st_uid, of.st_gid)
    os.chmod(path, stat.S_IMODE(of.st_mode))


def _naming(error: OSError, path: Path, temporary: Path) -> OSError:
    """The error of writing `temporary`, or a file in it, as one that names `path`; others as they are."""
    names = [str(name) for name in (error.filename2, error.filename) if name is not None] or [str(temporary)]
    named = next((name for name in names if name.startswith(str(temporary))), None)
    if error.errno is None or named is None:
        return error
    if error.filename is None and (inner := str(error.strerror)).startswith(
        "cannot write "
    ):  # named already, in this folder
        return type(error)(error.errno, inner.replace(str(temporary), str(path)))
    reason = f"cannot write {path}{named[len(str(temporary)) :]}: {error.strerror}"
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        with contextlib.suppress(OSError):
            written = sum(file.stat().st_size for file in [temporary, *temporary.rglob("*")] if file.is_file())
            reason += f" after {written} bytes, {shutil.disk_usage(path.parent).free} are free: make room"
    return type(error)(error.errno, reason)


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
