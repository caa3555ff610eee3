"""The table of what the stages need on TPUs: one JSON file a row, so that it can be filled a few rows at a time. No jax.

A row is a program of a shipped config on a topology, with 4 samples a device. The rows come in the order of their worth. v4 is left
out: its 16 MiB of fast memory do not hold the kernels of attention.
"""

import dataclasses
import json
from collections.abc import Iterator
from pathlib import Path

from editmgt_jax.files import write_json
from editmgt_jax.training.compile_job import check
from editmgt_jax.training.compile_report import describe, markdown
from editmgt_jax.training.topologies import device_count

SAMPLES = 4  # a device
COPY = 16  # devices that hold a copy of the state, if there are as many
# {chip: topologies of 8, 16, 32, 64, 128 and 256 chips}
SHAPES = {
    "v5e": ("2x4", "4x4", "4x8", "8x8", "8x16", "16x16"),
    "v6e": ("2x4", "4x4", "4x8", "8x8", "8x16", "16x16"),
    "v5p": ("2x2x2", "2x2x4", "2x4x4", "4x4x4", "4x4x8", "4x8x8"),
    "tpu7x": ("2x2x2", "2x2x4", "2x4x4", "4x4x4", "4x4x8", "4x8x8"),
}
HOST = {
    "v5e": "2x2",
    "v6e": "2x2",
    "v5p": "2x2x1",
    "tpu7x": "2x2x1",
}  # the smallest topology; a decode runs on one chip of it


@dataclasses.dataclass(frozen=True)
class Row:
    """A program to compile."""

    config: str
    topology: str
    slices: int = 1
    program: str = "train"

    @property
    def name(self) -> str:
        """Of its file."""
        place = self.topology.replace(":", "-") + (f"-{self.slices}" if self.slices > 1 else "")
        return f"{self.config}-{self.program}-{place}"

    @property
    def overrides(self) -> list[str]:
        """Keys of the config that the number of devices decides."""
        devices = device_count(self.topology)
        return [f"batch_size={SAMPLES * devices * self.slices}", f"mesh.fsdp={min(COPY, devices)}"]


def rows() -> list[Row]:
    """All rows. Stage 3's step is that of stage 2."""
    first = [Row("stage2_finetune", "v5e:2x2", program="decode"), Row("stage2_finetune", "v5e:4x4")]
    decodes = [Row("stage2_finetune", f"{chip}:{shape}", program="decode") for chip, shape in HOST.items()]
    sixteen = [Row("stage2_finetune", f"{chip}:{shapes[1]}") for chip, shapes in SHAPES.items()]
    slices = [Row("stage2_finetune", "v5e:4x4", 2), Row("stage1_adapt", "v5e:4x4")]
    rest = [
        Row(config, f"{chip}:{shape}", number)
        for config in ("stage2_finetune", "stage1_adapt")
        for number in (1, 2)
        for index in (0, 5, 3, 4, 2, 1)
        for chip, shapes in SHAPES.items()
        for shape in [shapes[index]]
        if number == 1 or index == 1
    ]
    thousand = [Row("stage2_finetune", "v5e:16x16", 4), Row("stage2_finetune", "v5p:8x8x16")]
    return list(dict.fromkeys([*first, *decodes, *sixteen, *slices, *rest, *thousand]))


def fill(folder: str | Path) -> Iterator[str]:
    """Compiles the rows whose files are not there, and writes them. -> a description of each, as it is done

    A row that the compiler died of is described and not written.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    for row in rows():
        path = folder / f"{row.name}.json"
        if path.exists():
            continue
        overrides = [f"--config.{one}" for one in row.overrides]
        entry = check(row.config, overrides, row.topology, row.slices, row.program, states=True)
        if "fits" in entry or "advice" in entry:
            entry["top"], entry["moved"] = entry.get("top", [])[:10], entry.get("moved", [])[:10]
            write_json(path, entry | dataclasses.asdict(row) | {"overrides": row.overrides})
        yield describe(entry)


def _place(row: Row) -> tuple[int, int]:
    return list(SHAPES).index(row.topology.partition(":")[0]), device_count(row.topology) * row.slices


def tables(folder: str | Path) -> str:
    """The rows that are there, as a table of each config and program, and how many are missing. A table goes from chip to chip, the fewest
    devices first."""
    found, missing = {}, 0
    for row in sorted(rows(), key=_place):
        path = Path(folder) / f"{row.name}.json"
        if path.exists():
            found.setdefault((row.config, row.program), []).append(json.loads(path.read_text()))
        else:
            missing += 1
    parts = [f"### `{config}`, {program}\n\n{markdown(entries)}" for (config, program), entries in found.items()]
    last = f"Rows that are not compiled yet: {missing}." if missing else "All rows are there."
    return "\n".join([*parts, f"{last}\n"])
