"""Runs of the command line as jobs of several processes on this machine, with fake CPU devices."""

import os
import socket
import subprocess
import sys

EDITMGT = [sys.executable, "-m", "editmgt_jax.cli"]


def free_port() -> int:
    with socket.socket() as found:
        found.bind(("localhost", 0))
        return found.getsockname()[1]


def environment(devices: int, number: int | None = None, count: int = 1, port: int = 0) -> dict:
    flags = f"--xla_force_host_platform_device_count={devices}"
    found = os.environ | {
        "JAX_PLATFORMS": "cpu",
        "XLA_FLAGS": flags,
        "EDITMGT_CACHE": os.environ["JAX_COMPILATION_CACHE_DIR"],
    }
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
        command += ["--distributed", "--heartbeat", "5"] if processes > 1 else []
        with open(logs / f"{number}.log", "a") as log:
            started.append(subprocess.Popen(command, env=own, stdout=log, stderr=log))
    return started


def finish(started, seconds=300) -> list[int]:
    """Exit codes; all are killed when one takes too long."""
    try:
        return [process.wait(seconds) for process in started]
    finally:
        for process in started:
            process.kill()
