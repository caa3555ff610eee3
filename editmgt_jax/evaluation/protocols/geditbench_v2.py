"""GEditBench v2: 1 200 queries of 23 kinds, judged in pairs of systems; Bradley-Terry ratings.

Data    DATA/metadata.jsonl: {key, instruction, source_image, candidates: [{model, image}]}, the pictures below DATA
Outputs OUTPUTS/KEY.png, one folder for a system; keys are KIND_NNNNNN
Source  arXiv 2603.28547; src/common_utils/dataset_loader.py and elo_score.py of GEditBench_v2
Rules   the evaluated system is compared with every candidate of a query; its ratings also use judged files of other pairs. See
        `evaluation.ratings`. Which of two pictures is A is drawn from key and names
Differs the benchmark's own judge and prompts are not part of this package; a reply that names no winner is counted (`unparsed`)
Judged  JSON lines {"key": "KEY_pair_A_vs_B", "results": {"winner": "Image A" | "Image B" | "Tie"}} as the reference writes them
"""

import hashlib
import json
import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from PIL import Image

from editmgt_jax.errors import UserError
from editmgt_jax.evaluation.examples import Example, Skipped, fields, find_file, read_picture
from editmgt_jax.evaluation.judge import Judged
from editmgt_jax.evaluation.protocol import Protocol, Scoring, Selection
from editmgt_jax.evaluation.ratings import Comparison, ratings
from editmgt_jax.files import parse_json, write_text

WINNERS = {"Image A": 1.0, "Image B": 0.0, "Tie": 0.5}
SELF = "evaluated"  # the system's name in pairs
PAIRWISE = "pairwise"
HOUSE = {
    PAIRWISE: (
        "Picture 1 is a source. Image A (picture 2) and Image B (picture 3) are edits of it by this instruction: <instruction>\n"
        "Which edit is better: does what is asked, keeps everything else as it was, and looks right?\n"
        'Answer with JSON alone: {"winner": "Image A" or "Image B" or "Tie", "reasoning": "one sentence"}'
    )
}


def winner_of(reply: str) -> float | None:
    """1 for Image A, 0 for Image B, 0.5 for a tie, None if the reply names none."""
    found = re.search(r'"winner"\s*:\s*"(Image A|Image B|Tie)"', reply)
    return WINNERS[found.group(1)] if found else None


def is_first(key: str, other: str) -> bool:
    """Whether the evaluated system is Image A in the pair with another one."""
    return hashlib.sha256(f"{key} {other}".encode()).digest()[0] % 2 == 0


class GEditBenchV2(Protocol):
    """See the module."""

    name, version, examples = "geditbench_v2", "1", 1200
    title = "GEditBench v2, pairwise judgements and Bradley-Terry ratings"
    reference = "GEditBench v2, arXiv 2603.28547, common_utils/elo_score.py"
    judged = True
    directions = {"wins": 1, "unparsed": -1}

    def read(self, data: Path, selection: Selection) -> Iterable[Example | Skipped]:
        """See `Protocol.read`."""
        path = find_file(data, "metadata.jsonl")
        for number, line in enumerate(path.read_text(errors="replace").splitlines(), 1):
            if not line.strip():
                continue
            item = _entry(line, f"line {number} of {path}", key=str, instruction=str, source_image=str)
            for each in item.get("candidates") or []:
                fields(each, f"a candidate of {item['key']} in {path}", model=str, image=str)
            yield Example(
                key=item["key"],
                group=item.get("task") or re.sub(r"_\d+$", "", item["key"]),
                instruction=item["instruction"],
                output=f"{item['key']}.png",
                source=data / item["source_image"],
                facts={"others": {each["model"]: data / each["image"] for each in item.get("candidates") or []}},
            )

    def score(self, example: Example, edited: Image.Image, given: Scoring) -> dict[str, Any]:
        """See `Protocol.score`. `pairs` are the comparisons as the reference writes them."""
        judge, source = given.models.judge, read_picture(example.source, f"the source of {example.key}")[0]
        if judge is None:
            return {}
        if isinstance(judge, Judged):
            found = [each for each in judge.table(".jsonl", _judged).values() if each.query == example.key]
        else:
            found = [_ask(judge, example, edited, source, name, path) for name, path in example.facts["others"].items()]
        known = [each for each in found if each.result is not None]
        mine = [
            each.result if each.first == SELF else 1 - each.result
            for each in known
            if SELF in (each.first, each.second)
        ]
        return {
            "wins": sum(mine) / len(mine) if mine else None,
            "unparsed": float(len(found) - len(known)),
            "pairs": json.dumps([[each.first, each.second, each.result] for each in known]),
        }

    def summary(self, outcomes: Sequence[dict]) -> dict[str, dict]:
        """The share of wins, and the ratings of all systems."""
        found = super().summary([{k: v for k, v in outcome.items() if k != "pairs"} for outcome in outcomes])
        known = _comparisons(outcomes)
        return found | ({"ratings": {"all": ratings(known)}} if known else {})

    def finish(self, folder: Path, outcomes: Sequence[dict]) -> None:
        """Writes pairs.jsonl in the reference's form."""
        names = {result: name for name, result in WINNERS.items()}
        lines = [
            json.dumps({"key": f"{c.query}_pair_{c.first}_vs_{c.second}", "results": {"winner": names[c.result]}})
            for c in _comparisons(outcomes)
        ]
        if lines:
            write_text(folder / "pairs.jsonl", "\n".join(lines) + "\n")


def _comparisons(outcomes) -> list[Comparison]:
    pairs = ((outcome["key"], json.loads(outcome.get("pairs") or "[]")) for outcome in outcomes)
    return [Comparison(key, *each) for key, found in pairs for each in found]


def _ask(judge, example, edited, source, name, path) -> Comparison:
    """Asks about the evaluated system and another one; `result` is None for a reply without a winner."""
    other, _ = read_picture(path, f"{name}'s edit of {example.key}")
    first = is_first(example.key, name)
    pictures = [source, edited, other] if first else [source, other, edited]
    text = judge.prompt(PAIRWISE, HOUSE).replace("<instruction>", example.instruction)
    return Comparison(example.key, *((SELF, name) if first else (name, SELF)), winner_of(judge.ask(text, pictures)))


def _entry(line: str, where: str, **kinds: type) -> dict:
    """A line of JSON with values of these kinds. Errors: UserError."""
    try:
        found = parse_json(line)
    except ValueError as error:
        raise UserError(f"{where} must be JSON: it is cut off or damaged ({error})") from error
    return fields(found, where, **kinds)


def _judged(paths: list[Path]) -> dict[str, Comparison]:
    """{key of a pair: comparison} of judged files. Errors: UserError naming file and line."""
    found = {}
    for path in paths:
        for number, line in enumerate(path.read_text(errors="replace").splitlines(), 1):
            if not line.strip():
                continue
            where = f"line {number} of {path}"
            entry = _entry(line, where, key=str)
            names = re.fullmatch(r"(.+?)_pair_(.+?)_vs_(.+)", entry["key"])
            if names is None:
                raise UserError(f"{where} must have a 'key' of the form KEY_pair_A_vs_B; got {entry['key']!r}")
            result = fields(entry.get("results") or entry.get("result") or {}, f"the results in {where}")
            winner = result.get("winner")
            found[entry["key"]] = Comparison(*names.groups(), WINNERS.get(winner if isinstance(winner, str) else None))
    return found
