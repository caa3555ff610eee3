"""Records of attention: one chunked array on disk, its axes kept apart, and a manifest that names them.

    RUN/records/manifest.json     what the axes are, of which model and examples
    RUN/records/attention         zarr3: [n, seeds, M, F, heads, R, J, N], a file for each chunk of examples, with checksums
    RUN/records/truth             zarr3: uint8 [n L]
    RUN/records/chunks/000000.json  the texts of a chunk's examples, written last: a chunk that has it is whole

Axes    n examples; M moments (a step of a decode, or a mask rate); F signals; others as in `editmgt_jax.config`
"""

import dataclasses
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from editmgt_jax.errors import UserError
from editmgt_jax.files import parse_json, write_json

MANIFEST, CHUNKS = "manifest.json", "chunks"
EACH_HEAD = "each"
ATTENTION, TRUTH = "attention", "truth"
_BYTES = [{"name": "bytes", "configuration": {"endian": "little"}}]
_CHECKED = [*_BYTES, {"name": "crc32c"}]


class RecordError(UserError):
    """Records that cannot be read, or are of something else."""


@dataclasses.dataclass(frozen=True)
class Manifest:
    """What records hold."""

    model: str  # its folder, or 'default'
    fingerprint: str  # of its weights
    examples: int
    seeds: tuple[int, ...]
    moments: tuple[str, ...]  # 'rate 0.5', 'step 0'
    signals: tuple[str, ...]
    heads: tuple[str, ...]  # ('mean',) or ('0', '1', ...)
    groups: tuple[str, ...]
    num_blocks: int
    grid: tuple[int, int]  # (h, w)
    token_grid: tuple[int, int]  # (H, W)
    size: int  # pixels along a side of the pictures
    layers: tuple[int, ...]  # the model's own
    signal: str  # the model's own
    chunk: int
    dtype: str
    truth: str  # 'mask' or 'difference'

    @property
    def shape(self) -> tuple[int, ...]:
        """Of the attention."""
        positions = self.grid[0] * self.grid[1]
        return (self.examples, len(self.seeds), *self.axes, self.num_blocks, positions)

    @property
    def axes(self) -> tuple[int, ...]:
        """Lengths of [M, F, heads, R]."""
        return tuple(map(len, (self.moments, self.signals, self.heads, self.groups)))

    @property
    def num_chunks(self) -> int:
        """Files of the attention."""
        return -(-self.examples // self.chunk)

    @property
    def bytes_per_example(self) -> int:
        """Of the attention, all seeds."""
        return int(np.prod(self.shape[1:])) * np.dtype(self.dtype).itemsize

    def examples_of(self, chunk: int) -> range:
        """The numbers of a chunk's examples."""
        return range(chunk * self.chunk, min((chunk + 1) * self.chunk, self.examples))

    @classmethod
    def read(cls, folder: Path) -> "Manifest":
        """Errors: RecordError."""
        path = Path(folder) / MANIFEST
        if not path.is_file():
            raise RecordError(f"an ablation needs records, from `editmgt ablate record`; there is no {path}")
        try:
            values = parse_json(path.read_text())
            lists = {name: _tuple(value) for name, value in values.items()}
            return cls(**lists)
        except (ValueError, TypeError) as error:
            raise RecordError(
                f"{path} must be the manifest of records of this version: {error}; record again"
            ) from error

    def write(self, folder: Path) -> None:
        """Writes what `read` reads."""
        write_json(Path(folder) / MANIFEST, dataclasses.asdict(self), indent=2)


def _tuple(value: Any) -> Any:
    return tuple(value) if isinstance(value, list) else value


class Records:
    """The arrays of records, opened. Errors of all methods: RecordError.

    Args:
      folder: RUN/records; manifest: what they hold; create: whether to make arrays that are not there.
    """

    def __init__(self, folder: Path, manifest: Manifest, create: bool = False):
        self.folder, self.manifest = Path(folder), manifest
        m = manifest
        (self.folder / CHUNKS).mkdir(parents=True, exist_ok=True)
        inner = (m.chunk, *(1,) * 5, *m.shape[-2:])
        self._attention = _open(
            self.folder / ATTENTION, m.shape, (m.chunk, *m.shape[1:]), inner, m.dtype, np.nan, create
        )
        cells = m.token_grid[0] * m.token_grid[1]
        self._truth = _open(
            self.folder / TRUTH, (m.examples, cells), (m.chunk, cells), (m.chunk, cells), "uint8", 255, create
        )

    @classmethod
    def open(cls, folder: Path) -> "Records":
        """Records that are complete."""
        records = cls(folder, Manifest.read(folder))
        missing = [chunk for chunk in range(records.manifest.num_chunks) if not records.has(chunk)]
        if missing:
            raise RecordError(
                f"the records in {folder} are not complete, {len(missing)} of {records.manifest.num_chunks} chunks are "
                "missing: go on with `editmgt ablate record`"
            )
        return records

    def _texts_path(self, chunk: int) -> Path:
        return self.folder / CHUNKS / f"{chunk:06d}.json"

    def has(self, chunk: int) -> bool:
        """Whether a chunk has been written."""
        return self._texts_path(chunk).is_file()

    def write(self, chunk: int, attention: np.ndarray, truth: np.ndarray, texts: Sequence[dict]) -> None:
        """Writes a chunk: attention [chunk, ...], truth bool [chunk H W], and what is known about each example."""
        rows = self.manifest.examples_of(chunk)
        bounds = slice(rows.start, rows.stop)
        self._attention[bounds].write(np.asarray(attention, self.manifest.dtype)).result()
        self._truth[bounds].write(np.asarray(truth, np.uint8).reshape(len(rows), -1)).result()
        write_json(self._texts_path(chunk), list(texts), indent=0)

    def truth(self) -> np.ndarray:
        """bool [n L]"""
        return self._read(self._truth, slice(None)).astype(bool)

    def texts(self) -> list[dict]:
        """What is known about each example: instruction, category, query."""
        return [
            one for chunk in range(self.manifest.num_chunks) for one in json.loads(self._texts_path(chunk).read_text())
        ]

    def maps(self, seed: int, moment: str, signal: str, head: str, group: str, rows: slice = slice(None)) -> np.ndarray:
        """Raw attention of every block, with one of each other axis. -> float32 [n J N]

        Args:
          seed: position in the manifest's seeds; head: 'mean' (over heads kept apart, too) or a number; rows: of the examples.
        """
        m = self.manifest
        at = [seed, _index("moment", moment, m.moments), _index("signal", signal, m.signals)]
        heads = slice(None) if head == "mean" else _index("head", head, m.heads)
        found = self._read(self._attention, (rows, *at, heads, _index("group", group, m.groups)))
        found = found.astype(np.float32)
        if head == "mean":
            found = found.mean(axis=1)
        if np.isnan(found).any():
            raise RecordError(f"the records in {self.folder} hold no number somewhere: record again in a new folder")
        return found

    def _read(self, array, index) -> np.ndarray:
        try:
            return array[index].read().result()
        except ValueError as error:
            raise RecordError(
                f"a chunk of the records in {self.folder} is damaged, its length or its checksum is wrong: delete the files in "
                f"{CHUNKS} and record again"
            ) from error


def _index(kind: str, name: str, names: Sequence[str]) -> int:
    if name not in names:
        raise RecordError(f"a {kind} must have been recorded: {', '.join(names)}; got {name!r}")
    return names.index(name)


def _open(path, shape, file_chunk, inner, dtype, fill, create):
    import tensorstore as ts  # takes a while to import

    sharding = {
        "name": "sharding_indexed",
        "configuration": {
            "chunk_shape": list(inner),
            "codecs": _CHECKED,
            "index_codecs": _CHECKED,
            "index_location": "end",
        },
    }
    spec = {
        "driver": "zarr3",
        "kvstore": {"driver": "file", "path": str(path) + "/"},
        "metadata": {
            "shape": list(shape),
            "data_type": dtype,
            "chunk_grid": {"name": "regular", "configuration": {"chunk_shape": list(file_chunk)}},
            "chunk_key_encoding": {"name": "default"},
            "codecs": [sharding],
            "fill_value": "NaN" if isinstance(fill, float) else fill,
        },
    }
    try:
        return ts.open(spec, open=True, create=create).result()
    except ValueError as error:
        raise RecordError(
            f"{path} must be an array of the shape that the manifest says, {list(shape)}; it is another: record again in a new "
            "folder"
        ) from error
