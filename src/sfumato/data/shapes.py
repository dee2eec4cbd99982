"""Procedurally drawn, captioned shapes: text-to-image data whose every caption a program can check."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache, cached_property
from typing import final, overload

import numpy as np
import torch
from numpy.typing import NDArray

from sfumato.core.media import Batch, Column, DataInfo
from sfumato.core.random import keys, splitmix64, uniform
from sfumato.data.base import Data, Draws, Indices, digest
from sfumato.data.columns import Columns
from sfumato.data.shapes_words import COLOURS, RELATIONS, SHAPES, SIZES, Described, Thing
from sfumato.errors import UserError

# Half extents in units of the picture's side, [lowest, highest) for each size, and the space between two things.
RADII = ((0.115, 0.14), (0.19, 0.215))
GAP = 0.08
EDGE = 0.015
AREAS = (np.pi, np.pi, 1.85, 4 * 0.72 - 0.72**2)  # of each shape, in units of its half extent squared

_SQUARE = np.sqrt(np.pi) / 2  # half a side: the same area as the circle
_BASE = 0.85  # how far below the centre a triangle ends; its top is 1 above
_ARM = 0.36  # half the width of a cross's arms
_TWO_SHARE = 0.7
_HELD_OUT_SHARE = 0.1
_CACHE = 1 << 30
_VERSION = "1"  # part of the fingerprint: raise when the drawing changes

Float = NDArray[np.float64]


def coverage(shape: int, x: Float, y: Float, radius: Float) -> Float:
    """How much of each pixel a shape covers, 0 to 1: one pixel wide ramps along its outline.

    x, y: offsets from the shape's centre in pixels; radius: its half extent in pixels. All broadcast.
    """
    across, down = np.abs(x), np.abs(y)
    if shape == 0:
        outside = np.hypot(x, y) - radius
    elif shape == 1:
        outside = np.maximum(across, down) - _SQUARE * radius
    elif shape == 2:
        slope = 1 + _BASE
        side = (slope * across - (y + radius)) / np.hypot(slope, 1)
        outside = np.maximum(y - _BASE * radius, side)
    else:
        lying = np.maximum(across - radius, down - _ARM * radius)
        outside = np.minimum(lying, np.maximum(across - _ARM * radius, down - radius))
    return np.asarray(np.clip(0.5 - outside, 0, 1))


@cache
def held_out_combinations() -> NDArray[np.bool_]:
    """(2, 8, 4, 8, 4) True where (above or left of, colour, shape, colour, shape) is never in the training part.

    205 of 2,048, those with the smallest hash. `below` and `right of` are the same pictures with the things exchanged.
    """
    shape = (len(RELATIONS) // 2, *(len(COLOURS), len(SHAPES)) * 2)
    count = int(np.prod(shape))
    chosen = np.zeros(count, np.bool_)
    chosen[
        np.argsort(keys(0, "held_out_shapes", np.arange(count)), kind="stable")[: round(_HELD_OUT_SHARE * count)]
    ] = True
    return chosen.reshape(shape)


@final
@dataclass(frozen=True, kw_only=True)
class Shapes(Data, name="shapes"):
    """`count` pictures of one or two shapes on a light background, RGB, each a function of (seed, index).

    Circles, squares, triangles and crosses, small and large, in eight colours; two of them stand above, below, left of
    or right of one another. Every picture has five wordings of its caption. Held out: the pictures of 205 combinations
    of (colour, shape, relation, colour, shape) of the 2,048, none of which is in the training part. size: side in
    pixels.
    """

    size: int = 32
    count: int = 20_000
    seed: int = 0

    def __post_init__(self) -> None:
        if self.size < 24:
            raise UserError(
                f"size = {self.size}: small shapes can't be told apart below 24 pixels; set size=24 or more"
            )
        if self.count < 1:
            raise UserError(f"count = {self.count}: must be at least 1")

    @cached_property
    def info(self) -> DataInfo:
        return self.table.info((3, self.size, self.size), "image")

    def __len__(self) -> int:
        return self.count

    def fetch(self, indices: Indices, draws: Draws = None) -> Batch:
        index = np.asarray(indices, np.int64)
        return Batch(torch.from_numpy(self._drawn(index)), self.columns(index, draws))

    def columns(self, indices: Indices, draws: Draws = None) -> dict[str, Column]:
        return self.table.take(indices, draws)

    def held_out_mask(self) -> NDArray[np.bool_]:
        return self._plan.held_out

    def fingerprint(self) -> str:
        return digest(_VERSION, repr(self))

    def describe(self, index: int) -> Described:
        """What a picture holds."""
        return self._plan.describe(index)

    @cached_property
    def table(self) -> Columns:
        """Captions of all pictures, written when asked for."""
        return Columns(captions=_Captions(self._plan, self.count))

    @cached_property
    def _plan(self) -> _Plan:
        return _Plan.of(keys(self.seed, "shapes", np.arange(self.count)))

    @cached_property
    def _kept(self) -> tuple[NDArray[np.uint8], NDArray[np.bool_]] | None:
        """Pictures drawn so far and which they are, if all of them would fit into a GiB."""
        if self.count * 3 * self.size**2 > _CACHE:
            return None
        return np.empty((self.count, 3, self.size, self.size), np.uint8), np.zeros(self.count, np.bool_)

    def _drawn(self, index: NDArray[np.int64]) -> NDArray[np.uint8]:
        if self._kept is None:
            return draw(self._plan, index, self.size)
        pixels, done = self._kept
        todo = np.unique(index[~done[index]])
        for part in np.array_split(todo, max(1, len(todo) // 256)):
            if len(part):
                pixels[part] = draw(self._plan, part, self.size)
                done[part] = True
        return pixels[index]


@dataclass(frozen=True)
class _Plan:
    """What every picture holds. things: (N, 2, 3) numbers of size, colour, shape; relation (N,), -1 for one thing."""

    key: NDArray[np.uint64]
    things: NDArray[np.int64]
    relation: NDArray[np.int64]

    @classmethod
    def of(cls, key: NDArray[np.uint64]) -> _Plan:
        def choose(use: int, options: int) -> NDArray[np.int64]:
            return (_chance(key, use) * options).astype(np.int64)

        parts = [
            [choose(10 * i + k, n) for k, n in enumerate((len(SIZES), len(COLOURS), len(SHAPES)))] for i in range(2)
        ]
        things = np.stack([np.stack(part, -1) for part in parts], 1)
        twins = (things[:, 0] == things[:, 1]).all(-1)
        things[twins, 1, 1] = (things[twins, 1, 1] + 1) % len(
            COLOURS
        )  # "a small red circle above a small red circle" says little
        relation = np.where(_chance(key, 20) < _TWO_SHARE, choose(21, len(RELATIONS)), -1)
        return cls(key, things, relation)

    @cached_property
    def ordered(self) -> NDArray[np.int64]:
        """(N, 2, 3) things with the upper or left one first."""
        turned = (self.relation >= 0) & (self.relation % 2 == 1)
        return np.where(turned[:, None, None], self.things[:, ::-1], self.things)

    @cached_property
    def held_out(self) -> NDArray[np.bool_]:
        """(N,) True for pictures of a held-out combination."""
        (_, c1, s1), (_, c2, s2) = self.ordered[:, 0].T, self.ordered[:, 1].T
        unseen = held_out_combinations()[self.relation // 2, c1, s1, c2, s2]
        return np.asarray(unseen & (self.relation >= 0))

    def describe(self, index: int) -> Described:
        colours = tuple(COLOURS)
        first, second = (Thing(SIZES[z], colours[c], SHAPES[s]) for z, c, s in self.things[index].tolist())
        relation = int(self.relation[index])
        return Described((first,)) if relation < 0 else Described((first, second), RELATIONS[relation])


@final
class _Captions(Sequence[tuple[str, ...]]):
    def __init__(self, plan: _Plan, count: int) -> None:
        self._plan, self._count = plan, count
        self._written: dict[int, tuple[str, ...]] = {}

    def __len__(self) -> int:
        return self._count

    @overload
    def __getitem__(self, index: int) -> tuple[str, ...]: ...

    @overload
    def __getitem__(self, index: slice) -> list[tuple[str, ...]]: ...

    def __getitem__(self, index: int | slice) -> tuple[str, ...] | list[tuple[str, ...]]:
        if isinstance(index, slice):
            return [self._plan.describe(i).captions() for i in range(*index.indices(self._count))]
        written = self._written.get(index)
        if written is None:
            written = self._written[index] = self._plan.describe(index).captions()
        return written


def _chance(key: NDArray[np.uint64], use: int) -> Float:
    """A number of (0, 1) for each key and use."""
    return uniform(splitmix64(key ^ np.uint64((use + 1) * 0x632BE59BD9B4E019 & (1 << 64) - 1)))


def draw(plan: _Plan, index: NDArray[np.int64], size: int) -> NDArray[np.uint8]:
    """Draw pictures (B, 3, size, size)."""
    key, things, relation = plan.key[index], plan.ordered[index], plan.relation[index]
    centre = np.arange(size) + 0.5
    x, y = centre[None, None, :], centre[None, :, None]
    pixels = _background(key, x / size - 0.5, y / size - 0.5)
    places, radii = _places(key, things[..., 0], relation, size)
    palette = np.asarray(list(COLOURS.values()), np.float64)
    for i in range(2):
        jitter = np.stack([_chance(key, 60 + 3 * i + c) * 24 - 12 for c in range(3)], -1)
        ink = np.clip(palette[things[:, i, 1]] + jitter, 0, 255)
        for shape in range(len(SHAPES)):
            here = np.flatnonzero((things[:, i, 2] == shape) & ((i == 0) | (relation >= 0)))
            at_x, at_y = places[here, i, 0, None, None], places[here, i, 1, None, None]
            cover = coverage(shape, x - at_x, y - at_y, radii[here, i, None, None])[:, None]
            pixels[here] += cover * (ink[here, :, None, None] - pixels[here])
    return np.rint(pixels).astype(np.uint8)


def _background(key: NDArray[np.uint64], x: Float, y: Float) -> Float:
    """A light tint with a slight slope. (B, 3, H, W)."""
    tint = np.stack([_chance(key, 40 + c) * 26 + 222 for c in range(3)], -1)
    angle, depth = _chance(key, 43) * 2 * np.pi, _chance(key, 44) * 14
    slope = (np.cos(angle)[:, None, None] * x + np.sin(angle)[:, None, None] * y) * depth[:, None, None]
    return np.clip(tint[:, :, None, None] + slope[:, None], 0, 255)


def _places(
    key: NDArray[np.uint64], sizes: NDArray[np.int64], relation: NDArray[np.int64], side: int
) -> tuple[Float, Float]:
    """Centres (B, 2, 2) as x, y, and half extents (B, 2), in pixels; the first thing is the upper or left one.

    Along the relation's axis the things are GAP or more apart; across it, their centres differ by at most half as much
    as along it (a little more at the edge), so that the relation is never in doubt.
    """
    bounds = np.asarray(RADII)[sizes]
    chance = np.stack([_chance(key, 50 + i) for i in range(2)], -1)
    radii = bounds[..., 0] + chance * (bounds[..., 1] - bounds[..., 0])
    first, second = radii.T
    slack = 1 - 2 * EDGE - 2 * first - 2 * second - GAP
    lead, trail = np.sort(np.stack([_chance(key, 30), _chance(key, 31)]), axis=0) * slack
    along = np.stack([EDGE + first + lead, EDGE + 2 * first + GAP + trail + second], -1)
    across_first = EDGE + first + _chance(key, 32) * (1 - 2 * (EDGE + first))
    shift = (_chance(key, 33) - 0.5) * (along[:, 1] - along[:, 0])
    across_second = np.clip(across_first + shift, EDGE + second, 1 - EDGE - second)
    across = np.stack([across_first, across_second], -1)
    single = relation < 0
    along[single, 0] = (EDGE + first + _chance(key, 34) * (1 - 2 * (EDGE + first)))[single]
    upright = (relation // 2 == 0)[:, None]
    x, y = np.where(upright, across, along), np.where(upright, along, across)
    return np.stack([x, y], -1) * side, radii * side
