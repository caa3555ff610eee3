"""Finds near-equal hashes among very many.

Hashes are cut into one band more than the number of bits that may differ, so near hashes share at least one band. Only hashes
that share a band are compared.
"""

import array
import collections

import numpy as np


class NearDuplicates:
    """A set of hashes of one length, without near ones.

    Args:
      bits: hashes that differ in at most this many are near.
    """

    def __init__(self, bits: int):
        self._bits, self._count = bits, 0
        self._hashes = None  # uint8 [capacity bytes]
        self._bands = collections.defaultdict(lambda: array.array("q"))  # (band, its bits) -> indices in _hashes

    def find_or_add(self, data: bytes) -> int | None:
        """The index of the first near hash. If there is none, adds this one and returns None; indices count from 0."""
        own = np.frombuffer(data, np.uint8)
        if self._hashes is None:
            self._hashes = np.empty((1, own.size), np.uint8)
            self._cuts = np.linspace(0, 8 * own.size, self._bits + 2).astype(int)
        pieces = np.split(np.unpackbits(own), self._cuts[1:-1])
        keys = [(band, piece.tobytes()) for band, piece in enumerate(pieces)]
        sharing = [self._bands[key] for key in keys if key in self._bands]
        candidates = np.concatenate(
            [np.frombuffer(numbers, np.int64) for numbers in sharing] or [np.zeros(0, np.int64)]
        )
        distances = np.bitwise_count(self._hashes[candidates] ^ own).sum(axis=1)
        near = candidates[distances <= self._bits]
        if near.size:
            return int(near.min())
        for key in keys:
            self._bands[key].append(self._count)
        if self._count == len(self._hashes):
            self._hashes = np.concatenate([self._hashes, np.empty_like(self._hashes)])
        self._hashes[self._count] = own
        self._count += 1
        return None
