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
from sfumato.errors import UserError
from sfumato.registry import Registered

Indices = Sequence[int] | NDArray[np.int64]
Draws = NDArray[np.float64] | None
Split = Literal["train", "held_out"]

HELD_OUT_SHARE = 0.05
HELD_OUT_MOST = 2000


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
    def problems(self) -> tuple[str, ...]:
        """What was skipped or doubtful so far, one sentence each."""
        return ()

    def columns(self, indices: Indices, draws: Draws = None) -> dict[str, Column]:
        """The conditions of `fetch` without the media, where that is cheaper."""
        return dict(self.fetch(indices, draws).conditions)

    @final
    def split(self, name: Split) -> Subset:
        """The items to train on, or those held out."""
        if name not in ("train", "held_out"):
            raise UserError(f"there is no split '{name}'; known: train, held_out")
        mask = self.held_out_mask()
        return Subset(self, np.flatnonzero(mask if name == "held_out" else ~mask))


@final
class Subset(Data):
    """Some items of a data set, in the order of `indices`."""

    def __init__(self, data: Data, indices: NDArray[np.int64]) -> None:
        self.data = data
        self.indices = indices

    @property
    def info(self) -> DataInfo:
        return self.data.info

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

    @property
    def problems(self) -> tuple[str, ...]:
        return self.data.problems


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
