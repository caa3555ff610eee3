"""From attention to a keep mask: consolidate, rescale, filter, upsample, compare. Pure array functions, per sample.

Axes    B batch, J blocks, R weightings of the text, N positions of the attention grid (h w, row-major); H W the token grid
Source  paper, 'multi-layer attention consolidation'; released attention post-processing
Differs any batch and any grid (Q10); threshold > 1 holds everything, also where bicubic overshoot lifts the relevance above it
"""

from functools import lru_cache

import jax
import jax.numpy as jnp
import numpy as np

from editmgt_jax.shapes import Array, Bool, Float, Scalar

EPSILON = 1e-8
WINDOW = 5  # side of the local-variance window; the strength never changes it

_EXACT = jax.lax.Precision.HIGHEST  # an accelerator's default would round the relevance to bfloat16


def localize(
    attention: Float[Array, "B *mean N"],
    grid: tuple[int, int],
    token_grid: tuple[int, int] | None = None,
    *,
    kind: str = "adaptive",
) -> Float[Array, "B H W"]:
    """Relevance on the token grid, about 0 (untouched) to 1 (what the instruction is about).

    attention   text-to-image attention of the conditional half; every axis between is averaged over
    grid        (h, w) of the attention, h * w = N
    token_grid  (H, W) of the image tokens, if it differs; the relevance is then interpolated and may leave [0, 1] a little
    kind        static, see `filter_relevance`
    """
    relevance = rescale(consolidate(attention))
    if relevance.shape[1] != grid[0] * grid[1]:
        raise ValueError(f"a grid of {grid[0]} x {grid[1]} has {grid[0] * grid[1]} positions, got {relevance.shape[1]}")
    relevance = filter_relevance(relevance.reshape(-1, *grid), kind)  # [B h w]
    return upsample(relevance, token_grid or grid)


def consolidate(attention: Float[Array, "B *mean N"]) -> Float[Array, "B N"]:
    """Mean over everything but the samples and the positions, such as J and R."""
    return jnp.mean(attention.astype(jnp.float32), axis=tuple(range(1, attention.ndim - 1)))


def rescale(relevance: Float[Array, " B *grid"]) -> Float[Array, " B *grid"]:
    """Each sample to [0, 1]."""
    low, high = _range(relevance)
    return (relevance - low) / (high - low + EPSILON)


def _range(relevance):
    axes = tuple(range(1, relevance.ndim))
    return jnp.min(relevance, axes, keepdims=True), jnp.max(relevance, axes, keepdims=True)


def filter_relevance(
    relevance: Float[Array, "B h w"], kind: str = "adaptive", strength: float = 1.0, keep_peaks: bool = True
) -> Float[Array, "B h w"]:
    """Smooth the relevance on its grid, keeping each sample's range.

    kind        'adaptive' (blur less where the relevance varies), 'gaussian' or 'none'
    strength    scales the width of the blur; static, for it sets the size of the kernel
    keep_peaks  give the highest tenth of the cells most of their old relevance back
    """
    if kind not in FILTERS:
        raise ValueError(f"unknown filter {kind!r}: choose one of {', '.join(FILTERS)}")
    if strength < 0:
        raise ValueError(f"the filter strength must not be negative, got {strength}")
    if kind == "none":
        return relevance
    smooth = FILTERS[kind](relevance, strength)
    if keep_peaks:
        peak = _upper_quantile(relevance, 0.9)
        smooth = jnp.where(relevance > peak, 0.7 * relevance + 0.3 * smooth, smooth)
    low, high = _range(relevance)
    smooth_low, smooth_high = _range(smooth)
    varies = smooth_high > smooth_low
    unit = (smooth - smooth_low) / jnp.where(varies, smooth_high - smooth_low, 1.0)
    return jnp.where(varies, unit * (high - low) + low, smooth)


def _adaptive(relevance, strength):
    weight = 1 - 0.7 * rescale(local_variance(relevance))
    return weight * blur(relevance, 1.5 * strength) + (1 - weight) * relevance


FILTERS = {"adaptive": _adaptive, "gaussian": lambda relevance, strength: blur(relevance, 2 * strength), "none": None}


def blur(relevance: Float[Array, "B h w"], sigma: float) -> Float[Array, "B h w"]:
    """Gaussian blur with half-sample-symmetric edges, as two small matrix products."""
    height, width = relevance.shape[1:]
    return _separable(relevance, _gaussian_matrix(height, sigma), _gaussian_matrix(width, sigma))


