"""Nearest neighbours against hand-made sets and scikit-learn."""

from __future__ import annotations

import pytest
import torch

from sfumato.errors import UserError
from sfumato.evaluate import nearest, neighbours


def test_points_on_a_line() -> None:
    bank = torch.tensor([[0.0], [1.0], [4.0], [9.0]])
    found = nearest(torch.tensor([[3.0], [9.0]]), bank, 2)
    assert found.distance.tolist() == [[1.0, 2.0], [0.0, 5.0]]
    assert found.index.tolist() == [[2, 1], [3, 2]]


def test_an_item_is_not_its_own_neighbour_but_its_copy_is() -> None:
    bank = torch.tensor([[0.0, 0.0], [3.0, 4.0], [3.0, 4.0]])
    found = nearest(bank, bank, 1, itself=True)
    assert found.distance[:, 0].tolist() == [5.0, 0.0, 0.0]
    assert found.index[1:, 0].tolist() == [2, 1]


def test_pictures_are_exact_and_copies_are_at_zero() -> None:
    g = torch.Generator().manual_seed(0)
    bank = torch.randint(0, 256, (50, 3, 8, 8), generator=g, dtype=torch.uint8)
    found = nearest(bank[[7, 3]], bank, 2)
    assert found.index[:, 0].tolist() == [7, 3]
    assert found.distance[:, 0].tolist() == [0.0, 0.0]
    apart = (bank[7].double() - bank[found.index[0, 1]].double()).square().sum().sqrt()
    assert float(found.distance[0, 1]) == float(apart)
    # Far from the origin too: whole numbers lose nothing in the squares.
    far = nearest(bank[[7]].int() + 10**6, bank.int() + 10**6, 2)
    assert torch.equal(far.distance, found.distance[:1])


def test_blocks_do_not_change_it(monkeypatch: pytest.MonkeyPatch) -> None:
    g = torch.Generator().manual_seed(1)
    x = torch.randn(37, 5, generator=g)
    whole = nearest(x, x, 3, itself=True)
    monkeypatch.setattr(neighbours, "_BLOCK", 100)
    parts = nearest(x, x, 3, itself=True)
    assert torch.equal(whole.index, parts.index)
    assert torch.equal(whole.distance, parts.distance)


def test_parity_with_scikit_learn() -> None:
    sklearn = pytest.importorskip("sklearn.neighbors", reason="scikit-learn is the oracle here")
    g = torch.Generator().manual_seed(2)
    x, y = torch.randn(200, 16, generator=g, dtype=torch.float64), torch.randn(90, 16, generator=g, dtype=torch.float64)
    theirs, index = sklearn.NearestNeighbors(n_neighbors=4, algorithm="brute").fit(x.numpy()).kneighbors(y.numpy())
    ours = nearest(y, x, 4)
    assert torch.allclose(ours.distance, torch.from_numpy(theirs), rtol=1e-9)
    assert torch.equal(ours.index, torch.from_numpy(index))


@pytest.mark.parametrize(("k", "itself"), [(0, False), (4, False), (3, True)])
def test_too_many_neighbours_are_refused(k: int, itself: bool) -> None:
    with pytest.raises(UserError, match=f"k = {k} nearest neighbours can't be had from {3 - itself} others"):
        nearest(torch.zeros(3, 2), torch.zeros(3, 2), k, itself=itself)
