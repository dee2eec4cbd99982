"""The order of training items: a seeded permutation per epoch with random access, so a position is one integer.

A Feistel network on Z_a x Z_b with a b >= n (additions modulo a and b in turn), made a permutation of [0, n) by cycle
walking: Black & Rogaway, "Ciphers with arbitrary finite domains", 2002, sections 4 and 5. a and b are next to the root of n,
so that hardly any index needs a second walk. Cost: O(1) time and memory for each index, whatever n.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

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
