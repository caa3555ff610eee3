"""The examples of an ablation: pairs with a truth, as pixels of one size. No jax.

Axes    Y X pixels, of equal number
"""

import dataclasses
import itertools
from pathlib import Path

import numpy as np
from PIL import Image

from editmgt_jax import images
from editmgt_jax.ablation.config import Examples
from editmgt_jax.data.prepare.sources import RawPair, open_source
from editmgt_jax.data.scenes.source import SceneConfig, SceneSource
from editmgt_jax.errors import UserError

CLEARLY = 20  # of 255: by how much a channel differs that counts as a difference


@dataclasses.dataclass(frozen=True, eq=False)
class Example:
    """One pair."""

    source: np.ndarray  # float32 [Y X 3] in [0, 1]
    target: np.ndarray
    truth: np.ndarray  # bool [Y X]: what the edit may change, or what differs
    instruction: str
    category: str
    query: str | None  # words of the instruction that say what it is about
    facts: dict = dataclasses.field(default_factory=dict)  # of a scene, see `SceneSource`

    def texts(self) -> dict:
        """What is known besides the pictures."""
        return {"instruction": self.instruction, "category": self.category, "query": self.query}


class ExampleSource:
    """Random access to the examples of a config, at `size` pixels a side. Errors: UserError, FileNotFoundError."""

    def __init__(self, config: Examples, size: int):
        self.config, self.size = config, size
        if config.folder:
            parts = open_source(config.folder, resolution=size)
            self._pairs = list(itertools.islice((pair for part in parts for pair in part.read()), config.count))
            if len(self._pairs) < config.count:
                raise UserError(
                    f"examples.count must be at most the pairs in {config.folder}, {len(self._pairs)}; got {config.count}"
                )
        else:
            self._scenes = SceneSource(
                SceneConfig(size, config.split, config.seed, objects=config.objects, categories=config.categories)
            )

    def __len__(self) -> int:
        return self.config.count

    def __getitem__(self, index: int) -> Example:
        if self.config.folder:
            return self._from_pair(self._pairs[index])
        scene = self._scenes[index]
        source, target = (np.asarray(scene[name], np.float32) / 255 for name in ("source", "target"))
        truth = scene["mask"] if self.config.truth == "mask" else differs(source, target)
        return Example(source, target, truth, scene["instruction"], scene["category"], scene["query"], scene["facts"])

    def _from_pair(self, pair: RawPair) -> Example:
        if pair.defect is not None:
            raise UserError(f"examples must be pairs that can be read; {pair.key}: {': '.join(pair.defect)}")
        image = images.load(pair.source, f"the source of {pair.key}")
        source, target = (self._square(each) for each in (image, images.load(pair.target, f"the target of {pair.key}")))
        if self.config.truth == "difference":
            truth = differs(source, target)
        elif pair.mask is None:
            raise UserError(
                f"examples.truth='mask' needs a mask with each pair; {pair.key} has none: take 'difference'"
            )
        else:
            mask = images.load_mask(pair.mask, image.size, may_be_empty=True)
            truth = self._square(Image.fromarray(mask.astype(np.uint8) * 255).convert("RGB"))[..., 0] > 0.5
        return Example(source, target, truth, pair.instruction.strip(), pair.category, None)

    def _square(self, image: Image.Image) -> np.ndarray:
        """The middle of a picture, as a square of the size."""
        side = min(image.size)
        left, top = ((length - side) // 2 for length in image.size)
        return images.to_pixels(image.crop((left, top, left + side, top + side)), (self.size, self.size))


def differs(source: np.ndarray, target: np.ndarray) -> np.ndarray:
    """Where any channel clearly differs. [Y X 3] -> bool [Y X]"""
    return (np.abs(source - target) > CLEARLY / 255).any(axis=-1)


def model_folder(name: str) -> str | None:
    """The folder of `config.model`, None for the default model."""
    return str(Path(name)) if name else None
