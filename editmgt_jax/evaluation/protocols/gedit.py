"""GEdit-Bench: 606 English cases in 11 groups, scored by a judge, in two forms that give different numbers.

    gedit_step1x   official: KEY_SRCIMG.png beside KEY.png is the source; the edited picture is resized to its size
    gedit_editmgt  EditMGT's script: `input_image_raw` is the source; both are resized to an area of 512 x 512

Data    DATA/**/*.parquet of stepfun-ai/GEdit-Bench: task_type, key, instruction, instruction_language, input_image,
        input_image_raw, Intersection_exist
        for a judge vie_prompts.py of the official scorer, anywhere in DATA, or from --prompts
Outputs OUTPUTS/fullset/GROUP/LANGUAGE/KEY.png
Source  test_gedit_score.py and calculate_statistics.py of Step1X-Edit; eval/geditbench of EditMGT
Rules   two questions: success and over-editing of source and edited picture; naturalness and artifacts of the edited one alone;
        0 to 10 each. Semantics and quality are the lesser of each two, overall the root of their product; means over groups of
        the groups' means, on all cases and on those with Intersection_exist
Differs a reply that cannot be parsed twice has no score and is counted (`unparsed`). The reference takes one random integer of 0
        to 10 for both scores of such a reply: `*_guessed` are the expected scores under that rule. Scores beyond 0 to 10 count as unparsed. The
        judge gets PNG; the reference sends JPEG
Judged  CSV files as the reference writes them
"""

import csv
import json
import math
import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from PIL import Image

from editmgt_jax import images
from editmgt_jax.errors import UserError
from editmgt_jax.evaluation import stats
from editmgt_jax.evaluation.examples import Example, Skipped, Unreadable, parquet_entries, read_picture
from editmgt_jax.evaluation.judge import Judge, Judged, read_prompts
from editmgt_jax.evaluation.protocol import Protocol, Scoring, Selection
from editmgt_jax.files import replacing

GROUPS = (
    "background_change", "color_alter", "material_alter", "motion_change", "ps_human", "style_change", "subject-add",
    "subject-remove", "subject-replace", "text_change", "tone_transfer",
)  # fmt: skip
SEMANTICS, QUALITY = "semantics", "quality"
SCORES = ("sementics_score", "quality_score", "overall_score")
LANGUAGES = ("en", "cn")
AREA = 512 * 512
TRIES = 2
NO_SOURCE = "no source beside it"
HOUSE = {
    SEMANTICS: (
        "The first picture was edited into the second one by this instruction: <instruction>\n"
        "Give two integers from 0 to 10. First, how well the second picture does what the instruction asks: 0 not at all, 10 "
        "perfectly. Second, how little it changes beyond the instruction: 0 an unrelated picture, 10 nothing else changed.\n"
        'Answer with JSON alone: {"score": [success, overediting], "reasoning": "one sentence"}'
    ),
    QUALITY: (
        "Judge the quality of this generated picture. Give two integers from 0 to 10. First, how natural it looks in light, shadow "
        "and proportion: 0 not at all, 10 perfectly. Second, how free of artifacts it is: 0 full of them, 10 none.\n"
        'Answer with JSON alone: {"score": [naturalness, artifacts], "reasoning": "one sentence"}'
    ),
}


def parse_scores(reply: str) -> list[float] | None:
    """The scores of a reply: JSON with `score`, a list of two integers, or one integer; None if there are none in 0 to 10."""
    start, end = reply.find("{"), reply.rfind("}") + 1
    try:
        if start != -1 and end > start:
            scores = json.loads(reply[start:end].replace("\n", ""))["score"]
        elif re.fullmatch(r"\[\d+, ?\d+\]|\d+", reply.strip()):
            scores = json.loads(reply)
        else:
            return None
        scores = [float(score) for score in (scores if isinstance(scores, list) else [scores])]
    except (ValueError, LookupError, TypeError):
        return None
    return scores if scores and all(0 <= score <= 10 for score in scores) else None


def overall(semantics: float | None, quality: float | None) -> float:
    """The root of the product; NaN where either is missing."""
    return float("nan") if semantics is None or quality is None else math.sqrt(semantics * quality)


def guessed(semantics: float | None, quality: float | None) -> float:
    """The expected overall score where a missing one is a random integer of 0 to 10."""
    guesses = [float(n) for n in range(11)]
    firsts, seconds = ([score] if score is not None else guesses for score in (semantics, quality))
    return sum(math.sqrt(a * b) for a in firsts for b in seconds) / (len(firsts) * len(seconds))


def of_area(picture: Image.Image, area: int = AREA) -> Image.Image:
    """The picture with about `area` pixels, its aspect ratio kept; sides are rounded down."""
    ratio = picture.width / picture.height
    width = math.sqrt(area * ratio)
    return picture.resize((int(width), int(width / ratio)))


