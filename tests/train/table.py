"""Several "processes" of a run as threads that sit at one table: what `Saver` asks of `Parallel`, with nothing to start."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from sfumato.tensorfile import Slice
from sfumato.train.parallel import Words


class Seat:
    """What one of them sees of the others."""

    def __init__(self, rank: int, size: int, barrier: threading.Barrier, words: list[Any]) -> None:
        self.rank, self.size = rank, size
        self._barrier, self._words = barrier, words

    def everyone(self, value: Any) -> list[Any]:
        self._words[self.rank] = value
        self._barrier.wait(20)
        found = list(self._words)
        self._barrier.wait(20)
        return found

    def agree(self, words: Words) -> Words:
        found: list[Words] = self.everyone(words)
        return Words(found[0].seconds, *(any(one[i] for one in found) for i in (1, 2)), sum(one.total for one in found))


def together(size: int, work: Callable[[Seat], Any]) -> list[Any]:
    """What `work` returned or raised on each of `size` seats."""
    barrier, words, found = threading.Barrier(size), [None] * size, [None] * size

    def sit(rank: int) -> None:
        try:
            found[rank] = work(Seat(rank, size, barrier, words))
        except Exception as error:
            found[rank] = error

    threads = [threading.Thread(target=sit, args=(rank,)) for rank in range(size)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    return found


def rows(tensor: Tensor, rank: int, size: int) -> Slice:
    """What process `rank` of `size` holds of a tensor that is cut along its first axis as `torch.chunk` cuts."""
    parts = torch.chunk(tensor, size)
    start = sum(len(part) for part in parts[:rank])
    own = parts[rank] if rank < len(parts) else tensor[:0]
    return Slice(own, tuple(tensor.shape), min(start, len(tensor)))
