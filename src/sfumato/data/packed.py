"""Packed data: items as they are trained on, in memory-mapped arrays. Nothing is decoded, and processes share the pages.

A folder holds

    packed.json       format, kind, shape, dtype, items, the shards with their item counts, class names, names of numbers,
                      and what it was made from; of latents also `encoded`: whose they are, and the shape of the media
    media-00000.npy   (n, C, *S) uint8, float32 or float16: the first n items, and so on
    columns.npz       held_out (N,) bool; where there are such columns: label (N,) int64, number (N, K) float32, and the
                      captions, as UTF-8 `text` (bytes), `text_ends` (M,) of each alternative, `caption_ends` (N,) of each
                      item's alternatives
    MANIFEST.json     size and sha256 of each of these files
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any, final, overload

import numpy as np
import torch
from numpy.typing import NDArray

from sfumato.core.media import Batch, Column, DataInfo
from sfumato.data.base import Data, Draws, Indices, choose_split, digest, expand
from sfumato.data.columns import Columns
from sfumato.errors import UserError
from sfumato.files import MANIFEST, CorruptError, verify_manifest
from sfumato.kinds import kind_of

INDEX, COLUMNS, FORMAT = "packed.json", "columns.npz", 1
DTYPES = ("uint8", "float32", "float16")


@final
class PackedCaptions(Sequence[tuple[str, ...]]):
    """Captions of all items out of three arrays, made to text when asked for."""

    def __init__(self, text: NDArray[np.uint8], text_ends: NDArray[np.int64], ends: NDArray[np.int64]) -> None:
        self._text = text.tobytes()
        self._text_ends, self._ends = text_ends, ends

    def __len__(self) -> int:
        return len(self._ends)

    @overload
    def __getitem__(self, index: int) -> tuple[str, ...]: ...
    @overload
    def __getitem__(self, index: slice) -> list[tuple[str, ...]]: ...
    def __getitem__(self, index: int | slice) -> tuple[str, ...] | list[tuple[str, ...]]:
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(len(self)))]
        first = int(self._ends[index - 1]) if index else 0
        return tuple(self._text_of(i) for i in range(first, int(self._ends[index])))

    def _text_of(self, number: int) -> str:
        start = int(self._text_ends[number - 1]) if number else 0
        return self._text[start : int(self._text_ends[number])].decode()

    @staticmethod
    def arrays(captions: Sequence[tuple[str, ...]]) -> dict[str, NDArray[Any]]:
        """The arrays that captions are kept as."""
        raw = [text.encode() for options in captions for text in options]
        return {
            "text": np.frombuffer(b"".join(raw), np.uint8),
            "text_ends": np.cumsum([len(r) for r in raw], dtype=np.int64),
            "caption_ends": np.cumsum([len(options) for options in captions], dtype=np.int64),
        }


@final
@dataclass(frozen=True, kw_only=True)
class Packed(Data, name="packed"):
    """A folder written by `sfumato data pack`.

    flip: images left to right for half of the draws. held_out: share of the items that training does not see; by default
    those that the source held out. On opening, the sizes of all files are checked and the sha256 of the small ones;
    `sfumato data check` reads all.
    """

    path: str
    flip: bool = False
    held_out: float | None = None

    def __post_init__(self) -> None:
        if self.flip and self.info.encoded:
            raise UserError(
                f"flip = True: {self.path} holds latents, which are not flipped; encode flipped pictures too"
            )
        if self.flip and self.info.kind != "image":
            raise UserError("flip = True: is for images, and these are arrays; set flip=false")
        _ = self._media, self.table, self._mask

    @property
    def where(self) -> str:
        return self.path

    @cached_property
    def info(self) -> DataInfo:
        """Shape, classes and so on."""
        encoded = self._index.get("encoded") or {}
        info = self.table.info(tuple(encoded.get("shape", self._index["shape"])), self._index["kind"])
        return replace(info, encoded=encoded.get("sha256", ""))

    def __len__(self) -> int:
        return int(self._index["items"])

    def fetch(self, indices: Indices, draws: Draws = None) -> Batch:
        index = np.asarray(indices, np.int64)
        media = self._taken(index)
        if kind_of(self.info).dtype == "float32" or self.info.encoded:
            media = media.astype(np.float32, copy=False)
        elif draws is not None and self.flip:
            flipped = expand(draws, "flip") < 0.5
            media[flipped] = media[flipped][..., ::-1]
        return Batch(torch.from_numpy(media), self.table.take(index, draws))

    def columns(self, indices: Indices, draws: Draws = None) -> dict[str, Column]:
        return self.table.take(indices, draws)

    def held_out_mask(self) -> NDArray[np.bool_]:
        return self._mask

    def fingerprint(self) -> str:
        """Of the manifest, and so of every byte."""
        return digest((Path(self.path) / MANIFEST).read_bytes())

    @property
    def problems(self) -> tuple[str, ...]:
        left = self._index.get("left_out", 0)
        return (f"{left} items of {self._index['source']} could not be read and were left out",) if left else ()

    @cached_property
    def table(self) -> Columns:
        """Labels, captions and numbers of all items."""
        kept, index = self._columns, self._index
        captions = None
        if "caption_ends" in kept:
            captions = PackedCaptions(kept["text"], kept["text_ends"], kept["caption_ends"])
        names = tuple(index["labels"]) if "label" in kept else ()
        return Columns(kept.get("label"), names, captions, kept.get("number"), tuple(index["numbers"]))

    def _taken(self, index: NDArray[np.int64]) -> NDArray[Any]:
        """Rows of the shards in the order asked for, as a copy."""
        shards = self._media
        if len(index) and (index.min() < 0 or index.max() >= len(self)):
            raise IndexError(f"item {int(index.min() if index.min() < 0 else index.max())} of {len(self)}")
        if len(shards) == 1:
            return np.take(shards[0], index, axis=0)
        out = np.empty((len(index), *shards[0].shape[1:]), shards[0].dtype)
        shard = np.searchsorted(self._ends, index, side="right")
        for number in np.unique(shard).tolist():
            chosen = shard == number
            start = int(self._ends[number - 1]) if number else 0
            out[chosen] = np.take(shards[number], index[chosen] - start, axis=0)
        return out

    @cached_property
    def _ends(self) -> NDArray[np.int64]:
        return np.cumsum([len(shard) for shard in self._media])

    @cached_property
    def _media(self) -> list[NDArray[Any]]:
        """The shards, on disk until a page of them is touched."""
        made = []
        for shard in self._index["shards"]:
            file = Path(self.path, shard["file"])
            mapped = np.load(file, mmap_mode="r", allow_pickle=False)
            if mapped.shape != (shard["items"], *self._index["shape"]) or str(mapped.dtype) != self._index["dtype"]:
                raise UserError(f"{file}: holds {mapped.dtype} {mapped.shape}, not what {INDEX} says; pack again")
            made.append(mapped.view(np.ndarray))
        return made

    @cached_property
    def _columns(self) -> dict[str, NDArray[Any]]:
        with np.load(Path(self.path, COLUMNS), allow_pickle=False) as kept:
            return {key: kept[key] for key in kept.files}

    @cached_property
    def _mask(self) -> NDArray[np.bool_]:
        return choose_split(len(self), self.held_out, self._columns["held_out"])

    @cached_property
    def _index(self) -> dict[str, Any]:
        """packed.json, after the check that nothing is missing."""
        folder = Path(self.path)
        try:
            verify_manifest(folder, [INDEX, COLUMNS])
            index: dict[str, Any] = json.loads((folder / INDEX).read_text(encoding="utf-8"))
            if index["format"] != FORMAT:
                raise UserError(f"{folder}: is packed in format {index['format']}, and {FORMAT} is read; pack again")
            for file, size in _sizes(folder):
                if not file.is_file() or file.stat().st_size != size:
                    raise CorruptError(file, f"is missing or has not the {size:,} bytes it was written with")
        except CorruptError as error:
            raise UserError(f"{error}; pack the data again, or copy the folder again") from None
        return index

    def verify(self) -> None:
        """Read every byte. Raises CorruptError naming the first file that has changed."""
        verify_manifest(Path(self.path))


def _sizes(folder: Path) -> Iterator[tuple[Path, int]]:
    """Size of every file that the manifest lists."""
    listed = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))["files"]
    for name, entry in listed.items():
        yield folder / name, int(entry["size"])


def is_packed(folder: Path) -> bool:
    """Whether a folder holds packed data."""
    return (folder / INDEX).is_file()
