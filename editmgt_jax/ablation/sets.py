"""Sets of blocks: what a researcher names, as vectors of weights.

Axes    Z sets; J blocks of the model, double-stream blocks first
"""

import itertools
import re
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from editmgt_jax.ablation.config import SETS
from editmgt_jax.errors import UserError
from editmgt_jax.sampling.settings import released_layers

MOST_SUBSETS = 14  # blocks of which all subsets are listed


class BlockSet(NamedTuple):
    """A weighted set of blocks."""

    name: str  # such as '2-4' or '0,3'; 'learnt ...' where weights differ
    kind: str  # a name of `SETS`, 'named', 'forward', 'backward' or 'learnt'
    weights: tuple[float, ...]  # [J], of sum 1

    @property
    def blocks(self) -> tuple[int, ...]:
        """Its members."""
        return tuple(int(index) for index in np.flatnonzero(self.weights))


def of_blocks(blocks: Sequence[int], num_blocks: int, kind: str = "named") -> BlockSet:
    """The mean over some blocks. Errors: UserError for an empty set, or a block that there is not."""
    if not blocks:
        raise UserError(f"a set of blocks must name at least one of 0 to {num_blocks - 1}; got none")
    if any(block not in range(num_blocks) for block in blocks) or len(set(blocks)) < len(blocks):
        got = name_of(blocks) if len(set(blocks)) == len(blocks) else ",".join(map(str, blocks))
        raise UserError(f"a set must hold distinct blocks from 0 to {num_blocks - 1} (this model's blocks); got {got}")
    weights = np.zeros(num_blocks)
    weights[list(blocks)] = 1 / len(blocks)
    return BlockSet(name_of(blocks), kind, tuple(weights.tolist()))


def name_of(blocks: Sequence[int]) -> str:
    """'2-4' for a contiguous range, else '0,3,5'."""
    blocks = sorted(blocks)
    if len(blocks) > 1 and blocks[-1] - blocks[0] == len(blocks) - 1:
        return f"{blocks[0]}-{blocks[-1]}"
    return ",".join(map(str, blocks))


def named_sets(
    names: Sequence[str], num_blocks: int, default: Sequence[int], random: int = 0, seed: int = 0
) -> list[BlockSet]:
    """The sets that a config names, each once, in order.

    Args:
      default: the model's own layers; random: how many sets 'random' draws, from `seed`.
    Errors: UserError.
    """
    found: dict[tuple, BlockSet] = {}
    for name in names:
        for blocks, kind in _expanded(name, num_blocks, tuple(default), random, seed):
            one = of_blocks(blocks, num_blocks, kind)
            found.setdefault(one.weights, one)
    if not found:
        raise UserError(f"score.sets must give at least one set of blocks; {', '.join(names)} gives none")
    return list(found.values())


def _expanded(name, num_blocks, default, random, seed):
    """The blocks of each set of a name, with its kind."""
    every = range(num_blocks)
    if name == "singles":
        return [((block,), name) for block in every]
    if name == "ranges":
        pairs = itertools.combinations_with_replacement(every, 2)
        return [(tuple(range(first, last + 1)), name) for first, last in pairs]
    if name == "released":
        return [(released_layers(num_blocks), name)]
    if name == "default":
        return [(default, name)]
    if name == "subsets":
        if num_blocks > MOST_SUBSETS:
            raise UserError(
                f"all subsets are listed of at most {MOST_SUBSETS} blocks; this model has {num_blocks}: take 'random'"
            )
        sizes = range(1, num_blocks + 1)
        return [(blocks, name) for size in sizes for blocks in itertools.combinations(every, size)]
    if name == "random":
        return [(blocks, name) for blocks in random_blocks(num_blocks, random, seed)]
    return [(_parsed(name), "named")]


def random_blocks(num_blocks: int, count: int, seed: int) -> list[tuple[int, ...]]:
    """Distinct sets: a size drawn evenly from 1 to J, then that many blocks; fewer where there are no more."""
    dice, found = np.random.default_rng(seed), {}
    for _ in range(50 * count):
        if len(found) == count:
            break
        size = int(dice.integers(1, num_blocks + 1))
        found.setdefault(tuple(sorted(dice.choice(num_blocks, size, replace=False).tolist())))
    return list(found)


def _parsed(text) -> tuple[int, ...]:
    """'2-4,7' -> (2, 3, 4, 7). Errors: UserError."""
    found = []
    for part in text.split(","):
        match = re.fullmatch(r"\s*(\d+)(?:-(\d+))?\s*", part)
        if match is None:
            raise UserError(
                f"a set of blocks must be one of {', '.join(SETS)}, or such as '2-4' or '0,3'; got {text!r}"
            )
        first, last = int(match[1]), int(match[2] or match[1])
        found += range(first, last + 1)
    return tuple(found)
