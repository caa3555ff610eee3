"""Measures of two pictures that need no model, as the benchmarks' reference codes define them. One pair.

Axes    Y X pixels; pictures uint8 or float [Y X 3], compared in [0, 1] as float64
Source  L1, L2: MagicBrush's evaluation. Masked MSE, PSNR, SSIM: PIE-Bench's, which multiplies both pictures by the mask
Differs PSNR of equal pictures is `EQUAL`, not infinite
"""

import numpy as np
from PIL import Image

EQUAL = 100.0  # dB


def unit(picture: Image.Image | np.ndarray) -> np.ndarray:
    """A picture as float64 [Y X 3] in [0, 1]."""
    array = np.asarray(picture)
    return array / 255.0 if array.dtype == np.uint8 else array.astype(np.float64)


def resized_to(picture: Image.Image, other: Image.Image) -> Image.Image:
    """The picture in the other's size, bicubic, as `Image.resize` does by default."""
    return picture if picture.size == other.size else picture.resize(other.size, Image.Resampling.BICUBIC)


def l1(a: np.ndarray, b: np.ndarray) -> float:
    """Mean absolute error."""
    return float(np.abs(unit(a) - unit(b)).mean())


def mse(a: np.ndarray, b: np.ndarray, where: np.ndarray | None = None) -> float:
    """Mean squared error. With `where`, bool [Y X], the mean is over the whole pictures, zero where it is False."""
    difference = np.square(unit(a) - unit(b))
    return float((difference if where is None else difference * where[..., None]).mean())


def psnr_of(error: float) -> float:
    """Mean squared error -> dB, at most `EQUAL`."""
    return EQUAL if error <= 10 ** (-EQUAL / 10) else float(-10 * np.log10(error))


def mean_where(values: np.ndarray, where: np.ndarray) -> float:
    """Mean of values [Y X] over the True pixels alone; NaN if there is none."""
    return float(values[where].mean()) if where.any() else float("nan")


def mse_where(a: np.ndarray, b: np.ndarray, where: np.ndarray) -> float:
    """Mean squared error over the True pixels alone; NaN if there is none."""
    return mean_where(np.square(unit(a) - unit(b)).mean(axis=-1), where)


def psnr_where(a: np.ndarray, b: np.ndarray, where: np.ndarray) -> float:
    """PSNR in dB over the True pixels alone; NaN if there is none."""
    error = mse_where(a, b, where)
    return error if np.isnan(error) else psnr_of(error)


def ssim(a: np.ndarray, b: np.ndarray, where: np.ndarray | None = None) -> float:
    """Structural similarity: Gaussian window of 11 pixels, sigma 1.5, where the window lies inside the picture.

    With `where`, bool [Y X], both pictures are multiplied by it first.
    """
    from skimage.metrics import structural_similarity

    a, b = unit(a), unit(b)
    if where is not None:
        a, b = a * where[..., None], b * where[..., None]
    window = {"gaussian_weights": True, "sigma": 1.5, "use_sample_covariance": False}
    return float(structural_similarity(a, b, data_range=1.0, channel_axis=-1, **window))
