"""Pictures, and arrays that are shown as pictures."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import final

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from sfumato import media
from sfumato.core.media import DataInfo
from sfumato.kinds.base import MediaKind


@final
class Picture(MediaKind, name="image"):
    """uint8 (C, H, W): PNG files that carry what made them."""

    dtype = "uint8"
    codec = "pixels"
    noun = "images"
    suffixes = (".png", ".npy")

    def picture(self, item: Tensor, info: DataInfo) -> Image.Image:
        return media.to_image(item)

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
        return media.png(media.to_image(item), text)

    def usual(self, info: DataInfo) -> str:
        return ".png" if info.shape[0] <= 4 and len(info.shape) == 3 else ".npy"

    def read(self, file: Path, info: DataInfo) -> Tensor | None:
        if file.suffix == ".npy":
            return super().read(file, info)
        with Image.open(file) as image:
            array = np.array(image)
        return torch.from_numpy(array[None] if array.ndim == 2 else np.ascontiguousarray(array.transpose(2, 0, 1)))

    def is_whole(self, file: Path) -> bool:
        if file.suffix == ".npy":
            return super().is_whole(file)
        try:
            with file.open("rb") as stream:
                stream.seek(-8, io.SEEK_END)
                return stream.read(4) == b"IEND"
        except OSError:
            return False


@final
class Array(MediaKind, name="array"):
    """float32 of any rank: .npy files; vectors are shown together, as dots."""

    def picture(self, item: Tensor, info: DataInfo) -> Image.Image:
        return media.to_image(item)

    def sheet(
        self, items: Sequence[Tensor], info: DataInfo, columns: int | None = None, captions: Sequence[str] | None = None
    ) -> Image.Image:
        if len(info.shape) == 1:
            return media.scatter(torch.stack(list(items)))
        return super().sheet(items, info, columns, captions)
