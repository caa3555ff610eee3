"""A job of one process or of many: joining it, ending together, being asked to stop, hanging."""

import atexit
import contextlib
import faulthandler
import itertools
import multiprocessing
import os
import signal
import sys
import threading
import traceback
from collections.abc import Iterator
from pathlib import Path

import jax
from jax._src import distributed  # its key-value store has no public name
from jax.experimental import multihost_utils

from editmgt_jax import locks
from editmgt_jax.errors import EditMGTError

ADDRESS, COUNT, NUMBER = "JAX_COORDINATOR_ADDRESS", "JAX_NUM_PROCESSES", "JAX_PROCESS_ID"
LONGEST_WAIT = 1800  # seconds that processes wait for each other: one may encode a whole shard meanwhile
LAST_WORDS = 10  # seconds that the first process waits for the others when a job ends with an error
_ENDING, _HEARD = "editmgt/ending", "editmgt/heard"
_LEAVING = threading.Lock()  # held by the thread that ends this process, never released
_QUESTIONS = itertools.count()


class ProcessError(EditMGTError, RuntimeError):
    """A job that cannot be joined, or fell apart."""


def join(heartbeat: int = 30) -> None:
    """Joins the other processes of the job, before anything else uses a device.

    Args:
      heartbeat: seconds without a sign of a process after which the others end.

    Slices of Cloud TPU and GKE, Slurm and the like are recognised by jax; elsewhere, as in a group of Compute Engine, the
    environment says it: JAX_COORDINATOR_ADDRESS (host:port of process 0), JAX_NUM_PROCESSES and JAX_PROCESS_ID.
    Errors: ProcessError.
    """
    given = {name: os.environ.get(name) for name in (ADDRESS, COUNT, NUMBER)}
    numbers = {name: given[name] for name in (COUNT, NUMBER)}
    if any(given.values()) and not all(given.values()) or any(n and not n.isdigit() for n in numbers.values()):
        raise ProcessError(
            f"{ADDRESS}, {COUNT} and {NUMBER} must be set together, the last two to numbers; got {given}"
        )
    chosen = {"num_processes": int(given[COUNT]), "process_id": int(given[NUMBER])} if given[ADDRESS] else {}
    try:
        jax.distributed.initialize(
            given[ADDRESS],
            heartbeat_timeout_seconds=heartbeat,
            shutdown_timeout_seconds=heartbeat,  # for which a process that ends after an error waits for the others
            **chosen,
        )
    except (ValueError, RuntimeError) as error:
        first_line = str(error).splitlines()[0]
        raise ProcessError(
            f"the other processes of the job cannot be joined ({first_line}): outside of Cloud TPU, GKE and Slurm, set {ADDRESS}, "
            f"{COUNT} and {NUMBER}",
            transient=isinstance(error, RuntimeError),  # they may be on their way; a ValueError is about the settings
        ) from error
    if jax.process_count() > 1:
        quiet = threading.Event()
        watcher = threading.Thread(target=_end_with_others, args=(quiet,), daemon=True)
        watcher.start()
        atexit.register(lambda: (quiet.set(), watcher.join()))  # before jax leaves the job


def end_job(code: int, defect: Exception | None = None) -> None:
    """Ends every process of the job with an exit code, for an error in one of them; returns if there is one process only.

    Without it, the others would wait for this one until jax ends them all, with a code that says nothing.

    Args:
      defect: is printed with its traceback.
    """
    if not jax.distributed.is_initialized() or jax.process_count() == 1:
        return
    client = distributed.global_state.client
    _LEAVING.acquire()  # if the watcher has it, this process ends now
    try:
        client.key_value_set(_ENDING, str(code))
    except jax.errors.JaxRuntimeError:  # another one was first: this error may well come of its end
        with contextlib.suppress(jax.errors.JaxRuntimeError):
            code = int(client.key_value_try_get(_ENDING))
    if defect is not None:
        traceback.print_exception(defect)
    _leave(code)


