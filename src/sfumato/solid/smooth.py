"""A smooth closed surface of a voxel grid by marching tetrahedra: no table of cases, no ambiguous ones, always watertight.

Every cube of eight cell centres is cut into the six tetrahedra that share its main diagonal (Kuhn 1960). A tetrahedron with
one corner on another side than the rest gives a triangle, with two and two a quadrilateral. Neighbouring cubes cut their
common face along the same diagonal, so every edge of the surface belongs to two triangles. Doi & Koide, "An efficient
method of triangulating equi-valued surfaces by using tetrahedral cells", 1991.
"""

from __future__ import annotations

from functools import cache
from itertools import combinations, permutations

import numpy as np
import torch
from numpy.typing import NDArray

from sfumato.solid.faces import Float, Int, Surface
from sfumato.solid.grid import signed_distance

_REACH = 3.0
_LEAST = 0.12  # of every cell's distance, by which the surface stays off cell centres: no two of its points coincide
_TETRAHEDRA = [
    np.cumsum(np.eye(3, dtype=int)[[0, *order]], 0) - np.eye(3, dtype=int)[0] for order in permutations(range(3))
]
_Case = tuple[list[int], list[int], list[list[tuple[int, int]]]]  # corners inside, corners outside, triangles


def smooth_surface(voxels: NDArray[np.uint8]) -> Surface:
    """(4, X, Y, Z) uint8 to a surface that runs between occupied and empty cells, with the colours of the occupied ones.

    The distance to the surface is averaged with the neighbours' (1, 2, 1 along each axis) and then kept from changing its
    sign, so that parts of one voxel stay. Vertices are in cells, as for cubes: a cell's centre is at +1/2.
    """
    padded = np.pad(voxels, ((0, 0), (2, 2), (2, 2), (2, 2)))
    occupied = padded[3] > 0
    field = _field(occupied)
    points, keys = _triangles(field)
    unique, index = np.unique(keys, return_inverse=True)
    first = np.zeros(len(unique), np.int64)
    first[index.reshape(-1)] = np.arange(keys.size)
    inside, outside = points[:, first]  # the two ends of the edge that each vertex lies on, (V,) flat
    a, b = field.reshape(-1)[inside], field.reshape(-1)[outside]
    part = (a / (a - b))[:, None]
    start, end = (np.stack(np.unravel_index(p, occupied.shape), 1) for p in (inside, outside))
    vertices = start + part * (end - start) - 1.5
    colours = padded[:3].reshape(3, -1)[:, inside].T
    return Surface(vertices, index.reshape(-1, 3), colours)


def _field(occupied: NDArray[np.bool_]) -> Float:
    distance = signed_distance(torch.from_numpy(occupied)[None], _REACH)[0].double().numpy()
    for axis in range(3):
        padded = np.pad(distance, [(1, 1) if a == axis else (0, 0) for a in range(3)], mode="edge")
        n = distance.shape[axis]
        low, mid, high = (np.take(padded, range(s, s + n), axis) for s in range(3))
        distance = (low + 2 * mid + high) / 4
    return np.asarray(np.where(occupied, np.maximum(distance, _LEAST), np.minimum(distance, -_LEAST)))


def _triangles(field: Float) -> tuple[Int, Int]:
    """The (inside, outside) ends (2, 3 F) of the edges that the triangles' corners lie on, and each edge's number (F, 3)."""
    strides = np.asarray([field.shape[1] * field.shape[2], field.shape[2], 1])
    base = np.arange(field.size).reshape(field.shape)[:-1, :-1, :-1].reshape(-1)
    flat = field.reshape(-1) > 0
    whole = np.stack([flat[base + o @ strides] for o in _cube()]).sum(0)
    base = base[(whole > 0) & (whole < 8)]
    ins, outs = [], []
    for corners, cases in _cases():
        at = base[:, None] + corners @ strides  # (N, 4)
        sign = flat[at]
        for inside, outside, triangles in cases:
            here = at[(sign[:, inside].all(1)) & (~sign[:, outside].any(1))]
            for triangle in triangles if len(here) else ():
                ins.append(here[:, [i for i, _ in triangle]])
                outs.append(here[:, [o for _, o in triangle]])
    if not ins:
        return np.zeros((2, 0), np.int64), np.zeros((0, 3), np.int64)
    one, two = np.concatenate(ins), np.concatenate(outs)
    keys = np.minimum(one, two) * field.size + np.maximum(one, two)
    return np.stack([one.reshape(-1), two.reshape(-1)]), keys


@cache
def _cases() -> list[tuple[Int, list[_Case]]]:
    """The corners of each tetrahedron, and which of them may be inside, with the triangles that this gives."""
    made = []
    for corners in _TETRAHEDRA:
        cases: list[_Case] = []
        for count in (1, 2, 3):
            for inside in combinations(range(4), count):
                outside = [c for c in range(4) if c not in inside]
                cases.append((list(inside), outside, _pattern(corners, inside, outside)))
        made.append((corners, cases))
    return made


def _pattern(corners: Int, inside: tuple[int, ...], outside: list[int]) -> list[list[tuple[int, int]]]:
    """The triangles of a tetrahedron as edges (inside corner, outside corner), counter-clockwise from outside."""
    if len(inside) == 2:
        (a, b), (c, d) = inside, outside
        ring = [(a, c), (a, d), (b, d), (b, c)]
        found = [[ring[0], ring[1], ring[2]], [ring[0], ring[2], ring[3]]]
    else:
        found = [[(i, o) for i in inside for o in outside]]
    out = corners[outside].mean(0) - corners[list(inside)].mean(0)
    turned = []
    for triangle in found:
        p, q, r = ((corners[i] + corners[o]) / 2 for i, o in triangle)
        turned.append(triangle if np.cross(q - p, r - p) @ out > 0 else triangle[::-1])
    return turned


def _cube() -> Int:
    return np.stack(np.meshgrid([0, 1], [0, 1], [0, 1], indexing="ij"), -1).reshape(8, 3)
