"""Rows of figures, times and memory of programs, and models with random inputs: what `gpu.py` measures with."""

import dataclasses
import gc
import json
import statistics
import time
from pathlib import Path

import jax
import jax.numpy as jnp

from editmgt_jax.config import MGTConfig
from editmgt_jax.models.flops import forward_flops
from editmgt_jax.models.mgt import MGT, init_mgt
from editmgt_jax.models.text import TextStates

GIB = 2**30


class OutOfTime(RuntimeError):
    """The budget is spent."""


class Report:
    """Rows as they come, and the file that holds them."""

    def __init__(self, path, budget: float):
        self._path, self._end = path, time.monotonic() + budget
        self.result = {"rows": []}

    def header(self, facts: dict) -> None:
        self.result |= facts
        print("  ".join(f"{name} {value}" for name, value in facts.items()), flush=True)
        self._write()

    def row(self, section: str, name: str, measure) -> dict:
        """Notes what `measure()` returns, or why it returned nothing. -> the row"""
        row, start = {"section": section, "name": name}, time.monotonic()
        try:
            if start > self._end:
                raise OutOfTime("left out: the budget is spent")
            row |= measure()
        except Exception as error:  # noqa: BLE001 -- one row's failure is a result; the others are still wanted
            row["error"] = f"{type(error).__name__}: {str(error).strip()[:400]}"
        row["took"] = round(time.monotonic() - start, 1)
        self.result["rows"].append(row)
        facts = "  ".join(f"{key} {value}" for key, value in row.items() if key not in ("section", "name"))
        print(f"{section:<7} {name:<34} {facts}", flush=True)
        self._write()
        gc.collect()
        return row

    def _write(self) -> None:
        if self._path:
            Path(self._path).write_text(json.dumps(self.result, indent=1) + "\n")


def seconds_of(run, repeats: int) -> float:
    """Median of some runs, after one that does not count. Each run's result is waited for."""
    jax.block_until_ready(run())
    times = []
    for _ in range(repeats):
        start = time.perf_counter()
        jax.block_until_ready(run())
        times.append(time.perf_counter() - start)
    return statistics.median(times)


def attainable(side: int, copied: int) -> tuple[float, float]:
    """Operations a second of bfloat16 products [side side], bytes a second of a copy (read and written) of `copied`."""
    keys = jax.random.split(jax.random.key(0))
    a, b = (jax.random.normal(key, (side, side), jnp.bfloat16) for key in keys)
    product = jax.jit(lambda a, b: jax.lax.fori_loop(0, 8, lambda _, x: (x @ b) * jnp.bfloat16(side**-0.5), a))
    x = jnp.zeros(copied // 4, jnp.float32)
    copy = jax.jit(lambda x: x + 1)
    return 8 * 2 * side**3 / seconds_of(lambda: product(a, b), 5), 2 * copied / seconds_of(lambda: copy(x), 5)


def compiled(function, *arguments, **options):
    """-> (compiled program, {"compile_s", "memory_gib"}). Errors: MemoryError where it asks for more than there is."""
    start = time.perf_counter()
    program = jax.jit(function, **options).lower(*arguments).compile()
    facts = {"compile_s": round(time.perf_counter() - start, 1)}
    memory = program.memory_analysis()
    total = memory.argument_size_in_bytes + memory.output_size_in_bytes + memory.temp_size_in_bytes
    total -= memory.alias_size_in_bytes
    facts["memory_gib"] = round(total / GIB, 2)
    limit = device_memory("bytes_limit")
    if limit and total > limit:
        raise MemoryError(f"needs {total / GIB:.1f} GiB of {limit / GIB:.1f}, compiled in {facts['compile_s']} s")
    return program, facts


def device_memory(name: str) -> int | None:
    """A figure of the first device's memory, in bytes; None where it tells none."""
    return (jax.local_devices()[0].memory_stats() or {}).get(name)


def measured(elapsed: float, operations: int, samples: int, rate: float) -> dict:
    peak = device_memory("peak_bytes_in_use")
    return {
        "seconds": float(f"{elapsed:.4g}"),
        "samples_per_s": float(f"{samples / elapsed:.4g}"),
        "tflop": round(operations / 1e12, 3),
        "ratio": round(operations / elapsed / rate, 3),
        "peak_gib": peak and round(peak / GIB, 2),
    }


def half_matrices(params):
    """Matrices in bfloat16, vectors as they are, which is how a model is loaded in bfloat16."""
    return jax.tree_util.tree_map_with_path(
        lambda path, x: x.astype(jnp.bfloat16) if path[-1].key in ("kernel", "embedding") else x, params
    )


@dataclasses.dataclass
class Case:
    """A model's sizes and random inputs for it."""

    config: MGTConfig
    grid: tuple[int, int]
    text: int

    def mgt(self, backend: str, dtype=jnp.bfloat16, remat: str = "none") -> MGT:
        return MGT(self.config, dtype, remat=remat, attention=backend)

    def params(self, half: bool):
        def make(key):
            params = init_mgt(self.mgt("xla"), key)
            return half_matrices(params) if half else params

        return jax.jit(make)(jax.random.key(0))

    def states(self, batch: int, seed: int = 0) -> TextStates:
        """Random ones."""
        first, second = jax.random.split(jax.random.key(seed))
        shape = (batch, self.text, self.config.joint_attention_dim)
        pooled = jax.random.normal(second, (batch, self.config.pooled_projection_dim))
        return TextStates(jax.random.normal(first, shape), pooled)

    def ids(self, batch: int, seed: int):
        return jax.random.randint(jax.random.key(seed), (batch, *self.grid), 0, self.config.codebook_size)

    def forward_flops(self) -> int:
        return forward_flops(self.config, self.grid, self.text, reference=True)
