"""Reads a picture of shapes back from its pixels, and says whether it shows its caption.

How: the background is the median colour; what differs from it enough is split by colour into connected pieces; each piece's
coverage, area and centroid fix, for every shape, the one place and extent it could have; the shape whose drawing fits
best is taken if it fits well. Area and centroid are kept by blur and by zero-mean noise, so pictures made by a model
are read as well as drawn ones.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from itertools import permutations

import numpy as np
from numpy.typing import NDArray

from sfumato.data.shapes import AREAS, RADII, coverage
from sfumato.data.shapes_words import COLOURS, RELATIONS, SHAPES, SIZES, Thing, understand
from sfumato.errors import UserError

Array = NDArray[np.float64]

_CONTRAST = 95.0  # distance from the background, in units of 1/255, that makes a pixel part of something
_DEBRIS = 6 / 32**2  # pieces below this share of the picture are specks
_TURN = 40.0  # how far a colour may lie beside the line from the background to its palette colour, in units of 1/255
_FADE = (0.7, 1.3)  # how much weaker or stronger than its palette colour
_MISFIT = 0.14  # largest share of a shape's squared coverage that its best drawing may leave unexplained
_DIAGONAL = 0.8
_CHUNK = 256


@dataclass(frozen=True)
class Seen:
    """A thing in a picture. size, colour or shape is None where it is none of the known ones.

    x, y: centre, radius: half extent, in units of the picture's side.
    """

    size: str | None
    colour: str | None
    shape: str | None
    x: float
    y: float
    radius: float

    def is_a(self, thing: Thing) -> bool:
        """Whether all three attributes agree."""
        return (self.size, self.colour, self.shape) == (thing.size, thing.colour, thing.shape)


def read_shapes(picture: NDArray[np.uint8]) -> tuple[Seen, ...]:
    """Everything in a picture (3, H, W), from top left to bottom right by the pixels' order."""
    return read_many(np.asarray(picture)[None])[0]


def matches(picture: NDArray[np.uint8], caption: str) -> bool:
    """Whether a picture (3, H, W) shows its caption: these things, their relation, and nothing else."""
    return bool(matches_many(np.asarray(picture)[None], [caption])[0])


def matches_many(pictures: NDArray[np.uint8], captions: Sequence[str]) -> NDArray[np.bool_]:
    """`matches` for pictures (N, 3, H, W) and their N captions."""
    if len(pictures) != len(captions):
        raise UserError(f"{len(pictures)} pictures and {len(captions)} captions: there must be as many")
    return np.asarray([shows(seen, caption) for seen, caption in zip(read_many(pictures), captions)], np.bool_)


def shows(seen: Sequence[Seen], caption: str) -> bool:
    """Whether what was read is what a caption asks for."""
    asked = understand(caption)
    if len(seen) != len(asked.things):
        return False
    return any(
        all(s.is_a(t) for s, t in zip(order, asked.things))
        and (asked.relation is None or relation_of(order[0], order[1]) == asked.relation)
        for order in permutations(seen)
    )


def relation_of(first: Seen, second: Seen) -> str | None:
    """The relation of the first thing to the second; None if they lie on a diagonal."""
    dx, dy = second.x - first.x, second.y - first.y
    if min(abs(dx), abs(dy)) > _DIAGONAL * max(abs(dx), abs(dy)):
        return None
    above, below, left, right = RELATIONS
    if abs(dy) > abs(dx):
        return above if dy > 0 else below
    return left if dx > 0 else right


def read_many(pictures: NDArray[np.uint8]) -> list[tuple[Seen, ...]]:
    """Everything in each of the pictures (N, 3, H, W) uint8."""
    stack = np.asarray(pictures)
    if stack.ndim != 4 or stack.shape[1] != 3 or stack.dtype != np.uint8:
        raise UserError(f"pictures of shapes are uint8 (N, 3, H, W), not {stack.dtype} {stack.shape}")
    read: list[tuple[Seen, ...]] = []
    for start in range(0, len(stack), _CHUNK):
        read += _read(stack[start : start + _CHUNK].transpose(0, 2, 3, 1).astype(np.float64))
    return read


