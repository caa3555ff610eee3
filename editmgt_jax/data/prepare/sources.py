"""Raw edit pairs from parquet files, folders, TFDS or procedural scenes.

A source consists of parts. A part is small and picklable, and any machine can read it. It yields raw pairs lazily, with encoded
pictures. An entry that is no pair is yielded with the reason.

Source  the columns of CrispEdit-2M, AnyEdit and ImgEdit; the folders of MagicBrush
"""

import abc
import dataclasses
import io
import json
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image

from editmgt_jax.errors import UserError
from editmgt_jax.files import mounted

# Names of columns (fields of a JSON line) by meaning. The first name that a table has is used.
COLUMNS = {
    "source": ("input_img", "input", "image_file", "source"),
    "target": ("output_img", "output", "generated_image", "edited_file", "target"),
    "instruction": ("instruction", "edit_instruction"),
}
OPTIONAL = {"mask": ("mask", "mask_img"), "category": ("type", "edit_type", "category", "task")}
NO_CATEGORY = "edit"
PAIRS_AT_ONCE = 8  # pairs whose pictures are in memory together
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


def open_source(where: str, mapping: dict[str, str] | None = None, resolution: int = 1024) -> list[Part]:
    """Lists the parts of a source, in an order that depends on names only.

    Args:
      where: a folder (with *.parquet anywhere below it; with pairs.jsonl; or with MagicBrush's edit_turns.json or
        edit_sessions.json), one parquet file, `tfds:NAME_OR_FOLDER[:SPLIT]`, or `scenes:COUNT[:SEED]`.
      mapping: {"source": column, "target": ..., "instruction": ..., "mask": ..., "category": ...} where names differ from
        those of `COLUMNS`.
      resolution: of the scenes, in pixels.
    Errors: SourceError, FileNotFoundError.
    """
    mapping = mapping or {}
    if unknown := sorted(mapping.keys() - COLUMNS.keys() - OPTIONAL.keys()):
        raise SourceError(f"--column takes {', '.join([*COLUMNS, *OPTIONAL])}; got {unknown}")
    kind, _, rest = str(where).partition(":")
    if kind == "scenes":
        return _scene_parts(rest, resolution)
    if kind == "tfds":
        return _tfds_parts(rest, mapping)
    path = mounted(where, "a source")
    if path.is_file() and path.suffix == ".parquet":
        return _parquet_parts(path.parent, [path], mapping)
    if not path.is_dir():
        raise FileNotFoundError(
            f"a source must be a folder, a parquet file, tfds:NAME or scenes:COUNT; {where} does not exist"
        )
    if (path / "pairs.jsonl").is_file():
        return _jsonl_parts(path, mapping)
    for name in ("edit_turns.json", "edit_sessions.json"):
        if (path / name).is_file():
            return _magicbrush_parts(path, path / name)
    files = sorted(path.rglob("*.parquet"))
    if not files:
        raise SourceError(
            f"a folder of pairs must have *.parquet, pairs.jsonl, edit_turns.json or edit_sessions.json; {path} has none"
        )
    return _parquet_parts(path, files, mapping)


def category_name(text: object) -> str:
    """'Background change' -> 'background_change', for file names and flags. Numbers are kept."""
    text = str(text).encode(errors="replace").decode()
    name = "_".join(text.replace("-", " ").replace("_", " ").lower().split())
    return name or NO_CATEGORY


# ---- parquet


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
        category = category_name(_text(values.get("category")))
        return RawPair(key, instruction=_text(values["instruction"]), category=category, notes=tuple(notes), **pictures)


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


def _text(value) -> str:
    """Bytes that are not UTF-8 become U+FFFD, which `examine` rejects."""
    return value.decode(errors="replace") if isinstance(value, bytes) else "" if value is None else value


def _parquet_parts(root, files, mapping) -> list[Part]:
    import pyarrow
    import pyarrow.parquet

    parts = []
    for path in files:
        try:
            metadata, size = pyarrow.parquet.read_metadata(path), path.stat().st_size
            columns = _columns(path, metadata.schema.to_arrow_schema().names, mapping)
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


def _columns(path, names, mapping) -> tuple[tuple[str, str], ...]:
    """(meaning, column) of each column that is used. Errors: SourceError."""
    found = []
    for meaning, choices in (COLUMNS | OPTIONAL).items():
        if meaning in mapping and mapping[meaning] not in names:
            raise SourceError(f"{path} must have the column {mapping[meaning]!r} for {meaning}; it has {list(names)}")
        column = mapping.get(meaning) or next((name for name in choices if name in names), None)
        if column is not None:
            found.append((meaning, column))
        elif meaning in COLUMNS:
            raise SourceError(
                f"{path} needs a column for {meaning}: one of {', '.join(choices)}, or one given by --column {meaning}=NAME; "
                f"it has {list(names)}"
            )
    return tuple(found)


# ---- folders of pictures


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


