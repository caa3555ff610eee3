"""Colour profiles (ICC): pictures in a profile of their own <-> sRGB, which models work in.

A picture in another RGB space than sRGB has its profile in `info["icc_profile"]`, where Pillow puts it.
"""

import functools
import io
import warnings

import numpy as np
from PIL import Image, ImageCms

KEY = "icc_profile"
SPACES = {"RGB": "RGB ", "L": "GRAY", "CMYK": "CMYK"}  # of the profiles that fit a mode
SAME = 1  # levels of 255 by which a profile may differ from sRGB and count as sRGB


def to_srgb(image: Image.Image) -> Image.Image:
    """An RGB picture in sRGB; as it is if it has no profile, or that of sRGB."""
    return _converted(image, _transforms(image.info[KEY])[0]) if KEY in image.info else image


def from_srgb(image: Image.Image, profile: bytes | None) -> Image.Image:
    """An sRGB picture in another profile; None is sRGB."""
    if profile is None:
        return image
    converted = _converted(image, _transforms(profile)[1])
    converted.info[KEY] = profile
    return converted


def as_rgb(image: Image.Image, name: str) -> Image.Image:
    """A picture of mode RGB, L or CMYK as RGB: in its own profile, if that is one of RGB, else in sRGB.

    A profile that is damaged, or of another kind of picture, is left out with a warning.
    """
    profile = image.info.pop(KEY, None)
    if not profile:
        return image.convert("RGB")
    try:
        space = ImageCms.ImageCmsProfile(io.BytesIO(profile)).profile.xcolor_space
        if space == SPACES["RGB"] and image.mode in ("RGB", "L"):
            _transforms(profile)
            image = image.convert("RGB")
            image.info[KEY] = profile
            return image
        if space == SPACES[image.mode]:
            return ImageCms.profileToProfile(image, io.BytesIO(profile), _srgb(), outputMode="RGB")
        fault = f"it is one of {space.strip()}"
    except (ImageCms.PyCMSError, OSError, TypeError, ValueError) as error:
        fault = str(error)
    warnings.warn(f"the colour profile of {name} is ignored: {fault}", stacklevel=4)
    return image.convert("RGB")


def _converted(image, transform) -> Image.Image:
    if transform is None:
        image = image.copy()
    else:
        image = ImageCms.applyTransform(image, transform)
    image.info.pop(KEY, None)
    return image


@functools.lru_cache(8)
def _transforms(profile: bytes):
    """-> (to sRGB, from sRGB), each None where it changes nothing. Errors: ImageCms.PyCMSError."""
    own = ImageCms.ImageCmsProfile(io.BytesIO(profile))
    found = [ImageCms.buildTransform(*pair, "RGB", "RGB") for pair in ((own, _srgb()), (_srgb(), own))]
    levels = np.linspace(0, 255, 9).round().astype(np.uint8)
    probe = np.stack(np.meshgrid(levels, levels, levels), axis=-1).reshape(27, 27, 3)
    seen = np.asarray(ImageCms.applyTransform(Image.fromarray(probe), found[0]), int)
    return (None, None) if np.abs(seen - probe).max() <= SAME else tuple(found)


@functools.cache
def _srgb():
    return ImageCms.createProfile("sRGB")