class Step1X(Protocol):
    """The official form."""

    name, version, examples = "gedit_step1x", "1", 606
    title = "GEdit-Bench, the official scorer's form: the edited picture resized to the source"
    reference = "Step1X-Edit, GEdit-Bench/test_gedit_score.py and calculate_statistics.py"
    judged = True
    chosen_by = ("language",)
    directions = {name: 1 for name in SCORES} | {"unparsed": -1}
    source_column = "input_image"
    fields = (
        "source_image", "edited_image", "instruction", "sementics_score", "quality_score", "intersection_exist",
        "instruction_language",
    )  # fmt: skip
    suffix, writes_all = "gpt_score.csv", True

    def read(self, data: Path, selection: Selection) -> Iterable[Example | Skipped]:
        """See `Protocol.read`."""
        language = selection.language or "en"
        if language not in (*LANGUAGES, "all"):
            raise UserError(f"the language must be one of {LANGUAGES} or all; got {language!r}")
        needed = ("task_type", "key", "instruction", "instruction_language", "Intersection_exist")
        for entry in parquet_entries(sorted(data.rglob("*.parquet")), (self.source_column,), needed):
            spoken = entry["instruction_language"]
            if language not in (spoken, "all"):
                continue
            yield Example(
                key=f"{entry['task_type']}/{spoken}/{entry['key']}",
                group=entry["task_type"],
                instruction=entry["instruction"],
                output=f"fullset/{entry['task_type']}/{spoken}/{entry['key']}.png",
                source=entry[self.source_column],
                facts={
                    "intersection_exist": bool(entry["Intersection_exist"]),
                    "language": spoken,
                    "name": entry["key"],
                },
            )

    def prompts(self, data: Path) -> dict[str, str]:
        """Those of VIEScore's module, which the official scorer has in its folder `viescore`."""
        paths = sorted(data.rglob("vie_prompts.py"))
        return read_prompts(paths[0]) if paths else {}

    def prepare(self, example: Example, outputs: Path) -> None:
        """Writes the source beside the edited picture, which the official scorer reads."""
        path = outputs / self.source_file(example)
        if not path.is_file():
            path.parent.mkdir(parents=True, exist_ok=True)
            images.save(read_picture(example.source)[0], path)

    def source_file(self, example: Example) -> str:
        """Where the official layout has the source."""
        return example.output.removesuffix(".png") + "_SRCIMG.png"

    def files_of(self, example: Example) -> list[str]:
        """The edited picture and the source beside it."""
        return [example.output, self.source_file(example)]

    def pair(self, example: Example, edited: Image.Image, outputs: Path) -> list[Image.Image]:
        """Source and edited picture as the judge sees them. Errors: Unreadable, for a case without its source, too."""
        path = outputs / self.source_file(example)
        if not path.is_file():
            raise Unreadable(NO_SOURCE, f"the official scorer reads the source from {path}; there is none")
        source, _ = read_picture(path, f"the source of {example.key}")
        return [source, edited if edited.size == source.size else edited.resize(source.size)]

    def score(self, example: Example, edited: Image.Image, given: Scoring) -> dict[str, Any]:
        """See `Protocol.score`."""
        facts = {"language": example.facts["language"], "intersection_exist": example.facts["intersection_exist"]}
        pair, judge = self.pair(example, edited, given.outputs), given.models.judge
        if judge is None:
            return facts
        if isinstance(judge, Judged):
            return facts | self._scores(*self._judged(judge, example))
        return facts | self._scores(*_asked(judge, example.instruction, pair))

    def _scores(self, semantics, quality, notes=()) -> dict[str, Any]:
        kept = [None if scores is None else min(scores) for scores in (semantics, quality)]
        found = dict(zip(SCORES, [*(float("nan") if s is None else s for s in kept), overall(*kept)], strict=True))
        guesses = dict(zip(SCORES, [*(5.0 if s is None else s for s in kept), guessed(*kept)], strict=True))
        found |= {f"{name}_guessed": value for name, value in guesses.items()}
        return found | {"unparsed": float(None in kept), "notes": list(notes)}

    def _judged(self, judged: Judged, example: Example):
        entry = judged.table(".csv", _csv_entries).get((example.facts["name"], example.facts["language"]))
        if entry is None:
            return None, None, ["not among the judged files"]
        return [None if not 0 <= score <= 10 else [score] for score in entry]

    def summary(self, outcomes: Sequence[dict]) -> dict[str, dict]:
        """Means over groups of the groups' means, for each language, on all cases and on the intersection."""
        found = {}
        for language in dict.fromkeys(outcome["language"] for outcome in outcomes):
            spoken = [outcome for outcome in outcomes if outcome["language"] == language]
            for view, kept in (
                (language, spoken),
                (f"{language}, intersection", [o for o in spoken if o["intersection_exist"]]),
            ):
                groups = {group: [o for o in kept if o["group"] == group] for group in GROUPS}
                names = [name for name in stats.metrics_of(kept) if name not in ("language", "intersection_exist")]
                table = {name: stats.mean_of_groups(kept, name, GROUPS) for name in names}
                if kept and "unparsed" in table:
                    table["unparsed"] = stats.table(kept)["unparsed"]
                    for name in SCORES:
                        shift = stats.shift_of_groups(kept, name, f"{name}_guessed", GROUPS)
                        table[f"{name}_shift_by_guesses"] = shift
                found[view] = {"all": table} | {
                    group: stats.table(members) for group, members in groups.items() if members
                }
        return found

    def finish(self, folder: Path, outcomes: Sequence[dict]) -> None:
        """Writes the CSV files of the reference: one for each group, and for the official form one of all."""
        scored = [outcome for outcome in outcomes if outcome.get("overall_score") is not None]
        if not scored:
            return
        target = folder / "csv"
        target.mkdir(exist_ok=True)
        entries = {group: [self._entry(folder, o) for o in scored if o["group"] == group] for group in GROUPS}
        for group, found in entries.items():
            self._write(target / f"{folder.name}_{group}_{self.suffix}", found)
        if self.writes_all:
            self._write(
                target / f"{folder.name}_combined_{self.suffix}",
                [entry for found in entries.values() for entry in found],
            )

    def _entry(self, folder, outcome) -> dict[str, Any]:
        name = outcome["output"]
        values = outcome | {
            "edited_image": name,
            "source_image": name.removesuffix(".png") + "_SRCIMG.png",
            "instruction_language": outcome["language"],
            "key": Path(name).stem,
        }
        return {field: values[field] for field in self.fields}

    def _write(self, path: Path, entries) -> None:
        with replacing(path) as temporary, temporary.open("w", newline="") as file:
            writer = csv.DictWriter(file, self.fields)
            writer.writeheader()
            writer.writerows(entries)


