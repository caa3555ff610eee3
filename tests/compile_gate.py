"""What a small run's train step takes on TPUs by their compiler, next to stored figures: what grew, and where.

    python tests/compile_gate.py            compares; exit code 1 if anything grew
    python tests/compile_gate.py --write    stores the figures of the installed jax and libtpu, after a change that is meant

The run has the blocks of the full-size editor, one of each, 512 wide, on 8 chips of v5e, 2 samples a chip.
"""

import collections
import importlib.metadata
import json
import sys
import tempfile
from pathlib import Path

import tiny

from editmgt_jax.training import compile_job

FIGURES = Path(__file__).parent / "data" / "compile_gate.json"
TOLERANCE = 0.03
TOPOLOGY = "v5e:2x4"
SIZES = {
    "num_layers": 1, "num_single_layers": 1, "attention_head_dim": 128, "num_attention_heads": 4, "axes_dims_rope": (32, 48, 48),
    "joint_attention_dim": 24, "pooled_projection_dim": 20, "vocab_size": 40, "codebook_size": 32, "connector_type": "none",
    "text_encoder_architecture": "CLIP",
}  # fmt: skip


def versions() -> str:
    """What the figures depend on besides the code."""
    return ", ".join(f"{name} {importlib.metadata.version(name)}" for name in ("jax", "libtpu"))


def measure() -> dict:
    """The figures of the code as it is. Errors: AssertionError with the compiler's."""
    with tempfile.TemporaryDirectory() as folder:
        model = tiny.write_model(Path(folder) / "model", text_length=128, timestep_convention="released")
        chosen = {"batch_size": 16, "mesh.fsdp": 8, "data.size": 128, "model.encoders": model}
        chosen |= {f"model.mgt.{name}": value for name, value in SIZES.items()}
        overrides = [f"--config.{name}={value}" for name, value in chosen.items()]
        asked = {"topology": TOPOLOGY, "slices": 1, "program": "train", "states": True}
        found = compile_job.compiled({"config": "stage2_finetune", "overrides": overrides} | asked)
    assert "error" not in found, found["error"]
    return {
        "flops": found["flops"],
        "temporaries": found["memory"]["temporaries"],
        "cycles": found["cycles"],
        "collective bytes": sum(one["bytes"] for one in found["collectives"].values()),
        "cycles by operation": _summed(found["top"]),
        "collective bytes by operation": _summed(found["moved"]),
    }


def _summed(entries) -> dict[str, float]:
    """[kind, operation, ..., size] -> {kind and operation: size}"""
    sums = collections.Counter()
    for kind, operation, *_, size in entries:
        sums[f"{kind}: {operation}"] += size
    return dict(sums)


def grown(stored: dict, found: dict) -> list[str]:
    """A line for each figure that grew by more than TOLERANCE, with the operations that grew most."""
    lines = []
    for name in ("flops", "temporaries", "cycles", "collective bytes"):
        if found[name] <= stored[name] * (1 + TOLERANCE):
            continue
        parts = "collective bytes by operation" if name == "collective bytes" else "cycles by operation"
        more = {each: size - stored[parts].get(each, 0) for each, size in found[parts].items()}
        most = [f"{each} (+{more[each]:.0f})" for each in sorted(more, key=more.get)[:-4:-1] if more[each] > 0]
        share = found[name] / stored[name] - 1 if stored[name] else float("inf")
        lines.append(
            f"{name} grew by {share:.1%}, from {stored[name]:.0f} to {found[name]:.0f}; {parts}: {', '.join(most)}"
        )
    return lines


def read() -> dict | None:
    """The figures of the installed jax and libtpu; None if there are none."""
    return json.loads(FIGURES.read_text()).get(versions()) if FIGURES.exists() else None


if __name__ == "__main__":
    if "--write" in sys.argv[1:]:
        kept = json.loads(FIGURES.read_text()) if FIGURES.exists() else {}
        FIGURES.write_text(json.dumps(kept | {versions(): measure()}, indent=1, sort_keys=True) + "\n")
    elif lines := grown(read(), measure()):
        sys.exit("\n".join(lines))
