"""Pictures -> the inputs of CLIP and DINO, as the benchmarks' reference codes make them with torchvision and PIL.

Axes    n pictures, C channels, Y X pixels
Source  OpenAI's CLIP: shorter side 224 bicubic, centre crop. DINO in MagicBrush's evaluation: shorter side 256 bicubic, centre
        crop 224. PIE-Bench's structure distance: shorter side 224 bilinear, pixels of 0 to 255 normalised as if they were of 0 to 1
"""

from collections.abc import Sequence

import numpy as np
from PIL import Image

CLIP_MEAN, CLIP_STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)
IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


def shorter_side(image: Image.Image, side: int) -> Image.Image:
    """Bicubic resize to a shorter side of `side`; the longer one is rounded down."""
    width, height = image.size
    if min(width, height) == side:
        return image
    longer = int(side * max(width, height) / min(width, height))
    return image.resize((side, longer) if width <= height else (longer, side), Image.Resampling.BICUBIC)


def centre_crop(image: Image.Image, side: int) -> Image.Image:
    """The square in the middle; where a margin is odd, its half is rounded to even, as torchvision does."""
    left, top = round((image.width - side) / 2), round((image.height - side) / 2)
    return image.crop((left, top, left + side, top + side))


def normalised(images: Sequence[Image.Image], mean: Sequence[float], std: Sequence[float]) -> np.ndarray:
    """RGB pictures of one size -> float32 [n C Y X]: (pixels of 0 to 1 - mean) / std."""
    pixels = np.stack([np.asarray(image.convert("RGB"), np.float32) for image in images]) / np.float32(255)
    return ((pixels - np.float32(mean)) / np.float32(std)).transpose(0, 3, 1, 2)


def clip_pixels(images: Sequence[Image.Image], side: int = 224) -> np.ndarray:
    """-> float32 [n 3 side side]"""
    cropped = [centre_crop(shorter_side(image, side), side) for image in images]
    return normalised(cropped, CLIP_MEAN, CLIP_STD)


def dino_pixels(images: Sequence[Image.Image]) -> np.ndarray:
    """-> float32 [n 3 224 224]"""
    cropped = [centre_crop(shorter_side(image, 256), 224) for image in images]
    return normalised(cropped, IMAGENET_MEAN, IMAGENET_STD)
