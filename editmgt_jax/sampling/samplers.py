"""Samplers: in which order hidden tokens are committed, and how many in a step where the schedule does not say.

A sampler is a function of a proposal and an entry of SAMPLERS. Its order gives every position a priority, and the positions with
the highest are committed; how many is the schedule's choice, or that of the sampler's budget. Priorities of positions that are
known do not count. Ties are broken by the step's draws, but in the released order, which keeps all that tie with the cut-off.

Axes    B batch, L image tokens (H W, row-major), C codebook
Source  confidence: MaskGIT (section 3.2), released Scheduler.step; halton: arXiv 2503.17076; entropy: arXiv 2505.24857
Differs halton: the count of a step is this package's schedule; entropy: its steps are bounded, and the last commits the rest
"""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from editmgt_jax.shapes import Array, Float, Int


class Proposal(NamedTuple):
    """A step as samplers see it."""

    logits: jax.Array  # float32 [B L C]: under guidance, not divided by the sampling temperature
    candidate: jax.Array  # int32 [B L]: the id that a hidden position takes if it is committed
    log_p: jax.Array  # float32 [B L]: of the candidate, from the undivided logits
    noise: jax.Array  # float32 [B L]: Gumbel noise times the step's temperature
    hidden: jax.Array  # bool [B L]
    priority: jax.Array | None  # float32 [B L]: `Prediction.priority`


class Context(NamedTuple):
    """A decode as samplers see it."""

    grid: tuple[int, int] | None = None  # (H, W), static
    source: jax.Array | None = None  # int32 [B L]: the ids of the source
    knobs: Any = None  # traced settings, `sampling.settings.Knobs`


NOTHING_KNOWN = Context()


@dataclasses.dataclass(frozen=True)
class Sampler:
    """One entry of the table.

    order         priority of each position: float [B L]
    budget        how many of the hidden positions this step commits, at least 1 of any: int32 [B]; a decode then ends as
                  soon as nothing is hidden. None: the schedule's count
    needs_source  whether it compares with the source's ids
    keeps_ties    whether positions that tie with the cut-off are all committed, as released
    """

    order: Callable[[Proposal, Context], jax.Array]
    budget: Callable[[Proposal, Context], jax.Array] | None = None
    needs_source: bool = False
    keeps_ties: bool = False


def confidence(proposal: Proposal, context: Context) -> Float[Array, "B L"]:
    """The surest candidates first, with noise."""
    return proposal.log_p + proposal.noise


def halton(proposal: Proposal, context: Context) -> Float[Array, "B L"]:
    """A fixed order that covers the grid evenly at every length: no noise."""
    return jnp.broadcast_to(-halton_ranks(context.grid).astype(np.float32), proposal.hidden.shape)


def entropy(proposal: Proposal, context: Context) -> Float[Array, "B L"]:
    """The lowest entropy first: no noise."""
    return -_entropy(proposal.logits)


def entropy_budget(proposal: Proposal, context: Context) -> Int[Array, " B"]:
    """The longest run, by rising entropy, whose summed entropy without its largest is at most the bound."""
    rising = jnp.sort(jnp.where(proposal.hidden, _entropy(proposal.logits), jnp.inf), axis=1)
    before = jnp.cumsum(rising, axis=1)[:, :-1]  # the sum of those that come earlier
    within = jnp.pad(before, ((0, 0), (1, 0))) <= context.knobs.entropy_bound
    return jnp.sum(within & jnp.isfinite(rising), axis=1, dtype=jnp.int32)


def margin(proposal: Proposal, context: Context) -> Float[Array, "B L"]:
    """By how much surer the candidate is than the source's own id, with noise; copies have 0."""
    return _at(proposal.logits, proposal.candidate) - _at(proposal.logits, context.source) + proposal.noise


def changes_first(proposal: Proposal, context: Context) -> Float[Array, "B L"]:
    """Confidence, but copies of the source are less sure by the copy penalty (nats)."""
    copied = (proposal.candidate == context.source).astype(jnp.float32)
    return proposal.log_p - context.knobs.copy_penalty * copied + proposal.noise


def relevance(proposal: Proposal, context: Context) -> Float[Array, "B L"]:
    """Where the instruction points first, by the prediction's own priority (the relevance): no noise."""
    return proposal.priority


SAMPLERS = {
    "confidence": Sampler(confidence, keeps_ties=True),
    "halton": Sampler(halton),
    "entropy": Sampler(entropy, budget=entropy_budget),
    "margin": Sampler(margin, needs_source=True),
    "changes_first": Sampler(changes_first, needs_source=True),
    "relevance": Sampler(relevance),
}


@functools.cache
def halton_ranks(grid: tuple[int, int]) -> np.ndarray:
    """When each cell gets its first point of the Halton sequence (rows in base 2, columns in base 3). -> int32 [L]

    Points are numbered from 1, in exact integers, as many as it takes to visit every cell.
    """
    rows, columns = grid
    count = 4 * rows * columns
    while True:
        row, column = _scaled_inverse(count, 2, rows), _scaled_inverse(count, 3, columns)
        cells, first = np.unique(row * columns + column, return_index=True)
        if len(cells) == rows * columns:
            return np.argsort(np.argsort(first)).astype(np.int32)
        count *= 2


def _scaled_inverse(count: int, base: int, size: int) -> np.ndarray:
    """floor(size * radical inverse) of the numbers 1 ... count. -> int64 [count]"""
    left = np.arange(1, count + 1)
    mirrored, scale = np.zeros(count, np.int64), 1
    while left.any():
        mirrored, left, scale = mirrored * base + left % base, left // base, scale * base
    return mirrored * size // scale


def _entropy(logits):
    log_p = jax.nn.log_softmax(logits, axis=-1)
    p = jnp.exp(log_p)
    return -jnp.sum(jnp.where(p > 0, p * log_p, 0.0), axis=-1)


def _at(logits, ids):
    return jnp.take_along_axis(logits, ids[..., None], axis=-1)[..., 0]
