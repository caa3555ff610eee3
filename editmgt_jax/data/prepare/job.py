"""Raw edit pairs -> a folder of prepared pairs, in processes of this machine or on a runner of Apache Beam.

    survey   examines every task (some parts of a source) on its own. Writes the pairs that pass to a staging folder, one shard a
             bucket, and a line about every raw pair
    weigh    finds duplicates, and surplus pairs of categories, among all tasks
    finish   writes each task's shards without the pairs that `weigh` found, and their counts

Results of a task appear only once complete, and depend on its raw pairs and the config alone. A preparation that is killed and
repeated therefore gives the same bytes.
"""

import contextlib
import dataclasses
import hashlib
import importlib.util
import logging
import shutil
import sys
import threading
import time
from pathlib import Path

from tqdm import tqdm

from editmgt_jax.data.prepare import counts, summary
from editmgt_jax.data.prepare.examine import PrepareConfig
from editmgt_jax.data.prepare.sources import open_source
from editmgt_jax.data.prepare.task import REPORTS, STAGING, Task, finish, survey
from editmgt_jax.data.prepare.weigh import weigh
from editmgt_jax.data.prepare.workers import each
from editmgt_jax.data.records import (
    MANIFEST,
    PAIRS,
    VERSION,
    read_manifest,
)
from editmgt_jax.errors import UserError
from editmgt_jax.files import claim, mounted, read_json, real, write_json
from editmgt_jax.locks import held

NEEDED = ("apache_beam", "pyarrow", "tensorflow_datasets")  # of the extra `prepare`


class PrepareError(UserError):
    """A preparation that cannot start. Names the obstacle."""


def prepare(
    where: str | Path,
    output: str | Path,
    config: PrepareConfig,
    mapping: dict[str, str] | None = None,
    flags: list[str] = (),
    workers: int = 1,
) -> dict:
    """Prepares the pairs of a source, or resumes a preparation.

    Args:
      where, mapping: see `sources.open_source`.
      output: new folder, or that of an unfinished preparation of the same source and config.
      flags: Beam's own; with a --runner among them, `workers` is ignored.
      workers: processes on this machine.
    Returns: the manifest.
    Errors: PrepareError, SourceError, FileNotFoundError; UserError when the folder is another job's.
    """
    # 1. Everything that can stand in the way is found before a raw pair is read.
    if missing := [name for name in NEEDED if importlib.util.find_spec(name) is None]:
        raise PrepareError(f"preparing data needs {', '.join(missing)}: pip install 'editmgt_jax[prepare]'")
    logging.getLogger("apache_beam").setLevel(logging.ERROR)
    where = where if ":" in str(where) else str(real(where))
    parts = open_source(where, mapping, config.resolution)
    output = real(mounted(output, "the output"))
    tasks, run = _tasks(parts, output, config), _runner(flags, workers)
    if not tasks:
        raise PrepareError(f"{where} has no raw pairs")
    with held(output, "prepare"):
        return _prepare(where, output, tasks, run, config, _job(where, parts, mapping, config))


def _prepare(where, output, tasks, run, config, job) -> dict:
    # 2. The folder is this job's: begun now, begun before, or done.
    claim(output, job)
    for folder in (STAGING, REPORTS):
        (output / folder).mkdir(exist_ok=True)
    if (output / MANIFEST).is_file():
        shutil.rmtree(output / STAGING, ignore_errors=True)
        return read_manifest(output)
    started = time.perf_counter()
    # 3. Tasks that have a report are done. One that is left can have duplicates in any other, so all are surveyed and weighed
    #    again, which is quick for those that are staged; then only those that are left are finished.
    todo = [task for task in tasks if not task.report.is_file()]
    if todo:
        run.each(tasks, survey, "survey")
        weigh(tasks, run.options)
        run.each(todo, finish, "finish")
    # 4. The manifest counts every raw pair, and is written last: a folder with one is whole.
    manifest = _manifest(tasks, where, config)
    _print_rate(tasks, manifest, time.perf_counter() - started)
    for left in [*output.glob("*.tmp"), *(output / REPORTS).glob("*.tmp")]:  # of processes that were killed
        left.unlink()
    summary.write(output, manifest)
    write_json(output / MANIFEST, manifest)
    # 5. What was staged is of no use any more.
    shutil.rmtree(output / STAGING, ignore_errors=True)
    return manifest


