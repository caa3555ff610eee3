"""Folders whose pairs are listed in a file and whose pictures are files.

Source  pairs.jsonl of this package; the folders of MagicBrush
"""

import dataclasses
from collections.abc import Iterator, Mapping
from pathlib import Path

from editmgt_jax.data.prepare.sources.parts import (
    PART_PAIRS,
    PICTURES,
    Part,
    RawPair,
    SourceError,
    category_name,
    columns_of,
    picture_file,
    refuse_pointer,
)
from editmgt_jax.files import parse_json


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
            found = {m: picture_file(entry[m], Path(self.root)) for m in PICTURES if entry.get(m) is not None}
            if defects := [defect for _, defect in found.values() if defect is not None]:
                yield RawPair(key, defect=defects[-1])
                continue
            pictures = {meaning: data for meaning, (data, _) in found.items()}
            category = category_name(entry.get("category") or "")
            yield RawPair(key, instruction=entry.get("instruction") or "", category=category, **pictures)


def _files_parts(root, entries) -> list[Part]:
    starts = range(0, len(entries), PART_PAIRS)
    cut = [tuple(entries[start : start + PART_PAIRS]) for start in starts]
    return [FilesPart(f"pairs {s}", len(c), str(root), c) for s, c in zip(starts, cut, strict=True)]


def jsonl_parts(root: Path, mapping: Mapping[str, str]) -> list[Part]:
    """pairs.jsonl: a JSON object a line, with the fields of `COLUMNS`; pictures are paths from its folder.

    A line that is no pair is rejected when its part is read; blank lines are none. Errors: SourceError for a file of other lines.
    """
    path, entries = root / "pairs.jsonl", []
    refuse_pointer(path)
    text = path.read_bytes()
    if text.startswith((b"\xff\xfe", b"\xfe\xff")) or b"\0" in text[:1000]:
        raise SourceError(f"{path} must be UTF-8 text; it is UTF-16 or no text: save it as UTF-8")
    if text.removeprefix(b"\xef\xbb\xbf").lstrip().startswith(b"["):
        raise SourceError(
            f"{path} must have a JSON object a line; it begins with [: write one pair a line, without a list"
        )
    for number, line in enumerate(text.splitlines(), start=1):
        if not line.strip():
            continue
        key = f"pairs.jsonl#{number}"
        try:
            values = parse_json(line)
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
        refuse_pointer(path)
        listed = parse_json(path.read_bytes())
        turns = listed if isinstance(listed, list) else [turn for session in listed.values() for turn in session]
        entries = []
        for turn in turns:
            folder = Path("images") / turn["input"].split("-")[0]
            if not isinstance(turn["instruction"], str):
                raise TypeError(f"an instruction must be text, got {turn['instruction']!r}")
            files = {"source": turn["input"], "target": turn["output"], "mask": turn.get("mask")}
            entry = {name: str(folder / file) for name, file in files.items() if file}
            entries.append((turn["output"], entry | {"instruction": turn["instruction"]}))
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise SourceError(f"{path} must list turns with input, output and instruction ({error!r})") from error
    return _files_parts(root, entries)
