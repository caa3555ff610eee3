"""Sizes, paddings and masks of pictures, and pictures as arrays.

Axes    as in `editmgt_jax.images`
"""

import numpy as np
from PIL import Image

from editmgt_jax.errors import UserError

MAX_ASPECT = 4.0  # longer side over shorter side
MIN_SIDE = 16  # pixels


class ImageError(UserError):
    """A picture that cannot be read, used or written; names the file and the rule."""


def check_size(size: tuple[int, int], name: str = "the image") -> None:
    """Errors: ImageError when a picture is too small or too elongated to be edited."""
    short, long = sorted(size)
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
    """RGB picture -> float32 [Y X 3] of `size` (width, height)."""
    if image.size != tuple(size):
        image = image.resize(size, Image.Resampling.LANCZOS)
    return np.asarray(image, np.float32) / 255


def to_image(pixels: np.ndarray, size: tuple[int, int] | None = None) -> Image.Image:
    """float [Y X 3] in [0, 1] -> RGB picture, resized to `size` where it differs."""
    image = Image.fromarray(np.round(np.clip(pixels, 0, 1) * 255).astype(np.uint8))
    return image if size is None or image.size == tuple(size) else image.resize(size, Image.Resampling.LANCZOS)


def extend(image: Image.Image, pad: tuple[int, int, int, int]) -> Image.Image:
    """The picture with `pad` more pixels (left, top, right, bottom), which repeat its edges. Errors: ImageError."""
    _check_pad(pad)
    left, top, right, bottom = pad
    pixels = np.pad(np.asarray(image), ((top, bottom), (left, right), (0, 0)), mode="edge")
    check_size((pixels.shape[1], pixels.shape[0]), "the extended image")
    return Image.fromarray(pixels)


def padding_mask(size: tuple[int, int], pad: tuple[int, int, int, int]) -> Image.Image:
    """White where `extend` adds pixels to a picture of `size`, black elsewhere."""
    _check_pad(pad)
    left, top, right, bottom = pad
    inner = np.zeros((size[1], size[0]), np.uint8)
    return Image.fromarray(np.pad(inner, ((top, bottom), (left, right)), constant_values=255))


def _check_pad(pad):
    sides = list(pad) if isinstance(pad, (list, tuple)) else [pad]
    if len(sides) != 4 or any(isinstance(p, bool) or not isinstance(p, int) or p < 0 for p in sides) or not any(sides):
        raise ImageError(
            f"the padding must be four numbers of pixels (left, top, right, bottom), at least one above 0; got {pad!r}"
        )


def mask_to_grid(mask: np.ndarray, grid: tuple[int, int]) -> np.ndarray:
    """bool [Y X] -> bool [H W]: the tokens that cover any pixel of the mask."""
    covered = Image.fromarray(mask.astype(np.float32)).resize(grid[::-1], Image.Resampling.BOX)
    return np.asarray(covered) > 0.25 * grid[0] * grid[1] / mask.size  # a quarter of the share of one pixel


def mask_to_pixels(tokens: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """bool [H W] -> bool [Y X] of a picture of `size` (width, height)."""
    picture = Image.fromarray(tokens.astype(np.uint8) * 255)
    return np.asarray(picture.resize(size, Image.Resampling.NEAREST)) > 0


def size_text(size: tuple[int, int]) -> str:
    """(width, height) for messages."""
    return f"{size[0]} x {size[1]} pixels"
