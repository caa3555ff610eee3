"""Global styles as functions of a picture, uint8 [Y X 3] -> uint8 [Y X 3]. Pure arrays."""

import numpy as np
from scipy import ndimage

_LUMA = np.asarray([0.299, 0.587, 0.114], np.float32)


def _uint8(values):
    return np.clip(np.rint(values), 0, 255).astype(np.uint8)


def grayscale(picture: np.ndarray) -> np.ndarray:
    """Luma in all channels."""
    return np.repeat(_uint8(picture @ _LUMA)[..., None], 3, -1)


def sepia(picture: np.ndarray) -> np.ndarray:
    """Luma in brown tones."""
    grey = (picture @ _LUMA)[..., None] / 255
    return _uint8(255 * grey ** np.asarray([0.75, 1.05, 1.6], np.float32))


def negative(picture: np.ndarray) -> np.ndarray:
    """Inverted channels."""
    return 255 - picture


def sketch(picture: np.ndarray) -> np.ndarray:
    """Dark strokes on white paper: the picture divided by its own blur ('colour dodge')."""
    grey = picture @ _LUMA
    blurred = ndimage.gaussian_filter(grey, picture.shape[0] / 22)
    strokes = np.clip((grey + 8) / (blurred + 8), 0, 1) ** 1.6
    return np.repeat(_uint8(250 * strokes)[..., None], 3, -1)


def poster(picture: np.ndarray) -> np.ndarray:
    """Three levels per channel, colours pushed away from grey."""
    smooth = ndimage.uniform_filter(picture.astype(np.float32), (3, 3, 0))
    grey = (smooth @ _LUMA)[..., None]
    vivid = np.clip(grey + 1.7 * (smooth - grey), 0, 255)
    return _uint8(np.floor(vivid / 86) * 127.5)


def pixels(picture: np.ndarray) -> np.ndarray:
    """Blocks of a sixteenth of the side, each of its mean colour."""
    size = picture.shape[0]
    block = max(2, size // 16)
    edges = np.arange(0, size, block)
    total = np.add.reduceat(np.add.reduceat(picture.astype(np.float32), edges, 0), edges, 1)
    lengths = np.diff([*edges, size])
    mean = total / (lengths[:, None] * lengths)[..., None]
    return _uint8(np.repeat(np.repeat(mean, lengths, 0), lengths, 1))


STYLES = {
    "grayscale": grayscale,
    "sepia": sepia,
    "negative": negative,
    "sketch": sketch,
    "poster": poster,
    "pixels": pixels,
}


def apply(name: str, picture: np.ndarray) -> np.ndarray:
    """Draws a picture uint8 [Y X 3] in a style, a key of `STYLES`."""
    return STYLES[name](picture)