def _tasks(parts, output, config) -> list[Task]:
    """Groups of neighbouring parts with at least task_pairs raw pairs."""
    tasks, gathered, pairs = [], [], 0
    for i, part in enumerate(parts):
        gathered.append(part)
        pairs += part.pairs
        if pairs and (pairs >= config.task_pairs or i == len(parts) - 1):
            tasks.append(Task(len(tasks), tuple(gathered), str(output), config))
            gathered, pairs = [], 0
    return tasks


def _job(where, parts, mapping, config) -> dict:
    """What the pairs of an output folder are made of."""
    listing = hashlib.sha256()
    for part in parts:
        listing.update(repr(part).encode(errors="replace"))
    job = {"version": VERSION, "source": str(where), "parts": listing.hexdigest(), "mapping": mapping or {}}
    return job | {"config": dataclasses.asdict(config)}


# ---- where tasks run


@dataclasses.dataclass(frozen=True)
class _Runner:
    """Processes of our own for tasks, or Beam's; what compares tasks runs on Beam.

    Beam's own processes on one machine are not used: it waits for ever for one that was killed.
    """

    options: object  # of Beam
    workers: int  # processes of our own; 0 leaves tasks to Beam

    def each(self, tasks, function, name) -> None:
        """Calls `function` for all tasks."""
        with _progress(tasks, name):
            if self.workers:
                each(function, tasks, self.workers)
                return
            import apache_beam as beam

            with beam.Pipeline(options=self.options) as pipeline:
                _ = pipeline | beam.Create(tasks) | beam.Reshuffle() | name >> beam.Map(function)


def _runner(flags, workers) -> _Runner:
    """Errors: PrepareError."""
    from apache_beam.options.pipeline_options import PipelineOptions

    ours = not any(flag.split("=")[0] == "--runner" for flag in flags)
    flags = ["--default_sdk_harness_log_level=ERROR", *flags]
    if ours:
        flags = ["--runner=DirectRunner", "--direct_num_workers=1", "--direct_running_mode=in_memory", *flags]
    options = PipelineOptions(flags)
    known = options.get_all_options().keys()
    if unknown := sorted(options.get_all_options(retain_unknown_options=True).keys() - known):
        raise PrepareError(f"unknown flags, of editmgt prepare and of Apache Beam: {unknown}")
    return _Runner(options, workers if ours else 0)


@contextlib.contextmanager
def _progress(tasks, name):
    """A progress bar of the tasks whose results exist, whichever machine wrote them."""
    done, over = ("staged" if name == "survey" else "report"), threading.Event()

    def watch(bar):
        while not over.wait(2.0):
            bar.n = sum(getattr(task, done).exists() for task in tasks)
            bar.refresh()

    with tqdm(total=len(tasks), desc=name, unit="task", file=sys.stderr, disable=None, dynamic_ncols=True) as bar:
        watcher = threading.Thread(target=watch, args=(bar,), daemon=True)
        watcher.start()
        try:
            yield
        finally:
            over.set()
            watcher.join()


# ---- the whole


def _manifest(tasks, where, config) -> dict:
    """Errors: PrepareError when no pair is kept, or a raw pair is neither kept nor rejected."""
    total = counts.add(read_json(task.report, dict) for task in tasks)
    if not total["shards"]:
        reasons = {name: found["count"] for name, found in total["rejects"].items()}
        raise PrepareError(f"no pair of {where} is kept: {reasons}")
    listed = sum(part.pairs for task in tasks for part in task.parts)
    rejected = sum(found["count"] for found in total["rejects"].values())
    if not listed == total["pairs"] == total["kept"] + rejected:
        raise PrepareError(
            f"every raw pair must be kept or rejected; {listed} are listed, {total['pairs']} were read, {total['kept']} kept and "
            f"{rejected} rejected: has the source changed since the start?"
        )
    return {"version": VERSION, "kind": PAIRS, "source": str(where), "config": dataclasses.asdict(config)} | total


def _print_rate(tasks, manifest, elapsed) -> None:
    seconds = [task.staged / "seconds" for task in tasks]
    cpu = sum(float(path.read_text()) for path in seconds if path.is_file())
    pairs, kept = manifest["pairs"], manifest["kept"]
    print(f"{kept} of {pairs} pairs kept, in {len(manifest['shards'])} shards; {elapsed:.0f} s", file=sys.stderr)
    if cpu and all(path.is_file() for path in seconds):
        print(f"examining took {pairs / cpu:.1f} pairs/s per core", file=sys.stderr)
