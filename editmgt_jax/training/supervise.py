"""Keeps a command running: starts it again when it dies. No jax: a supervisor must outlive what it watches.

The child of a supervisor that is killed is asked to end, too (SIGTERM; on Linux): no one would watch it.
When one process of a job dies, the others end on their own within the heartbeat's time; each is started again by the
supervisor of its machine, and they join each other anew.
"""

import ctypes
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable

from editmgt_jax.errors import FINAL

_PR_SET_PDEATHSIG = 1
LONGEST_WAIT = 60.0  # seconds


def supervise(command: list[str], max_restarts: int = 100, first_wait: float = 1.0, healthy: float = 600.0) -> int:
    """Runs a command until it ends by itself with exit code 0, or with FINAL.

    Args:
      max_restarts: how often in a row it may die before the supervisor gives up, too.
      first_wait: seconds before the first restart, doubled with each one that follows; healthy: after how many seconds of life
        the count starts anew.
    Returns: its exit code: 0, that of the last death, or the child's own after SIGTERM or SIGINT, which are passed on.
    Errors: FileNotFoundError, PermissionError when the command cannot be started at all.
    """
    asked, child, deaths = [], None, 0
    ending = ending_with(os.getpid())

    def pass_on(number, _frame):
        asked.append(number)
        if child is not None and child.poll() is None:
            child.send_signal(number)

    before = {number: signal.signal(number, pass_on) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        while True:
            started = time.monotonic()
            child = subprocess.Popen(command, preexec_fn=ending)
            if asked:  # while it was started
                child.send_signal(asked[-1])
            code = child.wait()
            if code in (0, FINAL) or asked:
                return code if code >= 0 else 128 - code
            deaths = 1 if time.monotonic() - started > healthy else deaths + 1
            cause = signal.Signals(-code).name if code < 0 else f"exit code {code}"
            if deaths > max_restarts:
                print(f"editmgt: supervise: died {deaths} times in a row ({cause}): giving up", file=sys.stderr)
                return code if code >= 0 else 128 - code
            wait = min(first_wait * 2 ** (deaths - 1), LONGEST_WAIT)
            print(f"editmgt: supervise: died ({cause}); starting again in {wait:g} s", file=sys.stderr)
            _sleep(wait, asked)
            if asked:
                return 128 + asked[0]
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def ending_with(parent: int) -> Callable[[], None] | None:
    """What a child does to get SIGTERM when its parent dies, as its first act or before it becomes its command (`preexec_fn`,
    where no other thread of the parent holds locks). Linux alone can."""
    if sys.platform != "linux":
        return None
    prctl = ctypes.CDLL(None, use_errno=True).prctl  # looked up here: a forked child should do little

    def ask():
        prctl(_PR_SET_PDEATHSIG, signal.SIGTERM, 0, 0, 0)
        if os.getppid() != parent:  # it has died meanwhile
            os._exit(FINAL)

    return ask


def _sleep(seconds, asked) -> None:
    end = time.monotonic() + seconds
    while time.monotonic() < end and not asked:
        time.sleep(min(0.1, seconds))
