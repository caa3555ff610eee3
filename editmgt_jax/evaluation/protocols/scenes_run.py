"""The run of an evaluation of scenes: pairs in parts, which a work directory keeps, and the outcome of every pair at the end.

    RUN/evaluation.json     what is evaluated and how; another evaluation cannot use the folder
    RUN/localisation.json   what the training split chose
    RUN/outputs/            edited pictures, of the first seed
    RUN/parts/000000.npz    what is found of CHUNK pairs, all seeds; a part that is there is not made again
    RUN/outcomes.parquet    the outcome of every pair
    RUN/summary.json        means with intervals

Part c is the work of process c modulo the number of processes. Each process that finds all parts complete writes the last two
files, the same ones.

Axes    n pairs; H W tokens
"""

import contextlib
import dataclasses
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from editmgt_jax import images, locks
from editmgt_jax.evaluation import outcomes
from editmgt_jax.evaluation.evaluate import IDENTITY
from editmgt_jax.evaluation.protocol import Protocol
from editmgt_jax.files import claim, read_json, replacing, write_json

CHUNK = 32  # pairs of a part
CHOICE, PARTS, OUTPUTS = "localisation.json", "parts", "outputs"
_LEVEL = "/"  # between the names of a figure in a file


@dataclasses.dataclass(frozen=True, eq=False)
class Part:
    """What is found of some pairs.

    about    {'instructions', 'categories', 'novel', 'reconstruction_psnr': [n]}
    figures  {mode: {figure: [n]}}, means over the seeds; modes are 'free', 'held', and these with '+composite'
    shown    of the first seed {'free', 'held', 'target': ids int32 [n H W], 'relevance': float32 [n H W]}
    """

    about: dict[str, np.ndarray]
    figures: dict[str, dict[str, np.ndarray]]
    shown: dict[str, np.ndarray]

    def __len__(self) -> int:
        return len(self.about["instructions"])


def joined(parts: Sequence[Part]) -> Part:
    """The pairs of all parts, in order."""

    def together(dicts):
        return {name: np.concatenate([one[name] for one in dicts]) for name in dicts[0]}

    figures = {mode: together([part.figures[mode] for part in parts]) for mode in parts[0].figures}
    return Part(together([part.about for part in parts]), figures, together([part.shown for part in parts]))


class Store:
    """Keeps parts in memory, and in a work directory if there is one."""

    def __init__(self, folder: Path | None):
        self.folder = folder
        self._parts: dict[int, Part] = {}

    def choice(self) -> dict | None:
        """What the training split chose, None before."""
        if self.folder is None or not (self.folder / CHOICE).is_file():
            return None
        return read_json(self.folder / CHOICE, dict)

    def keep_choice(self, choice: dict) -> None:
        """Writes it."""
        if self.folder is not None:
            write_json(self.folder / CHOICE, outcomes.plain(choice))

    def _path(self, number: int) -> Path:
        return self.folder / PARTS / f"{number:06}.npz"

    def has(self, number: int) -> bool:
        """Whether a part is complete."""
        return number in self._parts or (self.folder is not None and self._path(number).is_file())

    def part(self, number: int) -> Part:
        """One that is complete."""
        return self._parts[number] if number in self._parts else _load(self._path(number))

    def keep(self, number: int, first: int, part: Part, pictures: dict[str, np.ndarray]) -> None:
        """Writes the pictures {mode: [n Y X 3]} of a part, then the part: one that is there is complete.

        Args:
          first: number of its first pair.
        """
        if self.folder is None:
            self._parts[number] = part
            return
        for mode, several in pictures.items():
            (self.folder / OUTPUTS / mode).mkdir(parents=True, exist_ok=True)
            for index, picture in enumerate(several):
                images.save(images.to_image(picture), self.folder / OUTPUTS / mode / _picture(first + index))
        self._path(number).parent.mkdir(exist_ok=True)
        _save(part, self._path(number))


def _picture(number: int) -> str:
    return f"{number:05}.png"


