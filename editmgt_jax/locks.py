"""A folder that one job writes to at a time: the job's first process holds it, and a second job is refused by name.

Within a machine, and on file systems that lock across machines, the kernel's lock on the note tells: it ends with its process.
Elsewhere the note tells: its owner counts up in it while it lives.
"""

import contextlib
import errno
import fcntl
import json
import os
import socket
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

from editmgt_jax.errors import UserError

NOTE = "in_use.json"  # in the folder, while it is held
BEAT = 10.0  # seconds between the counts of an owner
LEASE = 90.0  # seconds without a count after which an owner on another machine is dead; caches of file systems keep 60
_SETTLING = 1.0  # seconds after which one of two notes that were written at once is left, where nothing can be locked
_LENGTH = 512  # bytes of a note: it is written in place, always at the same length
_NO_LOCKS = {errno.ENOTSUP, errno.ENOLCK, errno.ENOSYS, errno.EINVAL}
_OPEN: dict[int, Path] = {}  # notes that this process has open, those that it holds and those it looks at
_HELD: set[int] = set()


@contextlib.contextmanager
def held(folder: str | Path, job: str) -> Iterator[None]:
    """Holds a folder, created if need be, for the time of a block. A folder that is empty then and was not there goes again.

    Args:
      job: what is done in it, for the message to others, such as 'train'.
    Errors: UserError when another job, or this process already, holds it, which names process and machine, and for a file. OSError.
    """
    folder = Path(folder)
    if folder.exists() and not folder.is_dir():
        raise UserError(f"{job} works in a folder, and {folder} is a file: name another")
    made = not folder.exists()
    folder.mkdir(parents=True, exist_ok=True)
    mine = _mine(job)
    descriptor = _take(folder / NOTE, mine)
    over = threading.Event()
    beating = threading.Thread(target=_beat, args=(descriptor, mine, over), daemon=True)
    beating.start()
    try:
        yield
    finally:
        over.set()
        beating.join()
        _release(descriptor)
        if made:
            with contextlib.suppress(OSError):
                folder.rmdir()


def release() -> None:
    """Ends all holds of this process, for one that ends in the middle."""
    for descriptor in list(_HELD):
        _release(descriptor)


def _release(descriptor) -> None:
    if descriptor in _HELD:
        with contextlib.suppress(FileNotFoundError):  # the folder may be gone
            _OPEN[descriptor].unlink()
        _close(descriptor)


def _take(path, mine) -> int:
    """The open note, with the lock where there are locks, and this process's name in it."""
    while True:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
        _OPEN[descriptor] = path
        try:
            locks = _lock(descriptor, path)
            if not _is(descriptor, path):  # its owner has just left
                _close(descriptor)
                continue
            owner = _read(path)
            if owner and (owner.get("machine") != mine["machine"] or not locks):
                _refuse_living(owner, path, mine)
            _begin(descriptor, path, mine)
            if not locks:
                time.sleep(_SETTLING)
                if (_read(path) or mine)["token"] != mine["token"]:
                    raise _in_use(path)
            _HELD.add(descriptor)
            return descriptor
        except BaseException:
            _close(descriptor)
            raise


def _begin(descriptor, path, mine) -> None:
    try:
        _write(descriptor, mine)
    except OSError as error:  # such as a full disk, which names no file
        path.unlink(missing_ok=True)
        error.filename = str(path)
        raise


def _lock(descriptor, path) -> bool:
    """Whether the file system can lock. Errors: UserError when another process has the lock."""
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise _in_use(path) from None
    except OSError as error:
        if error.errno not in _NO_LOCKS:
            raise
        return False
    return True


def _refuse_living(owner, path, mine) -> None:
    """Errors: UserError when the owner that a note names lives. On this machine its process tells, else its counting."""
    if owner.get("machine") == mine["machine"]:
        if _started(owner.get("process")) == owner.get("started") is not None:
            raise _in_use(path)
        return
    print(
        f"editmgt: {path.parent} was in use by {_named(owner)}: waiting up to {LEASE:.0f} s for a sign of life",
        file=sys.stderr,
    )
    end = time.monotonic() + LEASE
    while time.monotonic() < end:
        time.sleep(min(1.0, LEASE / 10))
        now = _read(path)
        if now is not None and now != owner:
            raise _in_use(path)


def _in_use(path) -> UserError:
    owner = _read(path)
    by = _named(owner) if owner else "another process"
    return UserError(f"{path.parent} is in use by {by}: wait until it ends, or name another folder")


def _named(owner) -> str:
    return f"`editmgt {owner.get('job')}`, process {owner.get('process')} on {owner.get('host')}"


def _mine(job) -> dict:
    return {
        "job": job,
        "process": os.getpid(),
        "host": socket.gethostname(),
        "machine": _machine(),
        "started": _started(os.getpid()),
        "token": os.urandom(8).hex(),
        "beat": 0,
    }


def _machine() -> str:
    """The same for all processes that one kernel locks for, since it was booted."""
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    except OSError:
        return socket.gethostname()


def _started(process) -> str | None:
    """When a process of this machine started, in the kernel's own count; None when there is none."""
    try:
        return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[19]
    except (OSError, IndexError):
        return None


def _beat(descriptor, mine, over) -> None:
    while not over.wait(BEAT) and descriptor in _HELD:
        mine["beat"] += 1
        with contextlib.suppress(OSError):  # a full disk, or a machine that is away for a while
            _write(descriptor, mine)


def _write(descriptor, mine) -> None:
    os.pwrite(descriptor, json.dumps(mine).encode().ljust(_LENGTH - 1)[: _LENGTH - 1] + b"\n", 0)
    os.fsync(descriptor)


def _read(path) -> dict | None:
    """What a note says; None when it says nothing."""
    try:
        found = json.loads(path.read_text())
    except (OSError, ValueError):
        return None
    return found if isinstance(found, dict) else None


def _is(descriptor, path) -> bool:
    """Whether the file that is open still has this name."""
    try:
        there, here = os.stat(path), os.fstat(descriptor)
    except FileNotFoundError:
        return False
    return (there.st_ino, there.st_dev) == (here.st_ino, here.st_dev)


def _close(descriptor) -> None:
    _HELD.discard(descriptor)
    if _OPEN.pop(descriptor, None) is not None:
        os.close(descriptor)


def _close_all() -> None:
    """A child that outlives its parent would else keep the lock."""
    for descriptor in list(_OPEN):
        _close(descriptor)


os.register_at_fork(after_in_child=_close_all)
