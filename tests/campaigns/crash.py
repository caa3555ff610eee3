"""Kills every command that writes, at random moments; after the last restart, its result must equal an undisturbed one's.

    python tests/campaigns/crash.py --kills 25 --output /tmp/crash

Half of the kills are SIGKILL and half SIGTERM. A killed command is repeated until it ends by itself. Prints a line a command, and says at
the end which results differ, which files were left over, and whether a traceback was printed.
"""

import argparse
import hashlib
import json
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

sys.path[:0] = [str(Path(__file__).parents[1]), str(Path(__file__).parents[2])]

import numpy as np  # noqa: E402
import tiny  # noqa: E402
import tokens  # noqa: E402
from PIL import Image  # noqa: E402

from editmgt_jax import locks  # noqa: E402
from editmgt_jax.training.runs import run_params  # noqa: E402

EDITMGT = [sys.executable, "-m", "editmgt_jax.cli"]
PATIENCE = 900  # seconds for a command that is left alone
STAGES = ("records", "scores", "decodes", "search")  # folders of an ablation
ABLATION = """
from editmgt_jax.configs import ablate_layers

def get_config():
    config = ablate_layers.get_config()
    config.model = {model!r}
    config.examples.update(count=6, objects="core")
    config.record.update(rates=(0.5,), steps=(0, 1), seeds=(0, 1), chunk=2, settings=dict(steps=2))
    config.score.update(sets=("subsets",), signals=("text_to_image",), groups=("all",), windows=("each",), part=3)
    config.decode.update(grid=dict(hold_threshold=(0.0, 0.5)), interventions=("bypass",), count=2, seeds=(0,), batch_size=2)
    config.statistics.update(resamples=100, permutations=100)
    return config
"""
TIMES = ("summary.html", "seconds")  # files that say how long something took


def files_of(output: Path) -> dict[str, str]:
    """{file: hash of its bytes} of a file or folder."""
    paths = [output] if output.is_file() else sorted(path for path in output.rglob("*") if path.is_file())
    names = {str(path.relative_to(output)): path for path in paths if path.name not in TIMES}
    return {name: hashlib.sha256(path.read_bytes()).hexdigest() for name, path in names.items()}


def shared_of(output: Path) -> dict[str, str]:
    """{file: hash of its bytes} of the stages of an ablation."""
    return {name: found for name, found in files_of(output).items() if name.split("/")[0] in STAGES}


def weights_of(run: Path) -> dict[str, str]:
    """{average or not: hash of all parameters} of a run's last step."""
    import jax

    found = {}
    for average in (False, True):
        leaves = jax.tree.leaves(run_params(run, average, step=4))
        found[str(average)] = hashlib.sha256(b"".join(np.asarray(leaf).tobytes() for leaf in leaves)).hexdigest()
    return found


def left_over(folder: Path) -> list[str]:
    """Names of files and folders that no command should leave."""
    names = [str(path.relative_to(folder)) for path in folder.rglob("*") if ".tmp" in path.name or "-tmp" in path.name]
    return names + [str(path.relative_to(folder)) for path in folder.rglob(locks.NOTE)]


def commands(home: Path) -> dict:
    """{name: (output folder or file -> arguments, name of the output, how it is compared)}"""
    model = home / "model"
    tiny.write_model(model)
    tokens.write_random(home / "tokens", model)
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (32, 32, 3), np.uint8)).save(home / "in.png")
    prepared = home / "prepared"
    subprocess.run(
        [*EDITMGT, "prepare", "scenes:64", "--output", prepared, "--resolution", "32", "--workers", "1"], check=True
    )
    config = home / "configs" / "run.py"
    config.parent.mkdir()
    config.write_text(
        "import sys\n"
        f"sys.path.insert(0, {str(Path(__file__).parents[1])!r})\n"
        "import small_runs, tiny\n"
        "def get_config():\n"
        f"    config = small_runs.frozen_config({str(model)!r}, steps=4)\n"
        f"    config.start_from = {str(model)!r}\n"
        "    config.model.mgt.update(tiny.MGT_CONFIG.to_dict())\n"
        f"    config.data.update(tokens={str(home / 'tokens')!r}, heldout={str(home / 'tokens')!r})\n"
        "    config.mesh.update(data=-1, fsdp=1)\n"
        "    config.checkpoint.every = 1\n"
        "    return config\n"
    )
    reader = tiny.write_model(home / "reader", text_length=96)  # which takes the instructions of scenes
    ablation = home / "configs" / "ablation.py"
    ablation.write_text(ABLATION.format(model=str(reader)))
    run = home / "run"
    subprocess.run([*EDITMGT, "train", "--config", config, "--workdir", run], check=True)
    return {
        "prepare": (lambda out: ["prepare", "scenes:400", "--output", out, "--resolution", 32, "--workers", 2, "--task-pairs", 50], "pairs", files_of),
        "tokenize": (lambda out: ["tokenize", "--records", prepared, "--model", model, "--output", out], "tokens", files_of),
        "convert": (lambda out: ["convert", "orbax", model, out], "orbax", weights_of_orbax),
        "export": (lambda out: ["export", "--workdir", run, "--output", out], "exported", files_of),
        "edit": (lambda out: ["edit", "--model", model, "--image", home / "in.png", "--instruction", "make it red", "--output", out], "out.png", files_of),
        "export-decode": (lambda out: ["export-decode", "--model", model, "--output", out], "decode.bin", files_of),
        "evaluate": (lambda out: ["evaluate", "scenes", "--model", reader, "--count", 70, "--seed", 0, 1, "--workdir", out], "evaluation", files_of),
        "ablate": (lambda out: ["ablate", "run", "--config", ablation, "--workdir", out], "ablation", shared_of),
        "train": (lambda out: ["train", "--config", config, "--workdir", out], "run", weights_of),
    }  # fmt: skip


