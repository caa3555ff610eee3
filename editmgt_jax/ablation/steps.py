"""The steps of an ablation, by name, with their progress on a terminal."""

import time
from pathlib import Path

from tqdm import tqdm

from editmgt_jax.ablation import decode, record, score, search
from editmgt_jax.ablation.config import AblationConfig
from editmgt_jax.ablation.report.report import report
from editmgt_jax.ablation.workdir import write_workdir
from editmgt_jax.training import processes


def _progress(items):
    return tqdm(items, disable=None, leave=False)


STEPS = {
    "record": lambda config, folder: record.record(config, folder, _progress),
    "score": lambda config, folder: score.score(config, folder, _progress),
    "search": lambda config, folder: search.search(config, folder),
    "decode": lambda config, folder: decode.decode(config, folder, _progress),
    "report": lambda config, folder: report(folder),
}


ONE_PROCESS = ("search", "report")


def run(name: str, config: AblationConfig, folder: Path) -> None:
    """Runs one step, or with 'run' all in turn, and prints how long each took."""
    with processes.holding(folder, f"ablate {name}"):
        with processes.first_then_others():
            if processes.is_first():
                write_workdir(folder, config)
        for step in STEPS if name == "run" else [name]:
            started = time.perf_counter()
            if step not in ONE_PROCESS or processes.is_first():
                output = STEPS[step](config, folder)
            if processes.is_first():
                print(f"{step}: {output} in {time.perf_counter() - started:.0f} s", flush=True)
            processes.wait_for_all()  # also for the last step: a process that left would end the others
