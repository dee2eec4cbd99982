"""The 1,797 scanned digits of the UCI set, with captions; shipped in the package."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from importlib import resources
from typing import final

import numpy as np
from numpy.typing import NDArray

from sfumato.core.random import keys
from sfumato.data.base import digest
from sfumato.data.columns import Columns
from sfumato.data.memory import InMemory

WORDS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
_PHRASES = (
    "a handwritten {word}",
    "{word}",
    "{digit}",
    "the digit {digit}",
    "the number {word}",
    "handwritten digit {digit}",
    "a photo of the number {word}",
    "a scan of the handwritten number {digit}",
)
_HELD_OUT_SEED = 0


def captions_of(digit: int) -> tuple[str, ...]:
    """The wordings of a digit; the first is the canonical one, "a handwritten seven"."""
    return tuple(phrase.format(word=WORDS[digit], digit=digit) for phrase in _PHRASES)


@final
@dataclass(frozen=True, kw_only=True)
class Digits(InMemory, name="digits"):
    """1,797 handwritten digits, 8x8 in one channel, with labels and eight wordings of a caption each.

    The sheets' values 0..16 are stored as round(255 v / 16). Held out: a fifth of every class, the items with the
    smallest `core.random.keys(0, "digits", index)`: 359 of 1,797.

    Source: E. Alpaydin & C. Kaynak, "Optical Recognition of Handwritten Digits", UCI Machine Learning Repository, 1998
    (its test part, by 13 people who wrote none of its training part). CC BY 4.0; see files/SOURCES.md.
    """

    @cached_property
    def _file(self) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
        with resources.as_file(resources.files("sfumato.data") / "files" / "digits.npz") as path, np.load(path) as file:
            return file["x"], file["y"].astype(np.int64)

    @cached_property
    def media(self) -> NDArray[np.uint8]:
        """(1797, 1, 8, 8) uint8."""
        pixels: NDArray[np.uint8] = np.rint(self._file[0][:, None] * (255 / 16)).astype(np.uint8)
        return pixels

    @cached_property
    def table(self) -> Columns:
        """Labels 0-9 and captions."""
        wordings = [captions_of(digit) for digit in range(10)]
        labels = self._file[1]
        return Columns(labels, tuple(map(str, range(10))), [wordings[y] for y in labels.tolist()])

    def held_out_mask(self) -> NDArray[np.bool_]:
        labels = self._file[1]
        order = keys(_HELD_OUT_SEED, "digits", np.arange(len(labels)))
        mask = np.zeros(len(labels), np.bool_)
        for digit in range(10):
            of_class = np.flatnonzero(labels == digit)
            mask[of_class[np.argsort(order[of_class])[: round(len(of_class) / 5)]]] = True
        return mask

    def fingerprint(self) -> str:
        return digest(self.media.tobytes(), self._file[1].tobytes())
