"""Voxel models: MagicaVoxel files, meshes, pictures from all around, and a viewer that turns."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import final

import torch
from PIL import Image
from torch import Tensor

from sfumato import media
from sfumato.core.media import DataInfo
from sfumato.errors import UserError
from sfumato.kinds.base import MediaKind
from sfumato.solid import mesh, viewer
from sfumato.solid.grid import fitted
from sfumato.solid.render import picture, turntable
from sfumato.solid.vox import read_vox, write_vox

_SIDE = 160


@final
class VoxelKind(MediaKind, name="voxels"):
    """uint8 (4, X, Y, Z): red, green, blue and 255 where occupied; z is up, the front is at -y.

    surface: `cubes`, every voxel's faces in its exact colour; `closed`, the same with shared corners and blended colours,
    watertight as it is; `smooth`, a watertight surface through the cells' borders.
    """

    dtype = "uint8"
    codec = "voxels"
    noun = "voxel models"
    suffixes = (".vox", ".npy", ".png", *mesh.SUFFIXES)
    options = {"surface": mesh.SURFACES}  # noqa: RUF012 - never changed
    script = viewer.SCRIPT

    def picture(self, item: Tensor, info: DataInfo) -> Image.Image:
        return picture(item.numpy(), _SIDE)

    def encode(
        self,
        item: Tensor,
        info: DataInfo,
        suffix: str,
        text: Mapping[str, str] | None = None,
        options: Mapping[str, str] | None = None,
    ) -> bytes:
        if suffix == ".npy":
            return super().encode(item, info, suffix)
        voxels = item.numpy()
        if suffix == ".png":
            return media.png(turntable(voxels), text)
        if suffix == ".vox":
            return write_vox(voxels)
        return mesh.encode(voxels, suffix, (options or {}).get("surface", mesh.SURFACES[0]))

    def read(self, file: Path, info: DataInfo) -> Tensor | None:
        if file.suffix == ".npy":
            return super().read(file, info)
        if file.suffix == ".png":
            return None
        voxels = read_vox(file) if file.suffix == ".vox" else mesh.voxelise(file, info.shape[1])
        return torch.from_numpy(voxels if voxels.shape == info.shape else fitted(voxels, info.shape[1]))

    def is_whole(self, file: Path) -> bool:
        if file.suffix == ".npy":
            return super().is_whole(file)
        if file.suffix != ".vox":
            return file.is_file()  # these are renamed into place when they are whole
        try:
            read_vox(file)
        except (OSError, UserError):
            return False
        return True

    def viewer(self, items: Sequence[Tensor], info: DataInfo, captions: Sequence[str]) -> str:
        return viewer.fragment([item.numpy() for item in items], captions)
