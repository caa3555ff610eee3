"""Kills a supervised job of two processes again and again, at random moments, saves included; its end must equal that of a
job that was left alone.

    python tests/campaigns/kill.py --kills 50 --output /tmp/campaign

Each kill is a SIGKILL to one of the training processes or to both. Half of them are aimed at a save: they come when a
temporary folder of a checkpoint is there. Prints a line a kill, and at the end whether all parameters are equal, bit for bit.
"""

import argparse
import contextlib
import dataclasses
import os
import random
import signal
import sys
import tempfile
import time
from pathlib import Path

sys.path[:0] = [str(Path(__file__).parents[1]), str(Path(__file__).parents[2])]

import jobs  # noqa: E402
import numpy as np  # noqa: E402

PATIENCE = 900  # seconds for a job to end when it is left alone


def children(supervisor) -> list[int]:
    """The training process under a supervisor, if it lives."""
    path = Path(f"/proc/{supervisor.pid}/task/{supervisor.pid}/children")
    return [int(number) for number in path.read_text().split()] if path.exists() else []


def wait_for_steps(log: Path, more: int, started) -> None:
    """Until the run has logged some steps more than now, or has ended."""

    def count():
        return log.read_text().count('"loss"') if log.exists() else 0

    wanted, patience = count() + more, jobs.Patience(PATIENCE)
    while count() < wanted and not patience.over() and any(process.poll() is None for process in started):
        time.sleep(0.02)


def wait_for_save(checkpoints: Path, started, seconds=20.0) -> bool:
    """Until a checkpoint is being written. -> whether one was"""
    patience = jobs.Patience(seconds)
    while not patience.over() and any(process.poll() is None for process in started):
        if checkpoints.is_dir() and any("tmp" in path.name for path in checkpoints.iterdir()):
            return True
        time.sleep(0.001)
    return False


@dataclasses.dataclass(frozen=True)
class Kill:
    """Which processes are killed, and when."""

    victims: tuple[int, ...]
    in_save: bool  # as soon as a checkpoint is being written
    steps: int = 0  # that the run logs before
    seconds: float = 0.0  # after these steps, or at another moment of the save


def draw(count: int, seed: int) -> list[Kill]:
    dice = random.Random(seed)
    return [
        Kill(
            victims=dice.choice(((0,), (1,), (0, 1))),
            in_save=(in_save := dice.random() < 0.5),
            steps=dice.randint(0, 3),
            seconds=dice.random() * (0.05 if in_save else 3),
        )
        for _ in range(count)
    ]


def campaign(home: Path, kills: list[Kill], steps: int) -> None:
    """Errors: AssertionError when the killed job ends otherwise than the one that was left alone."""
    overrides = [f"--config.steps={steps}", "--config.checkpoint.every=3", "--config.eval_every=1000000"]
    alone = jobs.start(jobs.train(home, home / "alone", *overrides), logs=home / "logs_alone")
    assert jobs.finish(alone, PATIENCE) == [0, 0], (home / "logs_alone" / "0.log").read_text()[-3000:]
    workdir = home / "killed"
    before = ["supervise", "--max-restarts", 1000, "--wait", 0.5, "--healthy", 5, "--", *jobs.EDITMGT]
    started = jobs.start(jobs.train(home, workdir, *overrides), before=before, logs=home / "logs_killed")
    try:
        for number, one in enumerate(kills, 1):
            while not (hit := strike(one, workdir, started)):
                alive = all(process.poll() is None for process in started)
                assert alive, "the job ended too early: more steps are needed"
                time.sleep(0.02)
            print(f"kill {number}: {hit}", flush=True)
        assert jobs.finish(started, PATIENCE) == [0, 0], (home / "logs_killed" / "0.log").read_text()[-3000:]
    finally:
        for process in started:
            process.terminate()
        with contextlib.suppress(AssertionError):
            jobs.finish(started, 30)
    for average in (False, True):
        ours, theirs = (jobs.parameters(run, average, steps) for run in (workdir, home / "alone"))
        for name, value in theirs.items():
            np.testing.assert_array_equal(ours[name], value, err_msg=name)
    print(
        f"{len(kills)} kills; all {len(theirs)} parameters and their averages equal those of the job that was left alone"
    )


def strike(one: Kill, workdir: Path, started) -> str:
    """Waits for its moment and kills. -> what was hit, '' when nothing was"""
    wait_for_steps(workdir / "metrics.jsonl", one.steps, started)
    in_save = one.in_save and wait_for_save(workdir / "checkpoints", started)
    time.sleep(one.seconds)
    hit = []
    for number in one.victims:
        for process in children(started[number]):
            with contextlib.suppress(ProcessLookupError):
                os.kill(process, signal.SIGKILL)
                hit.append(str(number))
    return f"process {' and '.join(hit)}{' in a save' if in_save else ''}" if hit else ""


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=50)
    parser.add_argument("--steps", type=int, help="of the run (default: 6 a kill)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--output", help="folder for the runs and their logs (default: a temporary one)")
    args = parser.parse_args()
    home = Path(args.output or tempfile.mkdtemp(prefix="editmgt-kill-"))
    jobs.write_home(home)
    campaign(home, draw(args.kills, args.seed), args.steps or 6 * args.kills)


if __name__ == "__main__":
    main()
