"""Pairs of procedural scenes."""

import dataclasses
import io
from collections.abc import Iterator

import numpy as np
from PIL import Image

from editmgt_jax.data.prepare.sources.parts import PART_PAIRS, Part, RawPair, SourceError, category_name


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


def scene_parts(rest: str, resolution: int) -> list[Part]:
    """Ranges of COUNT[:SEED] scenes, `resolution` pixels along a side. Errors: SourceError."""
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
