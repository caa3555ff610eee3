"""Anything that holds a picture -> upright RGB pictures and masks.

Axes    as in `editmgt_jax.images`
"""

import warnings

import numpy as np
from PIL import ExifTags, Image

from editmgt_jax.images import profiles
from editmgt_jax.images.geometry import ImageError, check_size, size_text
from editmgt_jax.images.sources import Readable, open_source, to_8_bits

HALF = 128  # from here a grey value is white, an alpha value opaque
_ROTATIONS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}  # by EXIF orientation


def load(source: Readable, name: str = "the image", keep_profile: bool = False) -> Image.Image:
    """Anything that holds a picture -> an upright RGB picture within the size limits, in sRGB.

    Args:
      source: path of a file or pipe; bytes of a file, a data URI or a file open for reading; PIL image of any mode; or array
        [Y X], [Y X 1], [Y X 3] or [Y X 4] of any type of number: bool, whole numbers in 0..255 or 0..65535, floats in 0..1 or
        0..255.
      name: of the picture in errors, if it is not a file.
      keep_profile: whether pixels stay in the picture's own RGB profile, in `info["icc_profile"]` of the result.
    EXIF rotation is applied, colours are converted by the picture's profile, 16 bits are scaled to 8, and transparency is
    composited on white. A warning says that there was transparency, or another frame or page, or that a picture is large.
    Errors: FileNotFoundError, ImageError.
    """
    image, name = open_source(source, name)
    check_size(image.size, name)
    image = _to_rgb(_upright(image), name)
    return image if keep_profile else profiles.to_srgb(image)


def read_notes(source: Readable) -> dict[str, str]:
    """The texts in a PNG by their keys, as `save` writes them; none of other pictures. Errors: FileNotFoundError, ImageError."""
    image, _ = open_source(source, "the picture")
    return {str(key): str(text) for key, text in (getattr(image, "text", None) or {}).items()}


def load_mask(source: Readable, size: tuple[int, int], may_be_empty: bool = False) -> np.ndarray:
    """A mask, as `load` takes it -> bool [Y X], True = may change; its size must be the image's `size`.

    A mask with transparent parts means these (the picture with a hole, as MagicBrush and ComfyUI write it); any other one
    means its white: from half of 255, or of 65535, on, or 1 where no value is larger. A warning says that a mask is full.
    Errors: FileNotFoundError; ImageError, also for a mask that lets nothing change, unless it `may_be_empty`.
    """
    image, name = open_source(source, "the mask")
    image = _upright(image)
    if image.size != tuple(size):
        raise ImageError(
            f"a mask must have the size of its image, {size_text(size)}; {name} is {size_text(image.size)}: resize it to match"
        )
    mask, white = _mask_of(image, name)
    if not mask.any() and not may_be_empty:
        raise ImageError(
            f"a mask must be white where the image may change; {name} is nowhere: its brightest is {white}"
        )
    if mask.all():
        warnings.warn("the mask is full: all of the image may change", stacklevel=2)
    return mask


def _mask_of(image, name) -> tuple[np.ndarray, str]:
    """-> (bool [Y X], its brightest value in words). Errors: ImageError."""
    alpha = _alpha(image, name)
    if alpha is not None:
        hole = np.asarray(alpha) < HALF
        if hole.any():
            opaque = np.asarray(_flat(image, name).convert("RGB"))[~hole]
            if len(opaque) and (opaque == opaque[0]).all() and opaque[0].min() >= HALF:
                raise ImageError(
                    f"a mask means its transparent parts or its white ones; {name} has both, and no more: remove its alpha channel"
                )
            return hole, "opaque"
    if _is_deep(image):
        values = np.asarray(image)
        top = values.max()
        grey = to_8_bits(values, name, 1 if values.dtype.kind in "iu" and 0 < top <= 1 else None)
        return grey >= HALF, f"{top:g}"
    grey = np.asarray(_flat(image, name).convert("RGB").convert("L"))
    top = int(grey.max())
    return grey >= (1 if top == 1 else HALF), f"{top} of 255"


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


def _to_rgb(image, name):
    """RGB, on white where it is transparent; in its own profile if that is one of RGB."""
    alpha = _alpha(image, name)
    image = profiles.as_rgb(_flat(image, name), name)
    if alpha is not None and alpha.getextrema()[0] < 255:
        warnings.warn(f"{name} is partly transparent: its background becomes white", stacklevel=3)
        info = image.info
        image = Image.composite(image, Image.new("RGB", image.size, "white"), alpha)
        image.info = info
    return image


def _alpha(image, name) -> Image.Image | None:
    """The opacity of a picture, of mode L; None if nothing in it can be transparent."""
    clear = image.info.get("transparency")
    if _is_deep(image):
        if not isinstance(clear, int):
            return None
        values = np.asarray(image)
        if not (values == clear).any():  # writers of 8 bits, as Pillow, mean the grey that has this value in 8 bits
            clear *= 257
        return Image.fromarray(np.where(values == clear, 0, 255).astype(np.uint8))
    if not image.has_transparency_data:
        return None
    if isinstance(clear, tuple) and max(clear) > 255:  # of 16 bits, of which Pillow keeps 8
        image = image.copy()
        image.info["transparency"] = tuple(value >> 8 for value in clear)
    return _converted(image, "RGBA", name).getchannel("A")


def _flat(image, name) -> Image.Image:
    """A picture without its opacity, of mode RGB, L or CMYK, and of its `info` the colour profile alone."""
    profile = image.info.get(profiles.KEY)
    if _is_deep(image):
        image = Image.fromarray(to_8_bits(np.asarray(image), name, 65535 if image.mode.startswith("I;16") else None))
    elif image.mode in ("1", "L", "LA", "La"):
        image = _converted(image, "L", name)
    elif image.mode != "CMYK":
        image = _converted(image.convert("RGBA") if image.mode == "RGBa" else image, "RGB", name)
    image.info = {} if profile is None else {profiles.KEY: profile}
    return image


def _is_deep(image) -> bool:
    """Whether a picture is grey of 16 or 32 bits, or of floats."""
    return image.mode == "F" or image.mode.startswith("I")


def _converted(image, mode, name) -> Image.Image:
    try:
        return (image.convert("LA") if image.mode == "La" else image).convert(mode)
    except (ValueError, OSError, TypeError) as error:  # TypeError: of notes in `info` that are of no use
        raise ImageError(f"{name} must be a picture whose mode can become RGB; got {image.mode}: {error}") from error
