"""Examples of a benchmark and the pictures that they name, read when they are needed.

Pictures are read as the reference scorers read them: the first frame, converted to RGB, without turning by EXIF.
"""

import dataclasses
import functools
import io
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from editmgt_jax.errors import UserError

RECENT_GROUPS = 4  # row groups of Parquet files that are kept in memory


class Unreadable(UserError):
    """A picture of an example that is not there or damaged. `reason` is counted, the message names the file."""

    def __init__(self, reason: str, message: str):
        super().__init__(message)
        self.reason = reason


@dataclasses.dataclass(frozen=True)
class Cell:
    """A picture in a column of a Parquet file: a struct with `bytes`, or bytes."""

    path: Path
    group: int  # row group
    index: int  # in the row group
    column: str


_KINDS = {str: "a text", int: "an integer", list: "a list", dict: "an object"}
_PACKAGES = {"skimage": "scikit-image"}  # of modules of other names

Picture = Path | bytes | Cell


@dataclasses.dataclass(frozen=True)
class Example:
    """One edit that a benchmark asks for."""

    key: str  # unique in the benchmark
    group: str  # category by which the benchmark reports
    instruction: str
    output: str  # where the edited picture lies in the folder of outputs, with / and a suffix
    source: Picture
    target: Picture | None = None
    mask: Callable[[], np.ndarray] | None = None  # -> bool [Y X], True where to edit
    caption: str | None = None  # of the target
    source_caption: str | None = None
    after: str | None = None  # key of the example whose edited picture is the source here
    cluster: str | None = None  # examples of one cluster are resampled together; by default each is its own
    unfit: str | None = None  # why an editor that has an instruction and a picture alone cannot do it
    facts: dict[str, Any] = dataclasses.field(default_factory=dict)  # what else the protocol knows


@dataclasses.dataclass(frozen=True)
class Skipped:
    """An entry of the data that is no example: it is counted by its reason."""

    key: str
    reason: str


def picture_bytes(picture: Picture) -> bytes:
    """The bytes of a picture's file. Errors: Unreadable."""
    if isinstance(picture, bytes):
        return picture
    if isinstance(picture, Cell):
        return _column(picture.path, picture.group, picture.column)[picture.index]
    try:
        return picture.read_bytes()
    except OSError as error:
        raise Unreadable("missing", f"a picture must be a file; there is none at {picture}") from error


def read_picture(picture: Picture, name: str = "the picture") -> tuple[Image.Image, list[str]]:
    """-> (RGB picture, what is odd about the file: animated, a mode that is not RGB). Errors: Unreadable."""
    data = picture_bytes(picture)
    try:
        with Image.open(io.BytesIO(data)) as image:
            image.load()
            odd = ["animated, first frame"] if getattr(image, "n_frames", 1) > 1 else []
            if image.mode not in ("RGB", "RGBA", "L", "P"):
                odd.append(f"{image.mode}, read as RGB")
            return image.convert("RGB"), odd
    except Image.DecompressionBombError as error:
        raise Unreadable("too large", f"{name} is too large to read: {error}") from error
    except Exception as error:  # noqa: BLE001  (Pillow raises many kinds for damaged files)
        raise Unreadable("corrupt", f"{name} must be a picture that Pillow can read: {error}") from error


def read_alpha(picture: Picture) -> np.ndarray:
    """The opacity of a picture, uint8 [Y X]; 255 without an alpha channel. Errors: Unreadable."""
    data = picture_bytes(picture)
    try:
        with Image.open(io.BytesIO(data)) as image:
            return np.asarray(image.convert("RGBA"))[..., 3]
    except Exception as error:  # noqa: BLE001  (the same)
        raise Unreadable("corrupt", f"a mask must be a picture that Pillow can read: {error}") from error


@functools.lru_cache(RECENT_GROUPS)
def _column(path, group, column):
    import pyarrow.parquet

    with pyarrow.parquet.ParquetFile(path) as file:
        values = file.read_row_group(group, columns=[column]).column(column).to_pylist()
    return [value["bytes"] if isinstance(value, dict) else value for value in values]


def parquet_entries(files: list[Path], pictures: tuple[str, ...], needed: tuple[str, ...]) -> list[dict]:
    """The entries of Parquet files, in their order: values, and a `Cell` for each of the columns `pictures`.

    Args:
      needed: columns that must be there. Errors: UserError naming what is missing; FileNotFoundError without files.
    """
    check_extra("pyarrow")
    import pyarrow.parquet

    entries = []
    for path in files:
        try:
            entries += _entries(path, pictures, needed)
        except (pyarrow.ArrowException, OSError) as error:
            raise UserError(f"{path} must be a Parquet file; it is cut off or damaged: {error}") from error
    return entries


def _entries(path, pictures, needed) -> list[dict]:
    import pyarrow.parquet

    entries = []
    with pyarrow.parquet.ParquetFile(path) as file:
        names = file.schema_arrow.names
        if missing := sorted({*pictures, *needed} - {*names}):
            raise UserError(f"{path} must have the columns {missing}; it has {names}")
        values = [name for name in names if name not in pictures and not _is_picture(file.schema_arrow.field(name))]
        for group in range(file.num_row_groups):
            table = file.read_row_group(group, columns=values).to_pylist()
            for index, entry in enumerate(table):
                entries.append(entry | {name: Cell(path, group, index, name) for name in pictures})
    return entries


def _is_picture(field):
    import pyarrow

    return pyarrow.types.is_struct(field.type) or pyarrow.types.is_binary(field.type)


def check_extra(*modules: str) -> None:
    """Errors: UserError when a package of the extra `eval`, named by its module, is not installed."""
    import importlib.util

    if missing := [_PACKAGES.get(name, name) for name in modules if importlib.util.find_spec(name) is None]:
        raise UserError(f"evaluation needs {', '.join(missing)}: pip install 'editmgt_jax[eval]'")


def fields(entry: Any, where: str, **kinds: type | tuple[type, ...]) -> dict:
    """An entry of a benchmark's file, with values of these kinds by their names. Errors: UserError naming the entry."""
    if not isinstance(entry, dict):
        raise UserError(f"{where} must be a JSON object; got {type(entry).__name__}")
    for name, kind in kinds.items():
        if not isinstance(entry.get(name), kind):
            words = " or ".join(_KINDS[one] for one in (kind if isinstance(kind, tuple) else (kind,)))
            raise UserError(f"{where} must have {name!r}, {words}; got {entry.get(name)!r}")
    return entry


def find_file(folder: Path, *names: str) -> Path:
    """The first of the names that is in the folder. Errors: FileNotFoundError saying what was looked for."""
    for name in names:
        if (folder / name).is_file():
            return folder / name
    raise FileNotFoundError(f"the data of this benchmark has a file {' or '.join(names)}; {folder} has none")
