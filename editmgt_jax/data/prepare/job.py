"""Raw edit pairs -> a folder of prepared pairs, on Apache Beam.

    survey   examines every task (some parts of a source) on its own. Writes the pairs that pass to a staging folder, one shard a
             bucket, and a line about every raw pair
    weigh    finds duplicates, and surplus pairs of categories, among all tasks
    finish   writes each task's shards without the pairs that `weigh` found, and their counts

Results of a task appear only once complete, and depend on its raw pairs and the config alone. A preparation that is killed and
repeated therefore gives the same bytes.
"""

import collections
import contextlib
import dataclasses
import hashlib
import importlib.util
import json
import logging
import shutil
import sys
import threading
import time
from pathlib import Path

from tqdm import tqdm

from editmgt_jax.data.prepare import counts, summary
from editmgt_jax.data.prepare.duplicates import NearDuplicates
from editmgt_jax.data.prepare.examine import PrepareConfig, Rejected, examine
from editmgt_jax.data.prepare.sources import open_source
from editmgt_jax.data.records import (
    MANIFEST,
    PAIRS,
    VERSION,
    PairWriter,
    copy_records,
    read_manifest,
)
from editmgt_jax.errors import UserError
from editmgt_jax.files import claim, mounted, new_folder, write_json

NEEDED = ("apache_beam", "pyarrow", "tensorflow_datasets")  # of the extra `prepare`
STAGING = "staging"
REPORTS = "reports"


class PrepareError(UserError):
    """A preparation that cannot start. Names the obstacle."""


@dataclasses.dataclass(frozen=True)
class Task:
    """The work of one worker at a time."""

    number: int
    parts: tuple
    output: str
    config: PrepareConfig

    @property
    def name(self) -> str:
        """The number, of fixed width."""
        return f"{self.number:05d}"

    @property
    def staged(self) -> Path:
        """The folder with the surviving pairs of the survey."""
        return Path(self.output) / STAGING / self.name

    @property
    def dropped(self) -> Path:
        """The file of the pairs that `weigh` found: {number in the task: [reason, detail]}."""
        return Path(self.output) / STAGING / f"{self.name}.dropped.json"

    @property
    def report(self) -> Path:
        """The file with the counts of the finished task."""
        return Path(self.output) / REPORTS / f"{self.name}.json"


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
    where = where if ":" in str(where) else str(Path(where).resolve())
    parts = open_source(where, mapping, config.resolution)
    output = mounted(output, "the output").resolve()
    tasks, options = _tasks(parts, output, config), _beam_options(flags, workers)
    if not tasks:
        raise PrepareError(f"{where} has no raw pairs")
    # 2. The folder is this job's: begun now, begun before, or done.
    claim(output, _job(where, parts, mapping, config))
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
        _each(tasks, survey, options, "survey")
        _weigh(tasks, options)
        _each(todo, finish, options, "finish")
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


# ---- on Beam


def _beam_options(flags, workers):
    from apache_beam.options.pipeline_options import PipelineOptions

    flags = ["--default_sdk_harness_log_level=ERROR", *flags]
    if not any(flag.split("=")[0] == "--runner" for flag in flags):
        mode = "in_memory" if workers == 1 else "multi_processing"
        flags = ["--runner=DirectRunner", f"--direct_num_workers={workers}", f"--direct_running_mode={mode}", *flags]
    options = PipelineOptions(flags)
    known = options.get_all_options().keys()
    if unknown := sorted(options.get_all_options(retain_unknown_options=True).keys() - known):
        raise PrepareError(f"unknown flags, of editmgt prepare and of Apache Beam: {unknown}")
    return options


def _each(tasks, function, options, name) -> None:
    """Calls `function` for all tasks."""
    import apache_beam as beam

    with _progress(tasks, name), beam.Pipeline(options=options) as pipeline:
        _ = pipeline | beam.Create(tasks) | beam.Reshuffle() | name >> beam.Map(function)


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


def _weigh(tasks, options) -> None:
    """Finds duplicates and surplus pairs among all tasks. Writes the list of those that each task drops."""
    import apache_beam as beam

    config = tasks[0].config
    with beam.Pipeline(options=options) as pipeline:
        lines = pipeline | beam.Create(tasks) | beam.Reshuffle() | beam.FlatMap(_kept_lines)
        by_pictures = lines | beam.Map(lambda line: (line["digest"], line)) | "by pictures" >> beam.GroupByKey()
        once, twice = by_pictures | beam.FlatMap(_first).with_outputs("drop", main="keep")
        by_text = once | "text" >> beam.Map(lambda line: (line["text_digest"], line)) | "by text" >> beam.GroupByKey()
        kept, near = by_text | beam.FlatMap(_sieve, config.near_duplicate_bits).with_outputs("drop", main="keep")
        drops = [twice, near]
        if config.max_per_category is not None:
            named = kept | "category" >> beam.Map(_for_category)
            by_category = named | "by category" >> beam.GroupByKey()
            drops.append(by_category | beam.FlatMap(_surplus, config.max_per_category))
        _ = (
            (drops | beam.Flatten(), pipeline | "every task" >> beam.Create([(task.number, None) for task in tasks]))
            | "with empty tasks" >> beam.Flatten()
            | "by task" >> beam.GroupByKey()
            | beam.Map(_write_dropped, str(tasks[0].staged.parent))
        )


