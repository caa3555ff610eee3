"""The size of a picture that is made from text alone, checked against the memory that its decode needs.

Axes    as in `editmgt_jax.config`
"""

import math
import numbers
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from editmgt_jax.config import MGTConfig, VQConfig
from editmgt_jax.declarations import SettingsError
from editmgt_jax.errors import UserError

COPIES = 2  # of a batch, under guidance
LIVE = 3  # arrays of one kind at once
PAINTED = 12  # bytes of a pixel that is decoded, until all are
KEPT = 4  # bytes of a pixel of a result


def canvas_size(
    size: Sequence[int] | np.ndarray | None, model: Any, pictures: int, free: int | None
) -> tuple[int, int]:
    """(width, height) in pixels: multiples of the model's unit, by default the square that it is trained on.

    Args:
      model: `LoadedModel`; pictures: that are decoded at once; free: bytes of memory, None if that is not known.
    Errors: SettingsError.
    """
    if size is None:
        return (model.scheduler.native_size,) * 2
    unit = model.unit
    sides = size.tolist() if isinstance(size, np.ndarray) else size
    pair = isinstance(sides, (list, tuple)) and len(sides) == 2
    if not pair or any(not _is_whole(side) or side < unit or side % unit for side in sides):
        shown = f"{sides[0]} x {sides[1]}" if pair else repr(size)
        raise SettingsError(f"size: width and height must be multiples of {unit} pixels; got {shown}")
    size = int(sides[0]), int(sides[1])
    check_memory(size, pictures, model.mgt.config, model.vq.config, free)
    return size


def check_pixels(pixels: Any, factor: int) -> None:
    """Errors: UserError for what is no batch of pictures, floats [B Y X 3] with sides that are multiples of `factor`."""
    shape = getattr(pixels, "shape", ())
    good = len(shape) == 4 and shape[3] == 3 and not any(side % factor for side in shape[1:3])
    if not (isinstance(pixels, (np.ndarray, jax.Array)) and good and jnp.issubdtype(pixels.dtype, jnp.floating)):
        raise UserError(
            f"pixels must be floats [B Y X 3] in 0..1, Y and X multiples of {factor}; got {_described(pixels)}: see images.to_pixels"
        )


def check_ids(ids: Any, highest: int) -> None:
    """Errors: UserError for what are no ids, integers [B H W] in 0..highest; those on a device are not read."""
    whole = isinstance(ids, (np.ndarray, jax.Array)) and jnp.issubdtype(ids.dtype, jnp.integer)
    if not whole or ids.ndim != 3:
        raise UserError(f"ids must be integers [B H W]; got {_described(ids)}")
    if isinstance(ids, np.ndarray) and ids.size and not 0 <= ids.min() <= ids.max() <= highest:
        raise UserError(f"ids must be in 0..{highest}; got {ids.min()} to {ids.max()}")


def _described(value) -> str:
    return f"{value.dtype} {list(value.shape)}" if hasattr(value, "dtype") else type(value).__name__


def _is_whole(value) -> bool:
    return isinstance(value, numbers.Integral) and not isinstance(value, bool)


def check_memory(size: tuple[int, int], pictures: int, mgt: MGTConfig, vq: VQConfig, free: int | None) -> None:
    """Errors: SettingsError when the decode of a picture needs more memory than is `free` (bytes; None is unknown).

    Args:
      size: (width, height) in pixels; pictures: that are decoded at once.
    """
    tokens = size[0] * size[1] // vq.factor**2
    positions = tokens // mgt.stride**2
    logits = 4 * tokens * mgt.codebook_size
    attention = 4 * mgt.num_attention_heads * positions**2
    painting = 4 * size[0] * size[1] * max(vq.block_out_channels)
    needed = max(pictures * COPIES * LIVE * max(logits, attention), LIVE * painting)
    if free is not None and needed > free:
        raise SettingsError(
            f"size must be such that the picture fits into memory; {size[0]} x {size[1]} pixels need about "
            f"{needed / 2**30:.0f} GiB, {free / 2**30:.0f} GiB are free"
        )


def check_results(
    sizes: Sequence[tuple[int, int]], decoded: Sequence[tuple[int, int]], num_images: int, free: int | None
) -> None:
    """Errors: SettingsError when the pictures of a call need more of the host's memory than is `free` (bytes; None is unknown).

    Args:
      sizes, decoded: (width, height) of each result's pictures, and as they are decoded; num_images: of each result.
    """
    needed = num_images * (KEPT * sum(map(math.prod, sizes)) + PAINTED * sum(map(math.prod, decoded)))
    if free is not None and needed > free:
        width, height = max(sizes, key=math.prod)
        raise SettingsError(
            f"num_images must be such that all pictures fit into memory; {num_images * len(sizes)} of up to {width} x {height} "
            f"pixels need about {needed / 2**30:.0f} GiB, {free / 2**30:.0f} GiB are free"
        )


def free_memory() -> int | None:
    """Bytes that the first device can still give; None where nothing says so."""
    stats = jax.local_devices()[0].memory_stats()
    if stats and "bytes_limit" in stats:
        return stats["bytes_limit"] - stats.get("bytes_in_use", 0)
    return host_memory()


def host_memory() -> int | None:
    """Bytes that this machine can still give; None where nothing says so."""
    try:
        with open("/proc/meminfo") as file:
            found = dict(line.split(":", 1) for line in file)
        return 1024 * int(found["MemAvailable"].split()[0])
    except (OSError, KeyError, ValueError):
        return None
