"""Files, bytes, PIL images and arrays -> upright RGB pictures.

Axes    as in `editmgt_jax.images`
"""

import io
import os
import warnings
from pathlib import Path

import numpy as np
from PIL import ExifTags, Image

from editmgt_jax.images.geometry import ImageError, check_size, size_text

Readable = str | os.PathLike | bytes | Image.Image | np.ndarray  # what `load` makes a picture of
_ROTATIONS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}  # by EXIF orientation


def load(source: Readable, name: str = "the image") -> Image.Image:
    """A path, PIL image or array -> an upright RGB picture within the size limits.

    Args:
      source: file name; bytes of a file; PIL image of any mode; or array [Y X], [Y X 1], [Y X 3] or [Y X 4]: uint8,
        uint16, bool, or float in [0, 1].
      name: of the picture in errors, if it is not a file.
    EXIF rotation is applied, 16 bits are scaled to 8, and transparency is composited on white with a warning.
    Errors: FileNotFoundError, ImageError.
    """
    image, name = _open(source, name)
    image = _to_rgb(image, name)
    check_size(image.size, name)
    return image


def load_mask(source: Readable, size: tuple[int, int]) -> np.ndarray:
    """A mask picture, white = change, as `load` takes it -> bool [Y X]; its size must be the image's `size`."""
    image, name = _open(source, "the mask")
    if image.size != tuple(size):
        raise ImageError(
            f"a mask must have the size of its image, {size_text(size)}; {name} is {size_text(image.size)}: resize it to match"
        )
    return np.asarray(_to_rgb(image, name).convert("L")) >= 128


def _open(source, name):
    """-> (upright PIL image of any mode, its name)"""
    if isinstance(source, Image.Image):
        return _upright(source), name
    if isinstance(source, (str, os.PathLike)):
        return _read(Path(source)), str(source)
    if isinstance(source, bytes):
        return _decode(io.BytesIO(source), name), name
    return _from_any_array(np.asarray(source), name), name


def _read(path: Path) -> Image.Image:
    if not path.is_file():
        found = "a folder is" if path.is_dir() else "there is none"
        raise FileNotFoundError(f"an image must be a file; {found} at {path}")
    return _decode(path, path)


def _decode(file, name) -> Image.Image:
    try:
        with Image.open(file) as image:
            image.load()  # so that a truncated file fails here
            return _upright(image)
    except Image.DecompressionBombError as error:
        raise ImageError(f"{name} is too large to read: {error}") from error
    except (OSError, SyntaxError, ValueError, EOFError) as error:
        raise ImageError(f"{name} must be a picture that Pillow can read, and it may be damaged: {error}") from error


def _upright(image):
    """The picture turned by its EXIF orientation, without the EXIF block, which would turn it again at the next loading.

    A damaged EXIF block is ignored.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # that the block is damaged
            orientation = image.getexif().get(ExifTags.Base.Orientation)
    except Exception:  # noqa: BLE001  (the pixels are good; Pillow raises many kinds for damaged EXIF blocks)
        orientation = None
    upright = image.transpose(_ROTATIONS[orientation]) if orientation in _ROTATIONS else image.copy()
    for key in ("exif", "Raw profile type exif", "xmp", "XML:com.adobe.xmp"):
        upright.info.pop(key, None)
    return upright


def _from_any_array(array, name):
    if array.ndim == 3 and array.shape[2] == 1:
        array = array[..., 0]
    if not (array.ndim == 2 or array.ndim == 3 and array.shape[2] in (3, 4)) or not array.size:
        raise ImageError(f"{name} as an array must be [Y X] or [Y X 1, 3 or 4]; got shape {array.shape}")
    if array.dtype == np.uint8:
        return Image.fromarray(array)
    return Image.fromarray(_to_8_bits(array, name))


def _to_8_bits(array, name):
    """bool, float in [0, 1], or wider integers that hold 16 bits -> uint8"""
    if array.dtype == bool:
        return array.astype(np.uint8) * 255
    scale = 1.0 if np.issubdtype(array.dtype, np.floating) else 65535.0
    if not np.isfinite(array).all() or array.min() < 0 or array.max() > scale:
        raise ImageError(
            f"{name} must be 8 or 16 bits a channel, or float in [0, 1]; got {array.dtype} "
            f"from {array.min()} to {array.max()}"
        )
    return np.round(array.astype(np.float64) * (255 / scale)).astype(np.uint8)


def _to_rgb(image, name):
    if image.mode == "F" or image.mode.startswith("I"):  # float, and 16 or 32 bits of grey
        return Image.fromarray(_to_8_bits(np.asarray(image), name)).convert("RGB")
    if image.has_transparency_data:
        image = image.convert("RGBA")
        if image.getextrema()[3][0] < 255:
            warnings.warn(f"{name} is partly transparent: its background becomes white", stacklevel=3)
        white = Image.new("RGBA", image.size, "white")
        return Image.alpha_composite(white, image).convert("RGB")
    return image.convert("RGB")
