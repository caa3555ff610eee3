"""What all sources give: parts, raw pairs, and which column or field means what."""

import abc
import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from editmgt_jax.errors import UserError
from editmgt_jax.files import is_pointer

# Names of columns (fields of a JSON line) by meaning. The first name that a table has is used.
COLUMNS = {
    "source": ("input_img", "input", "image_file", "source"),
    "target": ("output_img", "output", "generated_image", "edited_file", "target"),
    "instruction": ("instruction", "edit_instruction"),
}
OPTIONAL = {"mask": ("mask", "mask_img"), "category": ("type", "edit_type", "category", "task")}
PICTURES = ("source", "target", "mask")
NO_CATEGORY = "edit"
PART_PAIRS = 256  # in a part, for sources without parts of their own


class SourceError(UserError):
    """Raw data that cannot be listed. Names the file and the format that was expected."""


@dataclasses.dataclass(frozen=True)
class RawPair:
    """A raw pair. One with a `defect`, (reason, detail), is rejected, and only its `key` is set."""

    key: str  # file and number, to find it again
    source: bytes = b""
    target: bytes = b""
    instruction: str = ""
    category: str = NO_CATEGORY
    mask: bytes | None = None  # white may change
    notes: tuple[str, ...] = ()  # oddities that are no reason to reject it
    defect: tuple[str, str] | None = None


@dataclasses.dataclass(frozen=True)
class Part(abc.ABC):
    """A range of a source."""

    name: str
    pairs: int

    @abc.abstractmethod
    def read(self) -> Iterator[RawPair]:
        """Yields exactly `pairs` raw pairs, in their order."""


def refuse_pointer(path: Path) -> None:
    """Errors: SourceError for a listing that Git LFS has not fetched; OSError."""
    if is_pointer(path):
        raise SourceError(f"{path} is a pointer of Git LFS, not the file: fetch it with `git lfs pull`")


def picture_file(name: object, *folders: Path) -> tuple[bytes, tuple[str, str] | None]:
    """The bytes of a picture that a pair names, in the first of some folders that has it. -> (bytes, why there are none)"""
    error: Exception | str = "no file has this name"
    if not isinstance(name, str):
        return b"", ("missing_file", f"the name of a file must be text; got {type(name).__name__}")
    if "://" in name:
        return b"", ("missing_file", f"{name!a} is an address: pictures are files, or in the table")
    for folder in folders:
        try:
            data = (folder / name).read_bytes()
        except (OSError, ValueError) as failure:  # an impossible file name is a ValueError
            error = failure
            continue
        return data, None
    return b"", ("missing_file", f"{name!a}: {error}")


def category_name(text: object) -> str:
    """'Background change' -> 'background_change', for file names and flags. Numbers are kept."""
    text = str(text).encode(errors="replace").decode()
    name = "_".join(text.replace("-", " ").replace("_", " ").lower().split())
    return name or NO_CATEGORY


def text_of(value: object) -> str:
    """The text of a column's value. Bytes that are not UTF-8 become U+FFFD, which `examine` rejects."""
    return value.decode(errors="replace") if isinstance(value, bytes) else "" if value is None else value


def columns_of(where: Path | str, names: Sequence[str], mapping: Mapping[str, str]) -> tuple[tuple[str, str], ...]:
    """(meaning, column) of each column that is used. Errors: SourceError."""
    found = []
    for meaning, choices in (COLUMNS | OPTIONAL).items():
        if meaning in mapping and mapping[meaning] not in names:
            raise SourceError(f"{where} must have the column {mapping[meaning]!r} for {meaning}; it has {list(names)}")
        column = mapping.get(meaning) or next((name for name in choices if name in names), None)
        if column is not None:
            found.append((meaning, column))
        elif meaning in COLUMNS:
            raise SourceError(
                f"{where} needs a column for {meaning}: one of {', '.join(choices)}, or one given by --column {meaning}=NAME; "
                f"it has {list(names)}"
            )
    return tuple(found)
