"""Buckets: the shapes, whose is which, and a stream that is a function of the seed and the sample number alone."""

from __future__ import annotations

import itertools
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from sfumato.core.media import Batch, DataInfo
from sfumato.data import BucketOrder, Buckets, Data, Fields, Folder, Loader, pack
from sfumato.data.base import Draws, Indices
from sfumato.data.buckets import by_length, by_proportions, shapes_of_area
from sfumato.errors import UserError


def test_the_shapes_are_all_of_one_area() -> None:
    assert shapes_of_area(64, 2, 8) == [
        (32, 128), (40, 96), (48, 80), (56, 72), (64, 64), (72, 56), (80, 48), (96, 40), (128, 32)
    ]  # fmt: skip
    for side, dims, multiple in ((64, 2, 8), (512, 2, 64), (100, 2, 16), (32, 3, 8), (40, 3, 4)):
        shapes = shapes_of_area(side, dims, multiple)
        assert set(shapes) == {p for s in shapes for p in itertools.permutations(s)}
        for shape in shapes:
            assert all(n % multiple == 0 for n in shape) and max(shape) <= 4 * min(shape)
            assert np.prod(shape) <= side**dims
            for axis in range(dims):  # no side can grow
                larger = [n + multiple * (a == axis) for a, n in enumerate(shape)]
                assert np.prod(larger) > side**dims or max(larger) > 4 * min(larger)
    with pytest.raises(UserError, match="size = 4: holds no shape"):
        shapes_of_area(4, 2, 8)


def test_every_item_goes_to_the_nearest_proportions() -> None:
    rng = np.random.default_rng(0)
    sizes = rng.integers(20, 900, (5000, 2))
    made = by_proportions(sizes, 64, 99, 8, 1)
    aspect = np.log(sizes[:, 0] / sizes[:, 1])
    buckets = np.asarray([np.log(h / w) for h, w in made.shapes])
    away = np.abs(aspect[:, None] - buckets)
    assert np.allclose(away[np.arange(5000), made.of], away.min(1), atol=1e-6)
    counts = np.bincount(made.of)
    assert (np.diff(counts) <= 0).all() and len(counts) == 9
    few = by_proportions(sizes, 64, 3, 8, 1)
    assert len(few.shapes) == 3 and set(few.shapes) < set(made.shapes)
    assert np.bincount(by_proportions(sizes, 64, 9, 8, 400).of).min() >= 400
    assert by_proportions(sizes[:10], 64, 9, 8, 400).shapes in {(s,) for s in made.shapes}


def test_lengths_are_cut_and_never_filled_up() -> None:
    lengths = np.random.default_rng(0).integers(50, 4000, 2000)
    made = by_length(lengths, 5, 16, 64)
    taken = np.asarray([length for (length,) in made.shapes])[made.of]
    assert len(made.shapes) == 5 and (taken <= lengths).all() and all(n % 16 == 0 for (n,) in made.shapes)
    ladder = sorted(n for (n,) in made.shapes)
    assert (taken == [max(n for n in ladder if n <= length) for length in lengths]).all()
    assert np.bincount(made.of).min() >= 300
    assert by_length(np.full(10, 7), 4, 16, 64).shapes == ((16,),)  # shorter than the multiple: filled up


def buckets_of(*counts: int, granule: int) -> Buckets:
    of = np.repeat(np.arange(len(counts)), counts)
    return Buckets(tuple((i,) for i in range(len(counts))), np.random.default_rng(0).permutation(of), granule)


