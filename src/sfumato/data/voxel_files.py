"""How voxel models lie on a disk: an .npz of many, .vox files and meshes."""

from __future__ import annotations

import zipfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, final, overload

import numpy as np
from numpy.typing import NDArray

from sfumato.data.columns import Columns, read_captions, read_labels
from sfumato.errors import UserError
from sfumato.pictures import BadPicture
from sfumato.solid import mesh
from sfumato.solid.grid import fitted
from sfumato.solid.vox import read_vox

_MOST = 1 << 32  # bytes that the arrays of an .npz may unpack to
_KEYS = ("occupancy", "colors")
_DENSE = "voxels"


def write_stored(file: Path, voxels: NDArray[np.uint8], **columns: Sequence[str]) -> None:
    """Models (N, 4, S, S, S) as a compact .npz: `occupancy` (N, S^3 / 8), the bits of S^3 cells in C order; `colors` (K, 3),
    red, green, blue of every occupied cell in that order, model after model; and columns of text (`caption`, `category`,
    `name`, `split`)."""
    occupied = (voxels[:, 3] > 0).reshape(len(voxels), -1)
    colours = np.moveaxis(voxels[:, :3], 1, -1).reshape(len(voxels), -1, 3)[occupied]
    text = {key: np.asarray(values) for key, values in columns.items()}
    np.savez_compressed(file, occupancy=np.packbits(occupied, axis=1), colors=colours, **text)  # type: ignore[arg-type]


def holds_models(file: Path) -> bool:
    """Whether an .npz holds voxel models: `occupancy` and `colors`, or `voxels`."""
    try:
        with zipfile.ZipFile(file) as archive:
            names = {name.removesuffix(".npy") for name in archive.namelist()}
    except (OSError, zipfile.BadZipFile):
        return False
    return names.issuperset(_KEYS) or _DENSE in names


@final
@dataclass(frozen=True)
class Stored(Sequence[NDArray[np.uint8]]):
    """The models of an .npz, unpacked when asked for. own: cells a side in the file; size: as handed out."""

    bits: NDArray[np.uint8]
    colours: NDArray[np.uint8]
    own: int
    size: int
    table: Columns
    test: NDArray[np.bool_] | None

    def __len__(self) -> int:
        return len(self.bits)

    @overload
    def __getitem__(self, index: int) -> NDArray[np.uint8]: ...

    @overload
    def __getitem__(self, index: slice) -> list[NDArray[np.uint8]]: ...

    def __getitem__(self, index: int | slice) -> NDArray[np.uint8] | list[NDArray[np.uint8]]:
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(len(self)))]
        occupied = np.unpackbits(self.bits[index]).astype(bool)[: self.own**3]
        if not occupied.any():
            raise BadPicture("is empty")
        grid: NDArray[np.uint8] = np.zeros((4, self.own**3), np.uint8)
        first = self.starts[index]
        grid[:3, occupied] = self.colours[first : first + int(occupied.sum())].T
        grid[3, occupied] = 255
        grid = grid.reshape(4, self.own, self.own, self.own)
        times = self.size // self.own
        for axis in (1, 2, 3) if times > 1 else ():
            grid = grid.repeat(times, axis)
        return grid if grid.shape[1] == self.size else fitted(grid, self.size)

    @cached_property
    def starts(self) -> NDArray[np.int64]:
        """Where the colours of each model begin."""
        counts = np.bitwise_count(self.bits).sum(1, dtype=np.int64)
        return np.concatenate([[0], np.cumsum(counts)])


def read_stored(file: Path, size: int | None) -> Stored:
    """The models of an .npz. Raises UserError for one that holds none, or not what it says."""
    arrays = _arrays(file)
    if _DENSE in arrays:
        bits, colours, own = _from_dense(arrays[_DENSE], file)
    else:
        bits, colours = arrays["occupancy"], arrays["colors"]
        if bits.ndim != 2 or bits.dtype != np.uint8 or not len(bits):
            raise UserError(
                f"{file}: occupancy is {bits.dtype} {bits.shape}; it must be packed bits (N, S^3 / 8) uint8"
            )
        own = round((8 * bits.shape[1]) ** (1 / 3))
        if own**3 > 8 * bits.shape[1] or 8 * bits.shape[1] - own**3 > 7 or own < 2:
            raise UserError(f"{file}: {8 * bits.shape[1]} cells a model are no cube; grids must have equal sides")
    there = int(np.bitwise_count(bits).sum(dtype=np.int64))
    if colours.shape != (there, 3) or colours.dtype != np.uint8:
        found = f"{colours.dtype} {colours.shape}"
        raise UserError(f"{file}: {there:,} occupied cells need colors ({there}, 3) uint8, not {found}")
    wanted = size or own
    test = arrays["split"].astype(str) == "test" if "split" in arrays else None
    return Stored(bits, colours, own, wanted, _table(arrays, len(bits), file), test)


