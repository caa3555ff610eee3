"""The work directory of an evaluation of scenes: what is evaluated, and the outcome of every pair, as other evaluations have them."""

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from editmgt_jax import images, locks
from editmgt_jax.evaluation import outcomes
from editmgt_jax.evaluation.evaluate import IDENTITY
from editmgt_jax.evaluation.protocol import Protocol
from editmgt_jax.files import claim, write_json


@contextlib.contextmanager
def begun(
    protocol: type[Protocol],
    workdir: str | Path | None,
    edited: dict,
    split: str,
    objects: str,
    count: int,
    models: dict,
) -> Iterator[dict]:
    """What is evaluated; meanwhile the work directory, if any, is this evaluation's. Errors: UserError when it is another's."""
    identity = {
        "protocol": protocol.name,
        "version": protocol.version,
        "title": protocol.title,
        "reference": protocol.reference,
        "data": f"scenes {objects} {split}",
        "selection": {"limit": count},
        "edited": edited,
        "models": models,
    }
    if workdir is None:
        yield identity
        return
    with locks.held(workdir, "evaluate"):
        claim(workdir, outcomes.plain(identity), ["outputs"], IDENTITY)
        yield identity


def write_outcomes(
    protocol: type[Protocol], folder: Path, identity: dict, pairs: Any, results: dict, pictures: dict
) -> None:
    """Writes the outcome of every pair, with `free:` and `held:` figures, the summary of them, and the edited pictures."""
    found = []
    for index, instruction in enumerate(pairs.instructions):
        outcome = {"key": f"{index:05}", "group": str(pairs.categories[index]), "instruction": instruction}
        outcome |= {"output": f"{index:05}.png", "cluster": None, "skipped": None, "notes": None}
        outcome |= {"novel": bool(pairs.facts[index]["novel"])}
        for mode, columns in results.items():
            outcome |= {f"{mode}:{name}": float(column[index]) for name, column in columns.items()}
            (folder / "outputs" / mode).mkdir(parents=True, exist_ok=True)
            images.save(images.to_image(pictures[mode][index]), folder / "outputs" / mode / outcome["output"])
        found.append(outcomes.plain(outcome | {"output": f"free/{outcome['output']}"}))
    outcomes.write(found, folder / "outcomes.parquet", {"protocol": protocol.name, "version": protocol.version})
    counts = {
        "examples": len(found),
        "examples_of_the_whole_benchmark": None,
        "scored": len(found),
        "skipped": {},
        "notes": {},
    }
    counts |= {
        "extra": {"count": 0, "files": []},
        "differences": [],
        "directions": protocol.directions,
        "published": [],
    }
    write_json(folder / "summary.json", outcomes.plain(identity | counts | {"results": protocol().summary(found)}))
