"""MagicaVoxel's .vox files: one model of up to 256 voxels a side with up to 255 colours. Own reader and writer.

Layout (https://github.com/ephtracy/voxel-model): "VOX ", version, then chunks of an id, the bytes of its content and of its
children, each a little-endian int32: MAIN holds SIZE (x, y, z), XYZI (count, then x, y, z, colour number of every voxel, a
byte each) and RGBA (256 colours; number i is entry i - 1). Other chunks (materials, layers, cameras) are passed over.
"""

from __future__ import annotations

import struct
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from sfumato.errors import UserError

MOST_SIDE = 256
_MOST_BYTES = 1 << 28
_VERSION = 150
_COLOURS = 255
Voxels = NDArray[np.uint8]


def write_vox(voxels: Voxels) -> bytes:
    """(4, X, Y, Z) uint8, red, green, blue and 255 where occupied, z up, as the content of a .vox file.

    More than 255 colours are reduced to 255 by median cut. Raises UserError for a side over 256.
    """
    if max(voxels.shape[1:]) > MOST_SIDE:
        raise UserError(f".vox: {' x '.join(map(str, voxels.shape[1:]))} is too large; {MOST_SIDE} a side is the most")
    places = np.argwhere(voxels[3] > 0)
    number, palette = _palette(voxels[:3, voxels[3] > 0].T)
    rows = np.concatenate([places.astype(np.uint8), (number + 1).astype(np.uint8)[:, None]], 1)
    colours = np.zeros((256, 4), np.uint8)
    colours[: len(palette), :3] = palette
    colours[:, 3] = 255
    children = b"".join(
        [
            _chunk(b"SIZE", struct.pack("<3i", *voxels.shape[1:])),
            _chunk(b"XYZI", struct.pack("<i", len(rows)) + rows.tobytes()),
            _chunk(b"RGBA", colours.tobytes()),
        ]
    )
    return b"VOX " + struct.pack("<i", _VERSION) + b"MAIN" + struct.pack("<2i", 0, len(children)) + children


def read_vox(source: Path | bytes, where: str = "") -> Voxels:
    """The model of a .vox file, (4, X, Y, Z) uint8. Raises UserError for a file that is broken or holds several models."""
    where = where or (str(source) if isinstance(source, Path) else ".vox")
    if isinstance(source, Path):
        if source.stat().st_size > _MOST_BYTES:
            raise UserError(f"{where}: over 256 MiB is no voxel model; give a smaller file")
        source = source.read_bytes()
    if source[:4] != b"VOX ":
        raise UserError(f"{where}: is not a MagicaVoxel file (it does not begin with 'VOX ')")
    size: tuple[int, ...] | None = None
    rows: NDArray[np.uint8] | None = None
    palette = _default_palette()
    for name, content in _chunks(source, where):
        if name == b"SIZE":
            if size is not None:
                raise UserError(f"{where}: holds several models; save each as a file of its own")
            size = struct.unpack("<3i", _whole(content, 12, where))
            if not all(1 <= side <= MOST_SIDE for side in size):
                raise UserError(f"{where}: says it is {' x '.join(map(str, size))}; sides lie in 1 ... {MOST_SIDE}")
        elif name == b"XYZI":
            count = struct.unpack("<i", _whole(content, 4, where))[0]
            if count < 0 or len(content) < 4 + 4 * count:
                raise UserError(f"{where}: is cut short: {count:,} voxels are announced and are not there")
            rows = np.frombuffer(content, np.uint8, 4 * count, 4).reshape(-1, 4)
        elif name == b"RGBA":
            palette = np.frombuffer(_whole(content, 1024, where), np.uint8, 1024).reshape(256, 4)[:, :3]
    if size is None or rows is None:
        raise UserError(f"{where}: holds no model (no SIZE or XYZI chunk); save it again with MagicaVoxel")
    return _filled(size, rows, palette, where)


def _filled(size: tuple[int, ...], rows: NDArray[np.uint8], palette: NDArray[np.uint8], where: str) -> Voxels:
    x, y, z, number = rows.T.astype(np.int64)
    if len(rows) and ((x >= size[0]) | (y >= size[1]) | (z >= size[2])).any():
        raise UserError(f"{where}: has voxels outside of its {' x '.join(map(str, size))}; save it again")
    voxels = np.zeros((4, *size), np.uint8)
    kept = number > 0  # number 0 is empty
    voxels[:3, x[kept], y[kept], z[kept]] = palette[number[kept] - 1].T
    voxels[3, x[kept], y[kept], z[kept]] = 255
    return voxels


def _chunk(name: bytes, content: bytes) -> bytes:
    return name + struct.pack("<2i", len(content), 0) + content


def _chunks(raw: bytes, where: str) -> list[tuple[bytes, bytes]]:
    """(id, content) of all chunks; MAIN is entered by going on after its own, empty content."""
    found, at = [], 8
    while at < len(raw):
        if at + 12 > len(raw):
            raise UserError(f"{where}: is cut short in the head of a chunk; save it again")
        name, length = raw[at : at + 4], struct.unpack_from("<i", raw, at + 4)[0]
        if length < 0 or at + 12 + length > len(raw):
            raise UserError(f"{where}: is cut short or broken at chunk {name!r}; save it again")
        found.append((name, raw[at + 12 : at + 12 + length]))
        at += 12 + length
    return found


def _whole(content: bytes, size: int, where: str) -> bytes:
    if len(content) < size:
        raise UserError(f"{where}: is broken: a chunk of {len(content)} bytes should have {size}; save it again")
    return content[:size]


def _palette(colours: NDArray[np.uint8]) -> tuple[NDArray[np.int64], NDArray[np.uint8]]:
    """The number of each colour (N,) and the palette (K, 3), K at most 255."""
    if not len(colours):
        return np.zeros(0, np.int64), np.zeros((0, 3), np.uint8)
    palette, number = np.unique(colours, axis=0, return_inverse=True)
    if len(palette) > _COLOURS:
        strip = Image.fromarray(np.ascontiguousarray(colours[None]), "RGB")
        made = strip.quantize(_COLOURS, Image.Quantize.MEDIANCUT, dither=Image.Dither.NONE)
        number = np.asarray(made)[0]
        table = made.getpalette() or []
        palette = np.asarray(table, np.uint8).reshape(-1, 3)[: int(number.max()) + 1]
    return np.asarray(number, np.int64).reshape(-1), palette


def _default_palette() -> NDArray[np.uint8]:
    """The colours of a file without RGBA: a cube of 6 levels a channel, white first, then ramps of red, green, blue, grey."""
    levels = np.asarray([255, 204, 153, 102, 51, 0], np.uint8)
    cube = np.stack(np.meshgrid(levels, levels, levels, indexing="ij"), -1).reshape(-1, 3)[:-1]
    ramp = np.asarray([238, 221, 187, 170, 136, 119, 85, 68, 34, 17], np.uint8)
    ramps = np.concatenate(
        [ramp[:, None] * np.asarray(mask, np.uint8) for mask in np.eye(3)] + [ramp[:, None].repeat(3, 1)]
    )
    return np.concatenate([cube, ramps, np.zeros((1, 3), np.uint8)])
