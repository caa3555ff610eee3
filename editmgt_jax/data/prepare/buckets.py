"""Resolution buckets: the few picture sizes of training batches, and how a pair is fitted to one.

A pair belongs to the bucket with the aspect ratio nearest to its source's. Source and target are scaled to cover the bucket and
cropped at the centre, both in the same way.

Source  SDXL's micro-conditions say where the crop began; the released trainer cropped source and target independently
"""

import dataclasses
import math
from collections.abc import Iterable

from PIL import Image

from editmgt_jax.errors import UserError

UNIT = 32  # pixels; sides are multiples of it
ASPECTS = (1 / 2, 9 / 16, 2 / 3, 3 / 4, 4 / 5, 1, 5 / 4, 4 / 3, 3 / 2, 16 / 9, 2)  # width over height


def bucket_sizes(resolution: int) -> tuple[tuple[int, int], ...]:
    """(width, height) of each bucket, each about as large as a square of `resolution` pixels a side."""
    if resolution < UNIT or resolution % UNIT:
        raise UserError(f"resolution must be a positive multiple of {UNIT} pixels; got {resolution}")
    sizes = {}
    for aspect in ASPECTS:
        width = round(resolution * math.sqrt(aspect) / UNIT) * UNIT
        height = round(resolution / math.sqrt(aspect) / UNIT) * UNIT
        sizes[max(width, UNIT), max(height, UNIT)] = None
    return tuple(sizes)


def bucket_of(size: tuple[int, int], buckets: Iterable[tuple[int, int]]) -> tuple[int, int]:
    """The bucket with the aspect ratio nearest to a picture's, on a logarithmic scale."""
    aspect = math.log(size[0] / size[1])
    return min(buckets, key=lambda bucket: abs(math.log(bucket[0] / bucket[1]) - aspect))


@dataclasses.dataclass(frozen=True)
class Placement:
    """How a picture is fitted to a bucket: scaled to `scaled`, then cropped from (left, top)."""

    scaled: tuple[int, int]
    left: int
    top: int

    @classmethod
    def covering(cls, size: tuple[int, int], bucket: tuple[int, int]) -> "Placement":
        """The placement in which a picture of `size` (width, height) just covers `bucket`, centred."""
        scale = max(bucket[0] / size[0], bucket[1] / size[1])
        scaled = tuple(max(side, round(length * scale)) for length, side in zip(size, bucket, strict=True))
        return cls(scaled, (scaled[0] - bucket[0]) // 2, (scaled[1] - bucket[1]) // 2)


def crop_to_bucket(
    image: Image.Image,
    placement: Placement,
    bucket: tuple[int, int],
    resample: Image.Resampling = Image.Resampling.LANCZOS,
) -> Image.Image:
    """The picture, scaled and cropped to a bucket. Pictures of one pair must share their placement."""
    if image.size != placement.scaled:
        image = image.resize(placement.scaled, resample)
    left, top = placement.left, placement.top
    return image.crop((left, top, left + bucket[0], top + bucket[1]))
