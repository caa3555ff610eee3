"""Calls of a function in processes of our own, which end with the command, and end it when one of them dies."""

import collections
import contextlib
import os
import pickle
import subprocess
import sys
import threading
from collections.abc import Callable, Sequence
from typing import Any

from editmgt_jax.errors import EditMGTError

WORKER = "editmgt_jax.data.prepare.sdk_worker"


class WorkerError(EditMGTError, RuntimeError):
    """A process that died at its work, as one does that the machine has no memory for."""


def each(function: Callable[[Any], None], items: Sequence, workers: int) -> None:
    """Calls a function for every item, in `workers` processes, or in this one if that is 1.

    Args:
      function: of a module; what it does must be visible outside of its process. items: can be pickled.
    Errors: WorkerError when a process dies; the first error of a call. All processes have ended by then.
    """
    if min(workers, len(items)) < 2:
        for item in items:
            function(item)
        return
    calls, failures = collections.deque((function, item) for item in items), []
    processes = [_start() for _ in range(min(workers, len(items)))]
    threads = [threading.Thread(target=_serve, args=(p, calls, failures), daemon=True) for p in processes]
    try:
        for thread in threads:
            thread.start()
        while (alive := [thread for thread in threads if thread.is_alive()]) and not failures:
            alive[0].join(0.05)
    finally:
        for process in processes:
            process.kill()
        for process, thread in zip(processes, threads, strict=True):
            process.wait()
            if thread.ident is not None:
                thread.join()
            with contextlib.suppress(OSError):
                process.stdin.close()
            process.stdout.close()
    if failures:
        raise failures[0]


def _start() -> subprocess.Popen:
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    # In a group of its own: Ctrl-C is the command's to handle.
    return subprocess.Popen(
        [sys.executable, "-m", WORKER],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        env=environment,
        process_group=0,
    )


def _serve(process, calls, failures) -> None:
    """Gives a worker one call after another."""
    while not failures:
        try:
            call = calls.popleft()
        except IndexError:
            return
        try:
            process.stdin.write(pickle.dumps(call))
            process.stdin.flush()
            failure = pickle.load(process.stdout)
        except (EOFError, OSError, ValueError, pickle.UnpicklingError):  # its pipe has ended, perhaps within an answer
            failure = WorkerError(
                "a worker process died, as when the machine has no memory left: the same command goes on with what is left; "
                "take fewer workers if it comes again",
                transient=True,
            )
        if failure is not None:
            failures.append(failure)
            return
