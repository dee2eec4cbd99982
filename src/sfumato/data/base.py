"""The contract of every data set, its split into training and held-out items, and its fingerprint."""

from __future__ import annotations

import hashlib
import zlib
from abc import ABC, abstractmethod
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Literal, final

import numpy as np
from numpy.typing import NDArray

from sfumato.core.media import Batch, Column, DataInfo
from sfumato.core.random import keys, splitmix64, uniform
from sfumato.data.order import BucketOrder, Buckets, Order
from sfumato.errors import UserError
from sfumato.registry import Registered

Indices = Sequence[int] | NDArray[np.int64]
Draws = NDArray[np.float64] | None
Split = Literal["train", "held_out"]

HELD_OUT_SHARE = 0.05
HELD_OUT_MOST = 2000
BROKEN_SHARE = 0.01


class Data(Registered, ABC, family="data"):
    """A finite, indexed set of items. Built from settings alone; every item is a function of (index, draw).

    `fetch` must be safe to call from several threads at once.
    """

    @property
    @abstractmethod
    def info(self) -> DataInfo:
        """What every item looks like."""

    @abstractmethod
    def __len__(self) -> int:
        """Number of items, training and held-out ones together."""

    @abstractmethod
    def fetch(self, indices: Indices, draws: Draws = None) -> Batch:
        """Items by index, B of them.

        draws: (B,) numbers of [0, 1) that choose crop, flip and caption; None for none of these: the centre, not
        flipped, the first caption.
        """

    @abstractmethod
    def held_out_mask(self) -> NDArray[np.bool_]:
        """(N,) True for the items that training must not see."""

    @abstractmethod
    def fingerprint(self) -> str:
        """16 hexadecimal digits that change when the content changes. Cheap: it samples large files."""

    @property
    def where(self) -> str:
        """What messages call the set."""
        return self.kind or type(self).__name__

    @property
    def problems(self) -> tuple[str, ...]:
        """What was skipped or doubtful so far, one sentence each."""
        return ()

    @property
    def broken_share(self) -> float:
        """Share of the items seen that may be unreadable before a run stops."""
        return BROKEN_SHARE

    def unreadable(self, indices: Indices | None = None) -> dict[int, str]:
        """Name and reason of those of `indices` (None: of all) for which `fetch` has had to take another item so far."""
        return {}

    def remarks(self, index: int) -> tuple[str, ...]:
        """What is doubtful about an item that can be read, in a few words each that are the same for all such items."""
        return ()

    def item_digest(self, index: int) -> str:
        """sha256 of what the media of one item are made from, settings included; by default of the media themselves."""
        media = self.fetch([index]).media[0].contiguous()
        head = f"{media.dtype} {tuple(media.shape)} ".encode()
        return hashlib.sha256(head + media.numpy().tobytes()).hexdigest()

    @property
    def bucketing(self) -> Buckets | None:
        """The shapes of items that are not all brought to `info.shape` in training, and whose is which."""
        return None

    def fetch_bucket(self, indices: Indices, draws: Draws = None) -> Batch:
        """As `fetch`, for items of one bucket, in the shape of that bucket."""
        return self.fetch(indices, draws)

    def columns(self, indices: Indices, draws: Draws = None) -> dict[str, Column]:
        """The conditions of `fetch` without the media, where that is cheaper."""
        return dict(self.fetch(indices, draws).conditions)

    @final
    def order(self, seed: int) -> Order | BucketOrder:
        """Global sample number -> index: a function of the seed, the number of items and their buckets."""
        buckets = self.bucketing
        return Order(len(self), seed) if buckets is None else BucketOrder(buckets, seed)

    @final
    def split(self, name: Split) -> Subset:
        """The items to train on, or those held out."""
        if name not in ("train", "held_out"):
            raise UserError(f"there is no split '{name}'; known: train, held_out")
        mask = self.held_out_mask()
        return Subset(self, np.flatnonzero(mask if name == "held_out" else ~mask))


class Wrapped(Data, ABC):
    """A set made of another one: the same items, columns and split. Media may be others, so what depends on them is not
    taken over (`item_digest`, `bucketing`)."""

    data: Data

    @property
    def info(self) -> DataInfo:
        return self.data.info

    def __len__(self) -> int:
        return len(self.data)

    def columns(self, indices: Indices, draws: Draws = None) -> dict[str, Column]:
        return self.data.columns(indices, draws)

    def held_out_mask(self) -> NDArray[np.bool_]:
        return self.data.held_out_mask()

    @property
    def where(self) -> str:
        return self.data.where

    @property
    def problems(self) -> tuple[str, ...]:
        return self.data.problems

    @property
    def broken_share(self) -> float:
        return self.data.broken_share

    def unreadable(self, indices: Indices | None = None) -> dict[int, str]:
        return self.data.unreadable(indices)

    def remarks(self, index: int) -> tuple[str, ...]:
        return self.data.remarks(index)