def _save(part: Part, path: Path) -> None:
    arrays = {f"about{_LEVEL}{name}": column for name, column in part.about.items()}
    for mode, columns in part.figures.items():
        arrays |= {_LEVEL.join(("figures", mode, name)): column for name, column in columns.items()}
    arrays |= {f"shown{_LEVEL}{name}": column for name, column in part.shown.items()}
    with replacing(path) as temporary, temporary.open("wb") as file:
        np.savez_compressed(file, **arrays)


def _load(path: Path) -> Part:
    about, figures, shown = {}, {}, {}
    with np.load(path, allow_pickle=False) as found:
        for name in found.files:
            kind, *mode, column = name.split(_LEVEL)
            into = {"about": about, "shown": shown}.get(kind) if not mode else figures.setdefault(mode[0], {})
            into[column] = found[name]
    return Part(about, figures, shown)


def work(
    count: int,
    draw: Callable[[Sequence[int]], Any],
    edit: Callable[[Any], tuple],
    score: Callable[..., tuple[Part, dict[str, np.ndarray]]],
    store: Store,
    process: tuple[int, int],
) -> list[Part] | None:
    """Makes the parts of this process that are not there. The host draws the next pairs and scores the last while the device edits.

    Args:
      draw: numbers of pairs -> pairs; edit: pairs -> what the device makes of them; score: pairs and that -> part, pictures.
    Returns: all parts in order, None while other processes have work left.
    """
    chunks = [range(first, min(first + CHUNK, count)) for first in range(0, count, CHUNK)]
    left = [number for number in range(process[0], len(chunks), process[1]) if not store.has(number)]

    def finish(number, pairs, found):
        store.keep(number, chunks[number].start, *score(pairs, *found))
        return len(pairs)

    done = sum(len(chunks[number]) for number in range(process[0], len(chunks), process[1]) if number not in left)
    total = done + sum(len(chunks[number]) for number in left)
    bar = tqdm(total=total, initial=done, unit="pair", desc="scenes", disable=None)
    with ThreadPoolExecutor(1) as drawer, ThreadPoolExecutor(1) as scorer, bar:
        drawn = [drawer.submit(draw, chunks[number]) for number in left[:1]]
        scored = []
        for number in left:
            pairs = drawn.pop().result()
            drawn += [drawer.submit(draw, chunks[following]) for following in left[left.index(number) + 1 :][:1]]
            scored.append(scorer.submit(finish, number, pairs, edit(pairs)))
            if len(scored) > 1:
                bar.update(scored.pop(0).result())
        for last in scored:
            bar.update(last.result())
    if not all(store.has(number) for number in range(len(chunks))):
        return None
    return [store.part(number) for number in range(len(chunks))]


@contextlib.contextmanager
def begun(
    protocol: type[Protocol],
    workdir: str | Path | None,
    edited: dict,
    split: str,
    objects: str,
    count: int,
    models: dict,
    process: tuple[int, int],
) -> Iterator[tuple[dict, Store]]:
    """What is evaluated, and where its parts are kept; meanwhile the work directory, if any, is this evaluation's.

    Errors: UserError when it is another's.
    """
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
        yield identity, Store(None)
        return
    with locks.held(workdir, "evaluate") if process[0] == 0 else contextlib.nullcontext():
        claim(workdir, outcomes.plain(identity), [OUTPUTS], IDENTITY)
        yield identity, Store(Path(workdir))


def write_outcomes(protocol: type[Protocol], folder: Path, identity: dict, whole: Part) -> None:
    """Writes the outcome of every pair, with `free:` and `held:` figures, and the summary of them."""
    found = []
    for index, instruction in enumerate(whole.about["instructions"]):
        outcome = {"key": f"{index:05}", "group": str(whole.about["categories"][index])}
        outcome |= {"instruction": str(instruction), "output": f"free/{_picture(index)}"}
        outcome |= {"cluster": None, "skipped": None, "notes": None, "novel": bool(whole.about["novel"][index])}
        for mode, columns in whole.figures.items():
            outcome |= {f"{mode}:{name}": float(column[index]) for name, column in columns.items()}
        found.append(outcomes.plain(outcome))
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
