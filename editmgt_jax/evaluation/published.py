"""Numbers that papers print, with their source. A number is here only if its source is named.

A row that was read in a quotation, not in the paper itself, says so. Missing are eleven of the fifteen systems of EditMGT's Table 1, its
columns of AnyBench, and of its table of GEdit-Bench the systems that may have been measured in another form of the benchmark.
"""

import dataclasses

EDITMGT = "EditMGT, arXiv 2512.11715, Table 1"
EDITMGT_QUOTED = f"{EDITMGT}; as the notes on the paper at en.papernotes.org quote it, not compared with the paper"
EDITMGT_GEDIT = (
    "EditMGT, arXiv 2512.11715, GEdit-EN-full, mean of the 11 groups; as the notes on the paper at en.papernotes.org quote it, not "
    "compared with the paper"
)
EMU_EDIT = (
    "Emu Edit, arXiv 2311.10089, its own test set; as UniReal, arXiv 2412.07774, quotes it, not compared with the paper"
)
ANYEDIT = "AnyEdit, arXiv 2411.15738v3, Table 5"


@dataclasses.dataclass(frozen=True)
class Published:
    """The printed values of one system under one protocol. `view`: of the protocol, None for all of its views."""

    protocol: str
    system: str
    values: dict[str, float]
    source: str
    view: str | None = None


_EMU_EDIT = {
    "InstructPix2Pix": (0.078, 0.834, 0.219, 0.121, 0.762),
    "MagicBrush": (0.090, 0.838, 0.222, 0.100, 0.776),
    "PnP": (0.028, 0.521, 0.089, 0.304, 0.153),
    "Null-Text Inversion": (0.101, 0.761, 0.236, 0.075, 0.678),
    "Emu Edit": (0.109, 0.859, 0.231, 0.094, 0.819),
}
# CLIP-I, CLIP-T, L1, DINO, by domain of AnyBench; camera movements have no captions.
_ANYEDIT = {
    "local": {
        "Null-Text Inversion": (0.773, 0.270, 0.245, 0.641),
        "InstructPix2Pix": (0.753, 0.274, 0.164, 0.562),
        "MagicBrush": (0.823, 0.293, 0.120, 0.698),
        "HIVE-w": (0.814, 0.294, 0.184, 0.651),
        "HIVE-c": (0.845, 0.299, 0.114, 0.766),
        "UltraEdit (SD3)": (0.831, 0.308, 0.112, 0.731),
        "AnyEdit": (0.863, 0.297, 0.094, 0.788),
    },
    "global": {
        "Null-Text Inversion": (0.753, 0.277, 0.270, 0.613),
        "InstructPix2Pix": (0.747, 0.261, 0.180, 0.523),
        "MagicBrush": (0.731, 0.278, 0.233, 0.493),
        "HIVE-w": (0.762, 0.287, 0.196, 0.579),
        "HIVE-c": (0.787, 0.294, 0.253, 0.576),
        "UltraEdit (SD3)": (0.772, 0.297, 0.191, 0.619),
        "AnyEdit": (0.788, 0.301, 0.159, 0.647),
    },
    "camera": {
        "InstructPix2Pix": (0.700, None, 0.178, 0.477),
        "MagicBrush": (0.765, None, 0.170, 0.589),
        "HIVE-w": (0.779, None, 0.175, 0.619),
        "HIVE-c": (0.838, None, 0.171, 0.739),
        "UltraEdit (SD3)": (0.802, None, 0.340, 0.514),
        "AnyEdit": (0.833, None, 0.110, 0.745),
    },
    "implicit": {
        "InstructPix2Pix": (0.794, 0.288, 0.190, 0.558),
        "MagicBrush": (0.865, 0.280, 0.149, 0.711),
        "HIVE-w": (0.821, 0.284, 0.161, 0.635),
        "HIVE-c": (0.862, 0.284, 0.137, 0.728),
        "UltraEdit (SD3)": (0.856, 0.281, 0.135, 0.703),
        "AnyEdit": (0.867, 0.289, 0.130, 0.733),
    },
    "visual": {"Uni-ControlNet": (0.717, 0.249, 0.260, 0.442), "AnyEdit": (0.801, 0.258, 0.145, 0.628)},
}


def _named(names: tuple[str, ...], values: tuple) -> dict[str, float]:
    return {name: value for name, value in zip(names, values, strict=True) if value is not None}


TABLE = (
    *(
        Published("emu_paper", system, _named(("clip_dir", "clip_i", "clip_t", "l1", "dino"), values), EMU_EDIT)
        for system, values in _EMU_EDIT.items()
    ),
    Published("emu_anybench", "EditMGT", {"clip_i": 0.878, "clip_t": 0.308, "l1": 0.093, "dino": 0.832}, EDITMGT),
    Published("emu_anybench", "AnyEdit", {"clip_i": 0.872, "dino": 0.821}, EDITMGT_QUOTED),
    Published("emu_anybench", "OmniGen2", {"clip_i": 0.876, "dino": 0.822}, EDITMGT_QUOTED),
    Published("emu_anybench", "VAREdit-8B", {"clip_i": 0.876, "dino": 0.825}, EDITMGT_QUOTED),
    Published("magicbrush", "EditMGT", {"clip_i": 0.911, "clip_t": 0.301, "l1": 0.058, "dino": 0.881}, EDITMGT),
    Published("magicbrush", "AnyEdit", {"clip_i": 0.898, "dino": 0.881}, EDITMGT_QUOTED),
    Published("magicbrush", "VAREdit-8B", {"clip_i": 0.901, "dino": 0.844}, EDITMGT_QUOTED),
    Published("gedit_editmgt", "EditMGT", {"overall_score": 5.87}, EDITMGT_GEDIT, "en"),
    *(
        Published("anybench", system, _named(("clip_i", "clip_t", "l1", "dino"), values), ANYEDIT, domain)
        for domain, systems in _ANYEDIT.items()
        for system, values in systems.items()
    ),
)


def of(protocol: str) -> list[Published]:
    """The published numbers of a protocol."""
    return [number for number in TABLE if number.protocol == protocol]
