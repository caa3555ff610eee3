"""What a protocol is: a benchmark's examples, the layout of edited pictures, its metrics, and how they become one table.

A protocol has one file in `protocols/` and one entry in `protocols/table.py`. Its version changes with every rule that can
change a number; name and version are in every file that an evaluation writes.
"""

import abc
import dataclasses
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from PIL import Image

from editmgt_jax.evaluation import stats
from editmgt_jax.evaluation.examples import Example, Skipped
from editmgt_jax.evaluation.features import Models


@dataclasses.dataclass(frozen=True)
class Selection:
    """What a reader may be asked for, besides the folder. None is the benchmark's own choice."""

    split: str | None = None
    language: str | None = None
    limit: int | None = None  # the first examples only: for a try, never for a number


@dataclasses.dataclass(frozen=True, eq=False)
class Traces:
    """What a token editor tells besides its picture, for the leakage suite."""

    ids: np.ndarray  # int32 [H W] of the edit
    source_ids: np.ndarray  # int32 [H W]
    ceiling: Image.Image  # the source as the image tokenizer shows it, of the source's size


@dataclasses.dataclass(frozen=True, eq=False)
class Scoring:
    """What an edited picture is scored with."""

    models: Models
    outputs: Path  # the folder of edited pictures
    traces: Traces | None = None


class Protocol(abc.ABC):
    """A benchmark and how it is scored."""

    name: ClassVar[str]
    version: ClassVar[str]
    title: ClassVar[str]  # one line, for the command's help
    reference: ClassVar[str]  # the code or paper that these rules come from
    examples: ClassVar[int | None]  # of the complete data set
    clip: ClassVar[str | None] = None  # the CLIP that the reference uses, by its name on the hub
    dino: ClassVar[str | None] = None
    structure: ClassVar[str | None] = None
    lpips: ClassVar[str | None] = None  # a network of `models.lpips`
    judged: ClassVar[bool] = False
    directions: ClassVar[dict[str, int]] = {}  # 1: more is better, -1: less is better, by metric
    chosen_by: ClassVar[tuple[str, ...]] = ()  # of 'split' and 'language', what its data set has several of
    resizes: ClassVar[bool] = True  # whether the reference resizes an edited picture of another size

    @abc.abstractmethod
    def read(self, data: Path, selection: Selection) -> Iterable[Example | Skipped]:
        """The examples in the order of the data set. Errors: UserError, FileNotFoundError for another layout."""

    @abc.abstractmethod
    def score(self, example: Example, edited: Image.Image, given: Scoring) -> dict[str, Any]:
        """The figures of one edited picture, {metric: float}; other values are kept in its outcome. Errors: Unreadable."""

    def wanted(self) -> dict[str, str | None]:
        """{part of `Models`: the model of the reference, by its name on the hub, for LPIPS its network}."""
        return {"clip": self.clip, "dino": self.dino, "structure": self.structure, "lpips": self.lpips}

    def prepare(self, example: Example, outputs: Path) -> None:  # noqa: B027
        """Writes what the official layout has beside an edited picture. Nothing by default."""

    def prompts(self, data: Path) -> dict[str, str]:
        """The benchmark's own prompts for a judge, {name: text}, where its data has them. Errors: UserError."""
        return {}

    def files_of(self, example: Example) -> list[str]:
        """The files of an example in the folder of outputs, by the official layout."""
        return [example.output]

    def examples_again(self, summary: dict, keys: Sequence[str], outputs: Path) -> dict[str, Example]:
        """The examples of a complete evaluation by key, for reports; none where its data are gone.

        Args:
          summary: of the evaluation; keys: of the examples; outputs: its folder of edited pictures.
        """
        data = Path(summary["data"])
        if not data.is_dir():
            return {}
        entries = self.read(data, Selection(**summary["selection"]))
        return {entry.key: entry for entry in entries if isinstance(entry, Example) and entry.key in keys}

    def pictures_of(self, outcome: dict) -> dict[str, str]:
        """{what it is: file} of the edited pictures of an outcome, in the folder of outputs. One without a word of its own by default."""
        return {"": outcome["output"]}

    def views(self) -> dict[str, Any]:
        """{view: predicate of an outcome}: subsets that the benchmark reports apart. All outcomes by default."""
        return {"all": lambda outcome: True}

    def summary(self, outcomes: Sequence[dict]) -> dict[str, dict]:
        """{view: {"all": {metric: figure}, group: ...}}, figures of `stats.mean_of`, from the scored outcomes."""
        found = {}
        for view, chosen in self.views().items():
            kept = [outcome for outcome in outcomes if chosen(outcome)]
            groups = dict.fromkeys(outcome["group"] for outcome in kept)
            tables = {"all": kept} | {
                group: [outcome for outcome in kept if outcome["group"] == group] for group in groups
            }
            if kept:
                found[view] = {group: stats.table(members) for group, members in tables.items()}
        return found

    def finish(self, folder: Path, outcomes: Sequence[dict]) -> None:  # noqa: B027
        """Writes the files that the official scorer writes into `folder`. None by default."""
