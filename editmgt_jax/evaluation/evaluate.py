"""An evaluation: the examples of a protocol are edited, or found in a folder, and scored; a run can be stopped and resumed.

    RUN/evaluation.json        what is evaluated and how; another evaluation cannot use the folder
    RUN/outputs/        edited pictures in the benchmark's layout (with a model)
    RUN/traces/         tokens of the edits and pictures of VARIANTS, for the leakage suite (with a model)
    RUN/parts/          outcomes of each chunk of examples, written once complete
    RUN/outcomes.parquet    an outcome for each example, in the order of the data, scored or skipped
    RUN/summary.json    means with intervals, counts, and the published numbers

Chunk c is the work of process c modulo the number of processes. The process that finds all parts complete writes the last two
files, so outcomes do not depend on the number of processes or on interruptions.
"""

import contextlib
import dataclasses
import hashlib
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from tqdm import tqdm

from editmgt_jax import images, locks
from editmgt_jax.errors import UserError
from editmgt_jax.evaluation import editing, outcomes, published
from editmgt_jax.evaluation.examples import Example, Skipped, Unreadable, read_picture
from editmgt_jax.evaluation.features import Models
from editmgt_jax.evaluation.judge import Judge
from editmgt_jax.evaluation.leakage import leakage
from editmgt_jax.evaluation.protocol import Protocol, Scoring, Selection, Traces
from editmgt_jax.files import claim, read_json, real, write_json

IDENTITY = "evaluation.json"
CHUNK = 32  # examples of a part
PICTURES = {*images.FORMATS, *images.ANIMATED}
NAMED = 50  # keys that a summary names for each reason
NEVER_FIRST = "its first turn has no picture"


@dataclasses.dataclass(frozen=True, eq=False)
class Evaluation:
    """What one evaluation works with."""

    protocol: Protocol
    workdir: Path
    outputs: Path  # folder of edited pictures
    editor: editing.Editor | None
    models: Models


def evaluate(
    protocol: Protocol,
    data: str | Path,
    workdir: str | Path,
    *,
    outputs: str | Path | None = None,
    editor: editing.Editor | None = None,
    models: Models | None = None,
    selection: Selection | None = None,
    model: str | None = None,
    process: tuple[int, int] = (0, 1),
) -> dict | None:
    """Evaluates a folder of edited pictures, or edits with `editor` first. -> the summary, None while others have work left

    Args:
      data: the benchmark's folder; workdir: of this evaluation, new or the same one's.
      model: the editor's name in the summary; process: number of this one, and of all.
    Errors: UserError, FileNotFoundError.
    """
    if (outputs is None) == (editor is None):
        raise UserError("an evaluation needs edited pictures or a model that makes them: one of outputs and model")
    data, workdir, models, selection = Path(data), Path(workdir), models or Models(), selection or Selection()
    for name in ("split", "language"):
        if getattr(selection, name) is not None and name not in protocol.chosen_by:
            raise UserError(f"{protocol.name} has no {name} to choose; got {getattr(selection, name)!r}: leave it out")
    if not data.is_dir():
        raise FileNotFoundError(f"the data of a benchmark are a folder; there is none at {data}")
    if outputs is not None and not Path(outputs).is_dir():
        raise FileNotFoundError(f"edited pictures lie in a folder; there is none at {outputs}")
    entries = [_with_instruction(entry) for entry in list(protocol.read(data, selection))[: selection.limit]]
    if not any(isinstance(entry, Example) for entry in entries):
        raise UserError(f"{data} has no example of {protocol.name}: {Counter(entry.reason for entry in entries)}")
    if isinstance(models.judge, Judge):
        models.judge.adopt(protocol.prompts(data))
    with locks.held(workdir, "evaluate") if process[0] == 0 else contextlib.nullcontext():
        identity = _identity(protocol, data, outputs, editor, models, selection, model, entries)
        claim(workdir, outcomes.plain(identity), ["outputs"], IDENTITY)
        job = Evaluation(protocol, workdir, Path(outputs) if outputs else workdir / "outputs", editor, models)
        return _evaluated(job, entries, identity, process)


def _with_instruction(entry: Example | Skipped) -> Example | Skipped:
    """The entry; one without an instruction is skipped."""
    if isinstance(entry, Example) and not isinstance(entry.instruction, str):
        return Skipped(entry.key, "no instruction")
    return entry


