"""Saving and restoring runs. This module, `checkpoint_reading` and `weights.trees` talk to Orbax, no other.

A checkpoint holds the train state and, as metadata, the position in the data and the run's config: a run resumed from it equals
one that was never stopped. It is whole or not there (Orbax renames it into place), and damage that comes later is seen: the
sizes of its files are noted beside the checkpoints, and fingerprints of the state's bits inside.
"""

import functools
import hashlib
import json
import math
import shutil
import sys
import threading
import time
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from orbax.checkpoint import v1 as ocp

from editmgt_jax.data.loader import Batches
from editmgt_jax.errors import is_of_memory
from editmgt_jax.files import write_json
from editmgt_jax.training.processes import any_problem, wait_for_all
from editmgt_jax.training.state import TrainState
from editmgt_jax.weights.trees import CheckpointError, check_name

STATE = "state"
SIZES = "checkpoint_sizes.json"  # {step: {file: bytes}}, beside the folder of checkpoints
DAMAGED = "damaged"  # suffix of a checkpoint that was put aside
_SLICE = 1 << 20  # bytes of an array below which devices that hold copies do not share its writing: slicing is compiled
_STUTTERS = ("EIO", "ESTALE", "ETIMEDOUT", "Input/output error", "Stale file handle", "timed out")  # may not come again
_PAUSE = 10.0  # seconds before a file system that stuttered is asked again
_LONGEST = 400  # characters of another library's message
_PATIENCE = 600.0  # seconds that a run which fails waits for its last checkpoint


