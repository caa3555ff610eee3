"""An edited picture over its input, along a feathered seam.

Axes    as in `editmgt_jax.images`
"""

import numpy as np
from PIL import Image, ImageFilter

from editmgt_jax.images.geometry import mask_to_pixels

STRIP = 256  # rows that are mixed at a time: large pictures need little more memory than their own


def composite(image: Image.Image, edited: Image.Image, kept: np.ndarray, mask: np.ndarray | None = None) -> Image.Image:
    """The edited picture with the kept regions taken from the input, over a feathered seam.

    Args:
      image, edited: RGB pictures of the same size and colour profile, which the result has, too.
      kept: bool [H W] tokens to take from `image`. The seam lies inside them, one token wide; beyond it the
        pixels are exactly the input's.
      mask: bool [Y X], the user's own: where it is False, all pixels are the input's; its seam is a quarter of a
        token wide and lies inside.
    """
    cell = min(image.width / kept.shape[1], image.height / kept.shape[0])
    share = 1 - _inner(mask_to_pixels(kept, image.size), max(1, round(cell)))
    if mask is not None:
        share = share * _inner(mask, max(1, round(cell / 4)))
    before, after = np.asarray(image), np.asarray(edited)
    mixed = np.empty_like(before)
    for start in range(0, len(mixed), STRIP):
        rows = slice(start, start + STRIP)
        own = before[rows].astype(np.float32)
        mixed[rows] = np.round(own + share[rows, :, None] * (after[rows] - own))
    result = Image.fromarray(mixed)
    result.info = dict(image.info)
    return result


def _inner(region, radius):
    """float32 [Y X]: 0 outside the region, rising to 1 at `radius` pixels inside it."""
    soft = Image.fromarray(np.pad(region, radius, mode="edge").astype(np.uint8) * 255)
    soft = np.asarray(soft.filter(ImageFilter.BoxBlur(radius)), np.float32)[radius:-radius, radius:-radius] / 255
    return np.clip(2 * soft - 1, 0, 1) * region
