"""What is seen of a run: a JSONL file, trackers, a progress bar, traces."""

import json
import time
from collections.abc import Callable, Hashable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
from tqdm import tqdm

from editmgt_jax.files import write_text
from editmgt_jax.training import tracking
from editmgt_jax.training.config import TrainConfig
from editmgt_jax.training.goodput import Ledger
from editmgt_jax.training.optimizer import learning_rate
from editmgt_jax.training.tracking import Tracker

METRICS = "metrics.jsonl"
# Peak dense bfloat16 FLOP/s of a device, by how jax calls it.
PEAK_FLOPS = {
    "TPU v4": 275e12,
    "TPU v5 lite": 197e12,
    "TPU v5e": 197e12,
    "TPU v5": 459e12,
    "TPU v5p": 459e12,
    "TPU v6 lite": 918e12,
    "TPU v6e": 918e12,
    "NVIDIA A100": 312e12,
    "NVIDIA H100": 989e12,
    "NVIDIA H200": 989e12,
}


class Sums:
    """Metrics (sum, count) added up; their means."""

    def __init__(self):
        self._sums = {}

    def add(self, metrics: Mapping[str, tuple[float, float]]) -> None:
        """Adds {name: (sum, count)}."""
        for name, (total, count) in metrics.items():
            before = self._sums.get(name, (0.0, 0.0))
            self._sums[name] = (before[0] + float(total), before[1] + float(count))

    def means(self) -> dict[str, float]:
        """Of all that were counted at all."""
        return {name: total / count for name, (total, count) in self._sums.items() if count}


class MetricsWriter:
    """Appends {'step': ..., name: value} lines to `metrics.jsonl` in `directory`, and scalars to its trackers.

    Lines past `resume_step` of an earlier, interrupted run are dropped first, so that the file reads as one run.

    Args:
      directory: None writes nothing; trackers: besides TensorBoard.
    """

    def __init__(self, directory: str | Path | None, resume_step: int = 0, trackers: Sequence[Tracker] = ()):
        self._path = None
        if directory is None:
            return
        directory = Path(directory)
        directory.mkdir(parents=True, exist_ok=True)
        self._path = directory / METRICS
        keep_lines(self._path, resume_step)
        self._trackers = [tracking.TensorBoard(directory, resume_step), *trackers]

    def write(self, step: int, values: Mapping[str, float]) -> None:
        """Adds a line of {name: value}; NaN and infinity become null."""
        if self._path is None:
            return
        with self._path.open("a") as file:  # closed each time: buckets keep only what was closed
            file.write(json.dumps({"step": step} | {k: _rounded(v) for k, v in values.items()}) + "\n")
        for tracker in self._trackers:
            tracker.scalars(step, values)

    def close(self) -> None:
        """Writes what trackers still hold back."""
        if self._path is not None:
            for tracker in self._trackers:
                tracker.close()


