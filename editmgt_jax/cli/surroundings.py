"""The process of a command: its standard streams, its signals, its forked children. Nothing heavy is imported.

SIGINT, SIGTERM, SIGHUP and SIGXCPU end a command at once, at any moment, without what it was writing and without its own child
processes. Python's way, an exception in the main thread, waits for compilations, and libraries swallow it or crash.
"""

import contextlib
import logging
import os
import signal
import sys
import threading

from editmgt_jax import locks
from editmgt_jax.files import remove_pending

OWN = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))  # this package
ENDING = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGXCPU)  # the last of a limit of processor time
_ENDS = threading.Lock()


def guard_streams() -> None:
    """Standard streams that are closed go to nowhere; messages that nobody can read are no errors."""
    while (spare := os.open(os.devnull, os.O_RDWR)) <= 2:  # else a file that is opened later would have their number
        os.set_inheritable(spare, True)
    os.close(spare)
    sys.stdout = _Named(sys.stdout or open(os.devnull, "w"))  # noqa: SIM115  (for the life of the process)
    sys.stderr = _Tolerant(sys.stderr or open(os.devnull, "w"))  # noqa: SIM115  (the same)


class _Stream:
    """A standard stream whose writes happen under `_watched`."""

    def __init__(self, stream):
        self._stream = stream

    def write(self, text):
        with self._watched():
            return self._stream.write(text)

    def flush(self):
        with self._watched():
            self._stream.flush()

    def __getattr__(self, name):
        return getattr(self._stream, name)


class _Tolerant(_Stream):
    """A stream of messages: what cannot be written is lost."""

    def _watched(self):
        return contextlib.suppress(OSError, ValueError)


class _Named(_Stream):
    """A stream of results, whose errors name it."""

    @contextlib.contextmanager
    def _watched(self):
        try:
            yield
        except OSError as error:
            error.filename = "standard output"
            raise


def hush_others() -> None:
    """From now on other packages' noise does not reach the terminal: warnings on the root logger, and tracebacks of writes that
    go on in threads after one of them has failed."""
    logging.getLogger().addFilter(
        lambda record: record.levelno >= logging.ERROR or record.pathname.startswith(OWN + os.sep)
    )
    told = sys.unraisablehook

    def tell(unraisable):
        if str(unraisable.exc_value) != "Event loop is closed":
            told(unraisable)

    sys.unraisablehook = tell


def watch_signals() -> None:
    """From now on a signal that asks the process to end does so, unless something else handles or ignores it."""
    if threading.current_thread() is not threading.main_thread():
        return
    for number in ENDING:
        if signal.getsignal(number) in (signal.SIG_DFL, signal.default_int_handler):
            signal.signal(number, _noted)
    read, write = os.pipe()
    os.set_blocking(write, False)
    signal.set_wakeup_fd(write, warn_on_full_buffer=False)
    threading.Thread(target=_watch, args=(read,), daemon=True, name="signals").start()
    os.register_at_fork(after_in_child=unwatch_signals)


def unwatch_signals() -> None:
    """Python's own handlers again: for a forked child, and for a process that others of its job must be told of."""
    if threading.current_thread() is threading.main_thread():
        for number in ENDING:
            if signal.getsignal(number) is _noted:
                signal.signal(number, signal.default_int_handler if number == signal.SIGINT else signal.SIG_DFL)
        signal.set_wakeup_fd(-1)


def _noted(number, _frame):
    """The handler of a signal, in the main thread; `_watch` is mostly there before it."""
    _end(signal.Signals(number))


def _watch(read):
    while numbers := os.read(read, 1):  # written where the signal arrives, whatever the main thread does
        if signal.getsignal(numbers[0]) is _noted:
            _end(signal.Signals(numbers[0]))


def _end(number):
    if not _ENDS.acquire(blocking=False):
        return
    for child in _children():
        with contextlib.suppress(OSError):
            os.kill(child, signal.SIGTERM)
    remove_pending()
    locks.release()
    said = "interrupted" if number == signal.SIGINT else f"ended by {number.name}"
    with contextlib.suppress(OSError):
        os.write(2, f"editmgt: {said}\n".encode())
    os._exit(128 + number)


def _children() -> list[int]:
    """The processes that this one started and that live, where the system lists them."""
    found = []
    with contextlib.suppress(OSError):
        for thread in os.listdir("/proc/self/task"):
            with contextlib.suppress(OSError), open(f"/proc/self/task/{thread}/children") as file:
                found += map(int, file.read().split())
    return found