def weights_of_orbax(output: Path) -> dict[str, str]:
    """The checksums that a converted model has of its tensors."""
    return {
        path.parent.name: json.dumps(json.loads(path.read_text())) for path in sorted(output.rglob("checksums.json"))
    }


def attempt(arguments, seconds: float | None, number: int) -> tuple[int, str]:
    """Runs a command, and kills it after some seconds. -> (exit code, standard error)"""
    process = subprocess.Popen(
        [*EDITMGT, *map(str, arguments)], stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True
    )
    try:
        _, said = process.communicate(timeout=PATIENCE if seconds is None else seconds)
    except subprocess.TimeoutExpired:
        if seconds is None:
            process.kill()
            raise
        process.send_signal(number)
        _, said = process.communicate(timeout=PATIENCE)
    return process.returncode, said


def tried(home: Path, name: str, job, kills: int, dice: random.Random) -> list[str]:
    """Kills one command so many times. -> what went wrong"""
    arguments, output, compared = job
    started = time.monotonic()
    code, said = attempt(arguments(home / f"whole-{name}" / output), None, 0)
    took = time.monotonic() - started
    if code:
        return [f"{name}: the undisturbed command ends with {code}: {said[-300:]}"]
    expected, problems, done = compared(home / f"whole-{name}" / output), [], 0
    while done < kills:
        folder = home / f"killed-{name}-{done}"
        folder.mkdir()
        for _ in range(dice.randint(1, 3)):
            number = (signal.SIGKILL, signal.SIGTERM)[done % 2]
            _, said = attempt(arguments(folder / output), dice.uniform(0, took), number)
            done += 1
            if "Traceback" in said:
                problems.append(f"{name}: a traceback after {number.name}: {said.strip().splitlines()[-1][:200]}")
        if name in ("convert", "export") and (folder / output).exists():
            code = 0  # it was faster than the kill
        else:
            code, said = attempt(arguments(folder / output), None, 0)
        if code:
            problems.append(f"{name}: does not end well after kills: {code}: {said[-300:]}")
        elif compared(folder / output) != expected:
            problems.append(f"{name}: the result differs in {folder}")
        elif left := left_over(folder):
            problems.append(f"{name}: left over in {folder}: {left}")
        else:
            shutil.rmtree(folder)
    print(f"{name}: {done} kills within {took:.0f} s, {len(problems)} problems", flush=True)
    return problems


def main() -> None:
    """Runs the campaign. Errors: SystemExit with code 1 when anything went wrong."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--kills", type=int, default=25, help="of each command")
    parser.add_argument("--commands", nargs="+", help="names of commands (default: all)")
    parser.add_argument("--output", type=Path, help="new folder for everything (default: a temporary one)")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    home = args.output or Path(tempfile.mkdtemp())
    home.mkdir(parents=True, exist_ok=True)
    problems, jobs = [], commands(home)
    chosen = args.commands or list(jobs)
    if unknown := set(chosen) - set(jobs):
        parser.error(f"--commands must be of {', '.join(jobs)}; got {', '.join(sorted(unknown))}")
    for name in chosen:
        (home / f"whole-{name}").mkdir()
        problems += tried(home, name, jobs[name], args.kills, random.Random(f"{args.seed} {name}"))
    print("\n".join(problems) or "all results are those of undisturbed commands, and nothing is left over")
    raise SystemExit(bool(problems))


if __name__ == "__main__":
    main()
