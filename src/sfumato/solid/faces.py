"""Closed meshes of voxel grids: exact cubes, and a smooth surface. numpy alone; both are watertight by construction."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

_TOUCH = 1e-3  # cells by which corners of parts that touch in an edge or corner alone are drawn apart
Float = NDArray[np.float64]
Int = NDArray[np.int64]


@dataclass(frozen=True)
class Surface:
    """vertices (V, 3) in cells; triangles (F, 3), counter-clockwise from outside; colours (V, 3) uint8 of the vertices."""

    vertices: Float
    triangles: Int
    colours: NDArray[np.uint8]


def cubes(voxels: NDArray[np.uint8]) -> Surface:
    """All faces between occupied and empty cells as two triangles each, with corners of their own in the cell's colour.

    voxels: (4, X, Y, Z). Exact: its volume is the number of voxels. Corners at one place belong together.
    """
    cells, axes, far = _exposed(voxels[3] > 0)
    corners = _corners(cells, axes, far)
    colours = voxels[:3, cells[:, 0], cells[:, 1], cells[:, 2]].T
    quads = np.arange(4 * len(cells)).reshape(-1, 4)
    return Surface(corners.reshape(-1, 3).astype(float), _two(quads), np.repeat(colours, 4, 0))


def closed_cubes(voxels: NDArray[np.uint8]) -> Surface:
    """The same cubes with shared corners, each of the mean colour around it: every edge belongs to exactly two triangles.

    Where parts touch in an edge or a corner alone, each has corners of its own, drawn apart by a thousandth of a cell, and a
    shared edge a point in its middle.
    """
    occupied = voxels[3] > 0
    cells, axes, far = _exposed(occupied)
    if not len(cells):
        return Surface(np.zeros((0, 3)), np.zeros((0, 3), np.int64), np.zeros((0, 3), np.uint8))
    corners = _corners(cells, axes, far)
    part = _parts(occupied, cells, corners)
    keys = np.concatenate([corners.reshape(-1, 3), part.reshape(-1, 1)], 1)
    unique, index = np.unique(keys, axis=0, return_inverse=True)
    quads = index.reshape(-1, 4)
    own = np.repeat(cells + 0.5, 4, 0).reshape(-1, 4, 3)
    shared = len(unique) > len(np.unique(corners.reshape(-1, 3), axis=0))
    colours = voxels[:3, cells[:, 0], cells[:, 1], cells[:, 2]].T.astype(float)
    centre = _mean(own.reshape(-1, 3), index, len(unique))
    colour = _mean(np.repeat(colours, 4, 0), index, len(unique))
    vertices = unique[:, :3].astype(float)
    if shared:
        twins = _twins(unique[:, :3])
        vertices[twins] += _TOUCH * (centre[twins] - vertices[twins])
    return _split_edges(vertices, quads, colour, own[:, 0])


def _exposed(occupied: NDArray[np.bool_]) -> tuple[Int, Int, NDArray[np.bool_]]:
    """cells (F, 3), axes (F,) and whether the face is at the far end (F,), for every face beside an empty cell."""
    padded = np.pad(occupied, 1)
    found, axes, ends = [], [], []
    for axis in range(3):
        for far in (False, True):
            step = [1, 1, 1]
            step[axis] += 1 if far else -1
            beside = padded[tuple(slice(s, s + n) for s, n in zip(step, occupied.shape))]
            cells = np.argwhere(occupied & ~beside)
            found.append(cells)
            axes.append(np.full(len(cells), axis))
            ends.append(np.full(len(cells), far))
    return np.concatenate(found), np.concatenate(axes), np.concatenate(ends)


def _corners(cells: Int, axes: Int, far: NDArray[np.bool_]) -> Int:
    """(F, 4, 3) corners, counter-clockwise from outside."""
    made = np.repeat(cells[:, None], 4, 1)
    for axis in range(3):
        one, two = (axis + 1) % 3, (axis + 2) % 3
        for end in (False, True):
            here = np.flatnonzero((axes == axis) & (far == end))
            ring = np.asarray([[0, 0], [1, 0], [1, 1], [0, 1]] if end else [[0, 0], [0, 1], [1, 1], [1, 0]])
            made[here, :, one] += ring[:, 0]
            made[here, :, two] += ring[:, 1]
            made[here, :, axis] += end
    return made


def _two(quads: Int) -> Int:
    """Quads (F, 4) as triangles (2 F, 3)."""
    return quads[:, [0, 1, 2, 0, 2, 3]].reshape(-1, 3)


def _parts(occupied: NDArray[np.bool_], cells: Int, corners: Int) -> Int:
    """(F, 4) which of the parts around each corner the face's cell belongs to: cells of the 2^3 joined through faces."""
    padded = np.pad(occupied, 1)
    flat = corners.reshape(-1, 3)
    offsets = np.stack(np.meshgrid([0, 1], [0, 1], [0, 1], indexing="ij"), -1).reshape(8, 3)
    around = np.stack([padded[tuple((flat + o).T)] for o in offsets], 1)  # the cell at corner - 1 + offset, padded by 1
    label = np.where(around, np.arange(8), 8)
    for _ in range(4):  # the longest path within 2^3
        for a in range(8):
            for bit in (1, 2, 4):
                b = a ^ bit
                both = around[:, a] & around[:, b]
                least = np.minimum(label[:, a], label[:, b])
                label[:, a] = np.where(both, least, label[:, a])
                label[:, b] = np.where(both, least, label[:, b])
    mine = np.repeat(cells, 4, 0) - flat + 1  # offset of the face's own cell
    number = mine @ np.asarray([4, 2, 1])
    return np.asarray(label[np.arange(len(flat)), number].reshape(-1, 4), np.int64)