def _kept_lines(task):
    for number, line in enumerate(_lines(task)):
        if line["reason"] is None:
            yield {"task": task.number, "pair": number} | {
                name: line[name] for name in ("key", "category", "digest", "text_digest", "hashes")
            }


def _in_order(lines) -> list[dict]:
    return sorted(lines, key=lambda line: (line["task"], line["pair"]))


def _dropped(line, reason, first):
    import apache_beam as beam

    return beam.pvalue.TaggedOutput("drop", (line["task"], (line["pair"], reason, f"of {first}")))


def _first(element):
    """Of pairs with the same files, keeps the first; the others go to the output `drop`."""
    _, lines = element
    first, *others = _in_order(lines)
    yield first
    for line in others:
        yield _dropped(line, "duplicate", first["key"])


def _sieve(element, bits):
    """Of pairs with one instruction, keeps the first of those that look the same; the others go to the output `drop`."""
    _, lines = element
    seen, keys, lines = NearDuplicates(bits), [], _in_order(lines)
    if len(lines) == 1:  # as most are
        yield lines[0]
        return
    for line in lines:
        first = seen.find_or_add(bytes.fromhex(line["hashes"]))
        if first is None:
            keys.append(line["key"])
            yield line
        else:
            yield _dropped(line, "near_duplicate", keys[first])


def _for_category(line):
    return line["category"], {name: line[name] for name in ("task", "pair", "key", "category")}


def _surplus(element, most):
    """The surplus pairs of a category: the last ones in a fixed, arbitrary order."""
    _, lines = element
    ranked = sorted(lines, key=lambda line: (hashlib.sha256(line["key"].encode()).digest(), line["task"], line["pair"]))
    for line in ranked[most:]:
        yield line["task"], (line["pair"], "over_category_limit", f"{most} pairs of {line['category']} are kept")


def _write_dropped(element, folder) -> None:
    number, drops = element
    dropped = {pair: [reason, detail] for pair, reason, detail in sorted(drop for drop in drops if drop is not None)}
    write_json(Path(folder) / f"{number:05d}.dropped.json", dropped)


# ---- a task


def survey(task: Task) -> None:
    """Examines the raw pairs of a task. Writes those that pass to its staging folder, and a line about each."""
    if task.staged.is_dir():
        return
    started = time.process_time()
    with new_folder(task.staged) as work:
        with contextlib.ExitStack() as stack, open(work / "pairs.jsonl", "w") as lines:
            writers = {}
            for part in task.parts:
                for pair in part.read():
                    line = {"key": pair.key, "category": pair.category, "reason": None, "notes": pair.notes}
                    try:
                        found = _examined(pair, task.config)
                    except Rejected as rejected:
                        line |= {"reason": rejected.reason, "detail": rejected.detail[:300]}
                    else:
                        bucket = _bucket_name(found.bucket)
                        if bucket not in writers:
                            writers[bucket] = stack.enter_context(PairWriter(work / f"{bucket}.array_record"))
                        writers[bucket].write(found.record)
                        line |= {
                            "notes": found.notes,
                            "bucket": bucket,
                            "digest": found.digest,
                            "text_digest": found.text_digest,
                            "hashes": found.hashes,
                            "changed": round(found.changed, 4),
                            "characters": len(found.record["instruction"]),
                            "side": min(found.record["original_size"]),
                        }
                    lines.write(json.dumps(line) + "\n")
        (work / "seconds").write_text(str(time.process_time() - started))


def _examined(pair, config):
    """`examine`; an unforeseen error rejects this raw pair, and does not stop the preparation."""
    try:
        return examine(pair, config)
    except Rejected:
        raise
    except Exception as error:  # noqa: BLE001
        raise Rejected("cannot_be_examined", f"{type(error).__name__}: {error}"[:200]) from error


def finish(task: Task) -> None:
    """Writes the task's shards without the pairs that `weigh` found, then its report."""
    dropped = json.loads(task.dropped.read_text())
    lines, keep = list(_lines(task)), collections.defaultdict(list)
    for number, line in enumerate(lines):
        if str(number) in dropped:
            line["reason"], line["detail"] = dropped[str(number)]
        if "bucket" in line:
            keep[line["bucket"]].append(line["reason"] is None)
    shards = []
    for bucket, flags in sorted(keep.items()):
        if any(flags):
            name = f"{bucket}-{task.name}.array_record"
            target = Path(task.output) / name
            copy_records(task.staged / f"{bucket}.array_record", target, flags)
            facts = {"bytes": target.stat().st_size, "sha256": _checksum(target)}
            shards.append({"file": name, "bucket": bucket, "records": sum(flags)} | facts)
    write_json(task.report, counts.count(lines, shards))
    for path in task.staged.glob("*.array_record"):  # so that the disk does not hold all pairs twice
        path.unlink()


def _lines(task):
    with open(task.staged / "pairs.jsonl") as file:
        yield from map(json.loads, file)


def _bucket_name(bucket) -> str:
    return f"{bucket[0]}x{bucket[1]}"


def _checksum(path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


# ---- the whole


def _manifest(tasks, where, config) -> dict:
    """Errors: PrepareError when no pair is kept, or a raw pair is neither kept nor rejected."""
    total = counts.add(json.loads(task.report.read_text()) for task in tasks)
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
