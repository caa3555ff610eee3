"""Procedural scenes and their edits by a pipeline, in batches of one shape.

Axes    n pairs; others as in `editmgt_jax.config`
"""

import dataclasses
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
from tqdm import tqdm

from editmgt_jax import images
from editmgt_jax.batching import in_batches, map_batches
from editmgt_jax.data.scenes.source import CATEGORIES, SceneConfig, SceneSource
from editmgt_jax.pipeline import EditPipeline
from editmgt_jax.sampling import localize
from editmgt_jax.sampling.masking import covered_tokens

_COLUMNS = ("tokens", "keep", "relevance", "attention", "passes")  # of an edit, that are kept of every batch


def default_batch() -> int:
    """Pairs that are edited at once: few on a CPU, whose caches hold no more, many on accelerators."""
    return 4 if jax.default_backend() == "cpu" else 32


class Pairs:
    """Pairs of a split, stacked.

    Args:
      numbers: which pairs, or how many: the first ones.
    """

    def __init__(
        self, size: int, split: str, numbers: int | Sequence[int], objects: str, seed: int = 0, categories=CATEGORIES
    ):
        self.scenes = SceneSource(
            SceneConfig(size=size, split=split, seed=seed, categories=categories, objects=objects)
        )
        self.numbers = range(numbers) if isinstance(numbers, int) else numbers
        drawn = [self.scenes.drawn(number) for number in self.numbers]
        examples, self._plans = zip(*drawn, strict=True)
        self.source = np.stack([e["source"] for e in examples]).astype(np.float32) / 255
        self.target = np.stack([e["target"] for e in examples]).astype(np.float32) / 255
        self.mask = np.stack([e["mask"] for e in examples])
        self.instructions = [e["instruction"] for e in examples]
        self.categories = np.array([e["category"] for e in examples])
        self.facts = [e["facts"] for e in examples]
        self._distractors: dict[int, np.ndarray] = {}

    def __len__(self) -> int:
        return len(self.instructions)

    def distractors(self, index: int, count: int) -> np.ndarray:
        """Those of `SceneSource` for the pair at a position, drawn once. -> uint8 [count Y X 3]"""
        if index not in self._distractors:
            self._distractors[index] = self.scenes.distractors(self.numbers[index], count, self._plans[index])
        return self._distractors[index]

    def token_mask(self, grid: tuple[int, int]) -> np.ndarray:
        """bool [n H W]: tokens any of whose pixels may change."""
        return covered_tokens(self.mask, grid)


@dataclasses.dataclass(frozen=True)
class Encoded:
    """Pairs as the model sees them: ids int32 [n H W], and the pictures [n Y X 3] that these ids can show at best."""

    source_ids: np.ndarray
    target_ids: np.ndarray
    source: np.ndarray
    target: np.ndarray


class Runner:
    """Runs a pipeline over many pairs, in batches of one shape.

    Args:
      size: side of the pairs' pictures; they are resized to the model's own and back. By default they are of that size.
    """

    def __init__(self, pipe: EditPipeline, batch_size: int, seed: int, size: int | None = None):
        self.pipe, self.batch_size, self.seed = pipe, batch_size, seed
        self.native = pipe.model.scheduler.native_size
        self.size = size or self.native

    def with_seed(self, seed: int) -> "Runner":
        """The same with another seed."""
        return Runner(self.pipe, self.batch_size, seed, self.size)

    def ids(self, pictures: np.ndarray) -> np.ndarray:
        """float32 [n Y X 3] in [0, 1] -> int32 [n H W]"""
        return map_batches(self.pipe.encode_image, _resized(pictures, self.native), self.batch_size)

    def encode(self, pairs: Pairs) -> Encoded:
        """The ids of both pictures, and these ids decoded."""
        ids = [self.ids(pictures) for pictures in (pairs.source, pairs.target)]
        return Encoded(*ids, *(self.decode(each) for each in ids))

    def decode(self, ids: np.ndarray) -> np.ndarray:
        """int32 [n H W] -> float32 [n Y X 3] in [0, 1]"""
        return _resized(map_batches(self.pipe.decode_image, ids, self.batch_size), self.size)

    def edit(self, pairs: Pairs, source_ids: np.ndarray, **settings: Any) -> dict:
        """Edits every source; pair number i draws from (seed, i). -> tokens, keep, relevance [n H W], attention [n J N] and passes [n]"""
        key, found, ahead = jax.random.key(self.seed), [], []
        for batch, count in tqdm(list(in_batches(range(len(pairs)), self.batch_size)), disable=None, leave=False):
            indices = np.array(batch)
            keys = jax.vmap(lambda number: jax.random.fold_in(key, number))(np.asarray(pairs.numbers)[indices])
            text = [self.pipe.encode(pairs.instructions[index]) for index in indices]
            ahead.append((self.pipe.edit_tokens(source_ids[indices], text, keys=keys, **settings), count))
            if len(ahead) > 1:  # the device works on this batch while the host takes the one before
                found.append(_columns(*ahead.pop(0)))
        found.append(_columns(*ahead.pop()))
        return {name: np.concatenate([part[name] for part in found]) for name in found[0]}

    def attention(self, pairs: Pairs, source_ids: np.ndarray, **settings: Any) -> np.ndarray:
        """The `attention` of `edit` alone, the same numbers. -> [n J N]

        In the only step of a decode no token has been drawn, so guidance has no say in it: its other copies of the batch are left out,
        and as many pairs more are edited at once.
        """
        used = self.pipe.settings(**settings)
        if used.steps > 1:
            return self.edit(pairs, source_ids, **settings)["attention"]
        copies = 3 if used.image_guided else 2 if used.guided else 1
        alone = Runner(self.pipe, self.batch_size * copies, self.seed, self.size)
        unguided = {"guidance_scale": 1.0, "image_guidance_scale": 1.0}
        return alone.edit(pairs, source_ids, **(settings | unguided))["attention"]

    def relevance(self, attention: np.ndarray, grid: tuple[int, int], layers: Sequence[int], kind: str) -> np.ndarray:
        """Relevance [n H W], filtered as `kind` says, of some of the layers in `attention` [n J N]."""
        mgt_grid = tuple(side // self.pipe.model.mgt.config.stride for side in grid)
        return np.asarray(localize.localize(attention[:, layers], mgt_grid, grid, kind=kind))

    def hold(self, free: dict, source_ids: np.ndarray, threshold: float, **settings: Any) -> dict:
        """What `edit` gives with this hold threshold, from `free`, an edit of one step without hold that read all layers.

        The only step of a decode commits every token, and what it draws for one does not depend on what is held elsewhere.
        """
        used = self.pipe.settings(**settings)
        relevance = self.relevance(free["attention"], source_ids.shape[1:], list(used.layers), used.filter)
        keep = np.asarray(localize.hold_mask(relevance, threshold))
        tokens = np.where(keep, source_ids, free["tokens"])
        return free | {"tokens": tokens, "keep": keep, "relevance": relevance}


def _columns(edit, count) -> dict[str, np.ndarray]:
    """What is kept of the first samples of a batch."""
    return {name: np.asarray(getattr(edit, name))[:count] for name in _COLUMNS}


def _resized(pictures, side):
    """[n Y X 3] -> [n side side 3]"""
    if pictures.shape[1] == side:
        return pictures
    return np.stack([images.to_pixels(images.to_image(picture), (side, side)) for picture in pictures])
