"""Counts of kept and rejected pairs: one report for each task, their sum for the manifest, drawn by `summary`."""

import collections
from collections.abc import Iterable

import numpy as np

EXAMPLES = 20  # keys listed for each reason and each note
HISTOGRAMS = {  # name -> edges; values outside count in the first or last bin
    "characters": (0, 20, 40, 60, 80, 100, 150, 200, 300, 500, 1000),
    "side": (0, 256, 384, 512, 640, 768, 896, 1024, 1280, 1536, 2048, 4096),
    "changed": (0, 0.01, 0.05, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0),
}


def count(lines: list[dict], shards: list[dict]) -> dict:
    """Counts the raw pairs of a task.

    Args:
      lines: one from `job.survey` for each raw pair; those with a `reason` are rejected.
      shards: those that were written.
    """
    kept = [line for line in lines if line["reason"] is None]
    rejects, notes = collections.defaultdict(list), collections.defaultdict(list)
    for line in lines:
        if line["reason"] is not None:
            rejects[line["reason"]].append([line["key"], line["detail"]])
        for note in line["notes"]:
            notes[note].append(line["key"])
    return {
        "pairs": len(lines),
        "kept": len(kept),
        "shards": shards,
        "rejects": _with_examples(rejects),
        "notes": _with_examples(notes),
        "categories": _sorted(collections.Counter(line["category"] for line in kept)),
        "buckets": _sorted(collections.Counter(line["bucket"] for line in kept)),
        "histograms": {name: _histogram([line[name] for line in kept], edges) for name, edges in HISTOGRAMS.items()},
    }


def add(reports: Iterable[dict]) -> dict:
    """The sum of the reports of `count`, in their order."""
    total = count([], [])
    for report in reports:
        for name in ("pairs", "kept", "shards"):
            total[name] += report[name]
        for name in ("rejects", "notes"):
            for key, found in report[name].items():
                before = total[name].get(key, {"count": 0, "examples": []})
                examples = (before["examples"] + found["examples"])[:EXAMPLES]
                total[name][key] = {"count": before["count"] + found["count"], "examples": examples}
        for name in ("categories", "buckets"):
            for key, number in report[name].items():
                total[name][key] = total[name].get(key, 0) + number
        for name, numbers in report["histograms"].items():
            total["histograms"][name] = np.add(total["histograms"][name], numbers).tolist()
    return {name: _sorted(value) if isinstance(value, dict) else value for name, value in total.items()}


def _with_examples(found: dict) -> dict:
    return {key: {"count": len(lines), "examples": lines[:EXAMPLES]} for key, lines in sorted(found.items())}


def _sorted(values) -> dict:
    return dict(sorted(values.items()))


def _histogram(values, edges) -> list[int]:
    clipped = np.clip(np.asarray(values, float), edges[0], edges[-1])
    return np.histogram(clipped, edges)[0].tolist()
