"""ImgEdit-Bench, the basic suite: a judge's three marks for each edit.

Data    DATA/basic_edit.json: {key: {id, prompt, edit_type}}; the source is DATA/ID, or below DATA/singleturn; for a judge
        prompts.json {edit_type: text with <edit_prompt>}, in DATA or from --prompts
Outputs OUTPUTS/KEY.png
Source  Benchmark/Basic of PKU-YuanGroup/ImgEdit: basic_bench.py, step1_get_avgscore.py, step2_typescore.py
Rules   a reply has lines 'Name: N', usually three of 1 to 5; a score is the mean of the lines that read so, as the reference's. The
        reference rounds every score to two decimals before it takes means over types: `score_rounded`
Differs a reply without such a line has no score and is counted (`unparsed`); the reference leaves it out without a word
Judged  result.json {key: reply} as the reference writes it; this evaluation writes one, too
"""

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from PIL import Image

from editmgt_jax.evaluation import stats
from editmgt_jax.evaluation.examples import Example, Skipped, fields, find_file, picture_bytes, read_picture
from editmgt_jax.evaluation.judge import Judged, read_prompts
from editmgt_jax.evaluation.protocol import Protocol, Scoring, Selection
from editmgt_jax.files import read_json, write_json

FOLDERS = ("", "singleturn", "Benchmark/singleturn")


def marks_of(reply: str) -> dict[str, int]:
    """{name: mark} of the lines 'Name: N' of a reply, as the reference finds them."""
    parts = (line.strip().split(": ") for line in reply.splitlines())
    return {part[0]: int(part[1]) for part in parts if len(part) == 2 and part[1].isdigit()}


class ImgEdit(Protocol):
    """See the module."""

    name, version, examples = "imgedit", "1", None
    title = "ImgEdit-Bench, basic suite: three marks of a judge"
    reference = "ImgEdit, Benchmark/Basic/basic_bench.py, step1_get_avgscore.py, step2_typescore.py"
    judged = True
    directions = {"score": 1, "score_rounded": 1, "unparsed": -1}

    def read(self, data: Path, selection: Selection) -> Iterable[Example | Skipped]:
        """See `Protocol.read`."""
        for key, item in read_json(find_file(data, "basic_edit.json"), dict).items():
            fields(item, f"{key} of basic_edit.json in {data}", id=str, edit_type=str, prompt=str)
            places = [data / folder / item["id"] for folder in FOLDERS]
            yield Example(
                key=key,
                group=item["edit_type"],
                instruction=item["prompt"],
                output=f"{key}.png",
                source=next((path for path in places if path.is_file()), places[0]),
            )

    def prompts(self, data: Path) -> dict[str, str]:
        """Those of prompts.json, by type of edit."""
        path = data / "prompts.json"
        return read_prompts(path) if path.is_file() else {}

    def score(self, example: Example, edited: Image.Image, given: Scoring) -> dict[str, Any]:
        """See `Protocol.score`."""
        judge = given.models.judge
        if judge is None:
            picture_bytes(example.source)
            return {}
        if isinstance(judge, Judged):
            reply = judge.table(".json", _replies).get(example.key)
            if not isinstance(reply, str):
                return {"score": None, "unparsed": 1.0, "notes": ["not among the judged files"]}
        else:
            text = judge.prompt(example.group, {}).replace("<edit_prompt>", example.instruction)
            reply = judge.ask(text, [read_picture(example.source, f"the source of {example.key}")[0], edited])
        marks = list(marks_of(reply).values())
        score = sum(marks) / len(marks) if marks else None
        found = {f"mark_{number}": float(mark) for number, mark in enumerate(marks, 1)} if len(marks) == 3 else {}
        rounded = None if score is None else round(score, 2)
        return found | {"score": score, "score_rounded": rounded, "unparsed": float(score is None), "reply": reply}

    def summary(self, outcomes: Sequence[dict]) -> dict[str, dict]:
        """Means over all edits, and the means over types of the types' means."""
        groups = list(dict.fromkeys(outcome["group"] for outcome in outcomes))
        of_types = {name: stats.mean_of_groups(outcomes, name, groups) for name in ("score", "score_rounded")}
        return super().summary(outcomes) | {"mean of types": {"all": of_types}}

    def finish(self, folder: Path, outcomes: Sequence[dict]) -> None:
        """Writes result.json as the reference does."""
        replies = {outcome["key"]: outcome["reply"] for outcome in outcomes if outcome.get("reply") is not None}
        if replies:
            write_json(folder / "result.json", replies, indent=4)


def _replies(paths: list[Path]) -> dict[str, Any]:
    return {key: reply for path in paths for key, reply in read_json(path, dict).items()}
