"""Compiling ahead in processes of their own: libtpu may abort one, and its platform is chosen before jax is imported.

    python -m editmgt_jax.training.compile_job '{"config": ..., "program": "train", ...}'     prints one line of JSON

No jax in the process that calls `check`.
"""

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from editmgt_jax.training.compile_report import add_estimate, advice, out_of_memory
from editmgt_jax.training.supervise import ending_with
from editmgt_jax.training.topologies import Chip

NAMES = ("train", "evaluate", "tokenize", "decode")
# Of every process that compiles: quiet, next to others, and without looking for a TPU.
ENVIRONMENT = {
    "TPU_SKIP_MDS_QUERY": "1",
    "JAX_PLATFORMS": "cpu",
    "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",
    "TPU_LOG_DIR": "disabled",
    "TF_CPP_MIN_LOG_LEVEL": "3",
    "XLA_FLAGS": "",  # are of this machine's own devices
}
COMMAND = [sys.executable, "-m", "editmgt_jax.training.compile_job"]
_EMBEDDING = "embedding_gradient"  # the kernel's name, without importing it
_MARK = "COMPILED "  # before the line of JSON: libtpu prints, too


def check(
    config: str, overrides: Sequence[str], topology: str, slices: int = 1, program: str = "train", states: bool = False
) -> dict:
    """Compiles a program of a run. -> its entry: see `compile_ahead.compile_program` and `compile_report.add_estimate`

    Where it cannot be compiled, the entry has 'error', and 'advice' if it does not fit the memory.
    """
    chip = Chip.of(topology)
    asked = {
        "config": config, "overrides": list(overrides), "topology": topology, "slices": slices, "program": program,
        "states": states,
    }  # fmt: skip
    entry = {"topology": topology, "slices": slices, "program": program}
    found = compiled(asked)
    if "error" in found:
        return entry | found
    kernels = [name for name in found["kernels"] if name.startswith(("fused_attention", _EMBEDDING))]
    embedding = found["embedding"] if _EMBEDDING in kernels else None
    cycles = _kernel_cycles(topology, found["attention"], embedding) if kernels else {}
    missing = sorted(set(kernels) - cycles.keys())
    if missing:
        return entry | {"error": f"the compiler gave no schedule of the kernels {', '.join(missing)}"}
    return add_estimate(entry | found | {"kernel_cycles": cycles}, chip)


def compiled(asked: dict, more: dict | None = None) -> dict:
    """What a process of its own prints for `asked`. It ends when this one does."""
    environment = os.environ | ENVIRONMENT | (more or {})
    # The process asks for its end itself: what runs between fork and exec is not safe beside jax's threads.
    command = [*COMMAND, json.dumps(asked | {"parent": os.getpid()})]
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    lines = [line for line in done.stdout.splitlines() if line.startswith(_MARK)]
    if lines:
        return json.loads(lines[-1].removeprefix(_MARK))
    last = next(iter(done.stderr.strip().splitlines()[-1:]), "")
    return {"error": f"the compiler ended with code {done.returncode}: {last}"}


def dump_environment(folder: str | Path) -> dict[str, str]:
    """Environment of a process whose libtpu writes schedules into `folder`."""
    return {"LIBTPU_INIT_ARGS": f"--xla_jf_dump_to={folder} --xla_jf_dump_llo_text=true"}


def _kernel_cycles(topology: str, shape: list, embedding: list | None) -> dict[str, float]:
    """{kernel: cycles of a call} of attention and, unless None, of the gradient of the embedding: see `kernel_cost.Shape` and
    `Embedding`."""
    with tempfile.TemporaryDirectory() as folder:
        asked = {"kernels": shape, "embedding": embedding, "topology": topology, "folder": folder}
        return compiled(asked, dump_environment(folder)).get("cycles", {})


def main(asked: dict) -> dict:
    """What `check` asks of a process of its own."""
    if "kernels" in asked:
        from editmgt_jax.training import kernel_cost

        # The cost of a call is that of one sample and head, times both.
        shape = kernel_cost.Shape(*asked["kernels"])
        kernel_cost.compile_kernels(asked["topology"], shape._replace(batch=1))
        found = kernel_cost.schedules(Path(asked["folder"]), shape)
        cycles = {name: schedule.bundles * shape.steps(name) for name, schedule in found.items()}
        if asked["embedding"] is not None:
            embedding = kernel_cost.Embedding(*asked["embedding"])
            cycles |= kernel_cost.embedding_cycles(Path(asked["folder"]), asked["topology"], embedding)
        return {"cycles": cycles}
    from editmgt_jax.errors import UserError
    from editmgt_jax.training.compile_ahead import Ahead, compile_program
    from editmgt_jax.training.config_files import load_config

    try:
        config = load_config(asked["config"], asked["overrides"])
        ahead = Ahead(config, asked["topology"], asked["slices"], asked["states"])
    except UserError as error:
        return {"error": str(error)}
    try:
        return compile_program(ahead, asked["program"])
    except Exception as error:  # noqa: BLE001  (the compiler's errors are of several kinds)
        needed = out_of_memory(str(error))
        if needed is None:
            return {"error": str(error).splitlines()[0]}
        text = (
            f"does not fit: {needed / 2**30:.1f} GiB of {ahead.chip.memory / 2**30:.0f}" if needed else "does not fit"
        )
        more = advice(max(needed, ahead.chip.memory + 1), *ahead.sizes()) if asked["program"] == "train" else []
        return {"error": text, "advice": more}


def run(asked: str) -> None:
    """What a process of its own does: prints `main` of what is asked, in JSON, and ends when the process that asked does."""
    values = json.loads(asked)
    ending = ending_with(values.pop("parent", os.getppid()))
    if ending is not None:
        ending()
    print(_MARK + json.dumps(main(values)), flush=True)


if __name__ == "__main__":
    run(sys.argv[1])
