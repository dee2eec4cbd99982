"""Point clouds: drawn from the surfaces of voxel models."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import final

import numpy as np
import torch
from numpy.typing import NDArray

from sfumato.core.media import Batch, DataInfo
from sfumato.core.random import keys, uniform
from sfumato.data.base import Data, Draws, Indices, Wrapped, digest, expand
from sfumato.errors import UserError
from sfumato.solid.grid import open_cells

_CELLS = "cells"


@final
@dataclass(frozen=True, kw_only=True)
class Points(Wrapped, name="points"):
    """float32 clouds (3 or 6, points) from the surfaces of voxel models, each a function of (index, draw).

    data: a set of voxel models: `solids`, an .npz, a folder of .vox files or meshes. A cell with an open side gives one
    point, anywhere inside it; with more points than such cells, they come again. A draw chooses points anew, so that the
    network never sees one cloud twice. Places are -1 to 1 along the longest side. colours: red, green, blue of 0 to 1 beside
    them.
    """

    data: Data
    points: int = 512
    colours: bool = False

    def __post_init__(self) -> None:
        if not 1 <= self.points <= 65_536:
            raise UserError(f"points = {self.points}: must be 1 to 65,536")
        if self.data.info.kind != "voxels" or self.data.info.encoded:
            raise UserError(
                f"points are drawn from voxel models, and {self.data.where} holds items of kind '{self.data.info.kind}'"
            )

    @cached_property
    def info(self) -> DataInfo:
        whole = self.data.info
        shape = (6 if self.colours else 3, self.points)
        return DataInfo(shape, "points", whole.labels, whole.captions, whole.numbers)

    def fetch(self, indices: Indices, draws: Draws = None) -> Batch:
        batch = self.data.fetch(indices, draws)
        seeds = np.zeros(len(batch)) if draws is None else expand(draws, _CELLS)
        number = np.asarray(indices, np.int64)
        clouds = np.empty((len(batch), *self.info.shape), np.float32)
        for cloud, model, i, seed in zip(clouds, batch.media, number.tolist(), seeds.tolist()):
            cloud[:] = self._cloud(model.numpy(), i, seed)
        return Batch(torch.from_numpy(clouds), batch.conditions)

    def fingerprint(self) -> str:
        return digest(self.data.fingerprint(), f"{self.points} {self.colours}")

    def _cloud(self, model: NDArray[np.uint8], index: int, draw: float) -> NDArray[np.float32]:
        cells = np.argwhere(open_cells(model[3] > 0))
        if not len(cells):  # an empty model: its middle
            cells = np.asarray(model.shape[1:])[None] // 2
        seed = int(draw * (1 << 52))
        chance = uniform(keys(seed, f"points/{index}", np.arange(len(cells) + 3 * self.points)))
        order = np.argsort(chance[: len(cells)], kind="stable")
        chosen = cells[np.resize(order, self.points)]
        inside = chance[len(cells) :].reshape(self.points, 3)
        sides = np.asarray(model.shape[1:])
        places = (chosen + inside - sides / 2) * (2 / sides.max())
        cloud: NDArray[np.float32] = places.T.astype(np.float32)
        if not self.colours:
            return cloud
        ink = model[:3, chosen[:, 0], chosen[:, 1], chosen[:, 2]].astype(np.float32) / 255
        return np.concatenate([cloud, ink])
