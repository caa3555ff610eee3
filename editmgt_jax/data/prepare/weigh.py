"""Which pairs of a preparation are duplicates, or surplus pairs of their category, among all its tasks. On Apache Beam."""

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from editmgt_jax.data.prepare.duplicates import NearDuplicates
from editmgt_jax.data.prepare.task import Task, lines_of
from editmgt_jax.files import write_json


def weigh(tasks: Sequence[Task], options: Any) -> None:
    """Finds duplicates and surplus pairs among all tasks. Writes the list of those that each task drops.

    Args:
      options: of Beam.
    """
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
    for number, line in enumerate(lines_of(task)):
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
