"""Procedurally made, captioned voxel models, and a reader that says what a model shows: every caption can be checked."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache, cached_property
from typing import final

import numpy as np
import torch
from numpy.typing import NDArray

from sfumato.core.media import Batch, Column, DataInfo
from sfumato.core.random import keys, splitmix64, uniform
from sfumato.data.base import Data, Draws, Indices, digest
from sfumato.data.columns import Columns
from sfumato.data.shapes_words import Thing
from sfumato.data.solids_words import COLOURS, SHAPES, SIZES, Stack, understand
from sfumato.errors import UserError

SIDES = ((5, 6), (8, 8))  # of small and large solids in 16 cells: two large ones just stand on one another
LEAST = 0.75  # overlap with the nearest solid, below which a thing is taken for none
_STRAY = 0.03  # share of the voxels that may have another colour
_TINT = 10
_HELD_OUT = 0.1
_VERSION = "1"  # part of the fingerprint: raise when the making changes

_COMBINATIONS = (len(SIZES), len(COLOURS), len(SHAPES))
_Things = NDArray[np.int64]
_PALETTE = np.asarray(list(COLOURS.values()), np.int64)


@cache
def solid(shape: int, side: int) -> NDArray[np.bool_]:
    """The cells of a solid in a cube of `side` cells: a ball, a box, a pyramid in steps, or a ring that lies flat."""
    at = np.indices((side,) * 3) + 0.5 - side / 2
    x, y, z = at
    if shape == 0:
        return np.asarray((at**2).sum(0) <= (side / 2) ** 2)
    if shape == 1:
        return np.ones((side,) * 3, np.bool_)
    if shape == 2:
        return np.asarray(np.maximum(np.abs(x), np.abs(y)) < (side / 2 - z) / 2 + 0.3)
    around = np.hypot(x, y)
    return np.asarray((around <= side / 2) & (around >= side / 2 - side / 3.4) & (z < 0))


@final
@dataclass(frozen=True, kw_only=True)
class Solids(Data, name="solids"):
    """`count` models of 16^3 cells, one solid or one on another, each a function of (seed, index).

    Balls, boxes, pyramids and rings, small and large, in six colours; every model has four wordings of its caption.
    pairs: share of models with two solids. Held out: a tenth of the 48 single solids and of the 2,304 pairs, none of which
    is in the training part.
    """

    count: int = 20_000
    pairs: float = 0.5
    seed: int = 0

    def __post_init__(self) -> None:
        if self.count < 1:
            raise UserError(f"count = {self.count}: must be at least 1")
        if not 0 <= self.pairs <= 1:
            raise UserError(f"pairs = {self.pairs}: is a share of the models, 0 to 1")

    @cached_property
    def info(self) -> DataInfo:
        return self.table.info((4, 16, 16, 16), "voxels")

    def __len__(self) -> int:
        return self.count

    def fetch(self, indices: Indices, draws: Draws = None) -> Batch:
        index = np.asarray(indices, np.int64)
        made = np.stack([self._made(int(i)) for i in index]) if len(index) else np.zeros((0, 4, 16, 16, 16), np.uint8)
        return Batch(torch.from_numpy(made), self.columns(index, draws))

    def columns(self, indices: Indices, draws: Draws = None) -> dict[str, Column]:
        return self.table.take(indices, draws)

    def held_out_mask(self) -> NDArray[np.bool_]:
        things, two = self._plan
        number = np.ravel_multi_index(tuple(things.T), _COMBINATIONS * 2)
        single = np.ravel_multi_index(tuple(things[:, :3].T), _COMBINATIONS)
        return np.asarray(np.where(two, held_out("pairs")[number], held_out("singles")[single]), np.bool_)

    def fingerprint(self) -> str:
        return digest(_VERSION, repr(self))

    def describe(self, index: int) -> Stack:
        """What a model holds."""
        things, two = self._plan
        rows = things[index].reshape(2, 3)[: 1 + int(two[index])]
        return Stack(tuple(_thing(row) for row in rows))

    @cached_property
    def table(self) -> Columns:
        """Captions of all models."""
        return Columns(captions=[self.describe(i).captions() for i in range(self.count)])

    @cached_property
    def _keys(self) -> NDArray[np.uint64]:
        return keys(self.seed, "solids", np.arange(self.count))

    @cached_property
    def _plan(self) -> tuple[_Things, NDArray[np.bool_]]:
        """(N, 6) size, colour and shape of the upper (or only) and the lower solid, and whether there are two."""
        chosen = [_chance(self._keys, k) * n for k, n in enumerate(_COMBINATIONS * 2)]
        things = np.stack(chosen, 1).astype(np.int64)
        twins = things[:, 1] == things[:, 4]  # two of a colour could not be told apart
        things[twins, 4] = (things[twins, 4] + 1) % len(COLOURS)
        return things, _chance(self._keys, 6) < self.pairs

    def _made(self, index: int) -> NDArray[np.uint8]:
        things, two = self._plan
        key = self._keys[index : index + 1]
        parts = things[index].reshape(2, 3)[: 1 + int(two[index])]
        model, level = np.zeros((4, 16, 16, 16), np.uint8), 0
        for number, (size, colour, shape) in reversed(list(enumerate(parts.tolist()))):  # from the ground up
            side = SIDES[size][int(_chance(key, 10 + number)[0] * 2)]
            cells = solid(shape, side)
            at = np.argwhere(cells) + np.asarray([(16 - side) // 2, (16 - side) // 2, level])
            tint = [int(_chance(key, 20 + 3 * number + c)[0] * (2 * _TINT + 1)) - _TINT for c in range(3)]
            ink = np.clip(_PALETTE[colour] + tint, 0, 255)
            model[:, at[:, 0], at[:, 1], at[:, 2]] = np.asarray([*ink, 255], np.uint8)[:, None]
            level += int(at[:, 2].max()) - level + 1
        return model


@cache
def held_out(what: str) -> NDArray[np.bool_]:
    """True for the combinations of `singles` (48,) or `pairs` (2,304,) that are never in the training part: a tenth."""
    count = int(np.prod(_COMBINATIONS)) ** (1 if what == "singles" else 2)
    chosen = np.zeros(count, np.bool_)
    order = np.argsort(keys(0, f"held_out_{what}", np.arange(count)), kind="stable")
    chosen[order[: round(_HELD_OUT * count)]] = True
    return chosen


def _thing(row: Sequence[int] | NDArray[np.int64]) -> Thing:
    size, colour, shape = (int(k) for k in row)
    return Thing(SIZES[size], list(COLOURS)[colour], SHAPES[shape])


def _chance(key: NDArray[np.uint64], use: int) -> NDArray[np.float64]:
    """A number of (0, 1) for each key and use."""
    return uniform(splitmix64(key ^ np.uint64((use + 1) * 0x632BE59BD9B4E019 & (1 << 64) - 1)))


# ---------------------------------------------------------------- reading models back


def read_solids(model: NDArray[np.uint8]) -> Stack | None:
    """What a model (4, 16, 16, 16) shows: its solids from the top down; None where it is none of these.

    Voxels are sorted by the nearest of the six colours; a colour of at least 3% of them is a thing, and there must be one or
    two. A thing is the solid that it overlaps best, placed at its lower corner, at least `LEAST` (IoU). Of two, the one whose
    lowest voxel is higher is on the other.
    """
    occupied = model[3] > 0
    places = np.argwhere(occupied)
    if not len(places):
        return None
    ink = model[:3, occupied].T.astype(np.int64)
    nearest = ((ink[:, None] - _PALETTE) ** 2).sum(2).argmin(1)
    counts = np.bincount(nearest, minlength=len(_PALETTE))
    present = np.flatnonzero(counts >= _STRAY * len(places))
    if not 1 <= len(present) <= 2:
        return None
    found: list[tuple[int, Thing]] = []
    for colour in present.tolist():
        own = places[nearest == colour]
        seen = _recognised(own)
        if seen is None:
            return None
        found.append((int(own[:, 2].min()), _thing((seen[0], colour, seen[1]))))
    found.sort(key=lambda pair: -pair[0])
    return Stack(tuple(thing for _, thing in found))


def _recognised(places: NDArray[np.int64]) -> tuple[int, int] | None:
    """(size, shape) of the solid that a set of voxels (N, 3) overlaps best."""
    low, extent = places.min(0), np.ptp(places, axis=0) + 1
    best, chosen = LEAST, None
    for size, sides in enumerate(SIDES):
        for side in sides:
            for shape in range(len(SHAPES)):
                cells = solid(shape, side)
                canvas = np.zeros(np.maximum(extent, cells.shape), np.bool_)
                canvas[tuple((places - low).T)] = True
                own = np.argwhere(cells)
                reference = np.zeros_like(canvas)
                reference[tuple((own - own.min(0)).T)] = True
                overlap = (canvas & reference).sum() / (canvas | reference).sum()
                if overlap > best:
                    best, chosen = overlap, (size, shape)
    return chosen


def shows(models: NDArray[np.uint8], captions: Sequence[str]) -> NDArray[np.bool_]:
    """(N,) whether each model (N, 4, 16, 16, 16) shows what its caption asks for, in every word."""
    return np.asarray([read_solids(model) == understand(text) for model, text in zip(models, captions)], np.bool_)
