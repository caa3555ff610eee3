"""Maps of many sets of blocks at once, from records: one matrix product, the filter, a sort.

Axes    n examples (b of a block), Z sets; t thresholds; others as in `editmgt_jax.config`
"""

import functools
import os
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from editmgt_jax.ablation import measures
from editmgt_jax.ablation.choices import SELECTED, View
from editmgt_jax.ablation.records import Records
from editmgt_jax.ablation.sets import BlockSet
from editmgt_jax.sampling import localize

KEYS_AT_ONCE = 2**19  # integers of maps in memory together
KEPT = 2**30  # bytes of attention of one view that are kept in memory; more is read again for each part
NAMES = ("ap", "auroc", "iou_best", "pointing", "threshold", "iou", "f1", "kept_wrongly", "released_wrongly")


class Scored(NamedTuple):
    """Measures of some sets: {name of `NAMES`: float32 [Z t n seeds]}."""

    columns: dict[str, np.ndarray]
    rules: tuple[str, ...]  # [t]


class Scorer:
    """Scores sets of blocks of one view.

    Args:
      records: opened; view: how maps are made.
    """

    def __init__(self, records: Records, view: View):
        self.records, self.view, self.manifest = records, view, records.manifest
        self.truth = records.truth()  # [n L]
        self._kept: dict[tuple, np.ndarray] = {}
        self._mesh = Mesh(np.array(jax.local_devices()), ("data",))

    def attention(self, rows: Sequence[int], seed: int) -> np.ndarray:
        """The mean over the view's moments and signals. -> float32 [b J N]"""
        bounds = rows[0], rows[-1] + 1, rows[1] - rows[0] if len(rows) > 1 else 1
        key = (*bounds, seed)
        if key not in self._kept:
            found = self._read(slice(*bounds), seed)
            if sum(x.nbytes for x in self._kept.values()) + found.nbytes > KEPT:
                return found
            self._kept[key] = found
        return self._kept[key]

    def _read(self, rows, seed) -> np.ndarray:
        view = self.view
        several = [
            self.records.maps(seed, moment, signal, view.head, view.group, rows)
            for moment in view.moments
            for signal in view.signals
        ]
        return several[0] if len(several) == 1 else np.mean(several, axis=0, dtype=np.float32)

    def score(self, sets: Sequence[BlockSet], rules: Sequence[str]) -> Scored:
        """All measures of each set with each threshold rule, over all examples and seeds.

        'selected' is the threshold of `measures.GRID` with the highest mean IoU over the even examples.
        """
        m, fixed = self.manifest, [float(rule) for rule in rules if rule != SELECTED]
        weights = np.array([one.weights for one in sets], np.float32)
        shape = (len(sets), len(rules), m.examples, len(m.seeds))
        found = {name: np.full(shape, np.nan, np.float32) for name in NAMES}
        even, odd = range(0, m.examples, 2), range(1, m.examples, 2)
        limits = np.concatenate([measures.GRID, fixed])
        curves: dict[tuple, measures.Counts] = {}
        for (example, seed), (ranks, counted) in self._measured(weights, even, limits):
            self._write(found, ranks, example, seed)
            curves[example, seed] = counted
        chosen = self._choose(curves, len(sets))  # [Z], positions in GRID
        at = self._positions(chosen, rules)  # [Z t], positions in limits
        for (example, seed), counted in curves.items():
            chosen_cells, right = (np.take_along_axis(x, at, axis=1) for x in counted[:2])
            picked = counted._replace(chosen=chosen_cells, right=right)
            self._write(found, measures.threshold_measures(picked), example, seed)
        for (example, seed), (ranks, counted) in self._measured(weights, odd, limits[at]):
            self._write(found, ranks | measures.threshold_measures(counted), example, seed)
        found["threshold"][:] = limits[at][:, :, None, None]
        return Scored(found, tuple(rules))

    @staticmethod
    def _choose(curves, count) -> np.ndarray:
        ious = [measures.threshold_measures(counted)["iou"][:, : len(measures.GRID)] for counted in curves.values()]
        ious = [one for one in ious if not np.isnan(one).any()]
        return np.argmax(np.mean(ious, axis=0), axis=1) if ious else np.zeros(count, int)

    @staticmethod
    def _positions(chosen, rules) -> np.ndarray:
        columns, number = [], len(measures.GRID)
        for rule in rules:
            columns.append(chosen if rule == SELECTED else np.full_like(chosen, number))
            number += rule != SELECTED
        return np.stack(columns, axis=1)

    @staticmethod
    def _write(found, values, example, seed) -> None:
        for name, of_sets in values.items():
            found[name][:, :, example, seed] = of_sets if of_sets.ndim == 2 else of_sets[:, None]

    def _measured(self, weights, rows, thresholds):
        """Yields ((example, seed), (its rank measures, its counts))."""

        def measure(keys, true):
            ranked = measures.ranked(keys, true)
            return measures.rank_measures(ranked), measures.counts(ranked, thresholds)

        return self._each(weights, rows, measure)

    def ranked(self, weights: np.ndarray, rows: Sequence[int]) -> Iterator[tuple[tuple[int, int], measures.Ranked]]:
        """Yields ((example, seed), its sorted maps) of weights float32 [Z J]; rows: a range of examples."""
        return self._each(weights, rows, measures.ranked)

    def _each(self, weights, rows, function):
        """Yields ((example, seed), function(its keys, its true cells)); the device makes the next maps meanwhile."""
        cells, parts = self.truth.shape[1], len(self._mesh.devices)
        most = min(KEYS_AT_ONCE // (cells * len(weights)), len(rows))
        size = max(1, -(-most // parts)) * parts
        starts = range(0, len(rows), size)
        blocks = [(rows[start : start + size], seed) for seed in range(len(self.manifest.seeds)) for start in starts]
        with ThreadPoolExecutor(os.cpu_count()) as pool:
            ahead = self._keys(weights, *blocks[0], size) if blocks else None
            for number, (some, seed) in enumerate(blocks):
                keys = np.asarray(ahead)
                if number + 1 < len(blocks):
                    ahead = self._keys(weights, *blocks[number + 1], size)
                true = [int(self.truth[row].sum()) for row in some]
                found = pool.map(function, keys[: len(some)], true)
                yield from (((row, seed), one) for row, one in zip(some, found, strict=True))

    def _keys(self, weights, rows, seed, size) -> jax.Array:
        """int32 [size Z L] of some examples, the last repeated to fill up; not waited for."""
        padded = np.minimum(np.arange(size), len(rows) - 1)
        split = NamedSharding(self._mesh, P("data"))
        attention = jax.device_put(self.attention(rows, seed)[padded], split)
        truth = jax.device_put(self.truth[np.asarray(rows)[padded]], split)
        m, view = self.manifest, self.view
        return map_keys(attention, weights, truth, m.grid, m.token_grid, view.filter, view.upsampling)


@functools.partial(jax.jit, static_argnames=("grid", "token_grid", "kind", "upsampling"))
def map_keys(
    attention: jax.Array,
    weights: jax.Array,
    truth: jax.Array,
    grid: tuple,
    token_grid: tuple,
    kind: str,
    upsampling: str,
) -> jax.Array:
    """Sortable integers of the maps of every set: attention [b J N], weights [Z J], truth bool [b L] -> int32 [b Z L]"""
    batch, sets = len(attention), len(weights)
    maps = relevance_maps(attention, weights, grid, token_grid, kind, upsampling)
    return measures.to_keys(maps.reshape(batch, sets, -1), truth[:, None])


def relevance_maps(
    attention: jax.Array, weights: jax.Array, grid: tuple, token_grid: tuple, kind: str, upsampling: str
) -> jax.Array:
    """What `localize.localize` makes of the weighted mean over blocks. -> float32 [b*Z H W]"""
    mixed = jnp.einsum("zj,bjn->bzn", weights, attention, precision=jax.lax.Precision.HIGHEST)
    mixed = mixed.reshape(-1, 1, mixed.shape[-1])
    if upsampling == "bicubic":
        return localize.localize(mixed, grid, token_grid, kind=kind)
    maps = localize.localize(mixed, grid, kind=kind)
    factor = token_grid[0] // grid[0], token_grid[1] // grid[1]
    return jnp.repeat(jnp.repeat(maps, factor[0], axis=1), factor[1], axis=2)
