"""Drawings of an edit: heat maps, masks, the steps of a decode.

Axes    as in `editmgt_jax.images`
"""

from collections.abc import Sequence

import numpy as np
from PIL import Image, ImageDraw

from editmgt_jax.images.geometry import mask_to_pixels, to_image
from editmgt_jax.images.profiles import to_srgb

GREY = 0.5  # of hidden tokens
HEAT = 0.6  # share of the heat map in an overlay

# Heat map from cold to hot, interpolated in RGB.
_HEAT = np.array([[0.0, 0.0, 0.1], [0.3, 0.05, 0.5], [0.8, 0.2, 0.3], [1.0, 0.6, 0.1], [1.0, 1.0, 0.7]], np.float32)


def overlay(image: Image.Image, relevance: np.ndarray) -> Image.Image:
    """Heat map of relevance [H W], about 0 (dark) to 1 (bright), over a grey version of the picture."""
    smooth = Image.fromarray(np.asarray(relevance, np.float32)).resize(image.size, Image.Resampling.BICUBIC)
    heat = np.clip(np.asarray(smooth), 0, 1)
    stops = np.linspace(0, 1, len(_HEAT))
    colours = np.stack([np.interp(heat, stops, _HEAT[:, channel]) for channel in range(3)], axis=-1)
    grey = np.asarray(to_srgb(image).convert("L"), np.float32)[..., None] / 255
    return to_image((1 - HEAT) * grey + HEAT * colours)


def mask_picture(keep: np.ndarray, size: tuple[int, int]) -> Image.Image:
    """bool [H W] of kept tokens -> black and white picture, white = changed; it can be used as a mask."""
    return Image.fromarray((~mask_to_pixels(keep, size)).astype(np.uint8) * 255)


def hide(pixels: np.ndarray, hidden: np.ndarray) -> np.ndarray:
    """float [Y X 3] with the cells of hidden tokens (bool [H W]) in neutral grey."""
    return np.where(mask_to_pixels(hidden, pixels.shape[1::-1])[..., None], np.float32(GREY), pixels)


def strip(frames: Sequence[Image.Image], columns: int = 6, side: int = 256) -> Image.Image:
    """Numbered frames of one size in rows, scaled so that none is longer than `side`."""
    scale = min(1.0, side / max(frames[0].size))
    width, height = (max(1, round(length * scale)) for length in frames[0].size)
    gap, line = 4, 14
    columns = min(columns, len(frames))
    rows = -(-len(frames) // columns)
    sheet = Image.new("RGB", (columns * (width + gap) + gap, rows * (height + gap + line) + gap), "white")
    pen = ImageDraw.Draw(sheet)
    for index, frame in enumerate(frames):
        left, top = gap + index % columns * (width + gap), gap + index // columns * (height + gap + line)
        pen.text((left, top), f"{index + 1}/{len(frames)}", fill="black")
        sheet.paste(frame.resize((width, height), Image.Resampling.LANCZOS), (left, top + line))
    return sheet
