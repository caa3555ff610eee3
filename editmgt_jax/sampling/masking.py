"""Mask rates and schedules: how many image tokens are hidden, in training and at each decoding step.

Axes    B batch, L image tokens, I decoding steps
Source  MaskGIT (section 3); released Scheduler.step and trainer; remasking steps: Mask-Predict, arXiv 1904.09324
Differs the last ratio of a decode is exactly 0, where float32 cos(pi / 2) is negative, so decoding has no last-step branch;
        the masks of a training batch depend on each sample's index, not on the batch around it
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from editmgt_jax.errors import UserError
from editmgt_jax.shapes import Array, Bool, Float, Int, Key, Scalar

HALF_PI = np.float32(np.pi / 2)


def _cosine(t):
    angle = t * HALF_PI
    if isinstance(t, np.ndarray):  # correctly rounded, whatever vector units the host's float32 cos uses
        return np.cos(angle.astype(np.float64)).astype(np.float32)
    return jnp.cos(angle)


# From progress in [0, 1] (float32) to the share of tokens that is hidden, 1 at the start and 0 at the end.
CURVES: dict[str, Callable] = {"cosine": _cosine, "linear": lambda t: 1 - t}
_HALF_HIDDEN_AT = {"cosine": 2 / 3, "linear": 1 / 2}  # progress


class Schedule(NamedTuple):
    """The steps of a decode: made on the host, traced in `decode`, so new values never recompile. One step has scalars."""

    number: np.ndarray  # int32 [I]: 0 ... I - 1
    time: np.ndarray  # float32 [I]: the number of steps still to come, what released models are told (Q1)
    hidden_ratio: (
        np.ndarray
    )  # float32 [I]: share of the tokens to fill that is still hidden after the step; the last is 0
    temperature: np.ndarray  # float32 [I]: scale of the Gumbel noise on the confidence
    remasked: np.ndarray | None = None  # int32 [I]: half 1 or 2 of the tokens, which the step hides again first, or 0


def hidden_curve(t: Float[Array, "*shape"], kind: str) -> Float[Array, "*shape"]:
    """Share of tokens hidden at progress `t` in [0, 1] (float32, any shape; a numpy array stays on the host)."""
    if kind not in CURVES:
        raise UserError(f"unknown mask schedule {kind!r}: choose one of {', '.join(CURVES)}")
    return CURVES[kind](t)


def covered_tokens(pixels: Bool[Array, "B Y X"], grid: tuple[int, int]) -> Bool[Array, "B H W"]:
    """Tokens of which any pixel is set, on a grid (H, W). numpy and jax arrays alike."""
    batch, y, x = pixels.shape
    rows, columns = grid
    return pixels.reshape(batch, rows, y // rows, columns, x // columns).any(axis=(2, 4))


def hidden_count(length: int, ratio: float | Float[Array, "*shape"]) -> Int[Array, "*shape"]:
    """floor(length * ratio) in float32, as released (Q2)."""
    return jnp.floor(length * jnp.asarray(ratio, jnp.float32)).astype(jnp.int32)


def decode_schedule(
    steps: int,
    kind: str = "cosine",
    temperature: float | tuple[float, float] = (2.0, 0.0),
    remask_steps: int = 0,
) -> Schedule:
    """The schedule of a decode of `steps` steps, of which the last `remask_steps` decide tokens anew.

    temperature   of the confidence: (first, last), linear over the steps; one number means (number, 0.01), as released
    remask_steps  of the steps, fewer than these. Each hides one half of the tokens again, in turns, and decides it with the other half
                  known; those before them are a schedule of so many steps
    """
    if steps < 1:
        raise ValueError(f"a decode needs at least one step, got {steps}")
    if not 0 <= remask_steps < steps:
        raise ValueError(f"of {steps} steps, 0 to {steps - 1} can remask, got {remask_steps}")
    first, last = temperature if isinstance(temperature, (tuple, list)) else (temperature, 0.01)

    number = np.arange(steps - remask_steps, dtype=np.int32)
    ratio = hidden_curve(((number + 1) / len(number)).astype(np.float32), kind)
    ratio[-1] = 0.0
    schedule = Schedule(
        number=number,
        time=number[::-1].astype(np.float32),
        hidden_ratio=ratio,
        temperature=_linear(first, last, len(number)),
    )
    return _with_remasking(schedule, remask_steps, kind) if remask_steps else schedule


def _with_remasking(schedule: Schedule, count: int, kind: str) -> Schedule:
    """The schedule and `count` steps that remask. Released models are told that half of the tokens are hidden: the time at which they are."""
    steps = len(schedule.number)
    time = max(steps * (1 - _HALF_HIDDEN_AT[kind]) - 1, 0)
    more = np.arange(count)
    return Schedule(
        number=np.arange(steps + count, dtype=np.int32),
        time=np.append(schedule.time, np.full(count, time, np.float32)),
        hidden_ratio=np.append(schedule.hidden_ratio, np.zeros(count, np.float32)),
        temperature=np.append(schedule.temperature, np.full(count, schedule.temperature[-1])),
        remasked=np.append(np.zeros(steps, np.int32), (more % 2 + 1).astype(np.int32)),
    )


def _linear(first: float, last: float, steps: int) -> np.ndarray:
    """Float32 steps from both ends to the middle, bit for bit the released torch.linspace."""
    first, last = np.float32(first), np.float32(last)
    up = np.arange(steps, dtype=np.float32)
    stride = (last - first) / np.float32(max(steps - 1, 1))
    return np.where(up < steps // 2, first + stride * up, last - stride * up[::-1]) if steps > 1 else np.array([first])


def training_time(mask_rate: Scalar | Float[Array, " B"], convention: str) -> Scalar | Float[Array, " B"]:
    """What the model is told in training of a mask rate in [0, 1]; it multiplies by 1000 again (Q1)."""
    return mask_rate * 1000.0 if convention == "released" else mask_rate


def sample_mask_rate(key: Key[Array, ""], min_masking_rate: Scalar = 0.0) -> Float[Array, ""]:
    """A training sample's mask rate: the cosine at a uniform point, clipped below.

    The cosine of a uniform angle has the density (2 / pi) / sqrt(1 - r^2) of the paper.
    """
    return jnp.maximum(hidden_curve(jax.random.uniform(key, dtype=jnp.float32), "cosine"), min_masking_rate)


def random_mask(
    key: Key[Array, ""],
    batch: int,
    length: int,
    min_masking_rate: Scalar = 0.0,
    lean: Float[Array, "{batch} {length}"] | None = None,
) -> tuple[Bool[Array, "{batch} {length}"], Float[Array, " {batch}"]]:
    """Masks of a training batch: max(1, round(L * rate)) positions of each sample, uniformly at random.

    `lean`, if given, is added to uniform numbers in [0, 1), and the positions with the smallest sums are hidden.

    The mask of a sample is a function of (key, its index). -> mask, rate
    """

    def one(index, lean):
        rate_key, order_key = jax.random.split(jax.random.fold_in(key, index))
        rate = sample_mask_rate(rate_key, min_masking_rate)
        count = jnp.maximum(1, jnp.round(length * rate).astype(jnp.int32))
        if lean is None:
            return jax.random.permutation(order_key, length) < count, rate
        order = jnp.argsort(jax.random.uniform(order_key, (length,)) + lean)
        return jnp.zeros(length, bool).at[order].set(jnp.arange(length) < count), rate

    return jax.vmap(one)(jnp.arange(batch), lean)
