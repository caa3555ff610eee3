"""Folders whose pairs are listed in a file and whose pictures are files.

Source  pairs.jsonl of this package; the folders of MagicBrush
"""

import dataclasses
import json
from collections.abc import Iterator, Mapping
from pathlib import Path

from editmgt_jax.data.prepare.sources.parts import PART_PAIRS, Part, RawPair, SourceError, category_name, columns_of


@dataclasses.dataclass(frozen=True)
class FilesPart(Part):
    """Pairs whose pictures are files. An entry is a line of pairs.jsonl, or its error."""

    root: str
    entries: tuple[tuple[str, dict | str], ...]  # (key, {meaning: value} or the error)

    def read(self) -> Iterator[RawPair]:
        """As `Part.read`."""
        for key, entry in self.entries:
            if isinstance(entry, str):
                yield RawPair(key, defect=("bad_line", entry))
                continue
            pictures, missing = {}, None
            for meaning in ("source", "target", "mask"):
                if entry.get(meaning) is None:
                    continue
                try:
                    pictures[meaning] = (Path(self.root) / entry[meaning]).read_bytes()
                except (OSError, ValueError) as error:  # an impossible file name is a ValueError
                    missing = f"{entry[meaning]!a}: {error}"
            if missing is not None:
                yield RawPair(key, defect=("missing_file", missing))
                continue
            category = category_name(entry.get("category") or "")
            yield RawPair(key, instruction=entry.get("instruction") or "", category=category, **pictures)


def _files_parts(root, entries) -> list[Part]:
    starts = range(0, len(entries), PART_PAIRS)
    cut = [tuple(entries[start : start + PART_PAIRS]) for start in starts]
    return [FilesPart(f"pairs {s}", len(c), str(root), c) for s, c in zip(starts, cut, strict=True)]


def jsonl_parts(root: Path, mapping: Mapping[str, str]) -> list[Part]:
    """pairs.jsonl: a JSON object a line, with the fields of `COLUMNS`; pictures are paths from its folder.

    A line that is no pair is rejected when its part is read.
    """
    entries = []
    for number, line in enumerate((root / "pairs.jsonl").read_bytes().splitlines(), start=1):
        key = f"pairs.jsonl#{number}"
        try:
            values = json.loads(line)
            columns = columns_of(f"line {number}", list(values), mapping)
            entry = {meaning: values[column] for meaning, column in columns}
            if wrong := [name for name, value in entry.items() if not isinstance(value, str | None)]:
                raise SourceError(f"fields must be strings; {', '.join(wrong)} is not")
        except (ValueError, TypeError, AttributeError) as error:
            entry = f"{type(error).__name__}: {error}"
        entries.append((key, entry))
    return _files_parts(root, entries)


def magicbrush_parts(root: Path, path: Path) -> list[Part]:
    """MagicBrush: `images/SESSION/FILE`, each turn an edit of the turn before. edit_sessions.json groups the turns by session.

    Errors: SourceError.
    """
    try:
        listed = json.loads(path.read_text())
        turns = listed if isinstance(listed, list) else [turn for session in listed.values() for turn in session]
        entries = []
        for turn in turns:
            folder = Path("images") / turn["input"].split("-")[0]
            files = {"source": turn["input"], "target": turn["output"], "mask": turn.get("mask")}
            entry = {name: str(folder / file) for name, file in files.items() if file}
            entries.append((turn["output"], entry | {"instruction": turn["instruction"]}))
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise SourceError(f"{path} must list turns with input, output and instruction ({error!r})") from error
    return _files_parts(root, entries)
