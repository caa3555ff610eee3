"""Pictures in files and memory <-> float arrays: reading, geometry, compositing, drawing, writing. No jax.

Axes    Y X pixels, H W tokens; sizes are (width, height) as PIL has them, arrays are rows first
Pixels  float32 in [0, 1], RGB. Every function is deterministic
"""

from editmgt_jax.images.compositing import composite
from editmgt_jax.images.drawing import hide, mask_picture, overlay, strip
from editmgt_jax.images.filling import fill
from editmgt_jax.images.geometry import (
    MAX_ASPECT,
    ImageError,
    check_size,
    extend,
    extension,
    mask_to_grid,
    mask_to_pixels,
    padding_mask,
    to_image,
    to_pixels,
    working_size,
)
from editmgt_jax.images.profiles import from_srgb, to_srgb
from editmgt_jax.images.reading import load, load_mask, read_notes
from editmgt_jax.images.sources import Readable
from editmgt_jax.images.writing import ANIMATED, FORMATS, check_distinct, check_output, check_size_of, save, save_steps

__all__ = [
    "ANIMATED",
    "FORMATS",
    "MAX_ASPECT",
    "ImageError",
    "Readable",
    "check_distinct",
    "check_output",
    "check_size",
    "check_size_of",
    "composite",
    "extend",
    "extension",
    "fill",
    "from_srgb",
    "hide",
    "load",
    "load_mask",
    "mask_picture",
    "mask_to_grid",
    "mask_to_pixels",
    "overlay",
    "padding_mask",
    "read_notes",
    "save",
    "save_steps",
    "strip",
    "to_image",
    "to_pixels",
    "to_srgb",
    "working_size",
]
