"""The protocols by name. An entry names its module, its class, and what it is in one line; modules are imported when used."""

import importlib
from typing import TYPE_CHECKING, NamedTuple

from editmgt_jax.errors import UserError

if TYPE_CHECKING:
    from editmgt_jax.evaluation.protocol import Protocol


class Entry(NamedTuple):
    """Where a protocol is defined, and its line in the command's help."""

    module: str
    kind: str
    title: str


PROTOCOLS = {
    "scenes": Entry("scenes", "Scenes", "procedural scenes with known targets"),
    "emu_paper": Entry("emu", "EmuPaper", "Emu Edit test set against the input picture"),
    "emu_anybench": Entry("emu", "EmuAnyBench", "Emu Edit test set against Emu Edit's own generation"),
    "magicbrush": Entry(
        "magicbrush", "MagicBrush", "MagicBrush's test set, single- and multi-turn, against its targets"
    ),
    "anybench": Entry("anybench", "AnyBench", "AnyBench, 25 types of edits against the target"),
    "gedit_step1x": Entry("gedit", "Step1X", "GEdit-Bench in the official scorer's form"),
    "gedit_editmgt": Entry("gedit", "EditMGT", "GEdit-Bench in the form of EditMGT's script"),
    "imgedit": Entry("imgedit", "ImgEdit", "ImgEdit-Bench, three marks of a judge"),
    "geditbench_v2": Entry("geditbench_v2", "GEditBenchV2", "GEditBench v2, pairwise judgements and ratings"),
    "pie": Entry("pie", "Pie", "PIE-Bench: outside of the mask against the source, 700 edits"),
}


def open_protocol(name: str) -> "Protocol":
    """The protocol of a name. Errors: UserError."""
    if name not in PROTOCOLS:
        raise UserError(f"a protocol must be one of {', '.join(PROTOCOLS)}; got {name!r}")
    entry = PROTOCOLS[name]
    return getattr(importlib.import_module(f"editmgt_jax.evaluation.protocols.{entry.module}"), entry.kind)()
