"""MMD, COV and 1-NNA of sets whose answers are known; distances against plain loops."""

from __future__ import annotations

import pytest
import torch

from sfumato.errors import UserError
from sfumato.evaluate.solid_sets import chamfer_distance, overlap_distance, set_scores, surface_points


def between(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    return (a[:, None] - b[None]).abs()


def scores(a: torch.Tensor, b: torch.Tensor):  # type: ignore[no-untyped-def]
    return set_scores(between(a, a), between(a, b), between(b, b))


def test_by_hand() -> None:
    """Numbers on a line: samples 0, 1, 10 and references 0.4, 9, 30."""
    found = scores(torch.tensor([0.0, 1, 10]), torch.tensor([0.4, 9, 30]))
    assert found.mmd == pytest.approx((0.4 + 1 + 20) / 3)
    assert found.cov == pytest.approx(2 / 3)  # nearest references: 0.4, 0.4, 9
    # Nearest others: 0 -> 0.4, 1 -> 0.4, 10 -> 9 (all wrong); 0.4 -> 0, 9 -> 10 (wrong), 30 -> 10 (wrong).
    assert found.nna == 0


def test_far_apart_sets_are_told_apart_and_copies_are_not() -> None:
    a = torch.randn(40, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    assert scores(a, a + 100).nna == 1
    assert scores(a, a + 100).cov == pytest.approx(1 / 40)
    same = scores(a, a)
    assert (same.mmd, same.cov, same.nna) == (0, 1, 0)


def test_one_distribution_is_near_one_half_and_its_interval_holds_it() -> None:
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(400, 5, generator=generator)
    a, b = x[:200], x[200:]
    found = set_scores(torch.cdist(a, a), torch.cdist(a, b), torch.cdist(b, b))
    low, high = found.nna_interval
    assert low < 0.5 < high
    assert 0.05 < high - low < 0.15


def test_a_collapsed_model_covers_little() -> None:
    reference = torch.arange(50.0)
    found = scores(torch.full((50,), 25.2) + 0.001 * torch.arange(50), reference)
    assert found.cov == pytest.approx(1 / 50)
    assert found.nna > 0.9


def test_overlap_is_the_jaccard_distance() -> None:
    generator = torch.Generator().manual_seed(0)
    a, b = (torch.rand(n, 3, 4, 5, generator=generator) < 0.4 for n in (4, 6))
    found = overlap_distance(a, b)
    for i in range(4):
        for j in range(6):
            expected = 1 - (a[i] & b[j]).sum() / (a[i] | b[j]).sum()
            assert found[i, j] == pytest.approx(float(expected), abs=1e-6)
    empty = torch.zeros(1, 3, 4, 5, dtype=torch.bool)
    assert overlap_distance(empty, empty).item() == 0
    assert overlap_distance(empty, a).tolist() == [[1.0] * 4]


def test_chamfer_is_the_mean_of_nearest_squared_distances() -> None:
    generator = torch.Generator().manual_seed(0)
    a, b = torch.randn(3, 40, 3, generator=generator), torch.randn(5, 30, 3, generator=generator)
    found = chamfer_distance(a, b)
    for i in range(3):
        for j in range(5):
            d = torch.cdist(a[i].double(), b[j].double()).square()
            assert found[i, j] == pytest.approx(float(d.amin(1).mean() + d.amin(0).mean()), rel=1e-4)
    assert torch.allclose(chamfer_distance(a, b).T, chamfer_distance(b, a), rtol=1e-4)
    assert chamfer_distance(a, a[:, torch.randperm(40)]).diagonal().abs().max() < 1e-5  # the order of points is nothing


def test_surface_points_lie_in_the_cells_of_the_surface() -> None:
    grid = torch.zeros(3, 8, 8, 8, dtype=torch.bool)
    grid[0, 2:6, 2:6, 2:6] = True
    grid[1, 0, 0, 0] = True
    points = surface_points(grid, 200)
    cells = ((points + 1) * 4).floor().long()
    for item in range(2):
        x, y, z = cells[item].T
        assert grid[item, x, y, z].all()
    inner = ((cells[0] >= 3) & (cells[0] <= 4)).all(1)
    assert not inner.any()
    assert len(torch.unique(cells[0, :56], dim=0)) == 56  # every cell of the surface once before any comes twice
    assert not points[2].any()
    assert torch.equal(points[1], surface_points(grid[1:2], 200)[0])


def test_unequal_sets_are_refused() -> None:
    with pytest.raises(UserError, match="equally many"):
        scores(torch.arange(3.0), torch.arange(4.0))
    with pytest.raises(UserError, match="at least 2"):
        scores(torch.arange(1.0), torch.arange(1.0))
