"""A task of a preparation: some parts of a source, that one worker surveys and later finishes, alone."""

import collections
import contextlib
import dataclasses
import hashlib
import json
import re
import time
from collections.abc import Iterator
from pathlib import Path

from editmgt_jax.data.prepare import counts
from editmgt_jax.data.prepare.examine import PrepareConfig, Rejected, examine
from editmgt_jax.data.records import PairWriter, copy_records
from editmgt_jax.files import new_folder, write_json

STAGING = "staging"
REPORTS = "reports"
_ADDRESS = re.compile(
    r"<[^<>]* at 0x[0-9a-f]+>"
)  # of an object, in another library's message: another one in each process


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
                        line |= {"reason": rejected.reason, "detail": _ADDRESS.sub("the bytes", rejected.detail)[:300]}
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
    lines, keep = list(lines_of(task)), collections.defaultdict(list)
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


def lines_of(task: Task) -> Iterator[dict]:
    """What the survey noted of each raw pair of a task."""
    with open(task.staged / "pairs.jsonl") as file:
        yield from map(json.loads, file)


def _bucket_name(bucket) -> str:
    return f"{bucket[0]}x{bucket[1]}"


def _checksum(path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
