"""What kernels cost by the TPU compiler's own schedule: bundles of instructions times grid steps.

A bundle is a cycle; waits for memory are left out. The compiler writes its schedule into a folder when libtpu is loaded with
`compile_job.dump_environment`: compile the kernels alone, for the dump of a whole program is gigabytes.
"""

import math
import re
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import SingleDeviceSharding

from editmgt_jax.models import attention, embedding_tpu
from editmgt_jax.models.attention.pallas_calls import PARTS
from editmgt_jax.models.attention.pallas_tpu import backward_tile, tile_of
from editmgt_jax.training.topologies import devices_of

_SKIPPED = 40  # bundles; a shorter region that a branch leaves out is not worth a thought


class Shape(NamedTuple):
    """Attention of one device: B samples, A heads of width K over [text, image, reference]."""

    batch: int
    heads: int
    width: int
    text: int
    image: int
    reference: int
    biased: bool  # whether the reference has a strength
    dtype: str = "bfloat16"

    @property
    def length(self) -> int:
        """S."""
        return self.text + self.image + self.reference

    def tiles(self, kernel: str) -> int:
        """Grid steps of a head. Double-stream blocks call kernels whose names end in `PARTS`, single-stream blocks others."""
        parts = (self.text, self.image + self.reference) if kernel.endswith(PARTS) else (self.length,)
        tile = tile_of(parts)
        return -(-self.length // (backward_tile(tile) if "backward" in kernel else tile))

    def steps(self, kernel: str) -> int:
        """Grid steps of a call."""
        return self.batch * self.heads * self.tiles(kernel)


class Embedding(NamedTuple):
    """The gradient of an embedding on one device: of vectors [E B N D], for a table of C rows."""

    shape: tuple[int, int, int, int]
    rows: int
    dtype: str = "bfloat16"

    @property
    def steps(self) -> int:
        """Grid steps of a call."""
        return math.prod(embedding_tpu.grid(tuple(self.shape), self.rows))


class Schedule(NamedTuple):
    """The schedule of a kernel: bundles of a grid step on average, and how busy units are, {unit: share}."""

    bundles: float
    busy: dict[str, float]


def compile_kernels(topology: str, shape: Shape, prepared: bool = True, backward: bool = True) -> int:
    """Compiles attention and its gradient for one chip, as single-stream and as double-stream blocks call it. -> bytes of
    temporaries

    Args:
      prepared: whether norm and rotation are inside; backward: whether the gradient is compiled too.
    """
    device = devices_of(topology)[0]

    def array(*sizes, dtype=shape.dtype):
        return jax.ShapeDtypeStruct(sizes, dtype, sharding=SingleDeviceSharding(device))

    groups, width = (shape.text + shape.image, shape.reference), shape.width

    def total(q, k, v, strength):
        bias = attention.strength_bias(strength if shape.biased else None, groups)
        norms = tuple(x.shape[1] for x in q)
        scales, angles = jnp.ones((len(q), width)), jnp.zeros((shape.length, width // 2))
        preparation = attention.Preparation(scales, scales, angles, angles, norms) if prepared else None
        q, k, v = (x if len(x) > 1 else x[0] for x in (q, k, v))
        out, *_ = attention.attend_and_read(q, k, v, bias, groups, "pallas_tpu", preparation, None)
        return sum(x.astype(jnp.float32).sum() for x in jax.tree.leaves(out)) if backward else out

    temporaries = 0
    for parts in ((shape.length,), (shape.text, shape.image + shape.reference)):
        qkv = [tuple(array(shape.batch, part, shape.heads, width) for part in parts)] * 3
        program = jax.jit(jax.grad(total, (0, 1, 2)) if backward else total)
        compiled = program.lower(*qkv, array(1, dtype=jnp.float32)).compile()
        temporaries = max(temporaries, compiled.memory_analysis().temp_size_in_bytes)
    return temporaries


def embedding_cycles(folder: Path, topology: str, embedding: Embedding) -> dict[str, float]:
    """{kernel: cycles of a call}. The compiler dumps into `folder`.

    The table is emptied and written once for each part of its channels.
    """
    on = SingleDeviceSharding(devices_of(topology)[0])
    ids = jax.ShapeDtypeStruct(embedding.shape[:3], jnp.int32, sharding=on)
    gradient = jax.ShapeDtypeStruct(tuple(embedding.shape), embedding.dtype, sharding=on)
    jax.jit(lambda *given: embedding_tpu.table_gradient(*given, embedding.rows)).lower(ids, gradient).compile()
    parts = embedding_tpu.grid(tuple(embedding.shape), embedding.rows)[0]
    for path in folder.glob(f"*{embedding_tpu.KERNEL}*-final_bundles.txt"):
        if "schedule-analysis" not in path.name:
            total, seldom = _regions(path.read_text())
            return {embedding_tpu.KERNEL: (total - seldom) * embedding.steps + seldom * parts}
    return {}


def schedules(folder: Path, shape: Shape) -> dict[str, Schedule]:
    """{kernel: schedule} of a dump.

    Args:
      shape: of the attention that was compiled. What a branch leaves out runs with one of them: keys are moved and prepared with the first
        tile, and their gradients written with the last.
    """
    found = {}
    for path in sorted(folder.glob("*-final_bundles.txt")):
        name = re.search(rf"fused_attention(_backward)?({PARTS})?(?=[.-])", path.name)
        if name is None or "schedule-analysis" in path.name:
            continue
        (total, seldom), tiles = _regions(path.read_text()), shape.tiles(name.group())
        found[name.group()] = Schedule(total - seldom * (tiles - 1) / tiles, _busy(path, name.group()))
    return found


def _regions(text: str) -> tuple[int, int]:
    """-> (bundles, those of regions that a branch can leave out, without the body of the grid's loop)"""
    last, jumps, ends = 0, [], {}
    for line in text.splitlines():
        address = re.match(r"\s*(0x[0-9a-f]+|0)\s.*?:", line)
        if address is None:
            continue
        last = int(address.group(1), 16)
        ends |= {region: last for region in re.findall(r"Start/End empty region (\d+)", line)}
        target = re.search(r"sbr\.rel \(.*?target = \$region(\d+)", line)
        if target:
            jumps.append((last, target.group(1)))
    regions = [(start, ends[target]) for start, target in jumps if ends.get(target, -1) - start > _SKIPPED]
    body = max(regions, key=lambda region: region[1] - region[0], default=(0, 0))
    seldom = [region for region in regions if region != body]
    outer = [(a, b) for a, b in seldom if not any(c <= a and b <= d and (a, b) != (c, d) for c, d in seldom)]
    return last + 1, sum(b - a for a, b in outer)


def _busy(path: Path, name: str) -> dict[str, float]:
    for other in path.parent.glob(f"{path.name.split('-')[0]}-*{name}.*final*per-bundle-utilization.txt"):
        lines = other.read_text().splitlines()
        units = [unit.strip() for unit in lines[1].split(",")]
        room = [int(value) for value in lines[2].split()]
        used = [[int(value) for value in line.split()] for line in lines[3:] if line[:1].isdigit()]
        if used:
            return {unit: sum(one[i] for one in used) / len(used) / room[i] for i, unit in enumerate(units)}
    return {}
