"""Compiled decodes, ready or not: users are told when one is compiled.

A decode of full size takes minutes to compile; all that changes a program is in `sampling.edit`.
"""

import atexit
import os
import sys
import time
from collections.abc import Callable
from typing import Any

import jax
from tqdm import tqdm

from editmgt_jax import executables
from editmgt_jax.declarations import MAX_IMAGES, check_integer
from editmgt_jax.errors import UserError
from editmgt_jax.models.mgt import MGT
from editmgt_jax.models.traces import traces
from editmgt_jax.sampling.edit import TokenEdit, decode_edit
from editmgt_jax.sampling.request import Request
from editmgt_jax.sampling.settings import StaticSettings

KEPT = 16  # programs that jit keeps for one process at most

_new = 0  # programs since jit last dropped its own
_process = None  # the one that uses the accelerator


def check_process() -> None:
    """Errors: UserError in a fork of a process that has used a pipeline: it lacks the threads that programs wait for."""
    global _process
    _process = _process or os.getpid()
    if _process != os.getpid():
        atexit.register(_leave_fork)  # jax would wait for threads that are not there
        raise UserError(
            "this process is a fork of one that has loaded a pipeline, which cannot be used in it: load the pipeline after the "
            "fork (gunicorn without --preload), or start processes by 'spawn'"
        )


def _leave_fork() -> None:
    """Ends a fork without what Python and jax do at the end; with 1 after an error that nobody caught."""
    for stream in (sys.stdout, sys.stderr):
        if stream is not None:
            stream.flush()
    os._exit(1 if hasattr(sys, "last_value") else 0)


def check_batch_size(size: Any) -> None:
    """Errors: SettingsError for a number of pictures that cannot be decoded at once; UserError in a fork, see `check_process`."""
    check_process()
    check_integer("batch_size", size, 1, MAX_IMAGES)


def run_decode(
    variables: dict, request: Request, mgt: MGT, static: StaticSettings, progress: Callable[[str], None]
) -> TokenEdit:
    """`decode_edit`; calls `progress` with "compile", if the program is new to this process and not ready, and with "decode"."""
    with executables.preparing:
        prepare = _kept if executables.is_kept((variables, request)) else _jitted
        executable = prepare(variables, request, mgt, static, progress)
    progress("decode")
    return executable(variables, request)


def _kept(variables, request, mgt, static, progress) -> Callable:
    """The executable that `executables` keeps; notes on stderr if it had to be compiled."""
    call = decode_edit, variables, request
    executable = executables.find(*call, mgt=mgt, static=static)
    if executable is None:
        progress("compile")
        started = time.perf_counter()
        executable, written = executables.build(*call, mgt=mgt, static=static)
        _tell(request, started, written)
    return executable


def _jitted(variables, request, mgt, static, progress) -> Callable:
    """The executable that jit's own cache keeps, or the cache on disk; notes on stderr if it had to be compiled."""
    traced = traces["decode"]
    lowered = decode_edit.lower(variables, request, mgt=mgt, static=static)
    if traces["decode"] == traced:
        return lowered.compile()
    global _new
    _new += 1
    if _new > KEPT:  # pictures of many sizes: a program takes tens of MB
        decode_edit.clear_cache()
        lowered = decode_edit.lower(variables, request, mgt=mgt, static=static)  # the next call finds it
        _new = 1
    progress("compile")
    started = time.perf_counter()
    with executables.listening() as events:
        executable = lowered.compile()
    if executables.CACHE_HIT not in events:
        _tell(request, started, jax.config.jax_compilation_cache_dir)
    return executable


def _tell(request, started, on_disk) -> None:
    """Notes on stderr that a decode was compiled."""
    if sys.stderr is None:
        return
    grid = " x ".join(str(side) for side in reversed(request.start.shape[1:]))
    cached, elapsed = "cached on disk" if on_disk else "kept for this process", time.perf_counter() - started
    tqdm.write(
        f"compiling for {grid} tokens took {elapsed:.0f} s, first use of these shapes; {cached}", file=sys.stderr
    )