@pytest.mark.parametrize("counts", [(100,), (64, 64), (101, 37, 16), (1000, 17), (500, 3, 40, 1)])
@pytest.mark.parametrize("granule", [1, 16])
def test_every_item_once_an_epoch_and_one_bucket_at_a_time(counts: tuple[int, ...], granule: int) -> None:
    buckets = buckets_of(*counts, granule=granule)
    n, order = sum(counts), BucketOrder(buckets, seed=4)
    epochs = 40
    granules = [sum(e * c // granule for c in counts) for e in range(epochs + 1)]
    items = order(np.arange(granules[-1] * granule))
    assert (np.ptp(buckets.of[items].reshape(-1, granule), axis=1) == 0).all()
    for epoch in (1, 2, 7, epochs):  # after E epochs: E or E - 1 times, but for buckets that are smaller than a granule
        seen = np.bincount(items[: granules[epoch] * granule], minlength=n)
        for bucket, count in enumerate(counts):
            of_bucket = seen[buckets.of == bucket]
            assert np.ptp(of_bucket) <= 1 and of_bucket.sum() == epoch * count // granule * granule
            assert set(of_bucket.tolist()) <= {epoch, epoch - 1} or count < granule


def test_random_access_is_the_stream() -> None:
    order = BucketOrder(buckets_of(300, 50, 20, 3, granule=8), seed=1)
    whole = order(np.arange(6000))
    some = np.random.default_rng(0).integers(0, 6000, 500)
    assert (order(some) == whole[some]).all()
    assert (order(np.asarray([10**12])) < 373).all()
    other = BucketOrder(buckets_of(300, 50, 20, 3, granule=8), seed=2)
    assert (other(np.arange(64)) != whole[:64]).any()


def test_buckets_are_mixed_evenly() -> None:
    buckets = buckets_of(4000, 4000, granule=8)
    of = buckets.of[BucketOrder(buckets, seed=0)(np.arange(8000))[::8]]
    changes = int((np.diff(of) != 0).sum())
    assert abs(changes - 500) < 5 * 16  # as often as for a fair coin: 999 / 2, deviation 16


class Sized(Data):
    """Item i is the number i, in the shape of its bucket."""

    def __init__(self, buckets: Buckets) -> None:
        self.buckets = buckets

    @property
    def info(self) -> DataInfo:
        return DataInfo((1, *self.buckets.shapes[0]), "array")

    @property
    def bucketing(self) -> Buckets:
        return self.buckets

    def __len__(self) -> int:
        return len(self.buckets.of)

    def fetch(self, indices: Indices, draws: Draws = None) -> Batch:
        raise AssertionError("training asks for buckets")

    def fetch_bucket(self, indices: Indices, draws: Draws = None) -> Batch:
        index = np.asarray(indices, np.int64)
        (length,) = self.buckets.shapes[self.buckets.one_of(index)]
        return Batch(torch.from_numpy(index.astype(np.float32))[:, None, None].expand(-1, 1, length + 1))

    def held_out_mask(self) -> Any:
        return np.arange(len(self)) % 7 == 0

    def fingerprint(self) -> str:
        return ""


def test_any_batch_size_thread_rank_or_start_sees_the_same_stream() -> None:
    train = Sized(buckets_of(120, 80, 33, granule=32)).split("train")
    want = train.indices[train.order(3)(np.arange(1024))].tolist()

    def seen(batch: int, count: int, start: int = 0, **how: int) -> list[tuple[int, ...]]:
        with Loader(train, batch, 3, start, **how) as loader:  # type: ignore[arg-type]
            return [tuple(int(v) for v in next(loader)[1].media[:, 0, 0]) for _ in range(count)]

    for batch in (8, 16, 32):
        for how in ({}, {"threads": 3, "prefetch": 7}):
            assert [i for b in seen(batch, 1024 // batch, **how) for i in b] == want
    assert [i for b in seen(16, 20, 16 * 21) for i in b] == want[16 * 21 : 16 * 41]
    ranks = [seen(8, 32, rank=rank, world=4) for rank in range(4)]
    assert [i for step in zip(*ranks) for b in step for i in b] == want
    for batch, start in ((12, 0), (16, 8), (64, 0)):
        with pytest.raises(UserError, match="granule = 32 samples come from one bucket"):
            Loader(train, batch, 3, start)
    assert max(Counter(want).values()) - min(Counter(want).values()) <= 2


def pictures(folder: Path) -> Path:
    """60 wide, 30 tall and 30 square pictures that show their number in a plain colour."""
    for i in range(120):
        size = ((48, 24), (20, 41), (48, 24), (33, 32))[i % 4]
        Image.new("RGB", size, (i, 0, 0)).save(folder / f"{i:03}.png")
    return folder


def test_pictures_in_buckets(tmp_path: Path) -> None:
    data = Folder(path=str(pictures(tmp_path)), size=32, buckets=3, granule=16, held_out=0.1)
    assert data.bucketing is not None and data.bucketing.shapes == ((24, 40), (32, 32), (40, 24))
    assert data.info.shape == (3, 24, 40) and np.bincount(data.bucketing.of).tolist() == [60, 30, 30]
    seen = Counter[int]()
    with Loader(data.split("train"), 16, 0, threads=2) as loader:
        for _ in range(14):
            batch = next(loader)[1]
            numbers = batch.media[:, 0, 0, 0].tolist()
            assert (batch.media == batch.media[:, :, :1, :1]).all()
            assert {tuple(batch.media.shape[2:])} == {((24, 40), (40, 24), (24, 40), (32, 32))[i % 4] for i in numbers}
            seen.update(numbers)
    held = set(np.flatnonzero(data.held_out_mask()).tolist())
    assert not held & set(seen) and len(seen) == 108
    mixed = data.fetch(range(4)).media  # outside training all have one shape
    assert mixed.shape == (4, 3, 24, 40) and mixed[:, 0, 0, 0].tolist() == [0, 1, 2, 3]
    with pytest.raises(UserError, match="items of 3 buckets can't make one batch"):
        data.fetch_bucket(range(4))
    with pytest.raises(UserError, match="a set with buckets can't be packed"):
        pack(data, tmp_path / "out")


def test_a_stand_in_is_of_the_same_bucket(tmp_path: Path) -> None:
    folder = pictures(tmp_path)
    data = Folder(path=str(folder), size=32, buckets=3, granule=16, held_out=0, crop="random", flip=True)
    for i in (5, 6):
        (folder / f"{i:03}.png").write_bytes(b"gone")
    for i in (5, 6):
        batch = data.fetch_bucket([i], np.asarray([0.3]))
        other = int(batch.media[0, 0, 0, 0])
        assert data.bucketing is not None and other != i and data.bucketing.of[other] == data.bucketing.of[i]


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"buckets": -1}, "buckets = -1: must be at least 0"),
        ({"buckets": 2, "multiple": 0}, "multiple = 0"),
        ({"buckets": 2, "granule": 0}, "granule = 0"),
        ({"buckets": 2, "size": (8, 9)}, "takes one size=SIDE"),
        ({"broken": 1.5}, "broken = 1.5"),
    ],
)
def test_impossible_settings(tmp_path: Path, settings: dict[str, Any], said: str) -> None:
    Image.new("RGB", (8, 8)).save(tmp_path / "a.png")
    with pytest.raises(UserError, match=said):
        Folder(path=str(tmp_path), **settings)


def test_sounds_and_volumes_in_buckets(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    for i in range(80):
        np.save(tmp_path / f"{i:02}.npy", rng.normal(size=int(rng.integers(100, 900))).astype("float32"))
    data = Fields(path=str(tmp_path), buckets=4, granule=8, held_out=0)
    assert data.bucketing is not None and len(data.bucketing.shapes) == 4
    lengths = set()
    with Loader(data, 8, 0) as loader:
        for _ in range(20):
            lengths.add(next(loader)[1].media.shape[1:])
    assert lengths == {(1, *shape) for shape in data.bucketing.shapes}
    other = tmp_path / "volumes"
    other.mkdir()
    shapes = [(4, 16, 8, 8), (4, 8, 16, 8), (4, 10, 10, 10)]
    for i in range(30):
        np.save(other / f"{i:02}.npy", rng.normal(size=shapes[i % 3]).astype("float32"))
    volumes = Fields(path=str(other), layout="first", size=10, multiple=4, buckets=3, granule=2)
    assert volumes.bucketing is not None and set(volumes.bucketing.shapes) == {(8, 8, 12), (8, 12, 8), (12, 8, 8)}
