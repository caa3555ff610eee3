"""Where a run's time went, over all its processes' lives: a ledger in the run's folder.

At any moment the time goes to one kind. What was done after the checkpoint that a later life starts from was lost, and so is
the time in which no process lived.
"""

import contextlib
import json
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from editmgt_jax.files import write_json

KINDS = ("init", "compile", "data wait", "step", "checkpoint", "eval", "lost")
LEDGER = "goodput.json"
_MARKS = 16  # checkpoints whose times are remembered


class Ledger:
    """Adds up seconds by kind.

    Args:
      directory: the run's folder; None keeps nothing.
      clock: seconds since the epoch.
    """

    def __init__(self, directory: str | Path | None, clock: Callable[[], float] = time.time):
        self._path = None if directory is None else Path(directory) / LEDGER
        self._clock, self._kind, self._born = clock, "init", clock()
        self._since = self._born
        self.seconds = dict.fromkeys(KINDS, 0.0)
        self._marks = {}  # {step: seconds when it was saved}

    def resume(self, step: int) -> None:
        """Takes over what earlier lives left, of which all after the checkpoint of `step` was lost; 0 is without checkpoint."""
        if self._path is None or not self._path.is_file():
            return
        try:
            before = json.loads(self._path.read_text())
            then, ended = before["seconds"], before["time"]
        except (ValueError, KeyError):  # cut off by a crash of the machine: the count starts anew
            return
        marks = {int(number): kinds for number, kinds in before["marks"].items() if int(number) <= step}
        good = marks.get(step, dict.fromkeys(KINDS, 0.0))
        for kind in KINDS:
            self.seconds[kind] += good[kind]
            if kind != "lost":
                self.seconds["lost"] += then[kind] - good[kind]
        self.seconds["lost"] += then["lost"] - good["lost"] + max(0.0, self._born - ended)
        self._marks = marks

    def enter(self, kind: str) -> None:
        """From now on the time goes to `kind`."""
        now = self._clock()
        self.seconds[self._kind] += now - self._since
        self._kind, self._since = kind, now

    @contextlib.contextmanager
    def during(self, kind: str) -> Iterator[None]:
        """Inside, the time goes to `kind`; afterwards to what it went to before."""
        before = self._kind
        self.enter(kind)
        try:
            yield
        finally:
            self.enter(before)

    def saved(self, step: int) -> None:
        """Notes that all so far is in the checkpoint of `step`."""
        self.enter(self._kind)
        self._marks[step] = dict(self.seconds)
        self._marks = dict(sorted(self._marks.items())[-_MARKS:])
        self.write()

    def write(self) -> None:
        """Writes the ledger's file, which `resume` of a later life reads."""
        self.enter(self._kind)
        if self._path is not None:
            write_json(self._path, {"seconds": self.seconds, "marks": self._marks, "time": self._since}, indent=None)

    def describe(self) -> str:
        """A line: the total, and the share of each kind."""
        self.enter(self._kind)
        total = sum(self.seconds.values())
        shares = ", ".join(f"{kind} {seconds / max(total, 1e-9):.1%}" for kind, seconds in self.seconds.items())
        return f"{total:.0f} s: {shares}"
