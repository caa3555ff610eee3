"""Runs of the command line as jobs of several processes on this machine, with fake CPU devices."""

import math
import os
import shutil
import socket
import subprocess
import sys
import time
from pathlib import Path

import jax
import tiny
import tokens
import xla_flags
from small_runs import frozen_config

from editmgt_jax.training.runs import run_params
from editmgt_jax.training.sharding import path_name

EDITMGT = [sys.executable, "-m", "editmgt_jax.cli"]


def free_port() -> int:
    with socket.socket() as found:
        found.bind(("localhost", 0))
        return found.getsockname()[1]


def write_home(folder: Path, model=None) -> Path:
    """A folder with a model directory, records of random ids and `config.py`, a run on them that any mesh of 8 can take."""
    folder.mkdir(parents=True, exist_ok=True)
    shutil.copytree(model or tiny.write_model(folder / "written"), folder / "model")
    tokens.write_random(folder / "tokens", folder / "model")
    config = frozen_config(folder / "model")
    config.start_from = str(folder / "model")
    config.model.mgt.update(tiny.MGT_CONFIG.to_dict())
    config.data.update(tokens=str(folder / "tokens"), heldout=str(folder / "tokens"))
    config.mesh.update(data=1, fsdp=-1)  # each process writes a part of every checkpoint
    text = f"from ml_collections import ConfigDict\ndef get_config():\n    return ConfigDict({config.to_dict()!r})\n"
    (folder / "config.py").write_text(text)
    return folder


def train(home, workdir, *overrides) -> list:
    """The arguments of `editmgt` that train in a folder."""
    return ["train", "--config", home / "config.py", "--workdir", workdir, *overrides]


def parameters(run, average: bool, step: int) -> dict:
    """{name: host array} of a run's checkpoint"""
    params = run_params(run, average, step)
    return {path_name(path): value for path, value in jax.tree_util.tree_leaves_with_path(params)}


def environment(devices: int, number: int | None = None, count: int = 1, port: int = 0) -> dict:
    flags = xla_flags.added("", xla_force_host_platform_device_count=devices)
    importable = os.pathsep.join(filter(None, [str(Path(__file__).parents[1]), os.environ.get("PYTHONPATH")]))
    found = os.environ | {"JAX_PLATFORMS": "cpu", "XLA_FLAGS": flags, "PYTHONPATH": importable}
    if "JAX_COMPILATION_CACHE_DIR" in os.environ:
        found["EDITMGT_CACHE"] = os.environ["JAX_COMPILATION_CACHE_DIR"]
    if number is not None:
        found |= {
            "JAX_COORDINATOR_ADDRESS": f"localhost:{port}",
            "JAX_NUM_PROCESSES": str(count),
            "JAX_PROCESS_ID": str(number),
        }
    return found


def start(arguments, *, processes: int = 2, devices: int = 4, before=(), logs) -> list[subprocess.Popen]:
    """Starts `editmgt ARGUMENTS` in each process of a job.

    Args:
      before: arguments of `editmgt` that come first, such as those of supervise; logs: folder for what they print.
    """
    port, started = free_port(), []
    logs.mkdir(exist_ok=True)
    for number in range(processes):
        own = environment(devices, number if processes > 1 else None, processes, port)
        command = [*EDITMGT, *map(str, [*before, *arguments])]
        command += ["--distributed", "--heartbeat", str(math.ceil(5 * slowness()))] if processes > 1 else []
        with open(logs / f"{number}.log", "a") as log:
            started.append(subprocess.Popen(command, env=own, stdout=log, stderr=log))
    return started


def slowness() -> float:
    """How many processes want each core of this machine; at least 1."""
    return max(1.0, os.getloadavg()[0] / os.cpu_count())


class Patience:
    """A limit in seconds of a machine that does nothing else. Where others compute, it lasts longer."""

    def __init__(self, seconds: float):
        self._left, self._looked = seconds, time.monotonic()

    def over(self) -> bool:
        """Whether it has passed; asked every so often."""
        now = time.monotonic()
        self._left -= (now - self._looked) / slowness()
        self._looked = now
        return self._left < 0


def wait_for(condition, started, seconds=240) -> None:
    """Waits while all processes live. Errors: AssertionError when one ends, or it takes too long."""
    patience = Patience(seconds)
    while not condition():
        assert not patience.over() and all(process.poll() is None for process in started)
        time.sleep(0.02)


def finish(started, seconds=300) -> list[int]:
    """Exit codes. Errors: AssertionError when one takes too long; all are then killed."""
    patience = Patience(seconds)
    try:
        while any(process.poll() is None for process in started):
            assert not patience.over(), f"a process goes on for more than {seconds} s of an idle machine"
            time.sleep(0.02)
        return [process.returncode for process in started]
    finally:
        for process in started:
            process.kill()
