"""Splits, draws and fingerprints."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from sfumato.data import Arrays, Digits, Shapes, TorchData
from sfumato.data.base import choose_split, expand, file_digest, hashed_split
from sfumato.errors import UserError
from sfumato.registry import members
from sfumato.spec import Spec, parse


@pytest.mark.parametrize(
    ("n", "share", "count"),
    [(1, 0.05, 0), (2, 0.05, 1), (20, 0.05, 1), (1000, 0.05, 50), (100_000, 0.05, 2000), (1000, 0, 0), (4, 0.9, 3)],
)
def test_a_share_is_held_out(n: int, share: float, count: int) -> None:
    mask = hashed_split(n, share)
    assert mask.sum() == count
    assert (mask == hashed_split(n, share)).all()


def test_held_out_items_are_spread_over_the_set() -> None:
    where = np.flatnonzero(hashed_split(10_000, 0.1)) / 10_000
    assert abs(where.mean() - 0.5) < 0.03 and abs(where.std() - 12**-0.5) < 0.02


@pytest.mark.parametrize("share", [-0.1, 1, 2])
def test_impossible_shares_are_refused(share: float) -> None:
    with pytest.raises(UserError, match=f"held_out = {share}"):
        hashed_split(10, share)


def test_an_own_test_part_wins_unless_a_share_is_asked_for() -> None:
    own = np.arange(100) >= 90
    assert (choose_split(100, None, own) == own).all()
    assert choose_split(100, 0.2, own).sum() == 20
    assert choose_split(100, None, np.zeros(100, bool)).sum() == 5


@pytest.mark.parametrize(
    "data", [Digits(), Shapes(count=500), TorchData([torch.full((1, 2), float(i)) for i in range(40)])]
)
def test_the_two_parts_are_disjoint_and_make_the_whole(data: Digits) -> None:
    train, held = data.split("train"), data.split("held_out")
    assert sorted([*train.indices, *held.indices]) == list(range(len(data)))
    assert torch.equal(held.fetch([0, 1]).media, data.fetch(held.indices[:2]).media)
    assert held.held_out_mask().all() and not train.held_out_mask().any()
    assert len({data.fingerprint(), train.fingerprint(), held.fingerprint()}) == 3
    with pytest.raises(UserError, match="no split 'test'"):
        data.split("test")  # type: ignore[arg-type]


def test_one_draw_makes_independent_uniform_numbers() -> None:
    draws = (np.arange(20_000) + 0.5) / 20_000
    flip, crop = expand(draws, "flip"), expand(draws, "crop")
    for numbers in (flip, crop):
        histogram = np.histogram(numbers, 20, (0, 1))[0]
        assert ((histogram - 1000) ** 2 / 1000).sum() < 50  # chi-square with 19 degrees of freedom, p = 1e-4
    for one, other in ((flip, crop), (flip, draws), (flip[1:], flip[:-1])):
        assert abs(np.corrcoef(one, other)[0, 1]) < 0.03
    assert (expand(draws[5:9], "flip") == flip[5:9]).all()


def test_fingerprints_see_content_and_not_times(tmp_path: Path) -> None:
    one, two = tmp_path / "a.bin", tmp_path / "b.bin"
    one.write_bytes(b"x" * 9000)
    two.write_bytes(b"x" * 9000)
    first = file_digest([one, two])
    one.touch()
    assert file_digest([one, two]) == first
    one.write_bytes(b"x" * 8999 + b"y")
    assert file_digest([one, two]) != first


def test_a_data_set_is_its_settings(tmp_path: Path) -> None:
    np.save(tmp_path / "x.npy", np.zeros((4, 5), np.float32))
    spec = Spec(Arrays, path=str(tmp_path / "x.npy"), held_out=0.25)
    assert parse(Arrays, spec.to_dict()) == spec
    assert spec.build() == spec.build()
    assert {"arrays", "cifar10", "digits", "folder", "parquet", "shapes", "tar"} <= set(members("data"))
