"""Distances against a plain search, components against a flood fill, symmetries as a group."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
from torch import Tensor

from sfumato.solid.grid import (
    component_sizes,
    fitted,
    in_one_piece,
    signed_distance,
    spread,
    squared_distance,
    symmetry,
    without_specks,
)


def random_grids(share: float, *shape: int, seed: int = 0) -> Tensor:
    return torch.rand(*shape, generator=torch.Generator().manual_seed(seed)) < share


def flood(grid: np.ndarray) -> list[int]:  # type: ignore[type-arg]
    """Sizes of the parts, by a stack."""
    left, sizes = {tuple(cell) for cell in np.argwhere(grid).tolist()}, []
    while left:
        stack, size = [left.pop()], 0
        while stack:
            x, y, z = stack.pop()
            size += 1
            for step in ((1, 0, 0), (-1, 0, 0), (0, 1, 0), (0, -1, 0), (0, 0, 1), (0, 0, -1)):
                near = (x + step[0], y + step[1], z + step[2])
                if near in left:
                    left.remove(near)
                    stack.append(near)
        sizes.append(size)
    return sorted(sizes, reverse=True)


@pytest.mark.parametrize("shape", [(9,), (6, 7), (5, 4, 6)])
@pytest.mark.parametrize("share", [0.05, 0.5])
def test_squared_distances_are_those_of_a_search(shape: tuple[int, ...], share: float) -> None:
    grids = random_grids(share, 4, *shape)
    grids[0].view(-1)[3] = True
    cells = torch.tensor(list(itertools.product(*map(range, shape))), dtype=torch.float64)
    for grid, found in zip(grids, squared_distance(grids)):
        if not grid.any():
            assert found.isinf().all()
            continue
        exact = torch.cdist(cells, grid.nonzero().double()).square().amin(1).round()
        assert torch.equal(found.flatten().double(), exact)


def test_the_sign_of_the_distance_is_the_grid() -> None:
    grids = random_grids(0.3, 3, 6, 5, 7)
    assert torch.equal(signed_distance(grids, 3.0) > 0, grids)
    line = torch.tensor([[False, False, True, True, True, False]])
    assert signed_distance(line, 2.0).tolist() == [[-1.5, -0.5, 0.5, 1.5, 0.5, -0.5]]
    assert (signed_distance(torch.ones(1, 3, 3, 3, dtype=torch.bool), 2.5) == 2.5).all()
    assert (signed_distance(torch.zeros(1, 3, 3, 3, dtype=torch.bool), 2.5) == -2.5).all()


@pytest.mark.parametrize("share", [0.1, 0.32, 0.6])
def test_components_are_those_of_a_flood_fill(share: float) -> None:
    grids = random_grids(share, 5, 7, 6, 8)
    assert component_sizes(grids) == [flood(grid.numpy()) for grid in grids]


def test_a_long_snake_is_one_component() -> None:
    grid = torch.zeros(1, 15, 15, 1, dtype=torch.bool)
    grid[0, ::2] = True
    for row in range(1, 15, 2):
        grid[0, row, 0 if row % 4 == 1 else -1] = True
    assert component_sizes(grid) == [[int(grid.sum())]]


def test_what_hangs_together_is_in_one_piece_and_nothing_is_not() -> None:
    grids = torch.zeros(70, 3, 3, 3, dtype=torch.bool)  # more than are looked at at once
    grids[1:, 0, 0, 0] = True
    grids[65:, 1, 1, 0] = True  # meets it in an edge alone
    assert in_one_piece(grids) == [False] + 64 * [True] + 5 * [False]


def test_specks_go_and_the_rest_stays() -> None:
    grid = torch.zeros(2, 8, 8, 8, dtype=torch.bool)
    grid[0, 1:5, 1:5, 1:5] = True  # 64
    grid[0, 6, 6, 6:8] = True  # 2
    kept = without_specks(grid, 0.1)
    assert torch.equal(kept[0, :5], grid[0, :5])
    assert not kept[0, 6:].any()
    assert torch.equal(without_specks(grid, 0.01), grid)
    assert not kept[1].any()  # an empty grid stays empty


def test_the_symmetries_are_the_eight_of_a_square() -> None:
    x = torch.arange(2 * 3 * 3 * 2).view(2, 3, 3, 2)
    made = [symmetry(x, number) for number in range(8)]
    assert len({tuple(m.flatten().tolist()) for m in made}) == 8
    assert torch.equal(made[0], x)
    assert torch.equal(symmetry(symmetry(symmetry(symmetry(x, 1), 1), 1), 1), x)
    assert torch.equal(symmetry(symmetry(x, 4), 4), x)
    corner = torch.zeros(1, 3, 3, 1)
    corner[0, 2, 1] = 1  # at +x
    assert symmetry(corner, 1)[0, 1, 2] == 1  # a quarter turn takes it to +y
    for m in made:  # columns stay columns
        assert sorted(map(tuple, m.flatten(0, 2).tolist())) == sorted(map(tuple, x.flatten(0, 2).tolist()))


def test_fitted_stands_on_the_ground_in_the_middle() -> None:
    voxels = np.zeros((4, 9, 5, 6), np.uint8)
    voxels[:, 3:7, 1:3, 2:5] = np.asarray([10, 20, 30, 255])[:, None, None, None]
    made = fitted(voxels, 8)
    assert np.array_equal(np.argwhere(made[3]).min(0), [2, 3, 0])
    assert np.array_equal(np.argwhere(made[3]).max(0), [5, 4, 2])
    assert (made[3] > 0).sum() == (voxels[3] > 0).sum()
    assert not fitted(np.zeros((4, 3, 3, 3), np.uint8), 4).any()


def test_what_is_too_large_is_reduced_to_its_most_common_colours() -> None:
    voxels = np.zeros((4, 8, 8, 8), np.uint8)
    voxels[3] = 255
    voxels[0] = 200
    voxels[0, 0, 0, :2] = 7  # 2 of the 8 voxels of one cell
    made = fitted(voxels, 4)
    assert (made[3] == 255).all()
    assert (made[0] == 200).all()
    voxels[0, :2, :2, 0] = 7  # 5 of 8
    assert fitted(voxels, 4)[0, 0, 0, 0] == 7


@pytest.mark.parametrize("side", [1, 5, 8])
def test_what_is_spread_stays_where_it_was_and_fills_the_rest(side: int) -> None:
    where = random_grids(0.1, 6, side, side, side)
    where[0], where[1] = False, True
    values = torch.rand(6, 3, side, side, side, generator=torch.Generator().manual_seed(1))
    found = spread(values, where)
    inside = where[:, None].expand_as(values)
    assert torch.equal(found[inside], values[inside]) and not found[0].any()
    for kept, of, full in zip(where[2:], values[2:], found[2:]):
        some = of[:, kept] if kept.any() else torch.zeros(3, 1)
        low, high = some.amin(1) - 1e-6, some.amax(1) + 1e-6
        every = full.flatten(1).T
        assert float((every - low).min()) >= 0 and float((high - every).min()) >= 0


@pytest.mark.parametrize("number", range(8))
def test_spreading_follows_the_symmetries(number: int) -> None:
    where, values = random_grids(0.05, 2, 8, 8, 8), torch.rand(2, 3, 8, 8, 8)
    turned = spread(symmetry(values, number), symmetry(where, number))
    assert torch.allclose(turned, symmetry(spread(values, where), number), atol=1e-6)
