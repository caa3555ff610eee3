"""Pairs of parquet files, whose row groups are the parts.

Source  the columns of CrispEdit-2M, AnyEdit and ImgEdit
"""

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from editmgt_jax.data.prepare.sources.parts import (
    PICTURES,
    Part,
    RawPair,
    SourceError,
    category_name,
    columns_of,
    picture_file,
    refuse_pointer,
    text_of,
)
from editmgt_jax.files import parse_json

PAIRS_AT_ONCE = 8  # pairs whose pictures are in memory together
_BUFFER = 1 << 20  # bytes that are read at once: else a whole row group, which may be the whole file


@dataclasses.dataclass(frozen=True)
class ParquetPart(Part):
    """One row group of a file."""

    path: str
    size: int  # of the file, bytes
    group: int
    first: int  # number of the group's first pair in its file
    columns: tuple[tuple[str, str], ...]  # (meaning, column)
    root: str  # folder of the source
    labels: tuple[str, ...] = ()  # names of the categories that the column has by number
    notes: tuple[str, ...] = ()

    def read(self) -> Iterator[RawPair]:
        """As `Part.read`."""
        import pyarrow.parquet

        read, stem = 0, self.name.rpartition(":")[0]
        try:
            with pyarrow.parquet.ParquetFile(self.path, pre_buffer=False, buffer_size=_BUFFER) as file:
                names = [column for _, column in self.columns]
                for batch in file.iter_batches(PAIRS_AT_ONCE, row_groups=[self.group], columns=names):
                    columns = {
                        meaning: (_pictures if meaning in PICTURES else _values)(batch.column(column))
                        for meaning, column in self.columns
                    }
                    for index in range(batch.num_rows):
                        values = {meaning: column[index] for meaning, column in columns.items()}
                        yield self._pair(f"{stem}#{self.first + read}", values)
                        read += 1
        except (OSError, pyarrow.ArrowException) as error:
            if getattr(error, "errno", None) is not None:  # an error of the disk, not of the file: it may pass
                raise
            detail = f"row group {self.group} of {stem} cannot be read: {error}"
            for index in range(read, self.pairs):
                yield RawPair(f"{stem}#{self.first + index}", defect=("unreadable_row_group", detail))

    def _pair(self, key, values) -> RawPair:
        pictures, notes = {}, list(self.notes)
        for meaning in PICTURES:
            value, defect = values.get(meaning), None
            if isinstance(value, _Picture):
                if value.path is None and "null_path" not in notes:
                    notes.append("null_path")
                if not value.data and value.path:
                    value, defect = self._file(value.path)
                else:
                    value = value.data
            elif isinstance(value, str):  # a column of file names
                value, defect = self._file(value)
            if defect is not None:
                return RawPair(key, defect=defect)
            pictures[meaning] = value or (None if meaning == "mask" else b"")
        category = values.get("category")
        if self.labels and isinstance(category, int) and 0 <= category < len(self.labels):
            category = self.labels[category]
        category = category_name(text_of(category))
        return RawPair(
            key, instruction=text_of(values["instruction"]), category=category, notes=tuple(notes), **pictures
        )

    def _file(self, name):
        return picture_file(name, Path(self.path).parent, Path(self.root))


class _Picture(NamedTuple):
    """A picture of a struct column: its bytes, or else the name of its file."""

    data: bytes | None
    path: str | None


def _pictures(column) -> list:
    """Pictures of an Arrow column: bytes, `_Picture`s, or names of files."""
    import pyarrow as pa

    if pa.types.is_dictionary(column.type):
        column = column.dictionary_decode()
    if pa.types.is_struct(column.type):
        fields, nothing = {field.name for field in column.type}, [None] * len(column)
        data = _values(column.field("bytes")) if "bytes" in fields else nothing
        paths = map(_name, _values(column.field("path"))) if "path" in fields else [""] * len(column)
        return [_Picture(*values) for values in zip(data, paths, strict=True)]
    return [_name(v) for v in _values(column)] if _is_text(column.type) else _values(column)


def _name(value):
    return value.decode(errors="replace") if isinstance(value, bytes) else value


def _is_text(kind) -> bool:
    import pyarrow as pa

    return pa.types.is_string(kind) or pa.types.is_large_string(kind)


def _values(column) -> list:
    """Python values of an Arrow column. Strings stay bytes: one that is not UTF-8 must not fail its whole batch."""
    import pyarrow as pa

    if pa.types.is_dictionary(column.type):
        column = column.dictionary_decode()
    if _is_text(column.type):
        column = column.view(pa.binary() if pa.types.is_string(column.type) else pa.large_binary())
    return column.to_pylist()


def _labels(schema, column) -> tuple[str, ...]:
    """Names of the categories that a column has by number, as Hugging Face's datasets note them; none for other columns."""
    try:
        features = parse_json(schema.metadata[b"huggingface"])["info"]["features"]
        return tuple(str(name) for name in features[column]["names"])
    except (KeyError, TypeError, ValueError):
        return ()


def parquet_parts(root: Path, files: Sequence[Path], mapping: Mapping[str, str]) -> list[Part]:
    """A part for each row group of files below `root`. Errors: SourceError."""
    import pyarrow
    import pyarrow.parquet

    parts = []
    for path in files:
        try:
            refuse_pointer(path)
            metadata, size = pyarrow.parquet.read_metadata(path), path.stat().st_size
            schema = metadata.schema.to_arrow_schema()
            columns = columns_of(path, schema.names, mapping)
        except (OSError, pyarrow.ArrowException) as error:
            raise SourceError(
                f"{path} is not a readable parquet file ({error}): download it again, or move it elsewhere"
            ) from error
        notes = (("space_in_name",) if " " in path.name else ()) + (("small_file",) if metadata.num_rows <= 3 else ())
        labels, first = _labels(schema, dict(columns).get("category")), 0
        for group in range(metadata.num_row_groups):
            pairs = metadata.row_group(group).num_rows
            name = f"{path.relative_to(root)}:{group}"
            parts.append(ParquetPart(name, pairs, str(path), size, group, first, columns, str(root), labels, notes))
            first += pairs
    return parts
