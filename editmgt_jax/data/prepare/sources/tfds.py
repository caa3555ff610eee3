"""Pairs of TensorFlow Datasets that are prepared on this machine."""

import dataclasses
from collections.abc import Iterator, Mapping
from pathlib import Path

from editmgt_jax.data.prepare.sources.parts import (
    PART_PAIRS,
    Part,
    RawPair,
    SourceError,
    category_name,
    columns_of,
    text_of,
)


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
            instruction = text_of(values.pop("instruction"))
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
    return feature.int2str(int(value)) if hasattr(feature, "int2str") else text_of(value)


def _is_image(builder, name) -> bool:
    import tensorflow_datasets as tfds

    return isinstance(builder.info.features[name], tfds.features.Image)


def tfds_parts(rest: str, mapping: Mapping[str, str]) -> list[Part]:
    """Ranges of NAME_OR_FOLDER[:SPLIT]. Errors: SourceError."""
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
    fields = columns_of(f"the TFDS dataset {name}", list(builder.info.features), mapping)
    return [
        TFDSPart(f"{rest}:{first}", min(PART_PAIRS, count - first), name, split, first, fields)
        for first in range(0, count, PART_PAIRS)
    ]
