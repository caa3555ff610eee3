"""Compiled decodes: jit's own cache keeps them, and users are told when one is compiled.

A decode of full size takes minutes to compile; all that changes a program is in `sampling.edit`.
"""

import sys
import time
from collections.abc import Callable

import jax
from tqdm import tqdm

from editmgt_jax.models.mgt import MGT
from editmgt_jax.models.traces import traces
from editmgt_jax.sampling.edit import TokenEdit, decode_edit
from editmgt_jax.sampling.request import Request
from editmgt_jax.sampling.settings import StaticSettings

CACHE_HIT = "/jax/compilation_cache/cache_hits"  # what jax reports when a program comes from the cache on disk


def run_decode(
    variables: dict, request: Request, mgt: MGT, static: StaticSettings, progress: Callable[[str], None]
) -> TokenEdit:
    """`decode_edit`; calls `progress` with "compile", if the program is new to this process, and with "decode"."""
    traced = traces["decode"]
    lowered = decode_edit.lower(variables, request, mgt, static)
    if traces["decode"] > traced:
        progress("compile")
        _compile(lowered, " x ".join(str(side) for side in reversed(request.start.shape[1:])))
    progress("decode")
    return lowered.compile()(variables, request)


def _compile(lowered, grid: str) -> None:
    """Compiles a decode, or reads it from the cache on disk; notes on stderr if it had to be compiled."""
    events, started = [], time.perf_counter()

    def note(event, **_):
        events.append(event)

    jax.monitoring.register_event_listener(note)
    try:
        lowered.compile()
    finally:
        jax.monitoring.unregister_event_listener(note)
    if CACHE_HIT not in events:
        cached = "cached on disk" if jax.config.jax_compilation_cache_dir else "kept for this process"
        elapsed = time.perf_counter() - started
        tqdm.write(
            f"compiling for {grid} tokens took {elapsed:.0f} s, first use of these shapes; {cached}", file=sys.stderr
        )
