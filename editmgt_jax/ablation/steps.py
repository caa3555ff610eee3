"""The steps of an ablation, by name, with their progress on a terminal."""

import contextlib
import functools
import json
import time
from collections.abc import Sequence
from pathlib import Path

from tqdm import tqdm

from editmgt_jax.ablation import decode, record, score, search
from editmgt_jax.ablation.config import AblationConfig
from editmgt_jax.ablation.report.report import report
from editmgt_jax.ablation.workdir import unchanged_if_refused, write_workdir
from editmgt_jax.training import processes, tracking


def _progress(items):
    return tqdm(items, disable=None, leave=False)


STEPS = {
    "record": lambda config, folder: record.record(config, folder, _progress),
    "score": lambda config, folder: score.score(config, folder, _progress),
    "search": lambda config, folder: search.search(config, folder),
    "decode": lambda config, folder: decode.decode(config, folder, _progress),
    "report": lambda config, folder: report(folder),
}


ONE_PROCESS = ("search", "report")


def run(name: str, config: AblationConfig, folder: Path, track: Sequence[str] = ()) -> None:
    """Runs one step, or with 'run' all in turn, and prints how long each took.

    Args:
      track: names of `tracking.TRACKERS`, which get the figures of a search and the report.
    Errors: those of the steps and of the trackers.
    """
    search.check(config)
    steps = dict(STEPS) if name == "run" else {name: STEPS[name]}
    if name == "run":
        steps["record"] = functools.partial(record.record, progress=_progress, scored=True)
    with processes.holding(folder, f"ablate {name}"):
        with contextlib.ExitStack() as first_step:
            with processes.first_then_others():
                if processes.is_first():
                    first_step.enter_context(unchanged_if_refused(folder))
                    write_workdir(folder, config)
            trackers = tracking.opened(track, folder, config.to_dict()) if processes.is_first() else []
            first = next(iter(steps))
            _take(first, steps.pop(first), config, folder, trackers)
        for step, take in steps.items():
            _take(step, take, config, folder, trackers)
        for tracker in trackers:
            tracker.close()


def _take(name, step, config, folder, trackers) -> None:
    started = time.perf_counter()
    if name not in ONE_PROCESS or processes.is_first():
        output = step(config, folder)
    if processes.is_first():
        print(f"{name}: {output} in {time.perf_counter() - started:.0f} s", flush=True)
        for tracker in trackers:
            _tell(tracker, name, output)
    processes.wait_for_all()  # also for the last step: a process that left would end the others


def _tell(tracker: tracking.Wandb, step: str, output: Path) -> None:
    """The intervals of the winner and its rivals; the report as a page."""
    if step == "search":
        found = json.loads(output.read_text())
        told = {one["role"]: one["odd"] for one in (found["winner"], *found["rivals"])}
        tracker.scalars(0, {f"{role}/{name}": value for role, odd in told.items() for name, value in odd.items()})
    if step == "report":
        tracker.page("report", output.read_text())
