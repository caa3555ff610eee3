"""Examples in ArrayRecord shards, with a manifest that describes them.

Tokens  arrays of fixed shapes: a record is the raw bytes of its fields one after the other; names, dtypes and shapes stand
        once, in `manifest.json`
Pairs   pictures and strings of any length: a record is a MessagePack map
"""

import collections
import dataclasses
import errno
import operator
from collections.abc import Iterable
from pathlib import Path

import ml_dtypes  # noqa: F401  (lets numpy know bfloat16)
import msgpack
import numpy as np
from array_record.python.array_record_module import ArrayRecordReader, ArrayRecordWriter

from editmgt_jax.errors import EditMGTError, UserError
from editmgt_jax.files import read_json, replacing, system_errors

MANIFEST = "manifest.json"
VERSION = 2
OPEN_SHARDS = 128  # of a bucket, at once
PAIRS, TOKENS = "pairs", "tokens"  # kinds of records


@dataclasses.dataclass(frozen=True)
class Field:
    name: str
    dtype: str
    shape: tuple[int, ...]

    @property
    def nbytes(self) -> int:
        """Size in a record, in bytes."""
        return int(np.prod(self.shape, dtype=np.int64)) * np.dtype(self.dtype).itemsize


@dataclasses.dataclass(frozen=True)
class Schema:
    """The fields of a record, in their order on disk."""

    fields: tuple[Field, ...]

    def pack(self, example: dict) -> bytes:
        """{name: array} -> bytes. Errors: ValueError for a shape that is not the schema's."""
        parts = []
        for field in self.fields:
            value = np.ascontiguousarray(example[field.name], field.dtype)
            if value.shape != field.shape:
                raise ValueError(f"field {field.name!r} must have shape {field.shape}; got {value.shape}")
            parts.append(value.tobytes())
        return b"".join(parts)

    def unpack(self, record: bytes) -> dict:
        """bytes -> {name: array}. Errors: ValueError for a record of another length."""
        size = sum(field.nbytes for field in self.fields)
        if len(record) != size:
            raise ValueError(f"a record must have the schema's {size} bytes; got {len(record)}: it is corrupt")
        example, start = {}, 0
        for field in self.fields:
            values = np.frombuffer(record, field.dtype, field.nbytes // np.dtype(field.dtype).itemsize, start)
            example[field.name] = values.reshape(field.shape)
            start += field.nbytes
        return example

    def to_json(self) -> list:
        """The fields, for a manifest."""
        return [dataclasses.asdict(field) for field in self.fields]

    @classmethod
    def from_json(cls, fields: list) -> "Schema":
        """The inverse of `to_json`. Errors: KeyError, TypeError, ValueError for what it does not write."""
        found = cls(
            tuple(Field(str(f["name"]), str(f["dtype"]), tuple(map(operator.index, f["shape"]))) for f in fields)
        )
        if any(not 0 <= side < 2**31 for field in found.fields for side in field.shape):
            raise ValueError(f"sizes of a record must be numbers of values; got {found.fields}")
        for field in found.fields:
            np.dtype(field.dtype)
        return found


def write_shard(path: str | Path, schema: Schema, examples: Iterable[dict]) -> None:
    """Writes one shard at once: a shard that exists is whole."""
    with replacing(path) as temporary, ShardWriter(temporary) as writer:
        for example in examples:
            writer.write(schema.pack(example))


class ShardWriter:
    """Writes records to a shard as they come. A context manager: the file is whole when it ends without an error.

    Errors: OSError, such as for a full disk.
    """

    def __init__(self, path: str | Path):
        self._path = path
        with system_errors(path):
            self._writer = ArrayRecordWriter(str(path), "group_size:1,uncompressed")  # ids and pictures hardly compress

    def write(self, record: bytes) -> None:
        """Appends a record."""
        with system_errors(self._path):
            self._writer.write(record)

    def __enter__(self):
        return self

    def __exit__(self, kind, *_):
        try:
            with system_errors(self._path):
                self._writer.close()
        except (OSError, RuntimeError):
            if kind is None:  # else the first error tells
                raise


class PairWriter(ShardWriter):
    """Writes pairs to a shard as they come, see `ShardWriter`."""

    def write(self, pair: dict) -> None:
        """pair: {name: bytes, string, number or list of them}."""
        super().write(msgpack.packb(pair))


class RecordError(EditMGTError, RuntimeError):
    """A record that cannot be read: names the shard and the number in it."""


class ShardReader:
    """Random access to the records of one shard. Errors: RecordError."""

    def __init__(self, path: str | Path):
        self.path = Path(path)
        try:
            self._reader = ArrayRecordReader(str(path), "readahead_buffer_size:0")
        except (RuntimeError, ValueError) as error:
            if "open files" in str(error):
                raise OSError(errno.EMFILE, "raise the limit of open files (ulimit -n)", str(path)) from error
            raise RecordError(f"{path} is not a readable shard: {error}") from error

    def __len__(self) -> int:
        return self._reader.num_records()

    def read(self, index: int) -> bytes:
        """A record's bytes. Errors: RecordError."""
        try:
            return self._reader.read([index])[0]
        except (RuntimeError, ValueError, IndexError) as error:
            raise RecordError(f"record {index} of {self.path} cannot be read: {error}") from error

    def pair(self, index: int) -> dict:
        """A prepared pair, see `PairSource`."""
        try:
            return msgpack.unpackb(self.read(index))
        except (ValueError, msgpack.UnpackException) as error:
            raise RecordError(f"record {index} of {self.path} is not a pair: {error}") from error


def copy_records(source: str | Path, target: str | Path, keep: list[bool]) -> None:
    """Writes the records of a shard for which `keep` is true as another shard."""
    reader = ShardReader(source)
    with replacing(target) as temporary, ShardWriter(temporary) as writer:
        for index in np.flatnonzero(keep):
            writer.write(reader.read(int(index)))


def categories_name(bucket: str) -> str:
    """The file with the category of each of a bucket's token records, by number in the manifest's list."""
    return f"{bucket}.categories.npy"


def read_manifest(directory: str | Path, kind: str | None = None) -> dict:
    """The manifest of a folder of records; it is written last, so a folder that has one is whole.

    Args:
      kind: PAIRS or TOKENS, where only one will do.
    Errors: FileNotFoundError without a manifest, UserError for a damaged one, another kind or version.
    """
    path = Path(directory) / MANIFEST
    if not path.is_file():
        raise FileNotFoundError(
            f"a record directory needs its {MANIFEST}; none in {directory}: finish writing it first"
        )
    manifest = read_json(path, dict)
    if manifest.get("version") != VERSION:
        raise UserError(f"{path} must be of version {VERSION}; got {manifest.get('version')}: make the records again")
    if manifest.get("kind") not in (PAIRS, TOKENS):
        raise UserError(
            f"{path} must be of kind {PAIRS} or {TOKENS}; got {manifest.get('kind')!r}: make the records again"
        )
    if kind not in (None, manifest["kind"]):
        made = {PAIRS: "prepared pairs (`editmgt prepare`)", TOKENS: "token records (`editmgt tokenize`)"}
        raise UserError(f"{directory} must hold {made[kind]}; it holds {made[manifest['kind']]}")
    try:
        _check_entries(manifest)
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise UserError(
            f"{path} must list shards as this version does; it is damaged ({error!r}): make the records again"
        ) from error
    return manifest


def _check_entries(manifest) -> None:
    """Errors: KeyError, TypeError, ValueError, AttributeError for what no preparation or tokenizing job writes."""
    shards = manifest["shards"] if manifest["kind"] == PAIRS else []
    if manifest["kind"] == TOKENS:
        if not all(isinstance(category, str) for category in list(manifest["categories"])):
            raise ValueError(f"categories must be names; got {manifest['categories']}")
        for entry in manifest["buckets"].values():
            Schema.from_json(entry["fields"])
            shards = [*shards, *entry["shards"]]
    for shard in shards:
        if not isinstance(shard["file"], str) or not 0 <= operator.index(shard["records"]) < 2**40:
            raise ValueError(f"a shard must have a file and a number of records; got {shard}")


class _Shards:
    """Random access to the records of some shards as one sequence of bytes. Picklable; opens few shards at once.

    Errors: FileNotFoundError when a shard is missing, RecordError naming shard and record.
    """

    def __init__(self, directory: str | Path, entries: list[dict]):
        self.directory, self._files = Path(directory), [entry["file"] for entry in entries]
        if missing := [name for name in self._files if not (self.directory / name).is_file()]:
            raise FileNotFoundError(f"{directory} must have the shards of its {MANIFEST}; it lacks {missing[:5]}")
        self._ends = np.cumsum([entry["records"] for entry in entries], dtype=np.int64)
        self._readers = collections.OrderedDict()

    def __len__(self) -> int:
        return int(self._ends[-1]) if len(self._ends) else 0

    def locate(self, index) -> tuple["ShardReader", int]:
        """The shard that holds a record, and the record's number in it."""
        if not 0 <= index < len(self):
            raise IndexError(f"there are {len(self)} records; got number {index}")
        shard = int(np.searchsorted(self._ends, index, side="right"))
        reader = self._readers.get(shard)
        if reader is None:
            if len(self._readers) >= OPEN_SHARDS:
                self._readers.popitem(last=False)
            reader = self._readers[shard] = ShardReader(self.directory / self._files[shard])
        return reader, int(index) - (int(self._ends[shard - 1]) if shard else 0)

    def __getstate__(self):
        return vars(self) | {"_readers": collections.OrderedDict()}


class TokenBucket:
    """Random access to the token records of one bucket: {name: array}. Errors: as `_Shards`."""

    def __init__(self, directory: str | Path, name: str, entry: dict):
        self.directory, self.name = Path(directory), name
        self.schema = Schema.from_json(entry["fields"])
        self._shards = _Shards(directory, entry["shards"])

    def __len__(self) -> int:
        return len(self._shards)

    def __getitem__(self, index: int) -> dict:
        reader, within = self._shards.locate(index)
        try:
            return self.schema.unpack(reader.read(within))
        except ValueError as error:
            raise RecordError(f"record {within} of {reader.path} is corrupt: {error}") from error

    def name_of(self, index: int) -> str:
        """What a record is called in messages."""
        reader, within = self._shards.locate(index)
        return f"record {within} of {reader.path}"

    def categories(self) -> np.ndarray:
        """The category of each record, uint16 [len], by number."""
        return np.load(self.directory / categories_name(self.name))

    def __repr__(self) -> str:
        return f"TokenBucket({str(self.directory)!r}, {self.name!r})"


class TokenSet:
    """The token records of a folder: `buckets` by name, and the names of `categories`."""

    def __init__(self, directory: str | Path):
        self.directory, self.manifest = Path(directory), read_manifest(directory, TOKENS)
        self.categories = self.manifest["categories"]
        self.buckets = {name: TokenBucket(directory, name, e) for name, e in self.manifest["buckets"].items()}


class PairSource:
    """Random access to prepared pairs, over all shards of a folder or those of one bucket.

    A pair is {"key", "category", "instruction", "original_size": [width, height], "crop": [left, top], "source", "target"
    and where there is one "mask"}, its pictures as bytes of files.
    """

    def __init__(self, directory: str | Path, bucket: str | None = None):
        entries = read_manifest(directory, PAIRS)["shards"]
        self._shards = _Shards(directory, [entry for entry in entries if bucket in (None, entry["bucket"])])

    def __len__(self) -> int:
        return len(self._shards)

    def __getitem__(self, index: int) -> dict:
        reader, within = self._shards.locate(index)
        return reader.pair(within)