def local_variance(relevance: Float[Array, "B h w"]) -> Float[Array, "B h w"]:
    """Population variance in the window around each position, same edges as `blur`."""
    height, width = relevance.shape[1:]
    mean = _separable(relevance, _window_matrix(height), _window_matrix(width))
    rows, columns = (_extended(side, WINDOW // 2) for side in (height, width))
    wide = relevance[:, rows][..., columns]  # [B h+4 w+4]
    total = jnp.zeros_like(relevance)
    for top in range(WINDOW):  # sums of slices: on CPUs 20 times as fast as a gather of all windows
        for left in range(WINDOW):
            total += jnp.square(wide[:, top : top + height, left : left + width] - mean)
    return total / WINDOW**2


def upsample(relevance: Float[Array, "B h w"], grid: tuple[int, int]) -> Float[Array, "B H W"]:
    """Bicubic interpolation (a = -0.75, half-pixel centres, edge clamped, not clipped) to a grid (H, W)."""
    if relevance.shape[1:] == tuple(grid):
        return relevance
    shape = (len(relevance), *grid)
    return jax.image.resize(relevance, shape, "cubic-pytorch", antialias=False, precision=_EXACT)


def hold_mask(
    relevance: Float[Array, " B *grid"],
    threshold: Scalar | Float[Array, " B"],
    editable: Bool[Array, " B *grid"] | None = None,
) -> Bool[Array, " B *grid"]:
    """Where the reference is kept: relevance < threshold, and outside the user's own mask.

    threshold  may be traced; 0 switches the relevance off, above 1 everything is kept
    editable   the user's mask of what may change
    """
    threshold = jnp.asarray(threshold, jnp.float32).reshape((-1,) + (1,) * (relevance.ndim - 1))
    keep = (threshold > 0) & ((relevance < threshold) | (threshold > 1))
    return keep if editable is None else keep | ~editable


def _separable(relevance, rows, columns):
    return jnp.einsum("Hh,bhw,Ww->bHW", rows, relevance, columns, precision=_EXACT)


def _upper_quantile(relevance, share: float):
    """jnp.quantile of each sample, of which only the highest values are sorted. [B h w] -> [B 1 1]"""
    flat = relevance.reshape(len(relevance), -1)
    rank = share * (flat.shape[1] - 1)
    low = int(rank)
    count = flat.shape[1] - low
    top = jax.lax.optimization_barrier(jax.lax.top_k(flat, count)[0])  # [B count], descending; else CPUs sort all
    below, above = top[:, count - 1], top[:, max(count - 2, 0)]
    part = np.float32(rank - low)
    return (below * (1 - part) + above * part)[:, None, None]


# Small constants, made on the host.


def _reflected(size: int, radius: int) -> np.ndarray:
    """Index of each neighbour within `radius`, reflected at the edges as often as it takes. -> int [size, 2 radius + 1]"""
    index = (np.arange(size)[:, None] + np.arange(-radius, radius + 1)) % (2 * size)
    return np.where(index < size, index, 2 * size - 1 - index)


def _extended(size: int, radius: int) -> np.ndarray:
    """Positions -radius ... size + radius - 1, reflected at the edges. -> int [size + 2 radius]"""
    return np.concatenate(
        [_reflected(size, radius)[0, :radius], np.arange(size), _reflected(size, radius)[-1, -radius:]]
    )


@lru_cache
def _window_matrix(size: int) -> np.ndarray:
    """Means over the window around each position. -> float32 [size size]"""
    matrix = np.zeros((size, size))
    np.add.at(matrix, (np.arange(size)[:, None], _reflected(size, WINDOW // 2)), 1 / WINDOW)
    return matrix.astype(np.float32)


@lru_cache
def _gaussian_matrix(size: int, sigma: float) -> np.ndarray:
    radius = int(4 * sigma + 0.5)
    offsets = np.arange(-radius, radius + 1)
    kernel = np.exp(-0.5 * (offsets / sigma) ** 2) if radius else np.ones(1)
    matrix = np.zeros((size, size))
    np.add.at(matrix, (np.arange(size)[:, None], _reflected(size, radius)), kernel / kernel.sum())
    return matrix.astype(np.float32)
