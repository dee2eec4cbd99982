"""CIFAR-10 from a folder: lossless WebP sheets in .npz files, or the authors' binary version."""

from __future__ import annotations

import io
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import final

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from sfumato.core.media import DataInfo
from sfumato.data.base import choose_split, file_digest
from sfumato.data.columns import Columns
from sfumato.data.memory import InMemory
from sfumato.errors import UserError

NAMES = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
_SIDE = 32
_RECORD = 1 + 3 * _SIDE * _SIDE


@final
@dataclass(frozen=True, kw_only=True)
class Cifar10(InMemory, name="cifar10"):
    """CIFAR-10 (Krizhevsky, "Learning Multiple Layers of Features from Tiny Images", 2009): 32x32x3, 10 classes.

    path: a folder with `cifar10-train-*.npz` and `cifar10-test-*.npz`, each holding `labels` and `webp_000`,
    `webp_001`, ...: lossless WebP sheets of pictures, row by row; or with `data_batch_1.bin` ... `data_batch_5.bin` and
    `test_batch.bin` of the authors' "binary version". The test part is held out unless `held_out` asks for a share of
    all. The pictures are decoded on the first use.
    """

    path: str
    flip: bool = False
    held_out: float | None = None

    def __post_init__(self) -> None:
        _ = self.table, self._mask

    @property
    def mirrored(self) -> bool:
        return self.flip

    @cached_property
    def info(self) -> DataInfo:
        return self.table.info((3, _SIDE, _SIDE), "image")

    def __len__(self) -> int:
        return sum(self._lengths)

    def held_out_mask(self) -> NDArray[np.bool_]:
        return self._mask

    def fingerprint(self) -> str:
        return file_digest(self._files)

    @cached_property
    def media(self) -> NDArray[np.uint8]:
        """(N, 3, 32, 32) uint8, training files first."""
        with ThreadPoolExecutor() as pool:
            pixels = np.concatenate(list(pool.map(_pixels, self._files)))
        if len(pixels) != len(self):
            raise UserError(
                f"{self.path}: holds {len(pixels)} pictures for {len(self)} labels; the files don't belong together"
            )
        return pixels

    @cached_property
    def table(self) -> Columns:
        """Labels 0-9, "airplane" ... "truck"."""
        labels = np.concatenate(self._labels)
        if labels.max(initial=0) >= len(NAMES):
            raise UserError(f"{self.path}: holds the label {labels.max()}, outside 0..9; these are not CIFAR-10 files")
        return Columns(labels, NAMES)

    @cached_property
    def _mask(self) -> NDArray[np.bool_]:
        own = np.concatenate([np.full(n, "test" in f.name) for n, f in zip(self._lengths, self._files)])
        return choose_split(len(own), self.held_out, own)

    @cached_property
    def _files(self) -> list[Path]:
        return find_files(Path(self.path))

    @cached_property
    def _labels(self) -> list[NDArray[np.int64]]:
        return [_read_labels(file) for file in self._files]

    @property
    def _lengths(self) -> Sequence[int]:
        return [len(labels) for labels in self._labels]


def find_files(folder: Path) -> list[Path]:
    """The CIFAR-10 files of a folder, training parts first. Raises UserError if there are none."""
    for train, test in (("cifar10-train-*.npz", "cifar10-test-*.npz"), ("data_batch_?.bin", "test_batch.bin")):
        found = [*sorted(folder.glob(train)), *sorted(folder.glob(test))]
        if found:
            return found
    raise UserError(f"{folder}: holds no cifar10-train-*.npz and no data_batch_1.bin; give the folder of CIFAR-10")


def _read_labels(file: Path) -> NDArray[np.int64]:
    try:
        if file.suffix == ".bin":
            return _records(file)[:, 0].astype(np.int64)
        with np.load(file, allow_pickle=False) as stored:
            return np.asarray(stored["labels"]).astype(np.int64)
    except (OSError, ValueError, KeyError, EOFError) as error:
        raise UserError(f"{file}: is not a CIFAR-10 file ({error}); download it again") from None


def _records(file: Path) -> NDArray[np.uint8]:
    raw = np.fromfile(file, np.uint8)
    if len(raw) == 0 or len(raw) % _RECORD:
        raise ValueError(f"{len(raw)} bytes are not whole records of {_RECORD}")
    return raw.reshape(-1, _RECORD)


def _pixels(file: Path) -> NDArray[np.uint8]:
    if file.suffix == ".bin":
        return _records(file)[:, 1:].reshape(-1, 3, _SIDE, _SIDE)
    try:
        with np.load(file, allow_pickle=False) as stored:
            sheets = [_cut(stored[key]) for key in sorted(k for k in stored.files if k.startswith("webp_"))]
    except (OSError, ValueError) as error:
        raise UserError(f"{file}: a sheet can't be decoded ({error}); download the file again") from None
    return np.concatenate(sheets)


def _cut(webp: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """A sheet of 32x32 pictures, row by row -> (N, 3, 32, 32)."""
    with Image.open(io.BytesIO(webp.tobytes()), formats=("WEBP",)) as image:
        sheet = np.asarray(image.convert("RGB"))
    rows, columns = sheet.shape[0] // _SIDE, sheet.shape[1] // _SIDE
    tiles = sheet.reshape(rows, _SIDE, columns, _SIDE, 3).transpose(0, 2, 4, 1, 3)
    return tiles.reshape(-1, 3, _SIDE, _SIDE)