def _mean(values: Float, index: Int, count: int) -> Float:
    total = np.zeros((count, values.shape[1]))
    np.add.at(total, index.reshape(-1), values)
    return total / np.bincount(index.reshape(-1), minlength=count)[:, None]


def _twins(places: Int) -> Int:
    """Vertices that share their place with another one."""
    _, index, counts = np.unique(places, axis=0, return_inverse=True, return_counts=True)
    return np.flatnonzero(counts[index.reshape(-1)] > 1)


def _split_edges(vertices: Float, quads: Int, colours: Float, own: Float) -> Surface:
    """Triangles of quads; edges of four faces get a point of their own for each cell, and these faces one in their middle."""
    edges = np.stack([quads, np.roll(quads, -1, 1)], -1)
    low, high = edges.min(-1), edges.max(-1)
    keys = low * len(vertices) + high
    _, index, counts = np.unique(keys, return_inverse=True, return_counts=True)
    fourfold = counts[index.reshape(keys.shape)] > 2
    hard = fourfold.any(1)
    triangles = [_two(quads[~hard])]
    points, inks = [vertices], [colours]
    middles: dict[tuple[int, tuple[float, ...]], int] = {}
    count = len(vertices)
    for face in np.flatnonzero(hard).tolist():
        ring: list[int] = []
        for side in range(4):
            a, b = (int(v) for v in edges[face, side])
            ring.append(a)
            if fourfold[face, side]:
                key = (int(keys[face, side]), tuple(own[face].tolist()))
                if key not in middles:
                    middle = (vertices[a] + vertices[b]) / 2
                    points.append((middle + _TOUCH * (own[face] - middle))[None])
                    inks.append(((colours[a] + colours[b]) / 2)[None])
                    middles[key], count = count, count + 1
                ring.append(middles[key])
        points.append(vertices[quads[face]].mean(0, keepdims=True))
        inks.append(colours[quads[face]].mean(0, keepdims=True))
        triangles.append(np.asarray([[a, b, count] for a, b in zip(ring, ring[1:] + ring[:1])]))
        count += 1
    return Surface(np.concatenate(points), np.concatenate(triangles), np.rint(np.concatenate(inks)).astype(np.uint8))
