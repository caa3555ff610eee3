"""Any number of items through functions of one batch size: the last batch is filled up with copies of its last item."""

import itertools
from collections.abc import Callable, Iterable, Iterator

import numpy as np


def in_batches(items: Iterable, size: int) -> Iterator[tuple[list, int]]:
    """`items` in lists of exactly `size`, read as they are needed. -> (list, how many of it are not copies)"""
    items = iter(items)
    while batch := list(itertools.islice(items, size)):
        yield batch + batch[-1:] * (size - len(batch)), len(batch)


def map_batches(function: Callable, items: Iterable, size: int) -> np.ndarray:
    """`function` of arrays [size ...] over the arrays `items`, at least one. -> its results [n ...], on the host"""
    parts = [np.asarray(function(np.stack(batch)))[:count] for batch, count in in_batches(items, size)]
    return np.concatenate(parts)


def by_shape(
    items: Iterable, shape_of: Callable, most_of: Callable, filled: Callable[[int], int] | None = None
) -> Iterator[tuple]:
    """Items of one shape in batches of one length, at most `most_of(shape)`. -> (shape, batch, how many are not copies)

    Args:
      filled: number of items of a shape -> the length of its batches, `most_of` at most; by default that number.
    """
    groups = {}
    for item in items:
        groups.setdefault(shape_of(item), []).append(item)
    for shape, group in groups.items():
        for batch, count in in_batches(group, min(most_of(shape), (filled or int)(len(group)))):
            yield shape, batch, count


def power_of_two(count: int) -> int:
    """The smallest power of two that is at least `count`."""
    return 1 << max(0, count - 1).bit_length()