def _evaluated(job: Evaluation, entries, identity: dict, process) -> dict | None:
    """The summary, None while other processes have work left."""
    chunks = list(_chunks(entries))
    _work(job, chunks, process)
    parts = [job.workdir / "parts" / f"{number:06}.json" for number in range(len(chunks))]
    if not all(part.is_file() for part in parts):
        return None
    found = [outcome for part in parts for outcome in read_json(part, list)]
    about = {"protocol": job.protocol.name, "version": job.protocol.version}
    outcomes.write(found, job.workdir / "outcomes.parquet", about)
    summary = identity | _summary(job, entries, found)
    write_json(job.workdir / "summary.json", outcomes.plain(summary), indent=1)
    job.protocol.finish(job.workdir, [outcome for outcome in found if outcome["skipped"] is None])
    return summary


def _identity(protocol, data, outputs, editor, models, selection, model, entries) -> dict:
    keys = "\n".join(f"{entry.key} {getattr(entry, 'instruction', entry)}" for entry in entries)
    return {
        "protocol": protocol.name,
        "version": protocol.version,
        "title": protocol.title,
        "reference": protocol.reference,
        "data": str(real(data)),
        "examples_sha256": hashlib.sha256(keys.encode()).hexdigest(),
        "selection": dataclasses.asdict(selection),
        "edited": {"outputs": str(real(outputs))}
        if outputs
        else {
            "model": model,
            "weights": editor.weights,
            "seed": editor.seed,
            "hold_threshold": editor.hold_threshold,
            "settings": editor.settings,
        },
        "models": models.names(),
    }


def _chunks(entries: Sequence[Example | Skipped]) -> Iterator[list]:
    """Entries in lists of about CHUNK; neighbours of one cluster stay together, for some build on others."""
    chunk = []
    for entry in entries:
        cluster = getattr(entry, "cluster", None)
        if len(chunk) >= CHUNK and (cluster is None or cluster != getattr(chunk[-1], "cluster", None)):
            yield chunk
            chunk = []
        chunk.append(entry)
    if chunk:
        yield chunk


def _work(job: Evaluation, chunks, process) -> None:
    """Edits and scores the chunks of one process; a chunk is scored while the next one is edited."""
    number, count = process
    (job.workdir / "parts").mkdir(exist_ok=True)
    mine = [i for i in range(number, len(chunks), count) if not (job.workdir / "parts" / f"{i:06}.json").is_file()]
    total, waiting = sum(len(chunks[i]) for i in range(number, len(chunks), count)), []
    with (
        ThreadPoolExecutor(1) as scorer,
        tqdm(
            total=total, initial=total - sum(len(chunks[i]) for i in mine), unit="example", desc=job.protocol.name
        ) as bar,
    ):
        for i in mine:
            failed = _edit(job, chunks[i]) if job.editor else {}
            waiting.append((i, scorer.submit(_score, job, chunks[i], failed)))
            while len(waiting) > 1 or (waiting and i == mine[-1]):
                done, future = waiting.pop(0)
                write_json(job.workdir / "parts" / f"{done:06}.json", outcomes.plain(future.result()), indent=None)
                bar.update(len(chunks[done]))


def _edit(job: Evaluation, chunk) -> dict[str, str]:
    """Edits the examples of a chunk whose pictures are not there yet. -> {key: why it cannot be edited}"""
    failed, left = {}, [entry for entry in chunk if isinstance(entry, Example)]
    while left:
        keys = {entry.key for entry in left}
        ready, left = [e for e in left if e.after not in keys], [e for e in left if e.after in keys]
        examples, sources = [], []
        for example in ready:
            try:
                source = _source(job, example, failed)
                job.protocol.prepare(example, job.outputs)
                if _is_done(job, example):
                    continue
                if example.unfit:
                    raise Unreadable(example.unfit, example.unfit)
                job.editor.check(example.instruction, source)
            except UserError as error:
                failed[example.key] = getattr(error, "reason", f"cannot be edited: {error}")
                continue
            examples.append(example)
            sources.append(source)
        if examples:
            for example, edit in zip(examples, job.editor.edit(examples, sources), strict=True):
                _save(job, example, edit)
    return failed


def _source(job: Evaluation, example: Example, failed: dict):
    """The picture to edit: the benchmark's, or an earlier example's edited one."""
    if example.after is None:
        return read_picture(example.source, f"the source of {example.key}")[0]
    if example.after in failed:
        raise Unreadable(NEVER_FIRST, f"{example.after} has no edited picture")
    return read_picture(job.outputs / example.facts["after_output"])[0]


def _trace_path(job: Evaluation, example: Example, variant: str = "") -> Path:
    return job.workdir / "traces" / variant / f"{example.output}.npz"


