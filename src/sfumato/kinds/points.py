"""Point clouds: sets of points in space, with or without colours."""

from __future__ import annotations

import struct
from collections.abc import Mapping
from pathlib import Path
from typing import final

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image, ImageDraw
from torch import Tensor

from sfumato import media
from sfumato.core.media import DataInfo
from sfumato.errors import UserError
from sfumato.kinds.base import MediaKind

_SIDE = 160
_OVER = 3
_GREY = (70, 110, 180)
_MOST = 1 << 24  # points of a file


@final
class PointKind(MediaKind, name="points"):
    """float32 (3, P) or (6, P): x, y, z, about -1 to 1, z up, and red, green, blue of 0 to 1. Their order means nothing."""

    codec = "points"
    noun = "point clouds"
    suffixes = (".ply", ".npy", ".png")

    def picture(self, item: Tensor, info: DataInfo) -> Image.Image:
        return draw_points(item.detach().cpu().numpy(), _SIDE)

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
        if suffix == ".png":
            return media.png(self.picture(item, info), text)
        return write_ply(item.numpy())

    def read(self, file: Path, info: DataInfo) -> Tensor | None:
        if file.suffix == ".npy":
            return super().read(file, info)
        return torch.from_numpy(read_ply(file)) if file.suffix == ".ply" else None

    def is_whole(self, file: Path) -> bool:
        if file.suffix != ".ply":
            return super().is_whole(file) if file.suffix == ".npy" else file.is_file()
        try:
            read_ply(file)
        except (OSError, UserError):
            return False
        return True


def draw_points(cloud: NDArray[np.float32], side: int, yaw: float = 30.0, pitch: float = 20.0) -> Image.Image:
    """(3 or 6, P) as discs, the nearest last; without colours lighter the farther away."""
    turn, tip = np.radians(yaw), np.radians(pitch)
    right = np.asarray([np.cos(turn), np.sin(turn), 0])
    away = np.asarray([-np.sin(turn), np.cos(turn), 0])
    up = away * np.sin(tip) + np.asarray([0, 0, np.cos(tip)])
    towards = -away * np.cos(tip) + np.asarray([0, 0, np.sin(tip)])
    xyz = np.nan_to_num(cloud[:3].T.astype(float)).clip(-4, 4)
    big = side * _OVER
    image = Image.new("RGB", (big, big), "white")
    draw = ImageDraw.Draw(image)
    across, height, depth = xyz @ right, xyz @ up, xyz @ towards
    x, y = big / 2 + across * big / 3.2, big / 2 - height * big / 3.2
    near = (depth - depth.min(initial=0)) / (np.ptp(depth) or 1.0) if len(depth) else depth
    ink = np.asarray(cloud[3:6].T * 255 if len(cloud) >= 6 else np.asarray(_GREY) + (1 - near)[:, None] * 110)
    radius = big / 75
    for i in np.argsort(depth).tolist():
        colour = tuple(int(c) for c in np.clip(np.nan_to_num(ink[i]), 0, 255))
        draw.ellipse((x[i] - radius, y[i] - radius, x[i] + radius, y[i] + radius), fill=colour)
    return image.resize((side, side), Image.Resampling.LANCZOS)


def write_ply(cloud: NDArray[np.float32]) -> bytes:
    """(3 or 6, P) as a binary PLY file: float x, y, z, and uchar red, green, blue where there are colours."""
    names = ["float x", "float y", "float z", *(f"uchar {c}" for c in ("red", "green", "blue") if len(cloud) >= 6)]
    properties = "\n".join(f"property {name}" for name in names)
    head = f"ply\nformat binary_little_endian 1.0\nelement vertex {cloud.shape[1]}\n{properties}\nend_header\n"
    places = np.ascontiguousarray(cloud[:3].T.astype("<f4"))
    if len(cloud) < 6:
        return head.encode() + places.tobytes()
    ink = np.rint(np.clip(cloud[3:6].T, 0, 1) * 255).astype(np.uint8)
    rows = np.concatenate([places.view(np.uint8).reshape(-1, 12), ink], 1)
    return head.encode() + rows.tobytes()


def read_ply(file: Path) -> NDArray[np.float32]:
    """A file of `write_ply`. Raises UserError for any other, and for one that is cut short."""
    raw = file.read_bytes()
    head, end, body = raw.partition(b"end_header\n")
    lines = head.decode("ascii", "replace").splitlines()
    if not end or lines[:2] != ["ply", "format binary_little_endian 1.0"]:
        raise UserError(f"{file}: is not a binary PLY file of points")
    found = [line.split() for line in lines[2:]]
    counts = [words[2] for words in found if words[:2] == ["element", "vertex"]]
    types = [words[1] for words in found if words[0] == "property"]
    if len(counts) != 1 or not counts[0].isdigit() or types not in (["float"] * 3, ["float"] * 3 + ["uchar"] * 3):
        raise UserError(f"{file}: holds something else than points with x, y, z and colours")
    count, wide = int(counts[0]), struct.calcsize("<3f") + (3 if len(types) == 6 else 0)
    if count > _MOST or len(body) < count * wide:
        raise UserError(f"{file}: announces {count:,} points, and they are not there")
    rows = np.frombuffer(body, np.uint8, count * wide).reshape(count, wide)
    places = np.ascontiguousarray(rows[:, :12]).view("<f4").T.astype(np.float32)
    return places if wide == 12 else np.concatenate([places, rows[:, 12:].T.astype(np.float32) / 255])
