"""Unreadable items: the stream, the count and the stop are functions of the data and the seed alone."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from sfumato.core.media import Batch
from sfumato.data import Folder, Loader, Order, Replaced, TorchData
from sfumato.data.broken import stand_ins, too_many
from sfumato.errors import UserError

N, SEED, BATCH = 400, 3, 16


def pictures(folder: Path, broken: list[int]) -> Path:
    """N pictures that show their number; broken ones keep their header, so that only decoding notices."""
    folder.mkdir(exist_ok=True)
    for i in range(N):
        file = folder / f"{i:04}.png"
        noise = np.random.default_rng(i).integers(0, 255, (24, 24, 3), np.uint8)
        noise[:2, :2] = i % 256, i // 256, 0
        Image.fromarray(noise).save(file)
        if i in broken:
            file.write_bytes(file.read_bytes()[:200])
    return folder


def shown(batch: Batch) -> list[int]:
    return [int(p[0, 0, 0]) + 256 * int(p[1, 0, 0]) for p in batch.media]


def expected(index: int, broken: list[int]) -> int:
    return index if index not in broken else next(i for i in stand_ins(index, np.arange(N)) if i not in broken)


def stream(folder: Path, batches: int, *, start: int = 0, state: Any = None, **how: int) -> tuple[list[int], Replaced]:
    with Loader(Folder(path=str(folder), held_out=0), BATCH, SEED, start, **how) as loader:  # type: ignore[arg-type]
        loader.replaced = Replaced.of(state)
        seen = [i for _ in range(batches) for i in shown(next(loader)[1])]
        return seen, loader.replaced


def test_half_a_percent_is_replaced_and_counted_exactly(tmp_path: Path) -> None:
    broken = [17, 250]
    folder = pictures(tmp_path, broken)
    batches = 60  # 960 samples: two epochs and a half
    asked = Order(N, SEED)(np.arange(BATCH * batches)).tolist()
    want = [expected(i, broken) for i in asked]
    for how in ({}, {"threads": 3, "prefetch": 9}):
        seen, replaced = stream(folder, batches, **how)
        assert seen == want
        assert replaced.samples == sum(i in broken for i in asked) and set(replaced.items) == set(broken)
        assert replaced.items[17].startswith("0017.png (")
    cut = 23
    first, before = stream(folder, cut, threads=2)
    state = json.loads(json.dumps(before.state()))
    rest, after = stream(folder, batches - cut, start=BATCH * cut, state=state)
    assert first + rest == want and after == replaced


def test_ranks_replace_alike(tmp_path: Path) -> None:
    folder = pictures(tmp_path, [17, 250])
    alone, whole = stream(folder, 20)
    parts = [stream(folder, 10, rank=rank, world=2) for rank in range(2)]
    halves = [seen[i : i + BATCH] for i in range(0, 10 * BATCH, BATCH) for seen, _ in parts]
    assert [i for half in halves for i in half] == alone
    assert sum(replaced.samples for _, replaced in parts) == whole.samples


def test_five_percent_stop_at_one_batch_with_the_list(tmp_path: Path) -> None:
    broken = list(range(7, 400, 20))
    folder = pictures(tmp_path, broken)
    asked = Order(N, SEED)(np.arange(N)).tolist()
    fifth = [k for k, i in enumerate(asked) if i in broken][4]  # 4 of 400 are 1%
    listed = set()
    for how in ({}, {"threads": 4, "prefetch": 8}, {"start": 0, "prefetch": 1}):
        with Loader(Folder(path=str(folder), held_out=0), BATCH, SEED, **how) as loader:  # type: ignore[arg-type]
            for _ in range(fifth // BATCH):
                next(loader)
            with pytest.raises(UserError, match=r"items can't be read, more than 1%: .*\.png \(") as caught:
                next(loader)
            listed.add(str(caught.value))
            assert set(loader.replaced.items) == {i for i in asked[: BATCH * (fifth // BATCH + 1)] if i in broken}
    assert len(listed) == 1 and "\n" not in listed.pop()
    with Loader(Folder(path=str(folder), held_out=0, broken=0.06), BATCH, SEED) as loader:
        assert [i for _ in range(50) for i in shown(next(loader)[1])] == [
            expected(i, broken) for i in Order(N, SEED)(np.arange(800)).tolist()
        ]
        assert set(loader.replaced.items) == set(broken)


def test_a_resumed_run_stops_where_the_whole_one_does(tmp_path: Path) -> None:
    broken = list(range(7, 400, 20))
    folder = pictures(tmp_path, broken)
    asked = Order(N, SEED)(np.arange(N)).tolist()
    fifth = [k for k, i in enumerate(asked) if i in broken][4] // BATCH
    _, before = stream(folder, fifth - 1)
    _, going_on = stream(folder, 1, start=BATCH * (fifth - 1), state=before.state())
    with pytest.raises(UserError, match="more than 1%"):
        stream(folder, 1, start=BATCH * fifth, state=going_on.state())


def test_a_picture_that_vanishes_is_replaced(tmp_path: Path) -> None:
    folder = pictures(tmp_path, [])
    data = Folder(path=str(folder), held_out=0)
    (folder / "0005.png").unlink()
    assert shown(data.fetch([4, 5])) == [4, expected(5, [5])]
    assert data.unreadable() == {5: "0005.png (No such file or directory)"}


def test_stand_ins_are_spread_and_end() -> None:
    part = np.arange(0, 100, 2)
    first = [next(stand_ins(i, part)) for i in range(2000)]
    counts = np.bincount(np.asarray(first) // 2, minlength=50)
    assert ((counts - 40) ** 2 / 40).sum() < 100  # chi-square with 49 degrees of freedom, p = 1e-5
    tried = list(stand_ins(9, part))
    assert set(tried) == set(part.tolist()) and tried == list(stand_ins(9, part)) != list(stand_ins(10, part))


@pytest.mark.parametrize(
    ("broken", "seen", "size", "stop"),
    [(2, 16, 200, False), (3, 16, 200, True), (100, 500, 10**6, False), (101, 500, 10**6, True),
     (500, 50_000, 10**6, False), (501, 50_000, 10**6, True), (1, 1, 20, True)],
)  # fmt: skip
def test_the_first_ten_thousand_count_as_one(broken: int, seen: int, size: int, stop: bool) -> None:
    assert too_many(broken, seen, size, 0.01) == stop


def test_half_a_percent_hardly_ever_stops_and_five_percent_soon() -> None:
    rng = np.random.default_rng(0)
    for share, most in ((0.005, 0), (0.05, 5_000)):
        for _ in range(50):
            found = np.cumsum(rng.random(40_000) < share)
            stops = np.flatnonzero([too_many(int(b), k + 1, 10**6, 0.01) for k, b in enumerate(found.tolist())])
            assert (len(stops) == 0) if most == 0 else stops[0] < most


class Torn:
    """A torch dataset whose item 3 can't be opened."""

    def __len__(self) -> int:
        return 200

    def __getitem__(self, index: int) -> tuple[torch.Tensor, int]:
        if index == 3:
            raise FileNotFoundError(2, "No such file or directory")
        return torch.full((1, 2), float(index)), index % 2


def test_a_torch_dataset_that_raises() -> None:
    data = TorchData(Torn(), labels=("even", "odd"), held_out=0)
    other = next(i for i in stand_ins(3, np.arange(200)) if i != 3)
    batch = data.fetch([2, 3])
    assert batch.media[:, 0, 0].tolist() == [2, other]
    assert batch.conditions["label"].tolist() == [0, other % 2]  # type: ignore[union-attr]
    assert data.unreadable() == {3: "item 3 ([Errno 2] No such file or directory)"} and len(data.problems) == 1
