"""Batches of training data, on Grain. A batch is a function of (data, seed, step): nothing else is remembered.

Every process draws the same global batches, positions of records only, and reads the examples that it needs of each.
Hence the global batches are the same whatever the number of processes, and the state of an iterator is the number of its next
batch.

Axes    B examples of this process
"""

import dataclasses
import functools
import hashlib
import sys
from collections.abc import Callable, Sequence

import grain
import numpy as np
from absl import flags

from editmgt_jax.data.records import TOKENS, RecordError, TokenSet, read_manifest
from editmgt_jax.errors import EditMGTError, UserError


class DataError(EditMGTError, RuntimeError):
    """Training data that cannot be used, or too much of which cannot be read."""


@dataclasses.dataclass(frozen=True)
class Mixture:
    """What batches are drawn from.

    Args:
      directories: folders of token records, with a weight each; a weight multiplies how often its records come.
      categories: weights of categories by name; those left out have 1, and 0 leaves a category out.
    """

    directories: tuple[tuple[str, float], ...]
    categories: tuple[tuple[str, float], ...] = ()


class Batches:
    """An endless iterator of batches that can be saved and restored.

    Its state is the number of the next batch, so it can be restored for any number of hosts, threads or workers; and what the
    batches are drawn from and how, for they are others otherwise.
    """

    def __init__(
        self,
        batches: grain.MapDataset,
        read: Callable,
        examples: Sequence[int] | None = None,
        *,
        name: Callable,
        workers: int = 0,
        threads: int = 2,
        prefetch: int = 4,
        drawn: str = "",
    ):
        """
        Args:
          batches: global batches, as arrays of positions of records.
          read: positions -> dict of arrays; examples: of a global batch, to be read here (all by default).
          name: one record's position -> what it is called in messages.
          workers: processes that read ahead; 0 reads in `threads` of this one.
          drawn: identifies the batches.
        """
        self._batches, self._name, self._drawn = batches, name, drawn
        self._dataset = batches.map(_Examples(examples)).map(read)
        self._workers = workers
        self._reading = grain.ReadOptions(num_threads=threads, prefetch_buffer_size=prefetch)
        self._step, self._iterator = 0, None

    def names(self, step: int) -> list[str]:
        """Which records the global batch of a step is made of."""
        return [self._name(position) for position in self._batches[step]]

    def __iter__(self):
        return self

    def __next__(self) -> dict:
        if self._iterator is None:
            dataset = self._dataset[self._step :].to_iter_dataset(self._reading)
            if self._workers:
                if not flags.FLAGS.is_parsed():  # Grain's workers ask for flags of its own
                    flags.FLAGS.mark_as_parsed()
                dataset = dataset.mp_prefetch(grain.MultiprocessingOptions(num_workers=self._workers))
            self._iterator = iter(dataset)
        try:
            batch = next(self._iterator)
        except RuntimeError as error:
            if not str(error).startswith("Worker process was terminated"):
                raise
            raise DataError(
                "a process that reads data ahead died, as when the machine has no memory left: the same command goes on from the "
                "last checkpoint; take fewer data.workers if it comes again",
                transient=True,
            ) from error
        self._step += 1
        return batch

    def get_state(self) -> dict:
        """The position in the data, for a checkpoint."""
        return {"step": self._step, "drawn": self._drawn}

    def set_state(self, state: dict) -> None:
        """Errors: DataError when the state is of other data, another batch size or another seed."""
        if state["drawn"] != self._drawn:
            raise DataError(
                "batches must be drawn as before the stop: the records, the mixture, the batch size or the seed changed "
                f"({state['drawn']!r} became {self._drawn!r})"
            )
        self._go_to(int(state["step"]))

    def rewind(self) -> None:
        """The next batch is the first one again; until then nothing is read ahead."""
        self._go_to(0)

    def close(self) -> None:
        """Ends reading ahead; a next batch begins it again."""
        self._go_to(self._step)

    def _go_to(self, step: int) -> None:
        if self._iterator is not None and self._workers:
            self._iterator.close()  # else its processes would outlive it
        self._step, self._iterator = step, None


