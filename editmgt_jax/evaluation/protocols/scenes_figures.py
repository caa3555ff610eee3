"""Figures of edits of scenes, where the right answer is known.

Success is measured, by category:

    colour      the measured colour name of the decoded pixels in the true mask is the one asked for
    pattern     a kind of colour: in the true mask, the colours of the decoded result are nearer to those of the VQ-decoded target than
                to those of the VQ-decoded source, wherever they lie; the instruction does not say where a stripe begins
    others      in the true mask, the decoded result is nearer (squared error) to the VQ-decoded target than to the
                VQ-decoded source; so too for black, white and gray, which have no measured name

`success_smoothed` is that of pictures smoothed by a Gaussian of 1/32 of their side, the size of a token of the default model: whether the edit
happened, whatever its details. Pixel by pixel a blur between the possibilities beats a sharp thing in another pose.

`recognised` (add and replace) is stricter: the result is nearer to the true target than to what the target would be with
any of nine other objects in place of the new one; a guess is right once in ten.

Sharpness is measured inside the true mask: `lpips_inside` is the perceptual distance of the target from the target with the edited region
in it, `gradient_share` (add and replace) the gradient energy there as a share of the target's. Noise has gradients, too: read both.

The leakage suite of `evaluation.leakage` is of the edits, and of these composited over their sources.

Axes    n pairs; Y X pixels; H W tokens
"""

from collections.abc import Sequence

import numpy as np
from scipy.ndimage import gaussian_filter

from editmgt_jax import images
from editmgt_jax.data.scenes.source import name_colour
from editmgt_jax.evaluation import metrics
from editmgt_jax.evaluation.features import Lpips
from editmgt_jax.evaluation.leakage import leakage
from editmgt_jax.evaluation.protocol import Traces
from editmgt_jax.evaluation.protocols.scenes_pairs import Encoded, Pairs

DISTRACTORS = 9
SMOOTHED = 1 / 32  # of the side


def succeeded(
    pairs: Pairs, edited: np.ndarray, source: np.ndarray, target: np.ndarray, smoothed: float = 0.0
) -> np.ndarray:
    """Success of each pair; pictures are VQ-decoded, float [n Y X 3]. -> bool [n]

    Args:
      smoothed: standard deviation of the Gaussian, as a share of the side, but for colours.
    """
    sigma = smoothed * edited.shape[1]
    seen = [gaussian_filter(each, (0, sigma, sigma, 0)) if sigma else each for each in (edited, source, target)]
    success = metrics.nearer_to_target(*seen, pairs.mask)
    for index in np.flatnonzero(pairs.categories == "colour"):
        facts, mask = pairs.facts[index], pairs.mask[index]
        if facts.get("kind") == "pattern":
            success[index] = metrics.nearer_in_colours(edited[index], source[index], target[index], mask)
        elif facts["colour"] is not None:
            success[index] = name_colour(np.round(edited[index][mask] * 255).astype(np.uint8)) == facts["colour"]
    return success


def recognised(pairs: Pairs, edited: np.ndarray) -> np.ndarray:
    """1 where the new object is the nearest of ten, 0 where it is not, NaN where an edit brings none. -> float [n]"""
    found = np.full(len(pairs), np.nan)
    for index in np.flatnonzero(np.isin(pairs.categories, ("add", "replace"))):
        others = pairs.distractors(int(index), DISTRACTORS).astype(np.float32) / 255
        candidates = np.stack([pairs.target[index], *others])
        where = (others != pairs.target[index]).any(axis=(0, -1))
        found[index] = metrics.nearest(edited[index], candidates, where) == 0
    return found


def gradient_share(pairs: Pairs, edited: np.ndarray) -> np.ndarray:
    """The gradient energy of a new object as a share of the target's, NaN where an edit brings none. -> float [n]"""
    new = np.isin(pairs.categories, ("add", "replace"))
    ours, theirs = (metrics.gradient_energy(pictures, pairs.mask) for pictures in (edited, pairs.target))
    return np.where(new, ours / np.where(theirs > 0, theirs, np.nan), np.nan)


def lpips_inside(pairs: Pairs, edited: np.ndarray, lpips: Lpips) -> np.ndarray:
    """The perceptual distance of the target from the target with the edited region in it. -> float [n]"""
    mixed = np.where(pairs.mask[..., None], edited, pairs.target)
    return np.array([lpips.distance(*pair) for pair in zip(mixed, pairs.target, strict=True)])


def score_edits(
    pairs: Pairs, tokens: np.ndarray, edited: np.ndarray, encoded: Encoded, lpips: Lpips | None = None
) -> dict[str, np.ndarray]:
    """Figures of each pair, from the ids [n H W] of the edits and their pictures [n Y X 3]. -> {name: [n]}"""
    outside = ~pairs.token_mask(tokens.shape[1:])
    perceptual = {"lpips_inside": lpips_inside(pairs, edited, lpips)} if lpips else {}
    return perceptual | {
        "success": succeeded(pairs, edited, encoded.source, encoded.target).astype(float),
        "success_smoothed": succeeded(pairs, edited, encoded.source, encoded.target, SMOOTHED).astype(float),
        "recognised": recognised(pairs, edited),
        "l1_inside": metrics.l1(edited, pairs.target, pairs.mask),
        "l1_outside": metrics.l1(edited, pairs.target, ~pairs.mask),
        "psnr_inside": metrics.psnr(edited, pairs.target, pairs.mask),
        "psnr_outside": metrics.psnr(edited, pairs.target, ~pairs.mask),
        "gradient_share": gradient_share(pairs, edited),
        "changed_outside": metrics.share_changed(tokens, encoded.source_ids, outside),
        "vq_changed_outside": metrics.share_changed(encoded.target_ids, encoded.source_ids, outside),
    }


def leaks(
    pairs: Pairs, tokens: np.ndarray, edited: np.ndarray, encoded: Encoded
) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
    """The leakage suite of edits, ids [n H W] and their pictures [n Y X 3], and of these composited. -> {name: [n]} of each"""
    plain, composited = [], []
    for index, mask in enumerate(pairs.mask):
        source, picture, ceiling = (images.to_image(each[index]) for each in (pairs.source, edited, encoded.source))
        traces = Traces(tokens[index], encoded.source_ids[index], ceiling)
        over = images.composite(source, picture, traces.ids == traces.source_ids)
        plain.append(leakage(picture, source, mask, None, traces))
        composited.append(leakage(over, source, mask, None, traces))
    return tuple({name: np.array([one[name] for one in all_]) for name in all_[0]} for all_ in (plain, composited))


def mean_over_seeds(several: Sequence[dict[str, dict[str, np.ndarray]]]) -> dict[str, dict[str, np.ndarray]]:
    """{mode: {figure: [n]}} of each seed -> of all"""
    return {
        mode: {name: np.mean([one[mode][name] for one in several], axis=0) for name in columns}
        for mode, columns in several[0].items()
    }


def ceilings(pairs: Pairs, encoded: Encoded, lpips: Lpips | None) -> dict[str, np.ndarray]:
    """What the target as the tokenizer shows it has: the sharpness that no edit passes but by chance."""
    perceptual = {"vq_lpips_inside": lpips_inside(pairs, encoded.target, lpips)} if lpips else {}
    return perceptual | {"vq_gradient_share": gradient_share(pairs, encoded.target)}
