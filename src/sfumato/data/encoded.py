"""Data sets of encoded pictures: decoded by a pool of threads, kept in memory, bad ones replaced and named."""

from __future__ import annotations

import os
import threading
from abc import abstractmethod
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import cache, cached_property
from statistics import median
from typing import BinaryIO, Literal

import numpy as np
import torch
from numpy.typing import NDArray

from sfumato.core.media import Batch, Column, DataInfo
from sfumato.data import pictures
from sfumato.data.base import Data, Draws, Indices, choose_split, expand
from sfumato.data.columns import Columns
from sfumato.data.pictures import BadPicture, Header, Look, Pixels, Resample
from sfumato.errors import UserError

SCANNED = 5_000  # headers read before training; beyond that, evenly spaced ones
BAD_SHARE = 0.01
_AUTO_SIZE = 64
_NAMED = 10


@cache
def _pool() -> ThreadPoolExecutor:
    """One pool for all sets: Pillow decodes and resizes outside the interpreter's lock."""
    return ThreadPoolExecutor(min(16, os.cpu_count() or 1), thread_name_prefix="decode")


@dataclass
class _Store:
    """Decoded pictures up to a number of bytes, and the bad ones with the reason."""

    room: float
    pixels: dict[int, Pixels] = field(default_factory=dict)
    bad: dict[int, str] = field(default_factory=dict)
    lock: threading.Lock = field(default_factory=threading.Lock)

    def keep(self, index: int, pixels: Pixels) -> None:
        with self.lock:
            if index not in self.pixels and pixels.nbytes <= self.room:
                self.room -= pixels.nbytes
                self.pixels[index] = pixels


