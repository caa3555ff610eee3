"""What an edit changes where it should not: tokens and pixels outside of the true mask.

    flipped_*        share of tokens that are not the source's: outside the mask, in the band around it, far from it
    psnr_outside     of the edited picture against the source, outside the mask; psnr_band and psnr_far apart
    psnr_outside_vq  against the source as the image tokenizer shows it
    psnr_ceiling     of that picture against the source: no token editor without compositing can be above it
    l1_inside        against the target, inside the mask
    changed_inside   share of pixels inside the mask that differ clearly from the source
    changed_inside_vq  that differ clearly both from the source and from the source as the image tokenizer shows it
    noop             1 where that share (without a tokenizer, `changed_inside`) is below NOOP_SHARE. Figures outside the mask say nothing
                     there, and `psnr_outside_edited` and `flipped_outside_edited` leave these edits out: doing nothing wins nothing

Axes    H W tokens, Y X pixels
"""

import numpy as np
from PIL import Image
from scipy.ndimage import distance_transform_cdt

from editmgt_jax.evaluation import pixels
from editmgt_jax.evaluation.protocol import Traces
from editmgt_jax.images import mask_to_grid

CLEAR = 24 / 255  # largest channel difference from which a pixel has changed
NOOP_SHARE = 0.02  # of the pixels inside the mask
BAND = 1 / 32  # width of the boundary band, of the longer side
DIRECTIONS = {
    "flipped_outside": -1,
    "flipped_band": -1,
    "flipped_far": -1,
    "flipped_outside_edited": -1,
    "psnr_outside": 1,
    "psnr_band": 1,
    "psnr_far": 1,
    "psnr_outside_vq": 1,
    "psnr_outside_edited": 1,
    "l1_inside": -1,
    "noop": -1,
}
NAMES = (*DIRECTIONS, "psnr_ceiling", "changed_inside", "changed_inside_vq")  # of all figures


def band_of(mask: np.ndarray) -> np.ndarray:
    """bool [Y X]: the pixels outside the mask that are within BAND of it (city-block distance)."""
    if not mask.any():
        return np.zeros_like(mask)
    distance = distance_transform_cdt(~mask, metric="taxicab")
    return ~mask & (distance <= max(1, round(BAND * max(mask.shape))))


def leakage(
    edited: Image.Image,
    source: Image.Image,
    mask: np.ndarray,
    target: Image.Image | None = None,
    traces: Traces | None = None,
) -> dict[str, float]:
    """The figures of one edited picture; all pictures have one size, the mask is bool [Y X]. NaN where a region is empty."""
    after, before = pixels.unit(edited), pixels.unit(source)
    outside, band = ~mask, band_of(mask)
    clear = np.abs(after - before).max(axis=-1) > CLEAR
    changed = shown = pixels.mean_where(clear.astype(float), mask)
    if traces is not None:
        idle = pixels.unit(traces.ceiling)
        clear &= np.abs(after - idle).max(axis=-1) > CLEAR
        shown = pixels.mean_where(clear.astype(float), mask)
    noop = shown < NOOP_SHARE
    found = {
        "psnr_outside": pixels.psnr_where(after, before, outside),
        "psnr_band": pixels.psnr_where(after, before, band),
        "psnr_far": pixels.psnr_where(after, before, outside & ~band),
        "changed_inside": changed,
        "noop": float("nan") if np.isnan(changed) else float(noop),
    }
    found["psnr_outside_edited"] = float("nan") if noop else found["psnr_outside"]
    if target is not None:
        found["l1_inside"] = pixels.mean_where(np.abs(after - pixels.unit(target)).mean(axis=-1), mask)
    if traces is not None:
        found["changed_inside_vq"] = shown
        found["psnr_outside_vq"] = pixels.psnr_where(after, idle, outside)
        found["psnr_ceiling"] = pixels.psnr_where(idle, before, outside)
        found |= flipped(traces.ids, traces.source_ids, mask, band)
        found["flipped_outside_edited"] = float("nan") if noop else found["flipped_outside"]
    return found


def flipped(ids: np.ndarray, source_ids: np.ndarray, mask: np.ndarray, band: np.ndarray) -> dict[str, float]:
    """Shares of tokens [H W] that are not the source's, outside of the tokens that cover any pixel of the mask.

    Args:
      band: of the mask, see `band_of`; tokens that cover any pixel of it are in the band.
    """
    covered, near = mask_to_grid(mask, ids.shape), mask_to_grid(mask | band, ids.shape)
    changed = (ids != source_ids).astype(float)
    return {
        "flipped_outside": pixels.mean_where(changed, ~covered),
        "flipped_band": pixels.mean_where(changed, near & ~covered),
        "flipped_far": pixels.mean_where(changed, ~near),
    }