def batches(
    source: Sequence,
    batch_size: int,
    *,
    encode_text: Callable[[list[str]], dict[str, np.ndarray]] | None = None,
    shuffle_seed: int | None = None,
    examples: slice = None,
    workers: int = 0,
    threads: int = 1,
    prefetch: int = 4,
    named: str = "",
) -> Batches:
    """Batches of one source.

    Args:
      source: random access to examples, dicts of arrays and of strings.
      batch_size: of the global batch; examples: those of it that this process needs, None is all.
      encode_text: list of strings -> {name: int32 [B T]}, of the examples' 'instruction'. None leaves text out.
      workers: processes that read ahead; 0 reads in threads of this one.
      shuffle_seed: draws a new order every epoch; None keeps the source's.
      named: what tells the source from others.
    Yields: dict of arrays, batch first.
    """

    positions = grain.MapDataset.range(len(source))
    if shuffle_seed is not None:
        positions = positions.seed(shuffle_seed).shuffle()
    batches = positions.repeat().batch(batch_size, drop_remainder=True)
    drawn = _digest(named, len(source), batch_size, shuffle_seed)
    name = "example {}".format
    read = _ExampleReader(source, encode_text)
    return Batches(batches, read, examples, name=name, workers=workers, threads=threads, prefetch=prefetch, drawn=drawn)


@dataclasses.dataclass(frozen=True)
class _ExampleReader:
    """Numbers of examples -> their arrays, stacked, and the ids of their instructions. Can be sent to another process."""

    source: object
    encode_text: Callable | None

    def __call__(self, positions) -> dict:
        examples = [self.source[int(position)] for position in positions]
        arrays = [{n: value for n, value in one.items() if isinstance(value, np.ndarray)} for one in examples]
        text = {} if self.encode_text is None else self.encode_text([one["instruction"] for one in examples])
        return _stacked(arrays) | text


def token_batches(
    mixture: Mixture,
    batch_size: int,
    *,
    seed: int,
    examples: Sequence[int] | None = None,
    workers: int = 0,
    threads: int = 2,
    bad_records: int = 100,
) -> Batches:
    """Batches of token records. All of a batch are of one bucket; buckets come as often as they have records.

    Args:
      batch_size: of the global batch; examples: those of it that this process needs, None is all.
      workers: processes that read ahead; 0 reads in threads of this one.
      bad_records: how many records a reader, this process or each of its workers, may find unreadable; each is named, and its
        neighbour taken instead.
    Yields: dict of arrays, batch first: the fields of the records.
    Errors: ValueError for what cannot be drawn from; DataError when too many records are bad.
    """
    buckets = [inside for _, inside in sorted(_streams(mixture).items())]
    of_buckets, weights = [], []
    for number, inside in enumerate(buckets):
        datasets = [stream.dataset(number, _seed(seed, number, i)) for i, stream in enumerate(inside)]
        drawn = grain.MapDataset.mix(datasets, [stream.weight for stream in inside]) if len(inside) > 1 else datasets[0]
        of_buckets.append(drawn.batch(batch_size, drop_remainder=True))
        weights.append(sum(stream.weight for stream in inside))
    batches = grain.MapDataset.mix(of_buckets, weights) if len(of_buckets) > 1 else of_buckets[0]
    sizes = {inside[0].bucket.name: [(len(stream), stream.weight) for stream in inside] for inside in buckets}
    manifests = [read_manifest(directory, TOKENS) for directory, _ in mixture.directories]
    drawn = _digest(sizes, manifests, batch_size, seed)
    read = _Reader(buckets, _Problems(bad_records))
    return Batches(batches, read, examples, name=read.name, workers=workers, threads=threads, drawn=drawn)


def _digest(*facts) -> str:
    return hashlib.sha256(repr(facts).encode(errors="replace")).hexdigest()[:16]


def _stacked(examples: list[dict]) -> dict:
    return {name: np.stack([example[name] for example in examples]) for name in examples[0]}