@dataclass(frozen=True, kw_only=True)
class Encoded(Data):
    """A set of encoded pictures, each scaled so that it covers `size` and cropped to it.

    size: side in pixels, or height and width. By default the pictures' own where all are alike; else the median shorter
    side, rounded down to a multiple of 8 and at most 64. channels: 1, 2, 3 or 4; by default what the pictures have.
    crop: the middle, or a place chosen by the draw. flip: left to right for half of the draws. alpha: `keep`, or the
    colour that transparent pictures are laid on. held_out: share of the items that training does not see; by default
    the set's own test part, else 0.05. cache: GiB of decoded pictures to keep in memory.
    """

    size: int | tuple[int, ...] | None = None
    channels: int | None = None
    crop: Literal["centre", "random"] = "centre"
    flip: bool = False
    alpha: str = "white"
    resample: Resample = "lanczos"
    held_out: float | None = None
    cache: float = 2.0

    def __post_init__(self) -> None:
        sides = self.size if isinstance(self.size, tuple) else (self.size,)
        if len(sides) not in (1, 2) or any(side is not None and side < 1 for side in sides):
            raise UserError(f"size = {self.size}: must be one side or height,width, in pixels of at least 1")
        if self.channels not in (None, 1, 2, 3, 4):
            raise UserError(f"channels = {self.channels}: pictures have 1 (grey), 2 (grey, alpha), 3 (RGB) or 4 (RGBA)")
        if self.alpha == "keep" and self.channels in (1, 3):
            raise UserError(f"alpha = 'keep' needs a channel for it; set channels={self.channels + 1}")
        if self.alpha != "keep":
            pictures.colour(self.alpha)
        if self.cache < 0:
            raise UserError(f"cache = {self.cache}: must be GiB of at least 0")
        if len(self) == 0:
            raise UserError(f"{self.where}: holds no pictures; PNG, JPEG, WebP, GIF and BMP are read")
        self.held_out_mask()
        _ = self.info

    @property
    @abstractmethod
    def where(self) -> str:
        """What messages call the set: its path."""

    @property
    @abstractmethod
    def table(self) -> Columns:
        """Labels, captions and numbers of all items."""

    @abstractmethod
    def open(self, index: int) -> BinaryIO:
        """The encoded picture as a stream. Raises BadPicture if there is none."""

    @abstractmethod
    def name_of(self, index: int) -> str:
        """What messages call a picture."""

    def own_split(self) -> NDArray[np.bool_] | None:
        """(N,) True for the set's own test part, if it has one."""
        return None

    @cached_property
    def info(self) -> DataInfo:
        """Shape, classes and so on."""
        return self.table.info((self._look.channels, self._look.height, self._look.width), "image")

    @cached_property
    def _mask(self) -> NDArray[np.bool_]:
        return choose_split(len(self), self.held_out, self.own_split())

    def held_out_mask(self) -> NDArray[np.bool_]:
        return self._mask

    def columns(self, indices: Indices, draws: Draws = None) -> dict[str, Column]:
        return self.table.take(indices, draws)

    def fetch(self, indices: Indices, draws: Draws = None) -> Batch:
        """Items by index; one that can't be read is replaced by the next of its split that can, columns included."""
        wanted = [int(i) for i in indices]
        store, look = self._store, self._look
        todo = [i for i in dict.fromkeys(wanted) if i not in store.pixels]
        loaded = dict(zip(todo, _pool().map(self._picture, todo) if len(todo) > 1 else map(self._picture, todo)))
        found = [loaded[i] if i in loaded else (i, store.pixels[i]) for i in wanted]
        if look.cover and draws is not None:
            down, across = expand(draws, "down").tolist(), expand(draws, "across").tolist()
            media = np.stack([pictures.cut(p, look, at) for (_, p), at in zip(found, zip(down, across))])
        elif look.cover:
            media = np.stack([pictures.cut(p, look, None) for _, p in found])
        else:
            media = np.stack([p for _, p in found])
        if draws is not None and self.flip:
            flipped = expand(draws, "flip") < 0.5
            media[flipped] = media[flipped][..., ::-1]
        return Batch(torch.from_numpy(media), self.columns([j for j, _ in found], draws))

    @property
    def problems(self) -> tuple[str, ...]:
        bad = dict(sorted(self._store.bad.items()))
        if not bad:
            return ()
        return (f"{len(bad)} of {len(self)} pictures can't be read, the next one stands in: {self._listed(bad)}",)

    @cached_property
    def _store(self) -> _Store:
        return _Store(self.cache * 2**30)

    def _picture(self, index: int) -> tuple[int, Pixels]:
        """The picture, or the next one of the same split that can be read, and its index."""
        tried = index
        while True:
            if tried == index or self._mask[tried] == self._mask[index]:
                pixels = self._decoded(tried)
                if pixels is not None:
                    return tried, pixels
            tried = (tried + 1) % len(self)
            if tried == index:
                raise UserError(f"{self.where}: no picture can be read: {self._listed(self._store.bad)}")

    def _decoded(self, index: int) -> Pixels | None:
        store = self._store
        if index in store.bad:
            return None
        kept = store.pixels.get(index)
        if kept is not None:
            return kept
        try:
            with self.open(index) as stream:
                pixels = pictures.decode(stream, self._look)
        except BadPicture as reason:
            self._mark({index: str(reason)})
            return None
        store.keep(index, pixels)
        return pixels

    def _mark(self, bad: dict[int, str]) -> None:
        with self._store.lock:
            self._store.bad.update(bad)
            known = dict(sorted(self._store.bad.items()))
        if len(known) > BAD_SHARE * len(self):
            raise UserError(
                f"{self.where}: {len(known)} of {len(self)} pictures can't be read, more than 1%: {self._listed(known)}; "
                "repair or remove them"
            )

    def _listed(self, bad: dict[int, str]) -> str:
        first = [f"{self.name_of(i)} ({reason})" for i, reason in list(bad.items())[:_NAMED]]
        more = [f"and {len(bad) - _NAMED} more"] if len(bad) > _NAMED else []
        return ", ".join(first + more)

    @cached_property
    def _look(self) -> Look:
        """What all pictures become, decided by the settings and the headers."""
        headers = self._headers()
        channels, grey = self._channels(headers)
        height, width = self._size(headers)
        under = None if self.alpha == "keep" else pictures.colour(self.alpha)
        return Look(height, width, channels, under, self.resample, self.crop == "random", grey)

    def _headers(self) -> dict[int, Header]:
        step = max(1, -(-len(self) // SCANNED))
        sample = range(0, len(self), step)

        def read(index: int) -> Header | str:
            try:
                with self.open(index) as stream:
                    return pictures.read_header(stream)
            except BadPicture as reason:
                return str(reason)

        found = dict(zip(sample, _pool().map(read, sample)))
        bad = {i: h for i, h in found.items() if isinstance(h, str)}
        if bad:
            self._mark(bad)
        return {i: h for i, h in found.items() if isinstance(h, Header)}

    def _channels(self, headers: dict[int, Header]) -> tuple[int, bool | None]:
        """Channel count, and whether pictures must be grey (None: any, they are converted)."""
        if self.channels is not None:
            return self.channels, None
        grey = [i for i, h in headers.items() if h.grey]
        if grey and len(grey) < len(headers):
            coloured = next(i for i, h in headers.items() if not h.grey)
            raise UserError(
                f"{self.where}: {len(grey)} pictures have 1 channel ({self.name_of(grey[0])}) and {len(headers) - len(grey)} "
                f"have 3 ({self.name_of(coloured)}); set channels=3 or channels=1 to convert all"
            )
        alpha = self.alpha == "keep" and any(h.alpha for h in headers.values())
        return (1 if grey else 3) + alpha, bool(grey)

    def _size(self, headers: dict[int, Header]) -> tuple[int, int]:
        if self.size is not None:
            sides = self.size if isinstance(self.size, tuple) else (self.size,)
            return sides[0], sides[-1]
        sizes = {(h.height, h.width) for h in headers.values()}
        if len(sizes) == 1:
            return sizes.pop()
        side = median(min(h.height, h.width) for h in headers.values())
        side = min(_AUTO_SIZE, max(8, int(side) // 8 * 8))
        return side, side
