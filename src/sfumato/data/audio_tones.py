"""Beeps, plucks and sweeps drawn by a program, with captions, and a program that hears what a sound holds."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import final

import numpy as np
from numpy.typing import NDArray

from sfumato.core.media import DataInfo
from sfumato.core.random import keys, uniform
from sfumato.data.base import digest
from sfumato.data.columns import Columns
from sfumato.data.memory import InMemory
from sfumato.errors import UserError

RATE = 4000
LENGTH = 2048  # half a second
COUNTS = ("one", "two", "three")
PITCHES = ("low", "middle", "high")
KINDS = ("beep", "pluck", "rising sweep", "falling sweep")
_VERSION = "tones 2"
_HERTZ = ((160, 220), (420, 560), (1000, 1200))  # of the middle of a sound
_BORDERS = (310, 775)  # between them
_SWEEP = 1.2  # octaves from the start of a sweep to its end
_LONG = (0.09, 0.12)  # seconds of one sound
_SLOT = 0.165  # seconds from one to the next
# (count, pitch, kind) of combinations that are never in the training part
HELD_OUT = ((0, 0, 1), (0, 2, 2), (1, 1, 0), (1, 2, 3), (2, 0, 3), (2, 1, 2))
_WORDINGS = ("{count} {pitch} {kind}",)


@final
@dataclass(frozen=True, kw_only=True)
class Tones(InMemory, name="tones"):
    """`count` sounds of half a second at 4 kHz: one to three beeps, plucks or sweeps, low, middle or high; functions of
    (seed, index).

    Captions such as "two high rising sweeps". Held out: the sounds of 6 of the 36 combinations, none
    of which is in the training part. `hear` tells what a sound holds.
    """

    count: int = 4096
    seed: int = 0

    def __post_init__(self) -> None:
        if self.count < 1:
            raise UserError(f"count = {self.count}: must be at least 1")

    @cached_property
    def info(self) -> DataInfo:
        return replace(self.table.info((1, LENGTH), "audio"), rate=RATE)

    def __len__(self) -> int:
        return self.count

    @cached_property
    def combinations(self) -> NDArray[np.int64]:
        """(N, 3): number of the count, the pitch and the kind of every sound."""
        number = (self._draw("combination") * (len(COUNTS) * len(PITCHES) * len(KINDS))).astype(np.int64)
        return np.stack([number // 12, number // 4 % 3, number % 4], 1)

    @cached_property
    def table(self) -> Columns:
        """Captions of all sounds."""
        return Columns(captions=[captions_of(*row) for row in self.combinations.tolist()])

    @cached_property
    def media(self) -> NDArray[np.float32]:
        """(N, 1, 2048) float32."""
        drawn = [self._draw(name) for name in ("pitch", "long", "loud", "start", "decay")]
        rows = [_sound(row, *values) for row, *values in zip(self.combinations.tolist(), *drawn)]
        return np.stack(rows)[:, None].astype(np.float32)

    def held_out_mask(self) -> NDArray[np.bool_]:
        mask: NDArray[np.bool_] = (self.combinations[:, None] == np.asarray(HELD_OUT)).all(2).any(1)
        return mask

    def fingerprint(self) -> str:
        return digest(_VERSION, repr(self))

    def _draw(self, name: str) -> NDArray[np.float64]:
        return uniform(keys(self.seed, f"tones {name}", np.arange(self.count)))


def captions_of(count: int, pitch: int, kind: int) -> tuple[str, ...]:
    """The wordings of a combination; the first is the canonical one, "two high beeps"."""
    plural = KINDS[kind] + ("s" if count else "")
    return tuple(text.format(count=COUNTS[count], pitch=PITCHES[pitch], kind=plural) for text in _WORDINGS)


def _sound(
    row: Sequence[int], pitch: float, long: float, loud: float, start: float, decay: float
) -> NDArray[np.float64]:
    count, where, kind = row
    low, high = _HERTZ[where]
    hertz = low * (high / low) ** pitch
    samples = int((_LONG[0] + (_LONG[1] - _LONG[0]) * long) * RATE)
    at = np.arange(samples) / RATE
    share = at / at[-1]
    bend = {2: share - 0.5, 3: 0.5 - share}.get(kind, np.zeros(samples)) * _SWEEP
    phase = 2 * np.pi * np.cumsum(hertz * 2.0**bend) / RATE
    edge = np.minimum(1, np.minimum(at, at[::-1]) / 0.005)  # no clicks
    shape = np.exp(-(25 + 20 * decay) * at) if kind == 1 else np.ones(samples)
    one = (0.4 + 0.5 * loud) * np.sin(phase) * edge * shape
    whole = np.zeros(LENGTH)
    first = int(start * 0.015 * RATE)
    for k in range(count + 1):
        begin = first + int(k * _SLOT * RATE)
        whole[begin : begin + samples] += one
    return whole


# ---------------------------------------------------------------- hearing


@final
@dataclass(frozen=True)
class Heard:
    """What a sound holds, in words of `COUNTS`, `PITCHES` and `KINDS`; None where it is none of them."""

    count: str | None
    pitch: str | None
    kind: str | None


_FRAME, _STEP = 128, 16  # samples: 32 ms, 4 ms


def hear(sound: NDArray[np.float32]) -> Heard:
    """Listen to a sound (1, 2048): parts above a fifth of the loudest, their pitch, how it moves and how they end."""
    x = np.asarray(sound, np.float64).reshape(-1)
    padded = np.pad(x, _FRAME // 2)
    frames = np.lib.stride_tricks.sliding_window_view(padded, _FRAME)[::_STEP] * np.hanning(_FRAME)
    power = np.abs(np.fft.rfft(frames, 1024, axis=1)) ** 2
    level = np.sqrt(power.sum(1))
    if not np.isfinite(level).all() or level.max() < 1e-3:
        return Heard(None, None, None)
    parts = _parts(level / level.max())
    if not 1 <= len(parts) <= len(COUNTS):
        return Heard(None, None, None)
    track = _track(power)
    middles, moves, ends = [], [], []
    for first, last in parts:
        inside = slice(first, last)
        weight = level[inside] / level[inside].sum()
        middles.append(float((np.log2(track[inside]) * weight).sum()))
        place = np.linspace(0, 1, last - first)
        centred = place - (place * weight).sum()
        moves.append(float((centred * np.log2(track[inside]) * weight).sum() / (centred**2 * weight).sum()))
        energy = level[first : last + _FRAME // _STEP // 2] ** 2
        half = max(1, min(len(energy) // 2, 12))
        ends.append(float(energy[half:].sum() / energy[:half].sum()))
    hertz, move = 2 ** float(np.median(middles)), float(np.median(moves))
    pitch = PITCHES[int(np.searchsorted(_BORDERS, hertz))]
    if abs(move) > _SWEEP / 2:
        kind = KINDS[2] if move > 0 else KINDS[3]
    else:
        kind = KINDS[1] if float(np.median(ends)) < 0.5 else KINDS[0]
    return Heard(COUNTS[len(parts) - 1], pitch, kind)


def _parts(level: NDArray[np.float64], start: float = 0.35, stop: float = 0.2) -> list[tuple[int, int]]:
    """(first, last + 1) of runs of frames that rise above `start` and end below `stop`, at least 20 ms long."""
    found, begun = [], -1
    for i, value in enumerate([*level.tolist(), 0.0]):
        if begun < 0 and value > start:
            begun = i
        elif begun >= 0 and value < stop:
            if i - begun >= 5:
                found.append((begun, i))
            begun = -1
    return found


def _track(power: NDArray[np.float64]) -> NDArray[np.float64]:
    """The loudest frequency of each frame, in hertz."""
    at = np.arange(power.shape[1]) * (RATE / 1024)
    strongest = power[:, 8:].argmax(1) + 8  # from 31 Hz on
    return np.asarray(at[strongest])


def heard_as_asked(sounds: NDArray[np.float32], captions: Sequence[str]) -> NDArray[np.bool_]:
    """(N,) whether sounds (N, 1, 2048) hold what canonical captions say."""
    found = np.zeros(len(captions), np.bool_)
    for i, (sound, caption) in enumerate(zip(sounds, captions)):
        heard = hear(sound)
        if None not in (heard.count, heard.pitch, heard.kind):
            plural = "s" if heard.count != COUNTS[0] else ""
            found[i] = f"{heard.count} {heard.pitch} {heard.kind}{plural}" == caption
    return found
