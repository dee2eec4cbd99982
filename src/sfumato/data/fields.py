"""A folder of arrays, one .npy file an item, of different sizes: sounds of any length, volumes of any shape."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Literal, final

import numpy as np
import torch
from numpy.typing import NDArray

from sfumato.core.media import Batch, Column, DataInfo
from sfumato.data import buckets as shapes
from sfumato.data.arrays import Layout, channels_first
from sfumato.data.base import BROKEN_SHARE, Data, Draws, Indices, choose_split, expand, file_digest
from sfumato.data.broken import Ledger, listed, refuse, stand_ins, too_many
from sfumato.data.columns import Columns
from sfumato.data.folder import TEST_NAMES, TRAIN_NAMES, columns_beside, walk
from sfumato.data.order import Buckets
from sfumato.errors import UserError
from sfumato.pictures import EXTENSIONS, BadPicture

_AXES = ("length", "height,width", "depth,height,width")


@final
@dataclass(frozen=True, kw_only=True)
class Fields(Data, name="fields"):
    """Arrays below a folder, in the order of their names, float32, each cut or filled up with zeros to one shape.

    Classes are the first sub-folders, captions `name.txt` beside `name.npy`, the split sub-folders called train and test,
    as for pictures. layout: where the channels are, as for `arrays`. size: of the items without channels, a length or side
    or one number an axis; by default the median of each axis, rounded down to a multiple of `multiple`. crop: the middle,
    or a place chosen by the draw. held_out: share that training does not see; by default the test part, else 0.05.
    broken: share of the items seen that may be unreadable (another one stands in, `broken.stand_ins`). buckets: bring the
    items to so many shapes in training: lengths for one axis, else shapes of about size^d elements (`data.buckets`), with
    `granule` samples of one shape in a row, a multiple of the batch.
    """

    path: str
    layout: Layout = "auto"
    size: int | tuple[int, ...] | None = None
    crop: Literal["centre", "random"] = "centre"
    held_out: float | None = None
    broken: float = BROKEN_SHARE
    buckets: int = 0
    multiple: int = shapes.MULTIPLE
    granule: int = shapes.GRANULE

    def __post_init__(self) -> None:
        if not 0 <= self.broken <= 1:
            raise UserError(f"broken = {self.broken}: must be a share of the items, from 0 to 1")
        shapes.check_settings(self.buckets, self.multiple, self.granule)
        _ = self.info, self._mask

    @property
    def where(self) -> str:
        return self.path

    @cached_property
    def info(self) -> DataInfo:
        """Shape, classes and so on."""
        return self._table.info((self._channels, *self._shapes[0]), "array")

    def __len__(self) -> int:
        return len(self._names)

    def fetch(self, indices: Indices, draws: Draws = None) -> Batch:
        """Items by index; one that can't be read is replaced by another of its split, columns included."""
        return self._batch([int(i) for i in indices], draws, 0)

    def fetch_bucket(self, indices: Indices, draws: Draws = None) -> Batch:
        """Items of one bucket in its shape, a replacement being of that bucket too."""
        of = self.bucketing
        index = np.asarray(indices, np.int64)
        return self._batch(index.tolist(), draws, 0 if of is None else of.one_of(index))

    def columns(self, indices: Indices, draws: Draws = None) -> dict[str, Column]:
        return self._table.take(indices, draws)

    def held_out_mask(self) -> NDArray[np.bool_]:
        return self._mask

    def fingerprint(self) -> str:
        root = Path(self.path)
        return file_digest([root / name for name in self._names], root)

    @property
    def broken_share(self) -> float:
        return self.broken

    def unreadable(self, indices: Indices | None = None) -> dict[int, str]:
        return self._ledger.among(None if indices is None else np.asarray(indices, np.int64))

    @property
    def problems(self) -> tuple[str, ...]:
        bad = self._ledger.among()
        return (f"{len(bad)} of {len(self)} items can't be read, others stand in: {listed(bad)}",) if bad else ()

    @property
    def bucketing(self) -> Buckets | None:
        return self._measured[2]

    def item_digest(self, index: int) -> str:
        """sha256 of the file and of what is made from it."""
        try:
            raw = Path(self.path, self._names[index]).read_bytes()
        except OSError:
            return super().item_digest(index)
        return hashlib.sha256(f"{self.info.shape} {self.layout} ".encode() + raw).hexdigest()

    def _batch(self, wanted: list[int], draws: Draws, number: int) -> Batch:
        found = [self._readable(index) for index in wanted]
        shape = self._shapes[number]
        where = np.full((len(wanted), len(shape)), 0.5)
        if draws is not None and self.crop == "random":
            where = np.stack([expand(draws, f"crop {axis}") for axis in range(len(shape))], 1)
        media = np.stack([brought_to(array, shape, at) for (_, array), at in zip(found, where)])
        return Batch(torch.from_numpy(media), self.columns([i for i, _ in found], draws))

    def _readable(self, index: int) -> tuple[int, NDArray[np.float32]]:
        """The item, or the first stand-in that can be read, and its index."""
        found = self._loaded(index)
        if found is not None:
            return index, found
        for other in stand_ins(index, self._part(index)):
            found = self._loaded(other)
            if found is not None:
                return other, found
        raise UserError(f"{self.path}: no item can be read: {listed(self._ledger.among())}")

    def _part(self, index: int) -> NDArray[np.int64]:
        alike = self._mask == self._mask[index]
        of = self.bucketing
        return np.flatnonzero(alike if of is None else alike & (of.of == of.of[index]))

    def _loaded(self, index: int) -> NDArray[np.float32] | None:
        if index in self._ledger:
            return None
        try:
            array = np.asarray(self._mapped(index), np.float32)
            if not np.isfinite(array).all():
                raise BadPicture("holds NaN or infinite values")
            if len(array) != self._channels or array.ndim != 1 + len(self._shapes[0]):
                raise BadPicture(f"has shape {array.shape}, unlike the others")
            return array
        except BadPicture as reason:
            self._ledger.mark(index, f"{self._names[index]} ({reason})")
            return None

    def _mapped(self, index: int) -> NDArray[Any]:
        """(C, *S) of an item, on disk until it is used. Raises BadPicture."""
        file = Path(self.path, self._names[index])
        try:
            array = np.load(file, mmap_mode="r", allow_pickle=False)
        except (OSError, ValueError, EOFError) as error:
            said = "holds Python objects" if "pickle" in str(error).lower() else str(error).splitlines()[0]
            raise BadPicture(getattr(error, "strerror", None) or said) from None
        if array.dtype.kind not in "uifb" or array.ndim < 1 or 0 in array.shape:
            raise BadPicture(f"is {array.dtype} of shape {array.shape}, not real numbers")
        layout: Layout = "none" if array.ndim == 1 else self.layout
        return np.asarray(channels_first(array[None], layout, str(file))[0])

    @cached_property
    def _ledger(self) -> Ledger:
        return Ledger()

    @cached_property
    def _names(self) -> list[str]:
        """Paths of the items, relative to the folder."""
        root = Path(self.path)
        found = sorted(name for name in walk(root) if name.lower().endswith(".npy")) if root.is_dir() else []
        if not found:
            raise UserError(f"{root}: there is no such folder of .npy files; give a folder with one file an item")
        return found

    @property
    def _channels(self) -> int:
        return self._measured[0]

    @property
    def _shapes(self) -> tuple[tuple[int, ...], ...]:
        return self._measured[1]

    @cached_property
    def _measured(self) -> tuple[int, tuple[tuple[int, ...], ...], Buckets | None]:
        """Channels, the shapes that items are brought to, and whose is which, from the heads of all files."""
        found: dict[int, tuple[int, ...]] = {}
        for index, name in enumerate(self._names):
            try:
                found[index] = self._mapped(index).shape
            except BadPicture as reason:
                self._ledger.mark(index, f"{name} ({reason})")
        bad = self._ledger.among()
        if not found:
            raise UserError(f"{self.path}: no item can be read: {listed(bad)}")
        if too_many(len(bad), len(self), len(self), self.broken):
            raise refuse(self.path, bad, len(self), self.broken)
        kinds = {(shape[0], len(shape)): i for i, shape in found.items()}
        if len(kinds) > 1:
            one, other = list(kinds.values())[:2]
            raise UserError(
                f"{self.path}: {self._names[one]} is {found[one]} and {self._names[other]} is {found[other]}; "
                "items must have the same channels and axes (layout= says where the channels are)"
            )
        channels, sizes = next(iter(kinds))[0], np.asarray([shape[1:] for shape in found.values()], np.int64)
        if not self.buckets:
            return channels, (self._one_size(sizes),), None
        whole = np.tile(np.median(sizes, axis=0).astype(np.int64), (len(self), 1))
        whole[list(found)] = sizes
        made = self._bucketed(whole)
        return channels, made.shapes, made

    def _one_size(self, sizes: NDArray[np.int64]) -> tuple[int, ...]:
        axes = sizes.shape[1]
        if self.size is not None:
            given = self.size if isinstance(self.size, tuple) else (self.size,) * axes
            if len(given) != axes or min(given) < 1:
                known = _AXES[axes - 1] if axes <= len(_AXES) else f"{axes} numbers"
                raise UserError(f"size = {self.size}: must be one number or {known}, each at least 1")
            return given
        if len(np.unique(sizes, axis=0)) == 1:
            return tuple(int(n) for n in sizes[0])
        return tuple(max(self.multiple, int(n) // self.multiple * self.multiple) for n in np.median(sizes, axis=0))

    def _bucketed(self, sizes: NDArray[np.int64]) -> Buckets:
        if isinstance(self.size, tuple):
            raise UserError(f"buckets = {self.buckets}: takes one size=NUMBER, a length or side")
        if sizes.shape[1] == 1:
            lengths = sizes[:, 0] if self.size is None else np.minimum(sizes[:, 0], self.size)
            return shapes.by_length(lengths, self.buckets, self.multiple, self.granule)
        axes = sizes.shape[1]
        side = self.size or max(self.multiple, float(np.median(sizes.prod(1))) ** (1 / axes))
        return shapes.by_proportions(sizes, side, self.buckets, self.multiple, self.granule)

    @cached_property
    def _split_names(self) -> bool:
        tops = {name.partition("/")[0] for name in self._names}
        return tops <= {*TRAIN_NAMES, *TEST_NAMES} and bool(tops & {*TRAIN_NAMES}) and bool(tops & {*TEST_NAMES})

    @cached_property
    def _mask(self) -> NDArray[np.bool_]:
        own = np.asarray([self._split_names and name.partition("/")[0] in TEST_NAMES for name in self._names], np.bool_)
        return choose_split(len(self), self.held_out, own)

    @cached_property
    def _table(self) -> Columns:
        """Labels and captions of all items."""
        return columns_beside(self.path, self._names, split=self._split_names)


def brought_to(array: NDArray[np.float32], shape: tuple[int, ...], where: NDArray[np.float64]) -> NDArray[np.float32]:
    """(C, *S) cut at a place in [0, 1] of each axis where it is longer than `shape`; zeros at the end where it is shorter."""
    for axis, (side, at) in enumerate(zip(shape, where.tolist()), 1):
        spare = array.shape[axis] - side
        if spare > 0:
            first = min(int(at * (spare + 1)), spare)
            array = array[(slice(None),) * axis + (slice(first, first + side),)]
    missing = [(0, 0), *((0, max(0, side - n)) for side, n in zip(shape, array.shape[1:]))]
    return np.pad(array, missing) if any(after for _, after in missing) else np.ascontiguousarray(array)


def holds_fields(folder: Path) -> bool:
    """Whether a folder holds .npy files and no pictures."""
    suffixes = {Path(name).suffix.lower() for name in walk(folder)}
    return ".npy" in suffixes and not suffixes & set(EXTENSIONS)
