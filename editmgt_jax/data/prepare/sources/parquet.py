"""Pairs of parquet files, whose row groups are the parts.

Source  the columns of CrispEdit-2M, AnyEdit and ImgEdit
"""

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from editmgt_jax.data.prepare.sources.parts import Part, RawPair, SourceError, category_name, columns_of, text_of

PAIRS_AT_ONCE = 8  # pairs whose pictures are in memory together


@dataclasses.dataclass(frozen=True)
class ParquetPart(Part):
    """One row group of a file."""

    path: str
    size: int  # of the file, bytes
    group: int
    first: int  # number of the group's first pair in its file
    columns: tuple[tuple[str, str], ...]  # (meaning, column)
    notes: tuple[str, ...] = ()

    def read(self) -> Iterator[RawPair]:
        """As `Part.read`."""
        import pyarrow.parquet

        read, stem = 0, self.name.rpartition(":")[0]
        try:
            with pyarrow.parquet.ParquetFile(self.path) as file:
                names = [column for _, column in self.columns]
                for batch in file.iter_batches(PAIRS_AT_ONCE, row_groups=[self.group], columns=names):
                    columns = {meaning: _values(batch.column(column)) for meaning, column in self.columns}
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
        for meaning in ("source", "target", "mask"):
            value = values.get(meaning)
            if isinstance(value, _Picture):
                if value.null_path and "null_path" not in notes:
                    notes.append("null_path")
                value = value.data
            pictures[meaning] = value or (None if meaning == "mask" else b"")
        category = category_name(text_of(values.get("category")))
        return RawPair(
            key, instruction=text_of(values["instruction"]), category=category, notes=tuple(notes), **pictures
        )


class _Picture(NamedTuple):
    """A picture of a struct column."""

    data: bytes | None
    null_path: bool


def _values(column) -> list:
    """Python values of an Arrow column. Strings stay bytes: one that is not UTF-8 must not fail its whole batch."""
    import pyarrow as pa

    if pa.types.is_struct(column.type):
        fields, nothing = {field.name for field in column.type}, [None] * len(column)
        data = _values(column.field("bytes")) if "bytes" in fields else nothing
        null_paths = column.field("path").is_null().to_pylist() if "path" in fields else [False] * len(column)
        return [_Picture(*values) for values in zip(data, null_paths, strict=True)]
    if pa.types.is_string(column.type) or pa.types.is_large_string(column.type):
        column = column.view(pa.binary() if pa.types.is_string(column.type) else pa.large_binary())
    return column.to_pylist()


def parquet_parts(root: Path, files: Sequence[Path], mapping: Mapping[str, str]) -> list[Part]:
    """A part for each row group of files below `root`. Errors: SourceError."""
    import pyarrow
    import pyarrow.parquet

    parts = []
    for path in files:
        try:
            metadata, size = pyarrow.parquet.read_metadata(path), path.stat().st_size
            columns = columns_of(path, metadata.schema.to_arrow_schema().names, mapping)
        except (OSError, pyarrow.ArrowException) as error:
            raise SourceError(
                f"{path} is not a readable parquet file ({error}): download it again, or move it elsewhere"
            ) from error
        notes = (("space_in_name",) if " " in path.name else ()) + (("small_file",) if metadata.num_rows <= 3 else ())
        first = 0
        for group in range(metadata.num_row_groups):
            pairs = metadata.row_group(group).num_rows
            name = f"{path.relative_to(root)}:{group}"
            parts.append(ParquetPart(name, pairs, str(path), size, group, first, columns, notes))
            first += pairs
    return parts