class Checkpoints:
    """Checkpoints of one run in `directory`, written while training goes on.

    Args:
      directory: folder of the run's checkpoints (created).
      config: JSON-able dict stored in every checkpoint, with a hash of the code that wrote it.
      identity: JSON-able dict of what a state means nothing without; it must be the same when a run goes on.
      monitor: (metric name, "max" or "min") that decides which checkpoint is best.
      keep: how many of the latest are kept, besides the best; keep_every: steps whose multiples are kept too, 0 is none.
    """

    def __init__(
        self,
        directory: str | Path,
        config: dict,
        monitor: tuple[str, str],
        keep: int = 2,
        keep_every: int = 0,
        identity: dict | None = None,
    ):
        check_name(directory)
        name, direction = monitor
        policies = ocp.training.preservation_policies
        kept = [
            policies.LatestN(keep),
            policies.BestN(
                get_metric_fn=lambda metrics: metrics[name],
                reverse=direction == "min",
                n=1,
                keep_checkpoints_without_metrics=False,
            ),
        ]
        if keep_every:
            kept.append(policies.EveryNSteps(keep_every))
        self._directory, self._monitor = Path(directory), name
        self._proved = False  # whether a checkpoint that this process wrote was read
        self._writing, self._failure = None, None  # the thread that sees a save to its end, and what went wrong in it
        self._identity = json.loads(json.dumps(identity or {}))  # as it is read back
        self._about = {"config": config, "code": _code_version(), "monitor": list(monitor)}
        context = ocp.Context()
        context.array.saving.min_slice_bytes_for_replica_parallel = _SLICE
        self._checkpointer = ocp.training.Checkpointer(
            directory,
            context=context,
            save_decision_policy=ocp.training.save_decision_policies.AnySavePolicy([]),
            preservation_policy=policies.AnyPreservationPolicy(kept),
            custom_metadata=self._about,
            cleanup_tmp_directories=True,
        )

    @property
    def latest_step(self) -> int | None:
        """Of the latest checkpoint; None without any."""
        latest = self._checkpointer.latest
        return None if latest is None else latest.step

    def save(self, step: int, state: TrainState, data: Batches, metrics: dict[str, float]) -> None:
        """Saves the state and its position in the data together; returns while the files are still being written.

        Args:
          metrics: of an evaluation of this state, or {}.
        Errors: CheckpointError, also for a save before this one that has failed since.
        """
        self.wait()
        arrays = _arrays(state)
        needed, free = _bytes(arrays), shutil.disk_usage(self._directory).free
        if free < needed:
            raise CheckpointError(
                f"checkpoint {step} needs {needed / 2**20:.0f} MiB in {self._directory}, which has {free / 2**20:.0f} MiB "
                f"left: make room and start again; {self._last_whole()}"
            )
        facts = {"fingerprints": fingerprints(arrays), "batches": data.get_state(), "identity": self._identity}
        try:
            response = self._checkpointer.save_checkpointables_async(
                step,
                {STATE: arrays},
                metrics={self._monitor: metrics[self._monitor]} if self._monitor in metrics else None,
                custom_metadata=self._about | facts | {"seal": _seal(facts)},
                force=True,
            )
        except Exception as error:  # noqa: BLE001  (file systems raise many kinds)
            raise self._not_written(error) from error
        self._writing = threading.Thread(target=self._see_through, args=(step, response), daemon=True)
        self._writing.start()

    def _see_through(self, step, response) -> None:
        try:
            response.result()
            self._note_sizes(step)
            if not self._proved:
                self._prove(step)
        except Exception as error:  # noqa: BLE001
            self._failure = error

    def _prove(self, step) -> None:
        """Reads a little of the first checkpoint of this process. Errors: CheckpointError, for none after it would do better."""
        try:
            path, alone = self._directory / str(step), _alone()
            alone.pytree.loading.partial_load = True
            with alone:
                facts_of(ocp.metadata(path).custom_metadata)
                ocp.load_checkpointables(path, {STATE: {"step": np.empty((), np.int32)}})
        except Exception as error:  # noqa: BLE001  (as many kinds as for damaged files)
            if is_of_memory(error):
                raise
            raise CheckpointError(
                f"checkpoint {step} was written to {self._directory}, and cannot be read back ({short(error)}): what follows would be "
                "lost, too. Take another workdir"
            ) from error
        self._proved = True

    def wait(self) -> None:
        """Until all is written. Errors: CheckpointError."""
        self.settle(None)
        self.check()

    def settle(self, seconds: float | None = _PATIENCE) -> None:
        """Waits for a write under way, whether it succeeds or not."""
        if self._writing is not None:
            self._writing.join(seconds)
            self._writing = None

    def check(self) -> None:
        """Errors: CheckpointError when a write has failed since the last call."""
        if self._failure is not None:
            error, self._failure = self._failure, None
            if isinstance(error, CheckpointError):
                raise error
            raise self._not_written(error) from error

    def _not_written(self, error) -> CheckpointError:
        text = f"a checkpoint cannot be written to {self._directory}: {short(error)}; {self._last_whole()}"
        return CheckpointError(text, transient=True)

    def _last_whole(self) -> str:
        steps = [int(path.name) for path in self._directory.glob("*") if path.name.isdigit()]
        return f"the last whole checkpoint is {max(steps)}" if steps else "there is no checkpoint yet"

    def restore(self, abstract_state: TrainState, data: Batches) -> TrainState | None:
        """The latest whole checkpoint. Damaged ones after it are named and put aside.

        Args:
          abstract_state: shapes with shardings, which may be others than it was saved with; data: is moved to its position.
        Returns: the state, or None without any checkpoint.
        Errors: CheckpointError when there are checkpoints, but none can be used.
        """
        # 1. The newest first. Every process tries the same ones: what is wrong for one is wrong for all (`any_problem`).
        steps, problems = sorted((c.step for c in self._checkpointer.checkpoints), reverse=True), {}
        for step in steps:
            # 2. Sizes of files are cheap to compare, and tell most damage.
            problems[step] = any_problem(self._problem_of_sizes(step))
            # 3. Read the state into its shardings, compare its bits, and move the data to its position.
            if problems[step] is None:
                state, problems[step] = self._load(step, abstract_state, data)
            # 4. Only once a whole one is found are the damaged ones after it put aside: if none is, nothing is touched.
            if problems[step] is None:
                self._put_aside({number: problem for number, problem in problems.items() if problem is not None})
                return state
        # 5. None at all is a new run; none that can be used is an error, for a new run would write over what is there.
        if not steps:
            return None
        newest = steps[0]
        raise CheckpointError(
            f"no checkpoint in {self._directory} can be used. Checkpoint {newest} does not fit this run or is damaged: "
            f"{problems[newest]}. Use the config it was written with, or a new workdir"
        )

    def _load(self, step, abstract_state, data):
        """-> (state, None) or (None, what is wrong, in whichever process)"""
        for again in (True, False):
            arrays, noted, problem = self._read(step, _arrays(abstract_state))
            problem = any_problem(problem)
            if problem is None or not (again and any(stutter in problem for stutter in _STUTTERS)):
                break
            time.sleep(_PAUSE)
        if problem is not None:
            return None, problem
        if noted["fingerprints"] != fingerprints(arrays):
            return None, "its numbers are not those that were saved"
        if noted["identity"] != self._identity:
            raise CheckpointError(
                f"the run in {self._directory.parent} was begun with {noted['identity']}; got {self._identity}. Go on with what "
                "it was begun with, or take a new workdir"
            )
        data.set_state(noted["batches"])
        return abstract_state.replace(**arrays), None

    def _read(self, step, abstract):
        """This process's part of the arrays, and the metadata. -> (arrays, metadata, None) or (None, None, what is wrong)

        Each process reads alone: Orbax would let them wait for each other, for minutes when one of them cannot read.
        """
        path = self._directory / str(step)
        try:
            with _alone():
                arrays = ocp.load_checkpointables(path, {STATE: abstract})[STATE]
                facts = facts_of(ocp.metadata(path).custom_metadata)
        except Exception as error:  # noqa: BLE001  (damaged files raise many kinds)
            if is_of_memory(error):
                raise
            return None, None, short(error)
        return arrays, facts, None

    def _put_aside(self, problems) -> None:
        """Renames damaged checkpoints, which are in the way of new ones of their steps."""
        if not problems:
            return
        if jax.process_index() == 0:
            for number, problem in problems.items():
                print(f"editmgt: checkpoint {number} is damaged, put aside: {problem}", file=sys.stderr)
                path = self._directory / str(number)
                path.rename(path.with_name(f"{number}.{DAMAGED}.{time.time_ns()}"))
            self._write_sizes({})
        wait_for_all()
        self._checkpointer.reload()

    def _note_sizes(self, step) -> None:
        if jax.process_index() == 0:
            self._write_sizes({str(step): _file_sizes(self._directory / str(step))})

    def _write_sizes(self, more) -> None:
        """Adds to what is noted, and drops what is noted of checkpoints that are gone."""
        path = self._directory.with_name(SIZES)
        sizes = {n: files for n, files in _read_sizes(path).items() if (self._directory / n).is_dir()}
        write_json(path, sizes | more, indent=None)

    def _problem_of_sizes(self, step) -> str | None:
        noted = _read_sizes(self._directory.with_name(SIZES)).get(str(step))
        there = _file_sizes(self._directory / str(step))
        wrong = [name for name, size in (noted or {}).items() if there.get(name) != size]
        return f"files are missing or of another size: {', '.join(wrong[:3])}" if wrong else None

    def close(self) -> None:
        """Waits for writes under way."""
        self.wait()
        self._checkpointer.close()