class EditMGT(Step1X):
    """The form of EditMGT's own script."""

    name, version = "gedit_editmgt", "1"
    title = "GEdit-Bench, the form of EditMGT's script: both pictures resized to an area of 512 x 512"
    reference = "EditMGT, eval/geditbench/rate.py and stat.py"
    source_column = "input_image_raw"
    fields = (
        "key", "edited_image", "instruction", "sementics_score", "quality_score", "intersection_exist", "instruction_language",
    )  # fmt: skip
    suffix, writes_all = "en_vie_score.csv", False

    def prepare(self, example: Example, outputs: Path) -> None:
        """Nothing: this form reads the sources from the data set."""

    def pair(self, example: Example, edited: Image.Image, outputs: Path) -> list[Image.Image]:
        """See `Step1X.pair`."""
        return [of_area(read_picture(example.source, f"the source of {example.key}")[0]), of_area(edited)]


def _asked(judge: Judge, instruction: str, pair) -> tuple:
    """Both questions, both again if either reply cannot be parsed. -> (scores or None, scores or None)"""
    semantics = quality = None
    for attempt in range(TRIES):
        text = judge.prompt(SEMANTICS, HOUSE).replace("<instruction>", instruction)
        semantics = parse_scores(judge.ask(text, pair, attempt))
        quality = parse_scores(judge.ask(judge.prompt(QUALITY, HOUSE), pair[1:], attempt))
        if semantics is not None and quality is not None:
            break
    return semantics, quality


def _csv_entries(paths: list[Path]) -> dict[tuple[str, str], list[float]]:
    """{(key, language): [semantics, quality]} of judged files. Errors: UserError naming file and line."""
    found = {}
    for path in paths:
        try:
            with path.open(newline="", encoding="utf-8-sig") as file:
                reader = csv.DictReader(file)
                entries = [(reader.line_num, entry) for entry in reader]
        except (ValueError, csv.Error) as error:
            raise UserError(f"{path} must be a CSV file of text; it is none: {error}") from error
        for number, entry in entries:
            name = entry.get("key") or Path(entry.get("edited_image") or "").stem
            try:
                found[name, entry["instruction_language"]] = [float(entry[score]) for score in SCORES[:2]]
            except (KeyError, TypeError, ValueError) as error:
                asked = (*SCORES[:2], "instruction_language")
                raise UserError(
                    f"line {number} of {path} must have two numbers and a language as {', '.join(asked)}; got "
                    f"{', '.join(str(entry.get(name)) for name in asked)}"
                ) from error
    return found
