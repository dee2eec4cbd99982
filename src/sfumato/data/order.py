"""The order of training items: a seeded permutation per epoch with random access, so a position is one integer.

Items of several shapes are ordered by `BucketOrder`, so that neighbours share a shape.

A Feistel network on Z_a x Z_b with a b >= n (additions modulo a and b in turn), made a permutation of [0, n) by cycle
walking: Black & Rogaway, "Ciphers with arbitrary finite domains", 2002, sections 4 and 5. a and b are next to the root of n,
so that hardly any index needs a second walk. Cost: O(1) time and memory for each index, whatever n.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from sfumato.core.random import splitmix64
from sfumato.errors import UserError

_ROUNDS = 8
_MASK = (1 << 64) - 1


@dataclass(frozen=True)
class Order:
    """Global sample number k -> index of a data set of n items. Every epoch of n samples sees every item once."""

    n: int
    seed: int

    def __post_init__(self) -> None:
        if self.n < 1:
            raise UserError(f"an order of {self.n} items can't be made; the training part of the data is empty")

    def __call__(self, k: NDArray[np.int64]) -> NDArray[np.int64]:
        """k: (B,) sample numbers >= 0, of any epochs. Returns (B,) indices in [0, n)."""
        epoch, position = np.divmod(np.asarray(k, np.int64), self.n)
        salt = np.uint64(self.seed * 0xD1342543DE82EF95 & _MASK)
        key = splitmix64(splitmix64(epoch.astype(np.uint64)) ^ salt)
        walking = np.arange(len(position))
        x = position.astype(np.uint64)
        while len(walking):
            x[walking] = self._feistel(x[walking], key[walking])
            walking = walking[x[walking] >= self.n]
        return x.astype(np.int64)

    def _feistel(self, x: NDArray[np.uint64], key: NDArray[np.uint64]) -> NDArray[np.uint64]:
        a = math.isqrt(self.n - 1) + 1
        b = -(-self.n // a)
        left, right = np.divmod(x, np.uint64(b))
        for number in range(0, _ROUNDS, 2):
            left = (left + self._mix(key, number, right, a)) % np.uint64(a)
            right = (right + self._mix(key, number + 1, left, b)) % np.uint64(b)
        return np.asarray(left * np.uint64(b) + right)

    @staticmethod
    def _mix(key: NDArray[np.uint64], number: int, half: NDArray[np.uint64], below: int) -> NDArray[np.uint64]:
        return np.asarray(splitmix64(key ^ (half | np.uint64(number << 56))) % np.uint64(below))


@dataclass(frozen=True)
class Buckets:
    """Which of a few shapes each item of a set is brought to.

    shapes: (*S) of every bucket, the most common one first. of: (N,) bucket of every item. granule: how many consecutive
    samples of a run come from one bucket.
    """

    shapes: tuple[tuple[int, ...], ...]
    of: NDArray[np.int64]
    granule: int

    def some(self, indices: NDArray[np.int64]) -> Buckets:
        """The same for some of the items."""
        return Buckets(self.shapes, self.of[indices], self.granule)

    def one_of(self, indices: NDArray[np.int64]) -> int:
        """The bucket that all of these items lie in."""
        found = np.unique(self.of[indices])
        if len(found) != 1:
            raise UserError(
                f"items of {len(found)} buckets can't make one batch; take their indices from data.order(seed)"
            )
        return int(found[0])


@dataclass(frozen=True, eq=False)
class BucketOrder:
    """Global sample number k -> index, where every `granule` consecutive numbers lie in one bucket.

    Bucket b of n_b items has a stream of its own, a permutation after the other, cut into granules of G. Epoch e holds,
    shuffled, the granules floor(e n_b / G) ... floor((e + 1) n_b / G) - 1 of every bucket: n samples but for less than G a
    bucket. So after E epochs each item of a bucket of G items or more was seen E or E - 1 times, and no bucket is seen
    more often than its share; smaller buckets come in their share too, but not in every epoch. Random access: O(buckets)
    for each granule, and O(1) for each sample.
    """

    buckets: Buckets
    seed: int

    def __call__(self, k: NDArray[np.int64]) -> NDArray[np.int64]:
        """k: (B,) sample numbers >= 0. Returns (B,) indices."""
        k = np.asarray(k, np.int64)
        granules, inverse = np.unique(k // self.buckets.granule, return_inverse=True)
        buckets, starts = self._places(granules)
        bucket, position = buckets[inverse], starts[inverse] + k % self.buckets.granule
        found = np.empty(len(k), np.int64)
        for number in np.unique(buckets).tolist():
            chosen = bucket == number
            members, order = self._members[number]
            found[chosen] = members[order(position[chosen])]
        return found

    @cached_property
    def _members(self) -> list[tuple[NDArray[np.int64], Order]]:
        """Items of every bucket that has some, with the order of its stream."""
        listed = [np.flatnonzero(self.buckets.of == b) for b in range(len(self.buckets.shapes))]
        made = [(m, Order(len(m), self.seed * 1_000_003 + b + 1)) for b, m in enumerate(listed) if len(m)]
        if not made:
            raise UserError("an order of 0 items can't be made; the training part of the data is empty")
        return made

    @cached_property
    def _counts(self) -> NDArray[np.int64]:
        return np.asarray([len(members) for members, _ in self._members], np.int64)

    def _before(self, epoch: NDArray[np.int64]) -> NDArray[np.int64]:
        """(M, buckets) granules of every bucket before each of M epochs."""
        return np.asarray(epoch[:, None] * self._counts // self.buckets.granule)

    def _places(self, granule: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """(bucket, position in its stream) of the first sample of each granule."""
        size = self.buckets.granule
        epoch = granule * size // int(self._counts.sum())  # at or before the one sought: rounding down loses granules
        while (late := self._before(epoch + 1).sum(1) <= granule).any():
            epoch += late
        before, after = self._before(epoch), self._before(epoch + 1)
        count, place = (after - before).sum(1), granule - before.sum(1)
        for one in np.unique(epoch).tolist():
            inside = epoch == one
            n = int(count[inside][0])
            place[inside] = Order(n, self.seed)(one * n + place[inside])
        ends = np.cumsum(after - before, axis=1)
        bucket = (place[:, None] >= ends).sum(1)
        rows = np.arange(len(granule))
        first = ends[rows, bucket] - (after - before)[rows, bucket]
        return bucket, (before[rows, bucket] + place - first) * size
