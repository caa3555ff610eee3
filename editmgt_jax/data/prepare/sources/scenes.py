"""Pairs of procedural scenes."""

import dataclasses
import io
import re
from collections.abc import Iterator

import numpy as np
from PIL import Image

from editmgt_jax.data.prepare.sources.parts import PART_PAIRS, Part, RawPair, SourceError, category_name
from editmgt_jax.declarations import MAX_SEED

MOST = 10**8  # scenes of a source


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

    found = re.fullmatch(r"([0-9]{1,12})(?::([0-9]{1,12}))?", rest)
    count, seed = (int(number or 0) for number in found.groups()) if found else (0, 0)
    if not 1 <= count <= MOST or seed > MAX_SEED:
        raise SourceError(
            f"a source of scenes must be scenes:COUNT or scenes:COUNT:SEED, COUNT from 1 to {MOST}, SEED to {MAX_SEED}; got scenes:{rest}"
        )
    config = SceneConfig(size=resolution, seed=seed)
    return [
        ScenePart(f"scenes {first}", min(PART_PAIRS, count - first), config, first)
        for first in range(0, count, PART_PAIRS)
    ]


def _png(array) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(np.asarray(array, np.uint8) * (255 if array.dtype == bool else 1)).save(buffer, "PNG")
    return buffer.getvalue()
