"""Data sets of encoded pictures: decoded by a pool of threads, kept in memory, unreadable ones replaced and counted."""

from __future__ import annotations

import hashlib
import os
import threading
from abc import abstractmethod
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import cache, cached_property
from itertools import chain
from statistics import median
from typing import BinaryIO, Literal

import numpy as np
import torch
from numpy.typing import NDArray

from sfumato import pictures
from sfumato.core.media import Batch, Column, DataInfo
from sfumato.data import buckets as shapes
from sfumato.data.base import BROKEN_SHARE, Data, Draws, Indices, choose_split, expand
from sfumato.data.broken import Ledger, listed, refuse, stand_ins, too_many
from sfumato.data.columns import Columns
from sfumato.data.order import Buckets
from sfumato.errors import UserError
from sfumato.pictures import BadPicture, Header, Look, Pixels, Resample

SCANNED = 5_000  # headers read before training; beyond that, evenly spaced ones
_AUTO_SIZE = 64
_AT_ONCE = 8  # pictures a thread takes: small ones cost as much to hand over as to decode
_Key = tuple[int, int]  # index of a picture, number of the look


@cache
def _pool() -> ThreadPoolExecutor:
    """One pool for all sets: Pillow decodes and resizes outside the interpreter's lock."""
    return ThreadPoolExecutor(min(16, os.cpu_count() or 1), thread_name_prefix="decode")


@dataclass
class _Store:
    """Decoded pictures up to a number of bytes."""

    room: float
    pixels: dict[_Key, Pixels] = field(default_factory=dict)
    lock: threading.Lock = field(default_factory=threading.Lock)

    def keep(self, key: _Key, pixels: Pixels) -> None:
        with self.lock:
            if key not in self.pixels and pixels.nbytes <= self.room:
                self.room -= pixels.nbytes
                self.pixels[key] = pixels


