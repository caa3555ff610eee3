"""Measures of an edit that need no other model. Plain numpy, per sample.

Axes    B batch, Y X pixels, H W tokens
"""

import numpy as np


def masked_mean(values: np.ndarray, where: np.ndarray) -> np.ndarray:
    """Mean of values [B ...] where bool [B ...], per sample; NaN where nothing is selected. -> [B]"""
    axes = tuple(range(1, values.ndim))
    count = where.sum(axis=axes)
    total = (values * where).sum(axis=axes)
    return np.where(count > 0, total / np.maximum(count, 1), np.nan)


def l1(a: np.ndarray, b: np.ndarray, where: np.ndarray) -> np.ndarray:
    """Mean absolute error of [B Y X 3] in [0, 1] inside the mask bool [B Y X]. -> [B]"""
    return masked_mean(np.abs(a - b).mean(axis=-1), where)


def psnr(a: np.ndarray, b: np.ndarray, where: np.ndarray) -> np.ndarray:
    """Peak signal-to-noise ratio in dB inside the mask; at most 100 dB, for equal pictures. -> [B]"""
    error = masked_mean(np.square(a - b).mean(axis=-1), where)
    return -10 * np.log10(np.maximum(error, 1e-10))


def gradient_energy(pictures: np.ndarray, where: np.ndarray) -> np.ndarray:
    """Mean squared difference of neighbours in [B Y X 3], of which either is inside the mask bool [B Y X]; NaN without any. -> [B]"""
    total, count = np.zeros(len(pictures)), np.zeros(len(pictures))
    for axis in (1, 2):
        squared = np.square(np.diff(pictures, axis=axis)).mean(axis=-1)
        first, second = (np.take(where, np.arange(where.shape[axis] - 1) + shift, axis=axis) for shift in (0, 1))
        near = first | second
        total += (squared * near).sum(axis=(1, 2))
        count += near.sum(axis=(1, 2))
    return np.where(count > 0, total / np.maximum(count, 1), np.nan)


def nearer_to_target(edited: np.ndarray, source: np.ndarray, target: np.ndarray, where: np.ndarray) -> np.ndarray:
    """Whether the edited region is nearer (squared error) to the target's than to the source's. -> bool [B]"""

    def distance(picture):
        return masked_mean(np.square(edited - picture).sum(axis=-1), where)

    return distance(target) < distance(source)


def nearer_in_colours(edited: np.ndarray, source: np.ndarray, target: np.ndarray, where: np.ndarray) -> bool:
    """Whether the colours of the region [Y X] of one picture [Y X 3] are nearer to the target's than to the source's, wherever they lie.

    The distance is the squared error of the sorted values of each channel: that of the best assignment of pixels to pixels (the
    squared Wasserstein distance of order 2), channel by channel.
    """
    ours, before, wanted = (np.sort(picture[where], axis=0) for picture in (edited, source, target))
    return bool(np.square(ours - wanted).sum() < np.square(ours - before).sum())


def nearest(edited: np.ndarray, candidates: np.ndarray, where: np.ndarray) -> int:
    """Which of the candidates [n Y X 3] one picture [Y X 3] is nearest to (squared error) inside the mask. -> int"""
    return int(np.argmin((np.square(candidates - edited) * where[..., None]).sum(axis=(1, 2, 3))))


def share_changed(ids: np.ndarray, reference: np.ndarray, where: np.ndarray) -> np.ndarray:
    """Share of the selected tokens [B H W] whose id is not the reference's. -> [B]"""
    return masked_mean((ids != reference).astype(float), where)


def iou(relevance: np.ndarray, truth: np.ndarray, threshold: float) -> np.ndarray:
    """Intersection over union of relevance >= threshold with the true mask, both [B H W]. -> [B]"""
    chosen = relevance >= threshold
    union = (chosen | truth).sum(axis=(1, 2))
    return np.where(union > 0, (chosen & truth).sum(axis=(1, 2)) / np.maximum(union, 1), np.nan)


def best_threshold(relevance: np.ndarray, truth: np.ndarray) -> tuple[float, float]:
    """The threshold with the highest mean IoU: to be chosen on other pairs than are scored. -> (threshold, IoU)"""
    thresholds = np.linspace(0.05, 0.95, 37)
    means = [np.nanmean(iou(relevance, truth, threshold)) for threshold in thresholds]
    best = int(np.argmax(means))
    return float(thresholds[best]), float(means[best])
