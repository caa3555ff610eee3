"""A picture with what lies under a mask replaced by its surroundings, for models that must not see it.

Axes    as in `editmgt_jax.images`
"""

import numpy as np
from PIL import Image

COARSE = 1 << 20  # pixels at which the fill is computed at most


def fill(image: Image.Image, mask: np.ndarray) -> Image.Image:
    """The picture with smooth colours of the pixels around where the mask (bool [Y X]) is True.

    What was there has no influence; with a full mask the result is mid grey.
    """
    known = Image.fromarray((~mask).astype(np.uint8) * 255)
    blank = Image.new("RGB", image.size)
    seen = Image.composite(image, blank, known)
    factor = max(1, int(np.ceil(np.sqrt(mask.size / COARSE))))
    colour, weight = (np.asarray(part.reduce(factor), np.float32) for part in (seen, known))  # [y x 3], [y x]
    smooth = _pull_push(colour, weight / 255)
    filled = Image.fromarray(np.round(np.clip(smooth, 0, 255)).astype(np.uint8))
    if filled.size != image.size:
        filled = filled.resize(image.size, Image.Resampling.BILINEAR)
    result = Image.composite(image, filled, known)
    result.info = dict(image.info)
    return result


def _pull_push(colour, weight):
    """[y x 3] sums of known colours, [y x] their weights -> colours [y x 3]; where nothing is known, those of coarser levels."""
    if weight.min() > 0 or weight.size == 1:
        return np.where(weight[..., None] > 0, colour / np.maximum(weight, 1e-6)[..., None], 127.5)
    even = [(0, side % 2) for side in weight.shape]
    halved = [
        np.pad(part, even + [(0, 0)] * (part.ndim - 2)).reshape(
            -(-weight.shape[0] // 2), 2, -(-weight.shape[1] // 2), 2, *part.shape[2:]
        )
        for part in (colour, weight)
    ]
    coarse = _pull_push(*(part.mean(axis=(1, 3)) for part in halved))
    rows, columns = (np.arange(side) // 2 for side in weight.shape)
    own = colour / np.maximum(weight, 1e-6)[..., None]
    return np.where(weight[..., None] > 0, own, coarse[np.ix_(rows, columns)])
