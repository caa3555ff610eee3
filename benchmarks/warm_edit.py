"""Time of an `editmgt edit` with the default model once its programs are ready: of whole processes, from start to picture.

    python benchmarks/warm_edit.py
    python benchmarks/warm_edit.py --package PATH_OF_ANOTHER_CHECKOUT      the same picture, by other code, alternating

CPU seconds are those of the process in user and system mode; they depend less than the elapsed ones on what else runs.
"""

import argparse
import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]


def edit(package: Path, folder: Path) -> dict:
    """Runs an edit in a process of its own. -> seconds, elapsed and of the CPU"""
    command = [sys.executable, "-m", "editmgt_jax.cli", "edit", "--image", str(ROOT / "examples" / "chick.png")]
    command += ["--instruction", "make the chick pink", "--output", str(folder / "out.png")]
    environment = os.environ | {"PYTHONPATH": str(package), "EDITMGT_CACHE": str(folder / "cache")}
    before, started = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
    subprocess.run(command, env=environment, check=True, cwd=folder, stderr=subprocess.DEVNULL)
    elapsed, after = time.perf_counter() - started, resource.getrusage(resource.RUSAGE_CHILDREN)
    return {"elapsed": elapsed, "cpu": after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime}


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=5, help="warm runs of each package (default 5)")
    parser.add_argument("--package", type=Path, action="append", default=[], help="another checkout to compare with")
    args = parser.parse_args()

    with tempfile.TemporaryDirectory() as folder:
        packages = {package.resolve(): Path(folder) / str(i) for i, package in enumerate([ROOT, *args.package])}
        found = {package: [] for package in packages}
        for run in range(args.runs + 1):
            for package, own in packages.items():
                own.mkdir(exist_ok=True)
                seconds = edit(package, own)
                if run:  # the first one compiles
                    found[package].append(seconds)
        pictures = {(own / "out.png").read_bytes() for own in packages.values()}
        for package, runs in found.items():
            columns = {name: [run[name] for run in runs] for name in ("elapsed", "cpu")}
            report = {"package": str(package), "runs": len(runs)}
            for name, values in columns.items():
                report |= {f"{name}_min": round(min(values), 2), f"{name}_median": round(statistics.median(values), 2)}
            print(json.dumps(report | {"pictures_equal": len(pictures) == 1}))


if __name__ == "__main__":
    main()