def _arrays(file: Path) -> dict[str, NDArray[Any]]:
    try:
        with zipfile.ZipFile(file) as archive:
            unpacked = sum(member.file_size for member in archive.infolist())
        if unpacked > _MOST:
            raise UserError(f"{file}: would unpack to {unpacked / 2**30:.0f} GiB; give a folder of .vox files instead")
        with np.load(file, allow_pickle=False) as loaded:
            arrays = {key: loaded[key] for key in loaded.files}
    except (OSError, ValueError, EOFError, zipfile.BadZipFile) as error:
        raise UserError(f"{file}: can't be read as an .npz of plain arrays ({error})") from None
    if not arrays.keys() >= {*_KEYS} and _DENSE not in arrays:
        shown = ", ".join(f"{k} {a.shape}" for k, a in arrays.items())
        raise UserError(
            f"{file}: holds no voxel models, which are occupancy and colors, or voxels; its arrays: {shown}"
        )
    return arrays


def _from_dense(voxels: NDArray[Any], file: Path) -> tuple[NDArray[np.uint8], NDArray[np.uint8], int]:
    """`voxels`: (N, S, S, S, 4) or (N, 4, S, S, S) uint8, or bool (N, S, S, S), which are grey."""
    if voxels.ndim == 4:
        full = voxels.astype(bool)
        grey = np.full((*full.shape, 1), 160, np.uint8)
        voxels = np.concatenate([grey.repeat(3, -1), np.where(full, 255, 0).astype(np.uint8)[..., None]], -1)
    elif voxels.ndim == 5 and voxels.shape[1] == 4 and voxels.shape[-1] != 4:
        voxels = np.moveaxis(voxels, 1, -1)
    sides = voxels.shape[1:4]
    if voxels.ndim != 5 or voxels.shape[-1] != 4 or voxels.dtype != np.uint8 or not len(voxels):
        raise UserError(
            f"{file}: voxels is {voxels.dtype} {voxels.shape}; give (N, S, S, S, 4) uint8 (red, green, blue, 255 where "
            "occupied), or (N, S, S, S) of bool"
        )
    if len(set(sides)) > 1:
        raise UserError(f"{file}: grids of {' x '.join(map(str, sides))} are not cubes; fill them up to equal sides")
    occupied = (voxels[..., 3] > 0).reshape(len(voxels), -1)
    return np.packbits(occupied, axis=1), voxels[..., :3].reshape(len(voxels), -1, 3)[occupied], sides[0]


def _table(arrays: Mapping[str, NDArray[Any]], count: int, file: Path) -> Columns:
    found: dict[str, list[str]] = {}
    for key in ("caption", "category", "name"):
        if key in arrays:
            if arrays[key].shape != (count,):
                raise UserError(
                    f"{file}: '{key}' has shape {arrays[key].shape} for {count} models; one a model is needed"
                )
            found[key] = [str(value) for value in arrays[key].tolist()]
    labels, names = read_labels(found["category"], str(file)) if "category" in found else (None, ())
    captions = None
    if "caption" in found:
        words = found.get("name", [""] * count), found.get("category", [""] * count)
        captions = [_wordings(*row, str(file)) for row in zip(found["caption"], *words)]
    return Columns(labels, names, captions)


def _wordings(caption: str, name: str, category: str, where: str) -> tuple[str, ...]:
    """The caption as it is, and where there is a name, shorter ways to ask for it: "a pine tree", "pine tree"."""
    if not name:
        return read_captions(caption, where)
    article = "an" if name[:1].lower() in "aeiou" else "a"
    rest = (f"{name}, {category}",) if category else ()
    return read_captions([caption, f"{article} {name}", name, *rest], where)


def read_file(file: Path, size: int) -> NDArray[np.uint8]:
    """A .vox file or a mesh in a cube of `size` cells. Raises BadPicture for one that can't be read or is empty."""
    try:
        if file.suffix.lower() == ".vox":
            voxels = fitted(read_vox(file), size)
        else:
            voxels = mesh.voxelise(file, size)
    except UserError as error:
        if "trimesh" in str(error):
            raise
        raise BadPicture(str(error).removeprefix(f"{file}: ")) from None
    except OSError as error:
        raise BadPicture(error.strerror or "can't be opened") from None
    if not (voxels[3] > 0).any():
        raise BadPicture("is empty")
    return voxels
