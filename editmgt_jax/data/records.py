"""Fixed-shape arrays in ArrayRecord shards, with a manifest that says what they are.

A record is the raw bytes of its fields one after the other; names, dtypes and shapes stand once, in `manifest.json`.
"""

import dataclasses
import json
from pathlib import Path

import numpy as np
from array_record.python.array_record_module import ArrayRecordWriter

MANIFEST = "manifest.json"
VERSION = 1


@dataclasses.dataclass(frozen=True)
class Field:
    name: str
    dtype: str
    shape: tuple[int, ...]

    @property
    def nbytes(self) -> int:
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
        return [dataclasses.asdict(field) for field in self.fields]

    @classmethod
    def from_json(cls, fields: list) -> "Schema":
        return cls(tuple(Field(f["name"], f["dtype"], tuple(f["shape"])) for f in fields))


def write_shard(path, schema: Schema, examples) -> None:
    """Writes one shard under a temporary name, then renames it: a shard that exists is whole."""
    path = Path(path)
    temporary = path.with_name(path.name + ".tmp")
    writer = ArrayRecordWriter(str(temporary), "group_size:1")
    for example in examples:
        writer.write(schema.pack(example))
    writer.close()
    temporary.replace(path)


def write_manifest(directory, schema: Schema, shards: list[str], examples: int, facts: dict) -> None:
    """Writes the manifest last: a directory with one is complete."""
    values = {"version": VERSION, "fields": schema.to_json(), "shards": shards, "examples": examples} | facts
    temporary = Path(directory) / (MANIFEST + ".tmp")
    temporary.write_text(json.dumps(values, indent=2) + "\n")
    temporary.replace(Path(directory) / MANIFEST)


def read_manifest(directory) -> dict:
    """Errors: FileNotFoundError if the directory has no manifest (its writing may have been interrupted)."""
    path = Path(directory) / MANIFEST
    if not path.is_file():
        raise FileNotFoundError(
            f"a record directory needs its {MANIFEST}; none in {directory}: finish writing it first"
        )
    return json.loads(path.read_text())


class RecordSource:
    """Random access to the examples of a directory: {name: array}."""

    def __init__(self, directory):
        from grain.sources import ArrayRecordDataSource

        manifest = read_manifest(directory)
        self.schema = Schema.from_json(manifest["fields"])
        self._records = ArrayRecordDataSource([str(Path(directory) / name) for name in manifest["shards"]])

    def __len__(self) -> int:
        return len(self._records)

    def __getitem__(self, index) -> dict:
        return self.schema.unpack(self._records[index])

    def __repr__(self) -> str:  # Grain names a source by it
        return f"RecordSource({self._records!r})"
