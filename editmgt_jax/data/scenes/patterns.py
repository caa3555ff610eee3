"""Patterns painted over the main colour of an object. Pure arrays: no files, no sprites.

Axes    H W rows and columns of a picture whose canvas is 128 pixels
"""

import numpy as np

from editmgt_jax.data.scenes import colours

_LIGHT = 185  # mean luma above which an object is light, so that dark marks show on it


def _stripes(rows, columns):
    return (rows + 0.45 * columns) % 28 < 13


def _dots(rows, columns):
    spacing, radius = 30, 9.5
    row = np.floor(rows / (0.8 * spacing))
    down = rows - (row + 0.5) * 0.8 * spacing
    across = (columns + 0.5 * spacing * (row % 2)) % spacing - spacing / 2
    return down**2 + across**2 < radius**2


def _checks(rows, columns):
    return (rows // 18 + columns // 18) % 2 == 0


PATTERNS = {"striped": _stripes, "dotted": _dots, "checkered": _checks}


def draw(rgb: np.ndarray, opacity: np.ndarray, pattern: str) -> np.ndarray:
    """Mark the main colour of an object with white, or where it is light with a dark shade of itself.

    uint8 [H W 3], opacity [H W] -> uint8 [H W 3]. Shading is kept, and so are other colours.
    """
    height, width = opacity.shape
    rows, columns = np.mgrid[:height, :width].astype(np.float32)
    area = colours.main_area(rgb, opacity)
    luma = rgb @ np.asarray([0.299, 0.587, 0.114], np.float32)
    weights = area * opacity
    if (luma * weights).sum() > _LIGHT * weights.sum():
        marks = rgb * np.asarray([0.42, 0.34, 0.42], np.float32)
    else:
        marks = np.repeat((150 + 0.42 * luma)[..., None], 3, -1)
    amount = (area * PATTERNS[pattern](rows, columns))[..., None]
    return np.clip(np.rint(rgb + amount * (marks - rgb)), 0, 255).astype(np.uint8)