@dataclasses.dataclass(frozen=True)
class _Stream:
    """Records of one bucket of one folder, those of one category if categories are weighted, in an order of their own."""

    number: int  # among its bucket's streams
    bucket: object  # TokenBucket
    indices: np.ndarray | None  # of the records; None is all
    weight: float

    def __len__(self) -> int:
        return len(self.bucket) if self.indices is None else len(self.indices)

    def dataset(self, bucket: int, seed) -> grain.MapDataset:
        """Endless: (bucket, stream, index in it), each epoch another permutation."""
        shuffled = grain.MapDataset.range(len(self)).seed(seed).shuffle().repeat()
        return shuffled.map(functools.partial(self._position, bucket))

    def _position(self, bucket, index) -> np.ndarray:
        return np.array([bucket, self.number, index])

    def record(self, index) -> int:
        """The number in its bucket of the stream's record."""
        return int(index if self.indices is None else self.indices[index])


def _streams(mixture: Mixture) -> dict[str, list[_Stream]]:
    """{bucket: streams}, in the order of the mixture. Errors: ValueError."""
    weights = dict(mixture.categories)
    if not mixture.directories or any(weight <= 0 for _, weight in mixture.directories):
        raise UserError(f"a mixture needs folders of token records with positive weights; got {mixture.directories}")
    sets = [(TokenSet(directory), weight) for directory, weight in mixture.directories]
    known = {name for tokens, _ in sets for name in tokens.categories}
    if unknown := sorted(weights.keys() - known):
        raise UserError(f"weights can be given for the categories {sorted(known)}; got {unknown}")
    if any(weight < 0 for weight in weights.values()):
        raise UserError(f"weights of categories must not be negative; got {weights}")
    streams: dict[str, list[_Stream]] = {}
    for tokens, weight in sets:
        for name, bucket in tokens.buckets.items():
            parts = [(None, weight)]
            if weights:
                own = bucket.categories()
                parts = [
                    (np.flatnonzero(own == i), weight * weights.get(category, 1.0))
                    for i, category in enumerate(tokens.categories)
                ]
            for indices, each in parts:
                inside = streams.setdefault(name, [])
                stream = _Stream(
                    len(inside), bucket, indices, each * (len(bucket) if indices is None else len(indices))
                )
                if len(stream) and stream.weight:
                    if inside and inside[0].bucket.schema != bucket.schema:
                        raise UserError(
                            f"records of bucket {name} must have the same fields in all folders; see {bucket}"
                        )
                    inside.append(stream)
    streams = {name: inside for name, inside in streams.items() if inside}
    if not streams:
        raise UserError(f"no record is left to draw from: {mixture}")
    return streams


def _seed(seed: int, *numbers: int) -> int:
    return int(np.random.SeedSequence([seed, *numbers]).generate_state(1)[0])


@dataclasses.dataclass(frozen=True)
class _Examples:
    """Of a global batch, the examples that this process needs."""

    examples: Sequence[int] | None

    def __call__(self, batch):
        return batch if self.examples is None else batch[np.asarray(self.examples)]


class _Reader:
    """(bucket, stream, index) [B 3] -> the batch. Unreadable records are told and counted; those behind them are taken instead."""

    def __init__(self, buckets: list[list[_Stream]], problems: "_Problems"):
        self._buckets, self._problems = buckets, problems

    def __call__(self, positions) -> dict:
        return _stacked([self._read(self._buckets[bucket][stream], int(index)) for bucket, stream, index in positions])

    def name(self, position) -> str:
        bucket, stream, index = position
        stream = self._buckets[bucket][stream]
        return stream.bucket.name_of(stream.record(index))

    def _read(self, stream, index):
        for step in range(len(stream)):
            try:
                return stream.bucket[stream.record((index + step) % len(stream))]
            except RecordError as error:
                self._problems.note(str(error))
        raise DataError(f"no record of {stream.bucket} can be read")


class _Problems:
    """The records that this process could not read."""

    def __init__(self, limit: int):
        self._limit, self._bad = limit, set()

    def note(self, message: str) -> None:
        """Errors: DataError when there are too many."""
        if message in self._bad:
            return
        self._bad.add(message)
        print(f"editmgt: skipped: {message}", file=sys.stderr)
        if len(self._bad) > self._limit:
            raise DataError(f"more than {self._limit} records cannot be read, the last one: {message}")