class RunLog:
    """Gathers the metrics of steps and writes their means every `log_every` steps, with what the machine did meanwhile,
    evaluations and checkpoints aside.

    samples_per_second, flops_per_second (of the model, counted from its shapes), mfu (their share of what the devices could
    do), data_wait (share of the time in which the loop waited for a batch; the devices may have been busy), memory.

    Args:
      directory: None writes nothing; ledger: where the time went; start: the step that the run goes on from; left_out: how
        many steps before it were; track: names of `tracking.TRACKERS`.
    """

    def __init__(
        self,
        directory: Path | None,
        config: TrainConfig,
        ledger: Ledger,
        start: int,
        left_out: int = 0,
        track: Sequence[str] = (),
        clock: Callable[[], float] = time.monotonic,
    ):
        self._clock, self._config, self._ledger = clock, config, ledger
        self._schedule, self._left_out = learning_rate(config.optimizer), left_out
        trackers = tracking.opened(track, directory, config.to_dict()) if directory else ()
        self._writer = MetricsWriter(directory, start, trackers)
        self._peak, self._shapes = peak_flops(), set()
        quiet = None if directory is not None else True  # None: bars are for terminals
        self._bar = tqdm(
            total=config.steps, initial=start, unit="step", dynamic_ncols=True, mininterval=5, disable=quiet
        )
        self._begin()

    def _begin(self):
        self._sums, self._steps, self._flops = Sums(), 0, 0
        self._since, self._spent = self._clock(), dict(self._ledger.seconds)

    def is_first(self, shape: Hashable) -> bool:
        """Notes a batch's shapes. -> whether none came before that had them: their program is compiled now"""
        new = shape not in self._shapes
        self._shapes.add(shape)
        return new

    def add(self, step: int, metrics: Mapping[str, tuple[float, float]], flops: int | None) -> None:
        """The metrics (sum, count) of the step that leads to step + 1."""
        self._sums.add(metrics)
        self._steps += 1
        self._flops += flops or 0
        if (step + 1) % self._config.log_every == 0:
            means = self._sums.means()
            rate = float(self._schedule(step - self._left_out))  # by updates: steps that are left out are none
            self._writer.write(step + 1, means | {"learning_rate": rate} | self._machine())
            self._bar.set_postfix({name: f"{means[name]:.4g}" for name in ("loss", "accuracy") if name in means})
            self._ledger.write()
            self._begin()
        self._left_out += int(metrics["bad"][0])
        self._bar.update()

    def _machine(self) -> dict:
        spent = {kind: seconds - self._spent[kind] for kind, seconds in self._ledger.seconds.items()}
        seconds = self._clock() - self._since - spent["eval"] - spent["checkpoint"]
        found = {
            "samples_per_second": self._steps * self._config.batch_size / seconds,
            "data_wait": spent["data wait"] / seconds,
            "flops_per_second": self._flops / seconds if self._flops else None,
            "mfu": self._flops / seconds / self._peak if self._peak and self._flops else None,
            "memory": memory_in_use(),
        }
        return {name: value for name, value in found.items() if value is not None}

    def write(self, step: int, values: Mapping[str, float]) -> None:
        """Adds a line of other values, such as those of an evaluation."""
        self._writer.write(step, values)

    def close(self) -> None:
        """Ends the bar and the files."""
        self._bar.close()
        self._writer.close()


class Profiler:
    """Traces the steps from `first` until `end` into a folder, for xprof or TensorBoard's profile plugin."""

    def __init__(self, directory: str | Path, steps: tuple[int, int] | None):
        self._directory, self._steps, self._on = str(directory), steps or (-1, -1), False

    def at(self, step: int, state: Any) -> None:
        """Before a step from a state; it is waited for before the trace begins or ends."""
        first, end = self._steps
        if step in self._steps:
            jax.block_until_ready(state)
        if first <= step < end and not self._on:
            jax.profiler.start_trace(self._directory)
            self._on = True
        if step >= end:
            self.close()

    def close(self) -> None:
        """Ends the trace, if one is on."""
        if self._on:
            jax.profiler.stop_trace()
            self._on = False


def peak_flops() -> float | None:
    """Of all devices together; None where it is not known."""
    kinds = [device.device_kind for device in jax.devices()]
    peaks = [next((PEAK_FLOPS[name] for name in sorted(PEAK_FLOPS, key=len, reverse=True) if kind.startswith(name)), None)
             for kind in kinds]  # fmt: skip
    return None if None in peaks else sum(peaks)


def memory_in_use() -> float | None:
    """The largest share of memory that any device of this process had in use at its peak; None where it is not told."""
    stats = [device.memory_stats() or {} for device in jax.local_devices()]
    shares = [s["peak_bytes_in_use"] / s["bytes_limit"] for s in stats if s.get("bytes_limit")]
    return max(shares) if shares else None


def _rounded(value) -> float | None:
    """Six significant digits; JSON has no word for NaN and infinity."""
    return float(f"{float(value):.6g}") if np.isfinite(value) else None


def keep_lines(path: Path, last_step: int, write: bool = True) -> list[str]:
    """Drops the lines of a JSONL file that are of steps after `last_step`, or cut off. -> those that are left

    Args:
      write: whether the file is changed, too.
    """
    lines = path.read_text().splitlines() if path.is_file() else []
    kept = [line for line in lines if _step_of(line) <= last_step]
    if write and kept != lines:
        write_text(path, "".join(line + "\n" for line in kept))
    return kept


def _step_of(line: str) -> int:
    """The step of a line; a line cut off by a crash counts as past any step."""
    try:
        return json.loads(line)["step"]
    except (json.JSONDecodeError, KeyError):
        return 1 << 62