def _jsonl_parts(root, mapping) -> list[Part]:
    """pairs.jsonl: a JSON object a line, with the fields of `COLUMNS`; pictures are paths from its folder."""
    entries = []
    for number, line in enumerate((root / "pairs.jsonl").read_bytes().splitlines(), start=1):
        key = f"pairs.jsonl#{number}"
        try:
            values = json.loads(line)
            columns = _columns(f"line {number}", list(values), mapping)
            entry = {meaning: values[column] for meaning, column in columns}
            if wrong := [name for name, value in entry.items() if not isinstance(value, str | None)]:
                raise SourceError(f"fields must be strings; {', '.join(wrong)} is not")
        except (ValueError, TypeError, AttributeError) as error:
            entry = f"{type(error).__name__}: {error}"
        entries.append((key, entry))
    return _files_parts(root, entries)


def _magicbrush_parts(root, path) -> list[Part]:
    """MagicBrush: `images/SESSION/FILE`, each turn an edit of the turn before. edit_sessions.json groups the turns by session."""
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


# ---- TFDS


@dataclasses.dataclass(frozen=True)
class TFDSPart(Part):
    """A range of a dataset of TensorFlow Datasets, prepared on this machine in a random-access format."""

    dataset: str
    split: str
    first: int
    fields: tuple[tuple[str, str], ...]

    def read(self) -> Iterator[RawPair]:
        """As `Part.read`."""
        import tensorflow_datasets as tfds

        builder = _tfds_builder(self.dataset)
        names = dict(self.fields)
        images = {name: tfds.decode.SkipDecoding() for _, name in self.fields if _is_image(builder, name)}
        data = builder.as_data_source(self.split, decoders=images or None)
        for index in range(self.first, self.first + self.pairs):
            example = data[index]
            values = {meaning: example[name] for meaning, name in self.fields}
            category = category_name(_label(builder, names.get("category"), values.pop("category", "")))
            instruction = _text(values.pop("instruction"))
            key = f"{self.dataset}:{self.split}#{index}"
            yield RawPair(key, instruction=instruction, category=category, **{k: bytes(v) for k, v in values.items()})


def _tfds_builder(name):
    """A registered dataset, such as `crisp_edit`, or a folder that a builder prepared."""
    import tensorflow_datasets as tfds

    if Path(name).is_dir():
        return tfds.builder_from_directory(name)
    import editmgt_jax.data.prepare.tfds_crispedit  # noqa: F401  (registers it)

    return tfds.builder(name)


def _label(builder, name, value) -> str:
    """A category as text, also where the dataset stores numbers."""
    feature = None if name is None else builder.info.features[name]
    return feature.int2str(int(value)) if hasattr(feature, "int2str") else _text(value)


def _is_image(builder, name) -> bool:
    import tensorflow_datasets as tfds

    return isinstance(builder.info.features[name], tfds.features.Image)


def _tfds_parts(rest, mapping) -> list[Part]:
    import tensorflow_datasets as tfds

    name, _, split = rest.partition(":")
    split = split or "train"
    try:
        builder = _tfds_builder(name)
        count = builder.info.splits[split].num_examples
    except (tfds.core.registered.DatasetNotFoundError, KeyError, ValueError) as error:
        first_line = str(error).splitlines()[0]
        raise SourceError(f"TFDS must have {name!r} with a split {split!r} on this machine: {first_line}") from error
    if builder.info.file_format is not tfds.core.FileFormat.ARRAY_RECORD:
        raise SourceError(
            f"{name} must be prepared with --file_format=array_record, for random access; it is in {builder.info.file_format}"
        )
    fields = _columns(f"the TFDS dataset {name}", list(builder.info.features), mapping)
    return [
        TFDSPart(f"{rest}:{first}", min(PART_PAIRS, count - first), name, split, first, fields)
        for first in range(0, count, PART_PAIRS)
    ]


# ---- procedural scenes


@dataclasses.dataclass(frozen=True)
class ScenePart(Part):
    """A range of `scenes.SceneSource`."""

    config: object  # SceneConfig
    first: int

    def read(self) -> Iterator[RawPair]:
        """As `Part.read`."""
        from editmgt_jax.data.scenes.source import SceneSource

        scenes = SceneSource(self.config)
        for index in range(self.first, self.first + self.pairs):
            example = scenes[index]
            pictures = {name: _png(example[name]) for name in ("source", "target", "mask")}
            yield RawPair(
                f"scenes-{self.config.seed}#{index}",
                instruction=example["instruction"],
                category=category_name(example["category"]),
                **pictures,
            )


def _scene_parts(rest, resolution) -> list[Part]:
    from editmgt_jax.data.scenes.source import SceneConfig

    count, _, seed = rest.partition(":")
    if not count.isdigit() or int(count) < 1 or not (seed or "0").isdigit():
        raise SourceError(f"a source of scenes must be scenes:COUNT or scenes:COUNT:SEED; got scenes:{rest}")
    config = SceneConfig(size=resolution, seed=int(seed or 0))
    return [
        ScenePart(f"scenes {first}", min(PART_PAIRS, int(count) - first), config, first)
        for first in range(0, int(count), PART_PAIRS)
    ]


def _png(array) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(np.asarray(array, np.uint8) * (255 if array.dtype == bool else 1)).save(buffer, "PNG")
    return buffer.getvalue()
