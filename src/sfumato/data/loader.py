"""Batches of a training run, prepared in the background. The stream is a function of (data, batch size, seed, start)."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from types import TracebackType
from typing import Self, final

import numpy as np
from numpy.typing import NDArray

from sfumato.core.media import Batch
from sfumato.core.random import keys, uniform
from sfumato.data.base import Data
from sfumato.data.broken import Replaced, refuse, too_many
from sfumato.errors import UserError

_BLOCK = 16
Loaded = tuple[NDArray[np.int64], Batch]
_Made = tuple[NDArray[np.int64], NDArray[np.int64], Batch]  # sample numbers, indices, items


@final
class Loader(Iterator[Loaded]):
    """Endless iterator over (global sample numbers (B,), Batch), from sample number `start` on.

    Sample number k is item `data.order(seed)(k)` with the draw of (seed, "augment", k), so the stream is the same
    for any `threads` and `prefetch`, and resuming needs `start` alone. With `world` processes, a step takes
    `world * batch_size` consecutive numbers, of which process `rank` gets its own `batch_size`. Of a set with buckets, a
    batch lies in one bucket: `batch_size` must divide the granule, and the start be a multiple of it.

    `replaced` counts the samples that were handed out with another item in place of an unreadable one. Too many of these
    end the stream with a UserError (`broken.too_many`), at the same batch for any `threads`. A run that is resumed goes on
    counting with `loader.replaced = Replaced.of(STATE)`, of the `loader.replaced.state()` that was saved.

    threads: how many batches are made at once; more than 1 helps data sets whose `fetch` is slow Python. prefetch: how
    many batches may wait. An error of `fetch` is raised by the `next` that would have returned its batch. Use as a
    context manager, or call `close`.
    """

    def __init__(
        self,
        data: Data,
        batch_size: int,
        seed: int,
        start: int = 0,
        *,
        threads: int = 1,
        prefetch: int = 2,
        rank: int = 0,
        world: int = 1,
    ) -> None:
        if batch_size < 1:
            raise UserError(f"batch_size = {batch_size}: must be at least 1")
        if threads < 1 or prefetch < 1:
            raise UserError(f"threads = {threads}, prefetch = {prefetch}: both must be at least 1")
        if start < 0 or not 0 <= rank < world:
            raise UserError(
                f"start = {start}, rank = {rank} of {world}: start must be >= 0 and the rank below the world"
            )
        if len(data) == 0:
            raise UserError("the training part of the data is empty; lower held_out or give more items")
        buckets = data.bucketing
        if buckets is not None and (buckets.granule % batch_size or start % batch_size):
            raise UserError(
                f"batch_size = {batch_size}, start = {start}: granule = {buckets.granule} samples come from one bucket, "
                f"so the batch must divide it and the start; set granule={batch_size * -(-buckets.granule // batch_size)}"
            )
        self.replaced = Replaced()
        self._data, self._size, self._seed = data, batch_size, seed
        self._order = data.order(seed)
        self._fetch = data.fetch if buckets is None else data.fetch_bucket
        self._taken = start  # by all processes together
        self._first = start + rank * batch_size
        self._stride = world * batch_size
        self._step = 0
        self._blocks: dict[int, NDArray[np.int64]] = {}
        self._depth = max(prefetch, threads)
        self._pool: ThreadPoolExecutor | None = ThreadPoolExecutor(threads, thread_name_prefix="loader")
        self._waiting: deque[Future[_Made]] = deque()

    def __next__(self) -> Loaded:
        if self._pool is None:
            raise UserError("the loader is closed; make a new one with start=POSITION")
        try:
            self._fill(self._pool)
            number, indices, batch = self._waiting.popleft().result()
            self._count(indices)
            self._fill(self._pool)
        except BaseException:
            self.close()
            raise
        return number, batch

    def _count(self, indices: NDArray[np.int64]) -> None:
        """Note what was replaced in a batch, when it is handed out: how far ahead others were made changes nothing."""
        data, replaced = self._data, self.replaced
        self._taken += self._stride
        replaced.add(indices, data.unreadable(indices))
        seen = min(self._taken, len(data))
        if too_many(len(replaced.items), seen, len(data), data.broken_share):
            raise refuse(data.where, replaced.items, seen, data.broken_share)

    def _fill(self, pool: ThreadPoolExecutor) -> None:
        while len(self._waiting) < self._depth:
            self._waiting.append(pool.submit(self._make, self._step))
            self._step += 1

    def _make(self, step: int) -> _Made:
        number, indices = self._numbers(step), self._indices(step)
        draws = uniform(keys(self._seed, "augment", number))
        return number, indices, self._fetch(indices, draws)

    def _numbers(self, step: int) -> NDArray[np.int64]:
        first = self._first + step * self._stride
        return np.arange(first, first + self._size, dtype=np.int64)

    def _indices(self, step: int) -> NDArray[np.int64]:
        """Indices of a step (B,). Made for _BLOCK steps at once, which costs hardly more than for one."""
        block = step // _BLOCK
        indices = self._blocks.get(block)
        if indices is None:
            first = block * _BLOCK
            numbers = np.concatenate([self._numbers(s) for s in range(first, first + _BLOCK)])
            self._blocks.pop(block - 2 - self._depth // _BLOCK, None)  # no step of it can be on its way any more
            indices = self._blocks[block] = self._order(numbers).reshape(_BLOCK, self._size)
        return np.asarray(indices[step % _BLOCK])

    def close(self) -> None:
        """Stop the background threads. Idempotent."""
        pool, self._pool = self._pool, None
        self._waiting.clear()
        if pool is not None:
            pool.shutdown(wait=True, cancel_futures=True)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
