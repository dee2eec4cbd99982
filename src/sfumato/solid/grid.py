"""Voxel grids: exact distances, connected parts, the eight symmetries. Everything here is (B, X, Y, Z) or (C, X, Y, Z)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

SYMMETRIES = 8


def squared_distance(target: Tensor, within: float = math.inf) -> Tensor:
    """Exact squared Euclidean distance of every cell to the nearest True one, in cells: (B, *S) bool to (B, *S) float32.

    Axis by axis, d(i) = min_j (d(j) + (i - j)^2); infinity where a grid has no True cell. Saito & Toriwaki, "New algorithms
    for Euclidean distance transformation of an n-dimensional digitized picture", 1994. Exact for sides up to 2,048 (whole
    numbers of float32). within: cells this far away are looked at along each axis, so that distances above it are too large.
    Cost: the number of cells times the sum of the sides, or of `within`.
    """
    d = torch.where(target, 0.0, math.inf)
    for axis in range(1, target.ndim):
        n, before = target.shape[axis], d
        d = before.clone()
        for shift in range(1, math.ceil(min(n - 1, within)) + 1):
            for here, there in ((shift, 0), (0, shift)):
                near = before.narrow(axis, there, n - shift) + shift**2
                part = d.narrow(axis, here, n - shift)
                torch.minimum(part, near, out=part)
    return d


def signed_distance(occupied: Tensor, reach: float) -> Tensor:
    """Distance to the surface in cells, above 0 inside, cut off at +-`reach`: (B, *S) bool to (B, *S) float32.

    The surface lies half way between an occupied cell and an empty neighbour, so that cells beside it are at +-0.5 and the
    sign alone gives the grid back. Cells outside the grid count for nothing: a solid grid is `reach` everywhere.
    """
    inside = squared_distance(~occupied, reach + 0.5).sqrt() - 0.5
    outside = squared_distance(occupied, reach + 0.5).sqrt() - 0.5
    return torch.where(occupied, inside, -outside).clamp(-reach, reach)


def spread(values: Tensor, where: Tensor) -> Tensor:
    """Values (B, C, X, Y, Z) of the cells `where` (B, X, Y, Z) bool, and in all others what is near them, coarser far off.

    Push and pull over halved grids: each coarser cell has the mean of those of its eight that have a value, and a cell
    without one takes that of the first coarser cell around it that has. 0 in a grid without any. Gortler et al., "The
    Lumigraph", 1996, section 3.5, with box filters. Cost: about that of two passes over the cells.
    """
    weight = where[:, None].to(values)
    fine = torch.where(where[:, None], values, 0.0)
    if max(values.shape[2:]) == 1:
        return fine
    coarse, share = (F.avg_pool3d(x, 2, ceil_mode=True) for x in (fine, weight))
    around = spread(coarse / share.clamp(min=1e-12), share[:, 0] > 0)
    for axis, n in enumerate(values.shape[2:], 2):
        around = around.repeat_interleave(2, axis).narrow(axis, 0, n)
    return torch.where(where[:, None], values, around)


def components(occupied: Tensor) -> Tensor:
    """The connected part of every occupied cell, by the smallest flat index + 1 in it; 0 where empty. (B, X, Y, Z) int64.

    Cells are connected through faces. Only occupied cells and the faces between them are looked at: along every face the
    smaller label goes to both cells and to the cells that they point to, then labels jump to the labels of those, until
    nothing changes: about log2 of the longest path's length rounds.
    """
    cells = occupied[0].numel()
    place = occupied.flatten().nonzero()[:, 0]
    label = torch.arange(len(place), device=occupied.device)
    number = torch.full((occupied.numel(),), -1, device=occupied.device)
    number[place] = label
    one, two = _faces(number.view(occupied.shape))
    while True:
        least = torch.minimum(label[one], label[two])
        found = label.clone()
        for ends in (one, two, label[one], label[two]):
            found.scatter_reduce_(0, ends, least, "amin")
        found = found[found]
        if torch.equal(found, label):
            break
        label = found
    made = torch.zeros_like(number)
    made[place] = place[label] % cells + 1
    return made.view(occupied.shape)


def _faces(number: Tensor) -> tuple[Tensor, Tensor]:
    """The numbers of the two cells of each face between occupied ones; number (B, X, Y, Z) is -1 where empty."""
    pairs = []
    for axis in range(1, number.ndim):
        n = number.shape[axis]
        one, two = (number.narrow(axis, first, max(n - 1, 0)).flatten() for first in (0, min(1, n)))
        both = (one >= 0) & (two >= 0)
        pairs.append(torch.stack([one[both], two[both]]))
    one, two = torch.cat(pairs, 1)
    return one, two


def component_sizes(occupied: Tensor) -> list[list[int]]:
    """Cells in each connected part of each grid, largest first. occupied: (B, X, Y, Z) bool."""
    found = []
    for labels in components(occupied).flatten(1):
        counts = torch.unique(labels[labels > 0], return_counts=True)[1]
        found.append(sorted(counts.tolist(), reverse=True))
    return found


def in_one_piece(occupied: Tensor) -> list[bool]:
    """Whether the occupied cells of each grid hang together, through faces; not where there are none. (B, X, Y, Z) bool."""
    return [len(sizes) == 1 for part in torch.split(occupied, 64) for sizes in component_sizes(part)]


def without_specks(occupied: Tensor, share: float) -> Tensor:
    """Occupied cells without the connected parts that are smaller than `share` of the largest part of their grid."""
    label = components(occupied).flatten(1)
    counts = torch.zeros(len(label), label.shape[1] + 1, dtype=torch.int64, device=label.device)
    counts.scatter_add_(1, label, torch.ones_like(label))
    counts[:, 0] = 0
    least = counts.amax(1, keepdim=True) * share
    return ((counts.gather(1, label) >= least) & (label > 0)).view_as(occupied)


def open_cells(occupied: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """Occupied cells of (X, Y, Z) with a side that no other occupied cell covers."""
    padded = np.pad(occupied, 1)
    hidden = occupied.copy()
    for axis in range(3):
        for shift in (0, 2):
            first = [shift if a == axis else 1 for a in range(3)]
            hidden &= padded[tuple(slice(f, f + n) for f, n in zip(first, occupied.shape))]
    return occupied & ~hidden


def symmetry(x: Tensor, number: int) -> Tensor:
    """(..., X, Y, Z) under one of the 8 symmetries about the vertical: `number % 4` quarter turns, mirrored from 4 on.

    A quarter turn takes +x to +y. X and Y must be alike for odd turns. A mirror exchanges left and right (x) first.
    """
    x = x.flip(-3) if number >= 4 else x
    return x.rot90(number % 4, (-3, -2))


def fitted(voxels: NDArray[np.uint8], size: int) -> NDArray[np.uint8]:
    """(4, X, Y, Z) uint8 of any sides in a cube of `size` cells, standing on its ground and centred in x and y.

    Empty rims are cut off first. What is larger is reduced by the whole factor that makes it fit: a cell is occupied where
    any of its parts is, in their most common colour. Nothing is enlarged.
    """
    places = np.argwhere(voxels[3] > 0)
    made = np.zeros((4, size, size, size), np.uint8)
    if not len(places):
        return made
    low, high = places.min(0), places.max(0) + 1
    inner = voxels[:, low[0] : high[0], low[1] : high[1], low[2] : high[2]]
    factor = -(-int((high - low).max()) // size)
    if factor > 1:
        inner = _reduced(inner, factor)
    x, y, z = inner.shape[1:]
    left, front = (size - x) // 2, (size - y) // 2
    made[:, left : left + x, front : front + y, :z] = inner
    return made


def _reduced(voxels: NDArray[np.uint8], factor: int) -> NDArray[np.uint8]:
    places = np.argwhere(voxels[3] > 0)
    colours = voxels[:3, places[:, 0], places[:, 1], places[:, 2]].T.astype(np.int64)
    sides = [-(-n // factor) for n in voxels.shape[1:]]
    cell = np.ravel_multi_index(tuple((places // factor).T), sides)
    return coloured(np.asarray(cell, np.int64), colours, sides)


def coloured(cells: NDArray[np.int64], colours: NDArray[Any], sides: Sequence[int]) -> NDArray[np.uint8]:
    """A grid (4, *sides) of the cells (N,) that points with colours (N, 3) lie in, each in its most common colour."""
    ink = colours.astype(np.int64) @ np.asarray([1 << 16, 1 << 8, 1])
    kinds, counts = np.unique(cells * (1 << 24) + ink, return_counts=True)
    order = np.lexsort((kinds, -counts, kinds >> 24))
    place, first = np.unique(kinds[order] >> 24, return_index=True)
    chosen = kinds[order][first] & 0xFFFFFF
    made = np.zeros((4, int(np.prod(sides))), np.uint8)
    made[:3, place] = np.stack([chosen >> 16, chosen >> 8 & 255, chosen & 255]).astype(np.uint8)
    made[3, place] = 255
    return made.reshape(4, *sides)