@dataclass(frozen=True, kw_only=True)
class Encoded(Data):
    """A set of encoded pictures, each scaled so that it covers `size` and cropped to it.

    size: side in pixels, or height and width. By default the pictures' own where all are alike; else the median shorter
    side, rounded down to a multiple of 8 and at most 64. channels: 1, 2, 3 or 4; by default what the pictures have.
    crop: the middle, or a place chosen by the draw. flip: left to right for half of the draws. alpha: `keep`, or the
    colour that transparent pictures are laid on. held_out: share of the items that training does not see; by default
    the set's own test part, else 0.05. cache: GiB of decoded pictures to keep in memory. broken: share of the pictures
    seen that may be unreadable (another one stands in, `broken.stand_ins`). buckets: bring the pictures to so many shapes
    of about size x size pixels in training instead of one; multiple: what their sides are multiples of; granule: samples
    of one shape in a row, a multiple of the batch (`data.buckets`).
    """

    size: int | tuple[int, ...] | None = None
    channels: int | None = None
    crop: Literal["centre", "random"] = "centre"
    flip: bool = False
    alpha: str = "white"
    resample: Resample = "lanczos"
    held_out: float | None = None
    cache: float = 2.0
    broken: float = BROKEN_SHARE
    buckets: int = 0
    multiple: int = shapes.MULTIPLE
    granule: int = shapes.GRANULE

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
        if not 0 <= self.broken <= 1:
            raise UserError(f"broken = {self.broken}: must be a share of the pictures, from 0 to 1")
        shapes.check_settings(self.buckets, self.multiple, self.granule)
        if self.buckets and len(sides) == 2:
            raise UserError(f"buckets = {self.buckets}: takes one size=SIDE, the root of the area, not height,width")
        if len(self) == 0:
            raise UserError(f"{self.where}: holds no pictures; PNG, JPEG, WebP, GIF and BMP are read")
        self.held_out_mask()
        _ = self.info

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
        look = self._looks[0]
        return self.table.info((look.channels, look.height, look.width), "image")

    @property
    def broken_share(self) -> float:
        return self.broken

    @property
    def bucketing(self) -> Buckets | None:
        return self._scanned[1]

    def unreadable(self, indices: Indices | None = None) -> dict[int, str]:
        return self._ledger.among(None if indices is None else np.asarray(indices, np.int64))

    def item_digest(self, index: int) -> str:
        """sha256 of the encoded picture and of what is made from it; where it can't be read, that of the one in its place."""
        try:
            with self.open(index) as stream:
                return hashlib.sha256(repr(self._looks[0]).encode() + stream.read()).hexdigest()
        except BadPicture:
            return super().item_digest(index)

    @cached_property
    def _mask(self) -> NDArray[np.bool_]:
        return choose_split(len(self), self.held_out, self.own_split())

    def held_out_mask(self) -> NDArray[np.bool_]:
        return self._mask

    def columns(self, indices: Indices, draws: Draws = None) -> dict[str, Column]:
        return self.table.take(indices, draws)

    def fetch(self, indices: Indices, draws: Draws = None) -> Batch:
        """Items by index; one that can't be read is replaced by another of its split, columns included."""
        return self._batch([int(i) for i in indices], draws, 0)

    def fetch_bucket(self, indices: Indices, draws: Draws = None) -> Batch:
        """Items of one bucket in its shape, a replacement being of that bucket too."""
        of = self.bucketing
        wanted = [int(i) for i in indices]
        return self._batch(wanted, draws, 0 if of is None else of.one_of(np.asarray(wanted, np.int64)))

    def _batch(self, wanted: list[int], draws: Draws, number: int) -> Batch:
        store, look = self._store, self._looks[number]
        todo = [i for i in dict.fromkeys(wanted) if (i, number) not in store.pixels]

        def load(some: list[int]) -> list[tuple[int, Pixels]]:
            return [self._picture(index, number) for index in some]

        parts = [todo[i : i + _AT_ONCE] for i in range(0, len(todo), _AT_ONCE)]
        done = list(_pool().map(load, parts)) if len(parts) > 1 else [load(todo)]
        loaded = dict(zip(todo, chain.from_iterable(done)))
        found = [loaded[i] if i in loaded else (i, store.pixels[i, number]) for i in wanted]
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
        bad = self._ledger.among()
        if not bad:
            return ()
        return (f"{len(bad)} of {len(self)} pictures can't be read, others stand in: {listed(bad)}",)

    @cached_property
    def _store(self) -> _Store:
        return _Store(self.cache * 2**30)

    @cached_property
    def _ledger(self) -> Ledger:
        return Ledger()

    def _picture(self, index: int, number: int) -> tuple[int, Pixels]:
        """The picture, or the first stand-in that can be read, and its index."""
        pixels = self._decoded(index, number)
        if pixels is not None:
            return index, pixels
        for other in stand_ins(index, self._part(index)):
            pixels = self._decoded(other, number)
            if pixels is not None:
                return other, pixels
        raise UserError(f"{self.where}: no picture can be read: {listed(self._ledger.among())}")

    def _part(self, index: int) -> NDArray[np.int64]:
        """The items of the split and bucket of an item."""
        of = self.bucketing
        bucket = 0 if of is None else int(of.of[index])
        key = (bool(self._mask[index]), bucket)
        if key not in self._parts_of:
            alike = self._mask == key[0]
            self._parts_of[key] = np.flatnonzero(alike if of is None else alike & (of.of == bucket))
        return self._parts_of[key]

    @cached_property
    def _parts_of(self) -> dict[tuple[bool, int], NDArray[np.int64]]:
        return {}

    def _decoded(self, index: int, number: int) -> Pixels | None:
        if index in self._ledger:
            return None
        kept = self._store.pixels.get((index, number))
        if kept is not None:
            return kept
        try:
            with self.open(index) as stream:
                pixels = pictures.decode(stream, self._looks[number])
        except BadPicture as reason:
            self._ledger.mark(index, f"{self.name_of(index)} ({reason})")
            return None
        self._store.keep((index, number), pixels)
        return pixels

    @property
    def _looks(self) -> list[Look]:
        return self._scanned[0]

    @cached_property
    def _scanned(self) -> tuple[list[Look], Buckets | None]:
        """What pictures become, decided by the settings and the headers: one look, or one a bucket and whose is which."""
        headers = self._headers()
        channels, grey = self._channels(headers)
        under = None if self.alpha == "keep" else pictures.colour(self.alpha)
        buckets = self._buckets(headers) if self.buckets else None
        sizes = [self._size(headers)] if buckets is None else [(h, w) for h, w in buckets.shapes]
        return [Look(h, w, channels, under, self.resample, self.crop == "random", grey) for h, w in sizes], buckets

    def _headers(self) -> dict[int, Header]:
        step = 1 if self.buckets else max(1, -(-len(self) // SCANNED))
        sample = range(0, len(self), step)

        def read(index: int) -> Header | str:
            try:
                with self.open(index) as stream:
                    return pictures.read_header(stream)
            except BadPicture as reason:
                return str(reason)

        found = dict(zip(sample, _pool().map(read, sample)))
        for index, said in found.items():
            if isinstance(said, str):
                self._ledger.mark(index, f"{self.name_of(index)} ({said})")
        bad = self._ledger.among()
        if len(bad) == len(found):
            raise UserError(f"{self.where}: no picture can be read: {listed(bad)}")
        if too_many(len(bad), len(found), len(self), self.broken):
            raise refuse(self.where, bad, len(found), self.broken)
        return {i: h for i, h in found.items() if isinstance(h, Header)}

    def _buckets(self, headers: dict[int, Header]) -> Buckets:
        """The bucket of every picture; one that can't be read counts as a square one."""
        side = self.size if isinstance(self.size, int) else self.size[0] if self.size else self._automatic(headers)
        sizes = np.ones((len(self), 2), np.int64)
        for index, header in headers.items():
            sizes[index] = header.height, header.width
        return shapes.by_proportions(sizes, side, self.buckets, self.multiple, self.granule)

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
        side = self._automatic(headers)
        return side, side

    @staticmethod
    def _automatic(headers: dict[int, Header]) -> int:
        side = median(min(h.height, h.width) for h in headers.values())
        return min(_AUTO_SIZE, max(8, int(side) // 8 * 8))
