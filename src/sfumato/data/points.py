"""Point clouds: drawn from the surfaces of voxel models, or stored."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import final

import numpy as np
import torch
from numpy.typing import NDArray

from sfumato.core.media import Batch, Column, DataInfo
from sfumato.core.random import keys, uniform
from sfumato.data.base import Data, Draws, Indices, digest, expand
from sfumato.data.voxels import Symmetries, Voxels
from sfumato.errors import UserError
from sfumato.solid.grid import open_cells

_CELLS = "cells"


@final
@dataclass(frozen=True, kw_only=True)
class Points(Data, name="points"):
    """float32 clouds (3 or 6, points) from the surfaces of voxel models, each a function of (index, draw).

    path: what data set `voxels` reads (an .npz, a folder of .vox files or meshes). A cell with an open side gives one point,
    anywhere inside it; with more points than such cells, they come again. A draw chooses points anew, so that the network
    never sees one cloud twice. Places are -1 to 1 along the longest side. colours: red, green, blue of 0 to 1 beside them.
    symmetries, held_out: as for voxels.
    """

    path: str
    points: int = 512
    colours: bool = False
    symmetries: Symmetries = "auto"
    held_out: float | None = None

    def __post_init__(self) -> None:
        if not 1 <= self.points <= 65_536:
            raise UserError(f"points = {self.points}: must be 1 to 65,536")
        _ = self._voxels

    @property
    def where(self) -> str:
        return self.path

    @cached_property
    def info(self) -> DataInfo:
        whole = self._voxels.info
        shape = (6 if self.colours else 3, self.points)
        return DataInfo(shape, "points", whole.labels, whole.captions, whole.numbers)

    def __len__(self) -> int:
        return len(self._voxels)

    def fetch(self, indices: Indices, draws: Draws = None) -> Batch:
        batch = self._voxels.fetch(indices, draws)
        seeds = np.zeros(len(batch)) if draws is None else expand(draws, _CELLS)
        number = np.asarray(indices, np.int64)
        clouds = [self._cloud(model.numpy(), int(i), s) for model, i, s in zip(batch.media, number, seeds.tolist())]
        return Batch(torch.from_numpy(np.stack(clouds)), batch.conditions)

    def columns(self, indices: Indices, draws: Draws = None) -> dict[str, Column]:
        return self._voxels.columns(indices, draws)

    def held_out_mask(self) -> NDArray[np.bool_]:
        return self._voxels.held_out_mask()

    def fingerprint(self) -> str:
        return digest(self._voxels.fingerprint(), f"{self.points} {self.colours}")

    @property
    def problems(self) -> tuple[str, ...]:
        return self._voxels.problems

    @property
    def broken_share(self) -> float:
        return self._voxels.broken_share

    def unreadable(self, indices: Indices | None = None) -> dict[int, str]:
        return self._voxels.unreadable(indices)

    @cached_property
    def _voxels(self) -> Voxels:
        return Voxels(path=self.path, symmetries=self.symmetries, held_out=self.held_out)

    def _cloud(self, model: NDArray[np.uint8], index: int, draw: float) -> NDArray[np.float32]:
        cells = np.argwhere(open_cells(model[3] > 0))
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
