"""A row of the golden table, and the two ways to make one."""

from typing import NamedTuple

import numpy as np


class Result(NamedTuple):
    case: str
    error: float
    bound: float

    @property
    def passed(self) -> bool:
        return bool(self.error <= self.bound)  # a NaN fails


def compare(case: str, ours, golden, bound: float) -> Result:
    """Largest absolute difference; other shapes are a failure, never a broadcast."""
    ours, golden = np.asarray(ours), np.asarray(golden)
    if ours.shape != golden.shape:
        return Result(f"{case}: shape {ours.shape}, golden {golden.shape}", np.inf, bound)
    return Result(case, float(np.max(np.abs(ours.astype(np.float64) - golden.astype(np.float64)), initial=0)), bound)


def count_differing(case: str, ours, golden, bound: float = 0) -> Result:
    """Number of entries that differ."""
    ours, golden = np.asarray(ours), np.asarray(golden)
    if ours.shape != golden.shape:
        return Result(f"{case}: shape {ours.shape}, golden {golden.shape}", np.inf, bound)
    return Result(case, float(np.sum(ours != golden)), bound)
