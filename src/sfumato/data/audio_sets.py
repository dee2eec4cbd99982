"""Where sounds lie: folders of files, and .npz files that hold all of them in one row."""

from __future__ import annotations

import string
import zipfile
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, final

import numpy as np
from numpy.typing import NDArray

from sfumato.data.arrays import read_npz
from sfumato.data.audio import Sounds
from sfumato.data.base import file_digest
from sfumato.data.columns import Columns, read_labels
from sfumato.data.folder import Listed, walk
from sfumato.errors import UserError
from sfumato.pictures import EXTENSIONS
from sfumato.sound.read import LONGEST, SUFFIXES, Head, head_of, load_file
from sfumato.sound.wav import MOST_RATE, BadSound

AUDIO, OFFSETS, RATE, TEST = "audio", "offsets", "sample_rate", "is_test"
_OTHER_SOUNDS = (".m4a", ".aac", ".wma", ".opus", ".aif", ".aiff", ".mp4")
_NAMES = ("filenames", "names", "file_name")


@final
@dataclass(frozen=True, kw_only=True)
class AudioFolder(Listed, Sounds, name="audio-folder"):
    """WAV, FLAC, OGG and MP3 files below a folder, in the order of their names; see `Listed` for classes, captions and
    the split.

    WAV files of 8 to 32 bits or floating point need nothing; the others the extra `audio`.
    """

    suffixes = SUFFIXES
    others = _OTHER_SOUNDS
    nouns = ("sound", "sounds")
    formats = ("WAV or FLAC", "WAV, FLAC, OGG or MP3")

    path: str
    numbers: tuple[str, ...] = ()

    @property
    def where(self) -> str:
        return self.path

    def __len__(self) -> int:
        return len(self._names)

    def head(self, index: int) -> Head:
        return head_of(Path(self.path, self._names[index]))

    def load(self, index: int) -> NDArray[np.float32]:
        return load_file(Path(self.path, self._names[index]))

    @property
    def problems(self) -> tuple[str, ...]:
        return (*super().problems, *self._remarks())


