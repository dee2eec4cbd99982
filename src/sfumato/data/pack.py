"""Writing packed data (`packed` says how it is laid out)."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, final

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from sfumato import __version__
from sfumato.data.base import Data
from sfumato.data.broken import listed, refuse, too_many
from sfumato.data.packed import COLUMNS, DTYPES, FORMAT, INDEX, PackedCaptions, is_packed
from sfumato.errors import UserError
from sfumato.files import replacing_folder
from sfumato.kinds import kind_of

SHARD_BYTES = 1 << 30
_BATCH = 256
_PACKED = ("label", "caption", "number")  # columns


@final
@dataclass(frozen=True)
class Packing:
    """What was written. left_out: name and reason of the items that could not be read, by index of the source."""

    items: int
    shards: int
    bytes: int
    left_out: dict[int, str]


def pack(
    data: Data,
    folder: Path,
    *,
    shards: int | None = None,
    dtype: str | None = None,
    source: str = "",
    fresh: bool = False,
) -> Packing:
    """Write all items of a set, as `fetch` gives them without a draw, into a folder that `Packed` reads.

    shards: how many files of media, by default one a GiB. dtype: of floating-point items, float32 or float16.
    fresh: replace packed data that are there. Items that can't be read are left out; more than the set's `broken` share
    of them is an error. The folder appears when it is complete.
    """
    kind = kind_of(data.info)
    whole, latents = kind.dtype == "uint8" and not data.info.encoded, bool(data.info.encoded)
    dtype = dtype or ("float16" if latents else kind.dtype)
    if dtype not in DTYPES or (dtype == "uint8") != whole:
        noun = "latents" if latents else kind.noun
        raise UserError(f"dtype={dtype}: {noun} are packed as {'uint8' if whole else 'float32 or float16'}")
    if shards is not None and shards < 1:
        raise UserError(f"shards={shards}: must be at least 1")
    if data.bucketing is not None:
        raise UserError(f"{data.where}: a set with buckets can't be packed; leave out buckets=")
    if folder.exists() and not (fresh and is_packed(folder)):
        there = "holds packed data; --fresh replaces them" if is_packed(folder) else "is there already; give a new name"
        raise UserError(f"-o {folder}: {there}")
    with replacing_folder(folder) as inside:
        return _Writer(data, inside, np.dtype(dtype), shards, source).write()


class _Writer:
    """One pass over the items."""

    def __init__(self, data: Data, folder: Path, dtype: np.dtype[Any], shards: int | None, source: str) -> None:
        self.data, self.folder, self.dtype, self.source = data, folder, dtype, source
        bytes_each = int(np.prod(data.info.shape)) * dtype.itemsize
        by_size = -(-len(data) * bytes_each // SHARD_BYTES)
        self.room = -(-len(data) // min(len(data), shards or max(1, by_size)))
        self.left_out: dict[int, str] = {}
        self.kept: list[int] = []
        self.files: list[dict[str, Any]] = []
        self.shape: tuple[int, ...] = ()  # of an item as it is kept

    def write(self) -> Packing:
        labels, numbers = self._media()
        bad = self.left_out
        if too_many(len(bad), len(self.data), len(self.data), self.data.broken_share):
            raise refuse(self.data.where, bad, len(self.data), self.data.broken_share)
        if not self.kept:
            raise UserError(f"{self.data.where}: no item can be read: {listed(bad)}")
        columns: dict[str, NDArray[Any]] = {"held_out": self.data.held_out_mask()[self.kept]}
        if labels:
            columns["label"] = np.concatenate(labels)
        if numbers:
            columns["number"] = np.concatenate(numbers)
        if self.data.info.captions:
            columns |= PackedCaptions.arrays(_captions(self.data, self.kept))
        np.savez(self.folder / COLUMNS, **columns)  # type: ignore[arg-type]
        info = self.data.info
        index = {
            "format": FORMAT,
            "kind": info.kind,
            "shape": self.shape,
            "dtype": str(self.dtype),
            "items": len(self.kept),
            "shards": self.files,
            "labels": info.labels,
            "numbers": info.numbers,
            "source": self.source or self.data.where,
            "source_fingerprint": self.data.fingerprint(),
            "left_out": len(bad),
            "made_by": f"sfumato {__version__}",
            **({"encoded": {"sha256": info.encoded, "shape": info.shape}} if info.encoded else {}),
        }
        (self.folder / INDEX).write_text(json.dumps(index, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
        written = sum(file.stat().st_size for file in self.folder.iterdir())
        return Packing(len(self.kept), len(self.files), written, bad)

    def _media(self) -> tuple[list[NDArray[Any]], list[NDArray[Any]]]:
        """Write the shards; returns the labels and numbers of what was kept."""
        labels: list[NDArray[Any]] = []
        numbers: list[NDArray[Any]] = []
        waiting: list[NDArray[Any]] = []
        count = 0
        for media, columns in self._batches():
            for name, into in (("label", labels), ("number", numbers)):
                if isinstance(found := columns.get(name), np.ndarray):
                    into.append(found)
            waiting.append(media)
            count += len(media)
            while count >= self.room:
                whole = np.concatenate(waiting)
                self._shard(whole[: self.room])
                waiting, count = [whole[self.room :]], count - self.room
        if count:
            self._shard(np.concatenate(waiting))
        return labels, numbers

    def _batches(self) -> Iterator[tuple[NDArray[Any], dict[str, NDArray[Any]]]]:
        """The readable items in their order, with their columns."""
        for start in range(0, len(self.data), _BATCH):
            indices = np.arange(start, min(start + _BATCH, len(self.data)))
            batch = self.data.fetch(indices)
            if more := batch.conditions.keys() - set(_PACKED):
                raise UserError(
                    f"{self.data.where}: the column '{min(more)}' is drawn when items are fetched, and packed data have "
                    f"{', '.join(_PACKED)} alone; pack the set that it is drawn from, and wrap what was packed"
                )
            bad = self.data.unreadable(indices)
            self.left_out |= bad
            good = ~np.isin(indices, list(bad))
            self.kept += indices[good].tolist()
            columns = {k: v.numpy()[good] for k, v in batch.conditions.items() if isinstance(v, Tensor)}
            with np.errstate(over="ignore"):
                media = batch.media.numpy()[good].astype(self.dtype, copy=False)
            if self.dtype == np.float16 and not np.isfinite(media).all():
                raise UserError("dtype=float16: holds numbers up to 65,504, and there are larger ones; use float32")
            yield media, columns

    def _shard(self, media: NDArray[Any]) -> None:
        name, self.shape = f"media-{len(self.files):05}.npy", media.shape[1:]
        np.save(self.folder / name, media)
        self.files.append({"file": name, "items": len(media)})


def _captions(data: Data, kept: Sequence[int]) -> list[tuple[str, ...]]:
    """All alternatives where the set has a table of them, else the first ones."""
    options = getattr(getattr(data, "table", None), "captions", None)
    if options is not None:
        return [options[i] for i in kept]
    found: list[tuple[str, ...]] = []
    for start in range(0, len(kept), _BATCH):
        texts = data.columns(kept[start : start + _BATCH])["caption"]
        found += [(str(text),) if text else () for text in texts]
    return found