def _is_done(job: Evaluation, example: Example) -> bool:
    if example.mask is None:
        return (job.outputs / example.output).is_file()
    variants = editing.VARIANTS if job.editor.hold_threshold is not None else ()
    return (
        all(_trace_path(job, example, v).is_file() for v in ("", *variants))
        and (job.outputs / example.output).is_file()
    )


def _save(job: Evaluation, example: Example, edit: editing.Edit) -> None:
    path = job.outputs / example.output
    path.parent.mkdir(parents=True, exist_ok=True)
    if example.mask is not None:
        editing.save_traces(edit.traces, _trace_path(job, example))
        for name, (picture, traces) in edit.variants.items():
            editing.save_traces(traces, _trace_path(job, example, name), ceiling=False)
            images.save(picture, _trace_path(job, example, name).with_suffix(".png"))
    images.save(edit.picture, path)  # last: it says that the example is done


def _score(job: Evaluation, chunk, failed: dict) -> list[dict]:
    with ThreadPoolExecutor(getattr(job.models.judge, "workers", 1)) as pool:
        return list(pool.map(lambda entry: _outcome(job, entry, failed), chunk))


def _outcome(job: Evaluation, entry: Example | Skipped, failed: dict) -> dict[str, Any]:
    """The outcome of one entry: its name, why it was skipped, and its figures."""
    if isinstance(entry, Skipped):
        return {"key": entry.key, "skipped": entry.reason, "notes": None}
    outcome = {
        "key": entry.key,
        "group": entry.group,
        "instruction": entry.instruction,
        "output": entry.output,
        "cluster": entry.cluster,
        "skipped": failed.get(entry.key),
        "notes": None,
    }
    if outcome["skipped"]:
        return outcome
    try:
        edited, odd = read_picture(job.outputs / entry.output, entry.output)
        traces = editing.load_traces(_trace_path(job, entry)) if job.editor else None
        figures = job.protocol.score(entry, edited, Scoring(job.models, job.outputs, traces))
        odd += figures.pop("notes", [])
        outcome |= {"notes": "; ".join(odd) or None} | figures | _variants(job, entry, traces)
    except Unreadable as error:
        outcome["skipped"] = error.reason
    return outcome


def _variants(job: Evaluation, example: Example, main: Traces | None) -> dict[str, float]:
    """The leakage suite with and without hold and compositing, {VARIANT:figure: value}, of a model's edits."""
    if main is None or job.editor.hold_threshold is None:
        return {}
    source, mask, found = read_picture(example.source)[0], example.mask(), {}
    for name in editing.VARIANTS:
        path = _trace_path(job, example, name)
        traces, picture = editing.load_traces(path, main.ceiling), read_picture(path.with_suffix(".png"))[0]
        found |= {f"{name}:{key}": value for key, value in leakage(picture, source, mask, None, traces).items()}
    return found


def _summary(job: Evaluation, entries, found: Sequence[dict]) -> dict:
    scored = [outcome for outcome in found if outcome["skipped"] is None]
    reasons, notes = defaultdict(list), defaultdict(list)
    for outcome in found:
        if outcome["skipped"]:
            reasons[outcome["skipped"]].append(outcome["key"])
        for note in (outcome["notes"] or "").split("; "):
            if note:
                notes[note].append(outcome["key"])
    extra = _extra(job, entries)
    return {
        "examples": sum(isinstance(entry, Example) for entry in entries),
        "examples_of_the_whole_benchmark": job.protocol.examples,
        "scored": len(scored),
        "skipped": {reason: {"count": len(keys), "keys": keys[:NAMED]} for reason, keys in sorted(reasons.items())},
        "notes": {note: {"count": len(keys), "keys": keys[:NAMED]} for note, keys in sorted(notes.items())},
        "extra": {"count": len(extra), "files": extra[:NAMED]},
        "differences": job.models.differences(job.protocol.wanted()),
        "directions": job.protocol.directions,
        "results": job.protocol.summary(scored),
        "published": [dataclasses.asdict(number) for number in published.of(job.protocol.name)],
    }


def _extra(job: Evaluation, entries) -> list[str]:
    """Pictures in the folder of outputs that are no example's, in order."""
    known = {name for entry in entries if isinstance(entry, Example) for name in job.protocol.files_of(entry)}
    files = (p for p in job.outputs.rglob("*") if p.suffix.lower() in PICTURES and p.is_file())
    return sorted(name for name in (p.relative_to(job.outputs).as_posix() for p in files) if name not in known)
