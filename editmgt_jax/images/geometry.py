"""Sizes, paddings and masks of pictures, and pictures as arrays.

Axes    as in `editmgt_jax.images`
"""

import numbers
from collections.abc import Sequence

import numpy as np
from PIL import Image

from editmgt_jax.errors import UserError
from editmgt_jax.images.profiles import to_srgb

MAX_ASPECT = 4.0  # longer side over shorter side
MIN_SIDE = 16  # pixels
MAX_PIXELS = 178_956_970  # of an image: twice what Pillow warns of


class ImageError(UserError):
    """A picture that cannot be read, used or written; names the file and the rule."""


def check_size(size: tuple[int, int], name: str = "the image") -> None:
    """Errors: ImageError when a picture is too small, too large or too elongated to be edited."""
    short, long = sorted(size)
    if short * long > MAX_PIXELS:
        raise ImageError(f"an image may have at most {MAX_PIXELS} pixels; {name} is {size_text(size)}: make it smaller")
    if short < MIN_SIDE or long > MAX_ASPECT * short:
        raise ImageError(
            f"an image must have sides of at least {MIN_SIDE} pixels, the longer one at most {MAX_ASPECT:g} times the "
            f"shorter; {name} is {size_text(size)}: crop or pad it"
        )


def working_size(size: tuple[int, int], native: int, unit: int) -> tuple[int, int]:
    """The size at which a picture of `size` is edited: its aspect ratio, about native * native pixels.

    Args:
      native: side of the squares that the model was trained on; unit: sides become multiples of it.
    """
    aspect = np.sqrt(size[0] / size[1])
    width, height = (max(1, round(float(side / unit))) * unit for side in (native * aspect, native / aspect))
    return width, height


def to_pixels(image: Image.Image, size: tuple[int, int]) -> np.ndarray:
    """RGB picture -> float32 [Y X 3] of `size` (width, height), in sRGB."""
    if image.size != tuple(size):
        image = image.resize(size, Image.Resampling.LANCZOS)
    return np.asarray(to_srgb(image), np.float32) / 255


def to_image(pixels: np.ndarray, size: tuple[int, int] | None = None) -> Image.Image:
    """float [Y X 3] in [0, 1] -> RGB picture, resized to `size` where it differs."""
    image = Image.fromarray(np.round(np.clip(pixels, 0, 1) * 255).astype(np.uint8))
    return image if size is None or image.size == tuple(size) else image.resize(size, Image.Resampling.LANCZOS)


def extend(image: Image.Image, pad: Sequence[int]) -> Image.Image:
    """The picture with `pad` more pixels (left, top, right, bottom), which repeat its edges. Errors: ImageError."""
    left, top, right, bottom = extension(image.size, pad)
    pixels = np.pad(np.asarray(image), ((top, bottom), (left, right), (0, 0)), mode="edge")
    extended = Image.fromarray(pixels)
    extended.info = dict(image.info)
    return extended


def extension(size: tuple[int, int], pad: Sequence[int]) -> tuple[int, int, int, int]:
    """`pad` as four integers, checked: a picture of `size` may be extended by it. Errors: ImageError."""
    sides = pad.tolist() if isinstance(pad, np.ndarray) else pad
    sides = list(sides) if isinstance(sides, (list, tuple)) else [sides]
    whole = all(isinstance(p, numbers.Integral) and not isinstance(p, bool) and p >= 0 for p in sides)
    if len(sides) != 4 or not whole or not any(sides):
        raise ImageError(
            f"the padding must be four numbers of pixels (left, top, right, bottom), at least one above 0; got {pad!r}"
        )
    left, top, right, bottom = map(int, sides)
    check_size((size[0] + left + right, size[1] + top + bottom), "the extended image")
    return left, top, right, bottom


def padding_mask(size: tuple[int, int], pad: Sequence[int]) -> Image.Image:
    """White where `extend` adds pixels to a picture of `size`, black elsewhere."""
    left, top, right, bottom = extension(size, pad)
    inner = np.zeros((size[1], size[0]), np.uint8)
    return Image.fromarray(np.pad(inner, ((top, bottom), (left, right)), constant_values=255))


def mask_to_grid(mask: np.ndarray, grid: tuple[int, int]) -> np.ndarray:
    """bool [Y X] -> bool [H W]: the tokens in which the centre of a pixel of the mask lies, or whose centre lies in one.

    What `mask_to_pixels` made of a grid gives that grid again, if every token has the centre of a pixel.
    """
    tokens = np.zeros(grid, bool)
    rows, columns = (_nearest(side, cells) for side, cells in zip(mask.shape, grid, strict=True))
    y, x = np.nonzero(mask)
    tokens[rows[y], columns[x]] = True
    rows, columns = (_nearest(cells, side) for side, cells in zip(mask.shape, grid, strict=True))
    return tokens | mask[np.ix_(rows, columns)]


def _nearest(count, cells):
    """int [count]: which of `cells` the centre of each of `count` intervals lies in."""
    return (2 * np.arange(count) + 1) * cells // (2 * count)


def mask_to_pixels(tokens: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """bool [H W] -> bool [Y X] of a picture of `size` (width, height): each pixel is of the token in which its centre lies."""
    rows, columns = (_nearest(side, cells) for side, cells in zip(reversed(size), tokens.shape, strict=True))
    return tokens[np.ix_(rows, columns)]


def size_text(size: tuple[int, int]) -> str:
    """(width, height) for messages."""
    return f"{size[0]} x {size[1]} pixels"
