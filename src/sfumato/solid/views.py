"""Quick pictures of voxel grids for training: flat shading, no shadow, about half a millisecond each. numpy alone.

The projection and the light are those of `render.picture`, which draws smoother edges, darker corners and a shadow.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import cache

import numpy as np
from numpy.typing import NDArray

from sfumato.solid.render import View, lit

_GROUND = 255
_EDGE_ON = 1e-9  # of an axis towards the viewer
_INSET = 0.02  # of a face: its outermost samples stay clear of the neighbour's pixel
Float = NDArray[np.float32]
Int = NDArray[np.int64]


def draw(voxels: NDArray[np.uint8], side: int = 64, yaw: float = 30.0, pitch: float = 28.0) -> NDArray[np.uint8]:
    """(4, X, Y, Z) uint8 as a picture (3, side, side) uint8 on white, seen as `render.picture` sees it (same yaw and pitch,
    the latter not below 0).

    Every open face that looks at the viewer is covered with points closer than a pixel, and each point written to its pixel.
    The faces are in an order in which none is hidden by an earlier one: on a grid, going through each axis towards the viewer
    is exact for a parallel projection. So no depth is compared, and the last point written is what is seen.
    """
    view = View.of(voxels.shape[1:], math.radians(yaw), math.radians(pitch), side)
    signs = np.where(view.towards >= 0, 1, -1)
    grid = np.flip(voxels, tuple(1 + axis for axis in range(3) if signs[axis] < 0))  # all axes lead towards the viewer
    cell, axis = _open_faces(grid[3] > 0, np.abs(view.towards) > _EDGE_ON)
    pixels = _pixels(grid.shape[1:], cell, axis, view, signs)
    shade = np.asarray([lit(view, np.eye(3)[k] * signs[k]) for k in range(3)], np.float32)
    inks = np.full((3, len(cell) + 1), _GROUND, np.uint8)  # the last is what no face covers
    x, y, z = np.unravel_index(cell, grid.shape[1:])
    inks[:, :-1] = np.minimum(np.rint(grid[:3, x, y, z] * shade[axis]), 255)
    seen = np.full(side * side, len(cell), np.int32)
    seen[pixels.reshape(-1)] = np.repeat(np.arange(len(cell), dtype=np.int32), pixels.shape[1])  # the last one stays
    return inks[:, seen].reshape(3, side, side)


def _open_faces(occupied: NDArray[np.bool_], looks: NDArray[np.bool_]) -> tuple[Int, Int]:
    """Cells (F,) as flat numbers and axes (F,) of the faces with nothing before them, far ones first; those across an axis
    that does not look at the viewer (3,) are left out."""
    open_ = np.empty((*occupied.shape, 3), np.bool_)
    free = ~occupied
    for axis in range(3):
        here: list[slice | int] = [slice(None)] * 3
        beside, rim = here.copy(), here.copy()
        here[axis], beside[axis], rim[axis] = slice(0, -1), slice(1, None), -1
        face = open_[..., axis]
        if not looks[axis]:
            face[:] = False
            continue
        np.logical_and(occupied[tuple(here)], free[tuple(beside)], out=face[tuple(here)])
        face[tuple(rim)] = occupied[tuple(rim)]
    number = np.flatnonzero(open_)
    cell = number // 3
    return cell, number - 3 * cell


def _pixels(shape: Sequence[int], cell: Int, axis: Int, view: View, signs: Int) -> NDArray[np.int32]:
    """(F, n) the pixels of n points of every face, as flat numbers."""
    across, down = view.right * signs * view.scale, -view.up * signs * view.scale
    middle = np.asarray(shape) / 2
    points = _points(max(1, math.ceil(math.sqrt(2) * view.scale)))
    found = []
    for step in (across, down):
        x, y, z = (np.arange(n, dtype=np.float32) * np.float32(s) for n, s in zip(shape, step))
        start = np.float32(view.big / 2 - middle @ step)
        corner = (x[:, None, None] + y[:, None] + (z + start)).reshape(-1)[cell]
        found.append(((points @ step).astype(np.float32)[axis] + corner[:, None]).astype(np.int32))
    return np.asarray(found[1] * np.int32(view.big) + found[0], np.int32)


@cache
def _points(n: int) -> NDArray[np.float64]:
    """(3, (n + 1)^2, 3) points of the far face of a cell across each axis; neighbours are at most 1 / n apart."""
    one, two = np.meshgrid(*[np.linspace(_INSET, 1 - _INSET, n + 1)] * 2, indexing="ij")
    made = np.ones((3, (n + 1) ** 2, 3))
    for axis in range(3):
        first, second = (a for a in range(3) if a != axis)
        made[axis, :, first], made[axis, :, second] = one.reshape(-1), two.reshape(-1)
    return made