def _read(pixels: Array) -> list[tuple[Seen, ...]]:
    """pixels: (N, H, W, 3)."""
    n, high, wide, _ = pixels.shape
    ground = np.median(pixels.reshape(n, -1, 3), axis=1)
    away = ground[:, None, None] - pixels
    solid = np.linalg.norm(away, axis=-1) > _CONTRAST
    to_ink = ground[:, None] - np.asarray(list(COLOURS.values()), np.float64)  # (N, colours, 3)
    depth = np.linalg.norm(to_ink, axis=-1)
    towards = to_ink / np.maximum(depth, 1)[..., None]
    smooth = _box(away * solid[..., None])
    tint = np.argmax(np.einsum("nhwc,nkc->nhwk", smooth, towards), -1)
    pieces = _pieces(np.where(solid, tint, -1))
    owner, number, counts = np.unique(pieces[pieces >= 0], return_inverse=True, return_counts=True)
    label = np.full(pieces.shape, -1)
    label[pieces >= 0] = number
    found: list[list[Seen]] = [[] for _ in range(n)]
    large = np.flatnonzero(counts >= max(2, _DEBRIS * high * wide))
    for group in np.array_split(large, max(1, len(large) // _CHUNK)):
        if len(group):
            picture = owner[group] // (high * wide)
            for place, seen in zip(picture.tolist(), _describe(away, label, group, picture, depth, towards)):
                found[place].append(seen)
    return [tuple(seen) for seen in found]


def _describe(
    away: Array,
    label: NDArray[np.int64],
    group: NDArray[np.int64],
    picture: NDArray[np.int64],
    depth: Array,
    towards: Array,
) -> list[Seen]:
    """Colour, shape, size and place of some pieces. group: their labels, picture: where they are."""
    own = label[picture] == group[:, None, None]
    offset = away[picture]
    mean = (offset * own[..., None]).sum((1, 2)) / own.sum((1, 2))[:, None]
    close = np.einsum("mc,mkc->mk", mean, towards[picture]) / np.maximum(np.linalg.norm(mean, axis=-1), 1)[:, None]
    colour = np.argmax(close, -1)
    rows = np.arange(len(group))
    ink, full = towards[picture, colour], depth[picture, colour]
    share = np.einsum("mhwc,mc->mhw", offset, ink) / full[:, None, None]
    core = _core(share, own)
    beside = full * np.sqrt(np.clip(1 - close[rows, colour] ** 2, 0, 1))
    known = (beside < _TURN) & (core > _FADE[0]) & (core < _FADE[1])
    others = (label[picture] >= 0) & ~own
    region = _grown(own, 2) & ~others
    cover = np.clip(share / np.clip(core, 0.5, 2)[:, None, None], 0, 1) * region
    shape, radius, x, y, misfit = _fitted(cover)
    high, wide = cover.shape[1:]
    names = tuple(COLOURS)
    described = []
    for i in range(len(group)):
        extent = float(radius[i]) / min(high, wide)
        described.append(
            Seen(
                _size(extent),
                names[colour[i]] if known[i] else None,
                SHAPES[shape[i]] if misfit[i] < _MISFIT else None,
                float(x[i]) / wide,
                float(y[i]) / high,
                extent,
            )
        )
    return described


def _size(extent: float) -> str | None:
    """The name of a half extent; None if it is far from both."""
    (low, small), (large, high) = RADII
    if not 0.7 * low < extent < 1.3 * high:
        return None
    return SIZES[int(extent > (small + large) / 2)]


def _core(share: Array, own: NDArray[np.bool_]) -> Array:
    """Typical coverage of the inner part of a piece: the mean of its strongest third."""
    flat = np.sort(np.where(own, share, -np.inf).reshape(len(own), -1), -1)[:, ::-1]
    count = np.maximum(1, own.sum((1, 2)) // 3)
    total = np.cumsum(np.where(np.isfinite(flat), flat, 0), -1)
    return np.asarray(total[np.arange(len(own)), count - 1] / count)


def _fitted(cover: Array) -> tuple[NDArray[np.int64], Array, Array, Array, Array]:
    """Best shape, half extent, centre and misfit of coverages (M, H, W); area and centroid fix all but the shape."""
    _, high, wide = cover.shape
    x, y = np.arange(wide)[None, None] + 0.5, np.arange(high)[None, :, None] + 0.5
    area = cover.sum((1, 2))
    centre_x, centre_y = (cover * x).sum((1, 2)) / area, (cover * y).sum((1, 2)) / area
    energy = np.maximum((cover**2).sum((1, 2)), 1e-9)
    fits = []
    for shape, unit in enumerate(AREAS):
        radius = np.sqrt(area / unit)
        up = _centroid_drop(shape) * radius
        drawn = coverage(shape, x - centre_x[:, None, None], y - (centre_y - up)[:, None, None], radius[:, None, None])
        soft = _box(drawn[..., None], (0.15, 0.7, 0.15))[..., 0]
        misfit = np.minimum(((drawn - cover) ** 2).sum((1, 2)), ((soft - cover) ** 2).sum((1, 2))) / energy
        fits.append((misfit, radius, centre_y - up))
    best = np.argmin([misfit for misfit, _, _ in fits], 0)
    rows = np.arange(len(cover))
    misfit, radius, centre = (np.stack([fit[k] for fit in fits])[best, rows] for k in range(3))
    return best, radius, centre_x, centre, misfit


@cache
def _centroid_drop(shape: int) -> float:
    """How far below its centre a shape's centroid is, in units of its half extent (measured on a fine grid)."""
    fine = (np.arange(400) + 0.5) / 160 - 1.25
    drawn = coverage(shape, fine[None] * 160, fine[:, None] * 160, np.asarray(160.0))
    return float((drawn * fine[:, None]).sum() / drawn.sum())


def _pieces(tint: NDArray[np.int64]) -> NDArray[np.int64]:
    """Connected pieces (8 neighbours) of equal tint >= 0: (N, H, W) the smallest flat index of each pixel's piece, or -1.

    Every pixel takes the smallest label around it and then the label of that label, until nothing changes.
    """
    n, high, wide = tint.shape
    label = np.where(tint >= 0, np.arange(n * high * wide).reshape(tint.shape), -1)
    here = np.flatnonzero(tint >= 0)
    padded = np.full((n, high + 2, wide + 2), -2)
    padded[:, 1:-1, 1:-1] = tint
    shifts = [(dy, dx) for dy in range(3) for dx in range(3) if (dy, dx) != (1, 1)]
    same = [padded[:, dy : dy + high, dx : dx + wide].ravel()[here] == tint.ravel()[here] for dy, dx in shifts]
    steps = [(dy - 1) * wide + dx - 1 for dy, dx in shifts]
    flat = label.ravel()
    while True:
        lowest = flat[here]
        for equal, step in zip(same, steps):
            around = flat[np.where(equal, here + step, here)]
            lowest = np.minimum(lowest, around)
        lowest = np.minimum(lowest, flat[lowest])
        if (lowest == flat[here]).all():
            return flat.reshape(tint.shape)
        flat[here] = lowest


def _box(values: Array, weights: tuple[float, float, float] = (1, 1, 1)) -> Array:
    """Weighted sum over 3 x 3 pixels of (N, H, W, C); nothing lies outside."""
    for axis in (1, 2):
        padded = np.pad(values, [(1, 1) if a == axis else (0, 0) for a in range(4)])
        length = values.shape[axis]
        values = sum(w * padded.take(range(k, k + length), axis) for k, w in enumerate(weights))  # type: ignore[assignment]
    return values


def _grown(mask: NDArray[np.bool_], by: int) -> NDArray[np.bool_]:
    """A mask (N, H, W) and the pixels within `by` rows and columns."""
    grown = mask.copy()
    for axis in (1, 2):
        source = grown.copy()
        for shift in range(1, by + 1):
            low = [slice(None)] * 3
            high = [slice(None)] * 3
            low[axis], high[axis] = slice(shift, None), slice(None, -shift)
            grown[tuple(low)] |= source[tuple(high)]
            grown[tuple(high)] |= source[tuple(low)]
    return grown