@final
class Subset(Wrapped):
    """Some items of a data set, in the order of `indices`."""

    def __init__(self, data: Data, indices: NDArray[np.int64]) -> None:
        self.data = data
        self.indices = indices

    def __len__(self) -> int:
        return len(self.indices)

    def fetch(self, indices: Indices, draws: Draws = None) -> Batch:
        return self.data.fetch(self.indices[np.asarray(indices, np.int64)], draws)

    def columns(self, indices: Indices, draws: Draws = None) -> dict[str, Column]:
        return self.data.columns(self.indices[np.asarray(indices, np.int64)], draws)

    def held_out_mask(self) -> NDArray[np.bool_]:
        return np.asarray(self.data.held_out_mask()[self.indices])

    def fingerprint(self) -> str:
        return digest(self.data.fingerprint(), self.indices.tobytes())

    def unreadable(self, indices: Indices | None = None) -> dict[int, str]:
        asked = np.arange(len(self)) if indices is None else np.asarray(indices, np.int64)
        inner = self.indices[asked]
        found = self.data.unreadable(inner)
        return {int(i): found[int(j)] for i, j in zip(asked, inner) if int(j) in found} if found else {}

    def remarks(self, index: int) -> tuple[str, ...]:
        return self.data.remarks(int(self.indices[index]))

    def item_digest(self, index: int) -> str:
        return self.data.item_digest(int(self.indices[index]))

    @property
    def bucketing(self) -> Buckets | None:
        whole = self.data.bucketing
        return None if whole is None else whole.some(self.indices)

    def fetch_bucket(self, indices: Indices, draws: Draws = None) -> Batch:
        return self.data.fetch_bucket(self.indices[np.asarray(indices, np.int64)], draws)


def expand(draws: NDArray[np.float64], use: str) -> NDArray[np.float64]:
    """One number of [0, 1) per item to another one, independent for every `use` ("flip", "caption", ...). (B,)."""
    bits = (np.asarray(draws, np.float64) * 2.0**52).astype(np.uint64)
    return uniform(splitmix64(splitmix64(bits) ^ np.uint64(zlib.crc32(use.encode()))))


def hashed_split(n: int, share: float) -> NDArray[np.bool_]:
    """(n,) True for `share` of the items, chosen by a hash of the index: at least 1 (of 2 or more), at most 2,000."""
    if not 0 <= share < 1:
        raise UserError(f"held_out = {share}: must be a share of the items, at least 0 and below 1")
    mask = np.zeros(n, np.bool_)
    if share > 0 and n > 1:
        count = min(max(1, round(share * n)), HELD_OUT_MOST, n - 1)
        mask[np.argsort(keys(0, "held_out", np.arange(n)), kind="stable")[:count]] = True
    return mask


def choose_split(n: int, share: float | None, own: NDArray[np.bool_] | None) -> NDArray[np.bool_]:
    """The set's own test part; a share of all items where there is none, or where the user sets one."""
    if share is None and own is not None and own.any():
        return own
    return hashed_split(n, HELD_OUT_SHARE if share is None else share)


def digest(*parts: str | bytes) -> str:
    """16 hexadecimal digits of the sha256 of the parts, each with its length."""
    sha = hashlib.sha256()
    for part in parts:
        raw = part.encode() if isinstance(part, str) else part
        sha.update(len(raw).to_bytes(8, "little"))
        sha.update(raw)
    return sha.hexdigest()[:16]


def file_digest(files: Iterable[Path], root: Path | None = None, most: int = 64) -> str:
    """Names and sizes of all files, and the first and last 4 KiB of up to `most` of them, evenly spaced.

    Modification times are left out: a copy of the data on another machine is the same data.
    """
    listed = list(files)
    parts: list[str | bytes] = []
    for file in listed:
        name = file.relative_to(root).as_posix() if root is not None else file.name
        parts.append(f"{name} {file.stat().st_size}")
    step = max(1, -(-len(listed) // most))
    for file in listed[::step]:
        with file.open("rb") as stream:
            parts.append(stream.read(4096))
            stream.seek(max(0, file.stat().st_size - 4096))
            parts.append(stream.read(4096))
    return digest(*parts)
