"""Numbers that papers print, with their source. A number is here only if its source is named.

Missing are the other systems of EditMGT's Table 1, and its columns of AnyBench and GEdit-Bench.
"""

import dataclasses

EDITMGT = "EditMGT, arXiv 2512.11715, Table 1"


@dataclasses.dataclass(frozen=True)
class Published:
    """The printed values of one system under one protocol."""

    protocol: str
    system: str
    values: dict[str, float]
    source: str


EMU_EDIT = "Emu Edit, arXiv 2311.10089, its own test set; as others quote it, not compared with the paper"

TABLE = (
    Published("emu_paper", "Emu Edit", {"clip_dir": 0.109, "clip_t": 0.231, "dino": 0.819}, EMU_EDIT),
    Published("emu_anybench", "EditMGT", {"clip_i": 0.878, "clip_t": 0.308, "l1": 0.093, "dino": 0.832}, EDITMGT),
    Published("magicbrush", "EditMGT", {"clip_i": 0.911, "clip_t": 0.301, "l1": 0.058, "dino": 0.881}, EDITMGT),
)


def of(protocol: str) -> list[Published]:
    """The published numbers of a protocol."""
    return [number for number in TABLE if number.protocol == protocol]
