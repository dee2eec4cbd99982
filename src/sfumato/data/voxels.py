"""Coloured voxel models from an .npz file, or from a folder of .vox files and meshes."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Literal, final

import numpy as np
import torch
from numpy.typing import NDArray

from sfumato.core.media import Batch, Column, DataInfo
from sfumato.data.base import BROKEN_SHARE, Data, Draws, Indices, choose_split, expand, file_digest
from sfumato.data.broken import Ledger, listed, refuse, stand_ins, too_many
from sfumato.data.columns import Columns
from sfumato.data.folder import TEST_NAMES, TRAIN_NAMES, columns_beside, walk
from sfumato.data.voxel_files import Stored, read_file, read_stored
from sfumato.errors import UserError
from sfumato.pictures import BadPicture
from sfumato.solid import mesh
from sfumato.solid.grid import SYMMETRIES, symmetry

Symmetries = Literal["auto", "none", "mirror", "told", "all"]
SUFFIXES = (".vox", *mesh.READ)
_TURNS = ("", ", turned left", ", turned around", ", turned right")  # by quarter turns that take +x to +y
_DENSE = 1 << 30
_MOST_SIDE = 256


@final
@dataclass(frozen=True, kw_only=True)
class Voxels(Data, name="voxels"):
    """uint8 models (4, size, size, size): red, green, blue and 255 where occupied; axes x, y, z, z up.

    path: an .npz (`voxel_files` has its arrays), or a folder of .vox files and of meshes (GLB, OBJ, PLY, STL, OFF; extra
    `mesh`), which are voxelised. Of a folder, classes are the first sub-folders, captions `name.txt` beside `name.vox`, the
    split sub-folders called train and test. size: cells a side; by default the .npz's own, or 32. Smaller models are centred
    on the ground, larger ones reduced; an .npz's are repeated to whole multiples.
    symmetries: what a draw may do to a model: `all` of the 8 (quarter turns, mirrored or not); `told`: the same, and the
    caption says how the model is turned, so that a plain caption means the model as it stands in the data; `mirror` left and
    right alone; `none`. auto: told where there are captions, else all.
    held_out: share that training does not see; by default the test part, else 0.05. broken: share of the models seen that
    may be unreadable (another one stands in).
    """

    path: str
    size: int | None = None
    symmetries: Symmetries = "auto"
    held_out: float | None = None
    broken: float = BROKEN_SHARE

    def __post_init__(self) -> None:
        if self.size is not None and not 2 <= self.size <= _MOST_SIDE:
            raise UserError(f"size = {self.size}: must be 2 to {_MOST_SIDE} cells a side")
        if not 0 <= self.broken <= 1:
            raise UserError(f"broken = {self.broken}: must be a share of the models, from 0 to 1")
        if self.symmetries == "told" and not self.info.captions:
            raise UserError("symmetries = told: says in the caption how a model is turned, and there are no captions")
        _ = self.info, self._mask

    @property
    def where(self) -> str:
        return self.path

    @cached_property
    def info(self) -> DataInfo:
        """Shape, classes and so on."""
        return self._table.info((4, *(self._side,) * 3), "voxels")

    def __len__(self) -> int:
        return len(self._source)

    def fetch(self, indices: Indices, draws: Draws = None) -> Batch:
        """Models by index; one that can't be read is replaced by another of its split, columns included."""
        found = [self._readable(int(i)) for i in indices]
        chosen = self._symmetries(draws, len(found))
        media = torch.empty(len(found), *self.info.shape, dtype=torch.uint8)
        for i, ((_, voxels), number) in enumerate(zip(found, chosen.tolist())):
            media[i] = symmetry(torch.from_numpy(voxels), number)
        return Batch(media, self.columns([index for index, _ in found], draws))

    def columns(self, indices: Indices, draws: Draws = None) -> dict[str, Column]:
        taken = self._table.take(indices, draws)
        captions = taken.get("caption")
        if draws is not None and captions is not None and not isinstance(captions, torch.Tensor) and self._told:
            turns = (self._symmetries(draws, len(captions)) % 4).tolist()
            taken["caption"] = [text + _TURNS[turn] if text else text for text, turn in zip(captions, turns)]
        return taken

    def held_out_mask(self) -> NDArray[np.bool_]:
        return self._mask

    def fingerprint(self) -> str:
        root = Path(self.path)
        return file_digest([root / name for name in self._names], root) if self._names else file_digest([root])

    @property
    def broken_share(self) -> float:
        return self.broken

    @property
    def problems(self) -> tuple[str, ...]:
        bad = self._ledger.among()
        return (f"{len(bad)} of {len(self)} models can't be read, others stand in: {listed(bad)}",) if bad else ()

    def unreadable(self, indices: Indices | None = None) -> dict[int, str]:
        return self._ledger.among(None if indices is None else np.asarray(indices, np.int64))

    def item_digest(self, index: int) -> str:
        return hashlib.sha256(f"{self.info.shape} ".encode() + self._readable(index)[1].tobytes()).hexdigest()

    @property
    def _told(self) -> bool:
        return self.symmetries == "told" or (self.symmetries == "auto" and self.info.captions)

    def _symmetries(self, draws: Draws, n: int) -> NDArray[np.int64]:
        if draws is None or self.symmetries == "none":
            return np.zeros(n, np.int64)
        chance = expand(draws, "symmetry")
        if self.symmetries == "mirror":
            return np.where(chance < 0.5, 4, 0)
        return np.asarray(chance * SYMMETRIES, np.int64)

    # ------------------------------------------------------------ what is there

    @cached_property
    def _names(self) -> list[str]:
        """Paths of a folder's models, relative to it; none for an .npz."""
        root = Path(self.path)
        if root.is_file():
            return []
        found = sorted(name for name in walk(root) if name.lower().endswith(SUFFIXES)) if root.is_dir() else []
        if not found:
            raise UserError(f"{root}: there is no .npz and no folder of .vox files or meshes; give one of these")
        return found

    @cached_property
    def _stored(self) -> Stored | None:
        return None if self._names else read_stored(Path(self.path), self.size)

    @property
    def _source(self) -> Sequence[Any]:
        return self._names if self._stored is None else self._stored

    @property
    def _side(self) -> int:
        return self._stored.size if self._stored is not None else self.size or 32

    @cached_property
    def _kept(self) -> dict[int, NDArray[np.uint8]]:
        """Models read so far, if all of them fit into a GiB."""
        return {}

    @cached_property
    def _ledger(self) -> Ledger:
        return Ledger()

    def _readable(self, index: int) -> tuple[int, NDArray[np.uint8]]:
        """The model, or the first stand-in that can be read, and its index."""
        found = self._loaded(index)
        if found is not None:
            return index, found
        for other in stand_ins(index, np.flatnonzero(self._mask == self._mask[index])):
            found = self._loaded(other)
            if found is not None:
                return other, found
        raise UserError(f"{self.path}: no model can be read: {listed(self._ledger.among())}")

    def _loaded(self, index: int) -> NDArray[np.uint8] | None:
        if index in self._ledger:
            return None
        kept = self._kept.get(index)
        if kept is not None:
            return kept
        try:
            if self._stored is not None:
                voxels = self._stored[index]
            else:
                voxels = read_file(Path(self.path, self._names[index]), self._side)
        except BadPicture as reason:
            name = self._names[index] if self._names else f"model {index}"
            self._ledger.mark(index, f"{name} ({reason})")
            if too_many(len(self._ledger.among()), len(self), len(self), self.broken):
                raise refuse(self.path, self._ledger.among(), len(self), self.broken) from None
            return None
        if voxels.nbytes * len(self) <= _DENSE:
            self._kept[index] = voxels
        return voxels

    @cached_property
    def _split_names(self) -> bool:
        tops = {name.partition("/")[0] for name in self._names}
        return tops <= {*TRAIN_NAMES, *TEST_NAMES} and bool(tops & {*TRAIN_NAMES}) and bool(tops & {*TEST_NAMES})

    @cached_property
    def _mask(self) -> NDArray[np.bool_]:
        if self._stored is not None:
            own: NDArray[np.bool_] | None = self._stored.test
        else:
            tests = [self._split_names and name.partition("/")[0] in TEST_NAMES for name in self._names]
            own = np.asarray(tests, np.bool_)
        return choose_split(len(self), self.held_out, own)

    @cached_property
    def _table(self) -> Columns:
        """Labels and captions of all models."""
        if self._stored is not None:
            return self._stored.table
        return columns_beside(self.path, self._names, split=self._split_names)


def holds_voxels(folder: Path) -> bool:
    """Whether a folder holds .vox files or meshes."""
    return any(name.lower().endswith(SUFFIXES) for name in walk(folder))