@final
@dataclass(frozen=True, kw_only=True)
class Clips(Sounds, name="clips"):
    """Sounds of an .npz file: `audio` (int16 or float32, all in one row; or (T, c)), `offsets` (N + 1,), `sample_rate`,
    columns (N,).

    label: the column that labels are read from, none for no labels; names: its class names, where it holds whole
    numbers. captions: wordings with columns in braces, such as "{speakers} says {labels}"; the first is the canonical
    one. judged: other columns that samples are judged by, such as the speaker.
    Held out: the items where a column `is_test` is true.
    """

    path: str
    label: str | None = None
    names: tuple[str, ...] = ()
    captions: tuple[str, ...] = ()
    judged: tuple[str, ...] = ()

    @property
    def where(self) -> str:
        return self.path

    def __len__(self) -> int:
        return len(self._offsets) - 1

    def head(self, index: int) -> Head:
        first, last = self._offsets[index], self._offsets[index + 1]
        if last <= first:
            raise BadSound("holds no samples")
        if last - first > LONGEST * self._rate:
            raise BadSound(f"is longer than {LONGEST} s; cut it into pieces")
        return Head(self._rate, 1 if self._audio.ndim == 1 else self._audio.shape[1], int(last - first))

    def load(self, index: int) -> NDArray[np.float32]:
        part = self._audio[self._offsets[index] : self._offsets[index + 1]]
        whole = part.reshape(len(part), -1).T.astype(np.float32)
        return np.ascontiguousarray(whole / np.float32(32768) if part.dtype == np.int16 else whole)

    def name_of(self, index: int) -> str:
        for name in _NAMES:
            if name in self._columns:
                return str(self._columns[name][index])
        return f"sound {index}"

    def own_split(self) -> NDArray[np.bool_] | None:
        return np.asarray(self._columns[TEST], np.bool_) if TEST in self._columns else None

    def fingerprint(self) -> str:
        return file_digest([Path(self.path)])

    def column(self, name: str) -> NDArray[Any]:
        """A column (N,) of the file. Raises UserError."""
        if name not in self._columns:
            raise UserError(
                f"{self.path}: has no column '{name}'; its columns are {', '.join(self._columns) or 'none'}"
            )
        return self._columns[name]

    @cached_property
    def table(self) -> Columns:
        """Labels and captions."""
        captions = self._captioned() if self.captions else None
        if self.label is None:
            if self.names:
                raise UserError("names= are those of the classes; set label=COLUMN too")
            return Columns(captions=captions)
        labels, names = read_labels(self.column(self.label), f"{self.path}: {self.label}", names=self.names)
        return Columns(labels, names, captions)

    def _captioned(self) -> list[tuple[str, ...]]:
        fields = [
            name for text in self.captions for _, name, _, _ in string.Formatter().parse(text) if name is not None
        ]
        for name in fields:
            self.column(name)
        values = {name: [self._word(name, v) for v in self.column(name).tolist()] for name in dict.fromkeys(fields)}
        rows = [{name: column[i] for name, column in values.items()} for i in range(len(self))]
        return [tuple(text.format(**row) for text in self.captions) for row in rows]

    def _word(self, column: str, value: Any) -> str:
        if column == self.label and self.names and isinstance(value, int) and 0 <= value < len(self.names):
            return self.names[value]
        return str(value)

    @cached_property
    def _loaded(self) -> dict[str, NDArray[Any]]:
        file = Path(self.path)
        if not file.is_file():
            raise UserError(f"{file}: there is no such file; give an .npz file with {AUDIO}, {OFFSETS} and {RATE}")
        found = read_npz(file)
        for name in (AUDIO, OFFSETS, RATE):
            if name not in found:
                raise UserError(f"{file}: has no array '{name}'; sounds are {AUDIO}, {OFFSETS} and {RATE}")
        return found

    @cached_property
    def _audio(self) -> NDArray[Any]:
        audio = self._loaded[AUDIO]
        if audio.dtype not in (np.int16, np.float32) or audio.ndim not in (1, 2):
            raise UserError(
                f"{self.path}: '{AUDIO}' is {audio.dtype} of shape {audio.shape}; "
                "store int16 or float32, (T,) or (T, channels)"
            )
        return audio

    @cached_property
    def _offsets(self) -> NDArray[np.int64]:
        offsets = np.asarray(self._loaded[OFFSETS])
        good = offsets.ndim == 1 and len(offsets) > 1 and offsets.dtype.kind in "iu"
        if (
            not good
            or offsets[0] < 0
            or offsets[-1] > len(self._audio)
            or (np.diff(offsets.astype(np.int64)) < 0).any()
        ):
            raise UserError(
                f"{self.path}: '{OFFSETS}' must be rising whole numbers from 0 to the {len(self._audio):,} samples, "
                "one more than items"
            )
        return offsets.astype(np.int64)

    @cached_property
    def _rate(self) -> int:
        rate = self._loaded[RATE]
        if rate.ndim or rate.dtype.kind not in "iu" or not 1 <= int(rate) <= MOST_RATE:
            raise UserError(f"{self.path}: '{RATE}' is {rate}; it must be one whole number of samples a second")
        return int(rate)

    @cached_property
    def _columns(self) -> dict[str, NDArray[Any]]:
        count = len(self)
        return {k: v for k, v in self._loaded.items() if k not in (AUDIO, OFFSETS, RATE) and v.shape == (count,)}


def holds_clips(file: Path) -> bool:
    """Whether an .npz file is one of `Clips`, by the names of its arrays."""
    try:
        with zipfile.ZipFile(file) as archive:
            return {f"{name}.npy" for name in (AUDIO, OFFSETS, RATE)} <= set(archive.namelist())
    except (OSError, zipfile.BadZipFile):
        return False


def holds_sounds(folder: Path) -> bool:
    """Whether a folder holds sounds and no pictures."""
    suffixes = {Path(name).suffix.lower() for name in walk(folder)}
    return bool(suffixes & set(SUFFIXES)) and not suffixes & set(EXTENSIONS)
