"""CrispEdit-2M as a TFDS dataset: `tfds build editmgt_jax/data/prepare/tfds_crispedit/crisp_edit.py --manual_dir=COPY`.

Pictures keep their bytes. All pairs are kept: `editmgt prepare` rejects the unusable ones.
Source  eight thousand parquet shards of four columns (the dataset's card)
"""

import tensorflow_datasets as tfds

from editmgt_jax.data.prepare.sources import open_source

FIELDS = ("source", "target", "instruction", "category", "key")
_DESCRIPTION = """Pairs of pictures before and after an edit, with the instruction and the type of the edit."""


class CrispEdit(tfds.core.GeneratorBasedBuilder):
    """{"source", "target": Image, "instruction", "category", "key": Text}; one split, `train`."""

    VERSION = tfds.core.Version("1.0.0")
    RELEASE_NOTES = {"1.0.0": "The rows of the parquet files as they are."}
    MANUAL_DOWNLOAD_INSTRUCTIONS = "A folder with the dataset's parquet files, data/TYPE_NNNNN.parquet."

    def _info(self) -> tfds.core.DatasetInfo:
        return self.dataset_info_from_configs(
            description=_DESCRIPTION,
            features=tfds.features.FeaturesDict(
                {
                    "source": tfds.features.Image(),
                    "target": tfds.features.Image(),
                    "instruction": tfds.features.Text(),
                    "category": tfds.features.Text(),
                    "key": tfds.features.Text(),
                }
            ),
            homepage="https://huggingface.co/datasets/WeiChow/CrispEdit-2M",
        )

    def _split_generators(self, dl_manager):
        return {"train": self._generate_examples(open_source(dl_manager.manual_dir))}

    def _generate_examples(self, parts):
        beam = tfds.core.lazy_imports.apache_beam
        return beam.Create(parts) | beam.Reshuffle() | beam.FlatMap(_examples)


def _examples(part):
    for pair in part.read():
        yield pair.key, {name: getattr(pair, name) for name in FIELDS}
