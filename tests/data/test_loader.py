"""The stream of batches depends on (data, batch size, seed, start) alone."""

from __future__ import annotations

import threading
import time
from typing import Any

import numpy as np
import pytest
import torch

from sfumato.core.media import Batch, DataInfo
from sfumato.data import Digits, Loader, Order, TorchData
from sfumato.data.base import Data, Draws, Indices
from sfumato.errors import UserError

DIGITS = Digits().split("train")


def take(count: int, **settings: Any) -> list[tuple[list[int], torch.Tensor, list[str]]]:
    with Loader(DIGITS, 32, seed=5, **settings) as loader:
        found = [next(loader) for _ in range(count)]
    return [(number.tolist(), batch.media, list(batch.conditions["caption"])) for number, batch in found]  # type: ignore[arg-type]


def same(one: Any, other: Any) -> bool:
    return all(a[0] == b[0] and torch.equal(a[1], b[1]) and a[2] == b[2] for a, b in zip(one, other, strict=True))


@pytest.mark.parametrize(("threads", "prefetch"), [(1, 1), (3, 2), (4, 9)])
def test_threads_and_prefetch_change_nothing(threads: int, prefetch: int) -> None:
    assert same(take(60), take(60, threads=threads, prefetch=prefetch))


def test_resuming_is_the_same_stream() -> None:
    assert same(take(60)[23:], take(37, start=23 * 32))


def test_batch_size_does_not_change_the_order() -> None:
    whole = torch.cat([media for _, media, _ in take(6)])
    with Loader(DIGITS, 64, seed=5) as loader:
        assert torch.equal(torch.cat([next(loader)[1].media for _ in range(3)]), whole)


def test_ranks_share_the_stream_of_one_process() -> None:
    ranks = [Loader(DIGITS, 32, seed=5, rank=rank, world=2) for rank in range(2)]
    with Loader(DIGITS, 64, seed=5) as alone, ranks[0], ranks[1]:
        for _ in range(5):
            number, batch = next(alone)
            (n0, b0), (n1, b1) = next(ranks[0]), next(ranks[1])
            assert (np.concatenate([n0, n1]) == number).all()
            assert torch.equal(torch.cat([b0.media, b1.media]), batch.media)


def test_items_are_those_of_the_order() -> None:
    number, batch = Loader(DIGITS, 16, seed=9, start=7).__next__()
    assert number.tolist() == list(range(7, 23))
    assert torch.equal(batch.media, DIGITS.fetch(Order(len(DIGITS), 9)(number)).media)


class Numbers(Data):
    """Item i is the number i; fails or waits on demand."""

    def __init__(self, fail_at: int = -1, wait: float = 0) -> None:
        self.fail_at, self.wait, self.threads = fail_at, wait, set[str]()

    @property
    def info(self) -> DataInfo:
        return DataInfo((1, 1), "array")

    def __len__(self) -> int:
        return 100

    def fetch(self, indices: Indices, draws: Draws = None) -> Batch:
        self.threads.add(threading.current_thread().name)
        time.sleep(self.wait)
        if self.fail_at in indices:
            raise UserError("item is broken")
        return Batch(torch.as_tensor(np.asarray(indices), dtype=torch.float32)[:, None, None])

    def held_out_mask(self) -> np.ndarray[Any, Any]:
        return np.zeros(100, bool)

    def fingerprint(self) -> str:
        return ""


def test_errors_reach_the_consumer_at_their_batch_and_threads_end() -> None:
    position = Order(100, 0)(np.arange(100)).tolist().index(42)
    loader = Loader(Numbers(fail_at=42), 10, seed=0, threads=2, prefetch=4)
    for _ in range(position // 10):
        next(loader)
    with pytest.raises(UserError, match="item is broken"):
        next(loader)
    with pytest.raises(UserError, match="closed"):
        next(loader)
    assert not [t for t in threading.enumerate() if t.name.startswith("loader")]


def test_work_is_done_in_the_background() -> None:
    data = Numbers(wait=0.01)
    with Loader(data, 10, seed=0, prefetch=3) as loader:
        next(loader)
        time.sleep(0.2)
        assert all(future.done() for future in loader._waiting) and len(loader._waiting) == 3
    assert threading.current_thread().name not in data.threads


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"batch_size": 0}, "batch_size = 0"),
        ({"threads": 0}, "threads = 0"),
        ({"start": -1}, "start = -1"),
        ({"rank": 2}, "rank = 2"),
    ],
)
def test_impossible_settings_are_refused(settings: dict[str, int], said: str) -> None:
    with pytest.raises(UserError, match=said):
        Loader(DIGITS, **{"batch_size": 8, "seed": 0, **settings})  # type: ignore[arg-type]


def test_an_empty_training_part_is_refused() -> None:
    with pytest.raises(UserError, match="training part of the data is empty"):
        Loader(TorchData([torch.zeros(1, 2)], held_out=0).split("held_out"), 8, seed=0)
