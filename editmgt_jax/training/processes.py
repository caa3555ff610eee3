"""A job of one process or of many: joining it, being asked to stop, hanging."""

import contextlib
import faulthandler
import itertools
import os
import signal
import threading

import jax
from jax._src import distributed  # its key-value store has no public name
from jax.experimental import multihost_utils

ADDRESS, COUNT, NUMBER = "JAX_COORDINATOR_ADDRESS", "JAX_NUM_PROCESSES", "JAX_PROCESS_ID"
LONGEST_WAIT = 1800  # seconds that processes wait for each other: one may encode a whole shard meanwhile
_QUESTIONS = itertools.count()


class ProcessError(RuntimeError):
    """A job that cannot be joined, or fell apart. `transient`: whether a new start may well do better."""

    def __init__(self, message, transient: bool = False):
        super().__init__(message)
        self.transient = transient


def join(heartbeat: int = 30) -> None:
    """Joins the other processes of the job, before anything else uses a device.

    Args:
      heartbeat: seconds without a sign of a process after which the others end.

    Cloud TPU slices, Slurm and the like are recognised by jax; elsewhere the environment says it: JAX_COORDINATOR_ADDRESS
    (host:port of process 0), JAX_NUM_PROCESSES and JAX_PROCESS_ID.
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
            f"the other processes of the job cannot be joined ({first_line}): outside of Cloud TPU and Slurm, set {ADDRESS}, "
            f"{COUNT} and {NUMBER}",
            transient=isinstance(error, RuntimeError),  # they may be on their way; a ValueError is about the settings
        ) from error


def is_first() -> bool:
    """Whether this process writes what is written once."""
    return jax.process_index() == 0


@contextlib.contextmanager
def first_then_others():
    """A block that the first process runs before the others do: what it writes they find."""
    if not is_first():
        wait_for_all()
    yield
    if is_first():
        wait_for_all()


def wait_for_all() -> None:
    """Until every process has come here."""
    all_agree(True)


def all_agree(yes: bool) -> bool:
    """Whether every process says yes. All must ask, in the same order; no device takes part.

    Errors: ProcessError when one of them does not come.
    """
    if jax.process_count() == 1:
        return yes
    client, name = distributed.global_state.client, f"editmgt/agree/{next(_QUESTIONS)}"
    client.key_value_set(f"{name}/{jax.process_index()}", str(int(yes)))
    try:
        answers = [
            client.blocking_key_value_get(f"{name}/{i}", LONGEST_WAIT * 1000) for i in range(jax.process_count())
        ]
    except jax.errors.JaxRuntimeError as error:
        raise ProcessError(
            f"another process of the job did not come within {LONGEST_WAIT} s: {error}", transient=True
        ) from error
    return all(answer == "1" for answer in answers)


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
        if self._seconds > 0:
            faulthandler.dump_traceback_later(self._seconds, exit=self._end, file=2)

    def close(self) -> None:
        faulthandler.cancel_dump_traceback_later()