def _end_with_others(quiet) -> None:
    client = distributed.global_state.client
    while not quiet.wait(1.0):
        try:
            code = client.key_value_try_get(_ENDING)
        except jax.errors.JaxRuntimeError:  # not said, or the job falls apart: jax ends this process then
            continue
        if not _LEAVING.acquire(blocking=False):
            return
        print("editmgt: an error in another process of the job ends this one", file=sys.stderr)
        _leave(int(code))


def _leave(code: int) -> None:
    """Ends this process and its data workers at once. The first one, which the others hear through, lets them go before."""
    client = distributed.global_state.client
    with contextlib.suppress(jax.errors.JaxRuntimeError):
        client.key_value_set(f"{_HEARD}/{jax.process_index()}", "")
        for i in range(jax.process_count() if is_first() else 0):
            client.blocking_key_value_get(f"{_HEARD}/{i}", LAST_WORDS * 1000)
    for worker in multiprocessing.active_children():
        worker.kill()
    locks.release()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


def is_first() -> bool:
    """Whether this process writes what is written once."""
    return jax.process_index() == 0


def number() -> int:
    """Of this process in the job, from 0."""
    return jax.process_index()


def count() -> int:
    """Processes of the job."""
    return jax.process_count()


@contextlib.contextmanager
def first_then_others() -> Iterator[None]:
    """A block that the first process runs before the others do: what it writes they find."""
    if not is_first():
        wait_for_all()
    yield
    if is_first():
        wait_for_all()


@contextlib.contextmanager
def holding(folder: str | Path, job: str) -> Iterator[None]:
    """Holds a folder for all processes of the job, by its first one. Errors: as `locks.held`, in that one."""
    with locks.held(folder, job) if is_first() else contextlib.nullcontext():
        yield


def wait_for_all() -> None:
    """Until every process has come here."""
    any_problem(None)


def any_problem(problem: str | None) -> str | None:
    """What the first process that has a problem says of it; None if none has any. All must ask, in the same order; no device
    takes part.

    Errors: ProcessError when one of them does not come.
    """
    if jax.process_count() == 1:
        return problem
    client, name = distributed.global_state.client, f"editmgt/problem/{next(_QUESTIONS)}"
    client.key_value_set(f"{name}/{jax.process_index()}", problem or "")
    try:
        answers = [
            client.blocking_key_value_get(f"{name}/{i}", LONGEST_WAIT * 1000) for i in range(jax.process_count())
        ]
    except jax.errors.JaxRuntimeError as error:
        raise ProcessError(
            f"another process of the job did not come within {LONGEST_WAIT} s: {error}", transient=True
        ) from error
    return next((answer for answer in answers if answer), None)


def check_joined() -> None:
    """Errors: ProcessError when the devices are of several processes that did not join each other."""
    if jax.process_count() > 1 and not jax.distributed.is_initialized():
        raise ProcessError(f"this job has {jax.process_count()} processes: start each of them with --distributed")


class Preemption:
    """Tells when the platform wants the job to end: SIGTERM to any of its processes.

    `reached(step)` must be asked once a step by every process; all get the same answer.
    """

    def __init__(self):
        self._asked, self._before = False, None

    def __enter__(self):
        alone = not jax.distributed.is_initialized()  # else jax catches the signal and lets the processes agree
        if alone and threading.current_thread() is threading.main_thread():
            self._before = signal.signal(signal.SIGTERM, self._ask)
        return self

    def __exit__(self, *_):
        if self._before is not None:
            signal.signal(signal.SIGTERM, self._before)

    def _ask(self, *_):
        self._asked = True

    def reached(self, step: int) -> bool:
        """Whether the job is to end after this step."""
        if jax.distributed.is_initialized():
            return multihost_utils.reached_preemption_sync_point(step)
        return self._asked


class Watchdog:
    """Writes the stack of every thread to standard error when nothing is heard for some time.

    Args:
      seconds: that time; 0 is never.
      end: whether the process then ends, for a supervisor to start it again.
    """

    def __init__(self, seconds: float, end: bool):
        self._seconds, self._end = seconds, end

    def heard(self) -> None:
        """A sign of life: the time begins anew."""
        if self._seconds > 0:
            faulthandler.dump_traceback_later(self._seconds, exit=self._end, file=2)

    def close(self) -> None:
        """Ends the watch."""
        faulthandler.cancel_dump_traceback_later()