def _alone() -> ocp.Context:
    """For reading without the other processes of the job."""
    context = ocp.Context()
    context.multiprocessing.primary_host = jax.process_index()
    context.multiprocessing.active_processes = {jax.process_index()}
    return context


def _arrays(state) -> dict:
    """The state as a dict without empty entries (Orbax does not store None)."""
    return {k: v for k, v in vars(state).items() if v is not None}


@functools.cache
def _code_version() -> str:
    """A hash of this package's sources."""
    found, package = hashlib.sha256(), Path(__file__).parents[1]
    for path in sorted(package.rglob("*.py")):
        found.update(str(path.relative_to(package)).encode() + b"\0" + path.read_bytes())
    return found.hexdigest()[:16]


def facts_of(noted: dict | None) -> dict:
    """What a checkpoint's metadata say of its state. Errors: ValueError when they are not what was saved."""
    facts = {name: (noted or {}).get(name) for name in ("fingerprints", "batches", "identity")}
    if (noted or {}).get("seal") != _seal(facts):
        raise ValueError("what is noted of it is not what was saved")
    return facts


def _seal(facts: dict) -> str:
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()[:16]


def _bytes(tree) -> int:
    return sum(math.prod(leaf.shape) * leaf.dtype.itemsize for leaf in jax.tree.leaves(tree))


def _file_sizes(directory) -> dict[str, int]:
    return {str(p.relative_to(directory)): p.stat().st_size for p in sorted(directory.rglob("*")) if p.is_file()}


def _read_sizes(path) -> dict:
    try:
        return json.loads(path.read_text())
    except (OSError, ValueError):  # not there yet, or cut off: then only the fingerprint tells
        return {}


def fingerprints(parts: dict) -> dict[str, int]:
    """The fingerprint of each of several trees."""
    return {name: fingerprint(tree) for name, tree in parts.items()}


def fingerprint(tree: Any) -> int:
    """A number below 2**32 of all bits of a tree of arrays: whatever mesh they lie on, one flipped bit changes it.

    Arrays of the host are moved to a device one at a time.
    """
    leaves = jax.tree.leaves(tree)
    if all(isinstance(leaf, jax.Array) for leaf in leaves):
        found = _of_leaves(leaves)  # one program: processes must not run the parts of many in different orders
    else:
        found = [_of_leaves([leaf])[0] for leaf in leaves]
    total = 0
    for number in jax.device_get(found):
        total = (total * 0x85EBCA6B + int(number)) % 2**32
    return total


@jax.jit
def _of_leaves(leaves):
    return [_of_leaf(leaf) for leaf in leaves]


def _of_leaf(x):
    bits = jax.lax.bitcast_convert_type(x, {1: jnp.uint8, 2: jnp.uint16, 4: jnp.uint32}[x.dtype.itemsize])
    index = jnp.zeros(x.shape, jnp.uint32)
    for axis in range(x.ndim):
        index = index * np.uint32(0x01000193) + jax.lax.broadcasted_iota(jnp.uint32, x.shape, axis)
    return jnp.sum(bits.astype(jnp.uint32) * (2 * index + 1), dtype=jnp.uint32)  # odd weights lose no bit


def short(error: BaseException) -> str:
    """The first line of an error, for Orbax writes whole arrays into some."""
    line = next(iter(str(error).splitlines()), "") or type(error).__name__
    return (
        line if len(line) <= _LONGEST else f"{line[: _LONGEST // 2]} ... {line[-_LONGEST // 2 :]}"
    )  # often says why last
