"""Long sounds made of short ones: hits on a grid of sixteenth notes, as a step sequencer plays them."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property
from typing import final

import numpy as np
import torch
from numpy.typing import NDArray

from sfumato.core.media import Batch, Column, DataInfo
from sfumato.core.random import keys, uniform
from sfumato.data.audio import SECONDS
from sfumato.data.base import HELD_OUT_SHARE, Data, Draws, Indices, digest, expand, hashed_split
from sfumato.errors import UserError

_STEPS = 16  # sixteenth notes of a bar, after which a pattern comes again
_DENSITY = 0.25  # share of the steps at which a voice is heard
_LEAST = 0.5  # seconds
_TEMPO = 10  # beats a minute between two tempi
_AUDIBLE = 10 ** (-50 / 20)  # of a sound's peak: it ends with the last sample above
_FADE = 0.01  # seconds before a cut
_PEAK = 0.9
_SOFTEST = 0.5


@dataclass(frozen=True)
class _Pattern:
    """voices: (sound, gain, the first samples of its hits). tempo: beats a minute. end: samples in all."""

    voices: tuple[tuple[int, float, tuple[int, ...]], ...]
    tempo: int
    end: int


@final
@dataclass(frozen=True, kw_only=True)
class Sequenced(Data, name="sequenced"):
    """float32 sounds (c, seconds rate), each a function of (index, draw): 1 to `voices` short sounds on a grid of beats.

    data: the short sounds. Every voice has a bar of 16 steps, a quarter of them hits, that comes again and again at one
    tempo; sounds ring on into each other, and louder than full scale is made softer. A draw makes another pattern, so that
    training never hears one twice. Its length is drawn too, half a second to `seconds`: what rings on is faded out there and
    silence follows. The number `seconds` is where the last sound falls below -50 dB of its peak. The caption names the voices
    by their labels, if there are any, and the tempo: "snare and tabla, 120 beats a minute".
    tempo: lowest and highest, in tens. count: of patterns without a draw. Held-out patterns are made of held-out sounds
    alone, and training patterns of the others.
    """

    data: Data
    seconds: float = 10.0
    voices: int = 3
    tempo: tuple[int, int] = (80, 160)
    count: int = 1000

    def __post_init__(self) -> None:
        info = self.data.info
        if info.kind != "audio" or info.encoded:
            raise UserError(f"sequenced: plays sounds, and {self.data.where} holds items of kind '{info.kind}'")
        if not 0.1 <= self.seconds <= 600:
            raise UserError(f"sequenced: seconds = {self.seconds:g}: must be 0.1 to 600")
        if not 1 <= self.voices <= 16:
            raise UserError(f"sequenced: voices = {self.voices}: must be 1 to 16")
        low, high = self.tempo
        if not 20 <= low <= high <= 400:
            raise UserError(f"sequenced: tempo = {low}, {high}: must be a range within 20 to 400 beats a minute")
        if self.count < 1:
            raise UserError(f"sequenced: count = {self.count}: must be at least 1 pattern")

    @cached_property
    def info(self) -> DataInfo:
        whole = self.data.info
        shape = (whole.shape[0], round(self.seconds * whole.rate))
        return replace(whole, shape=shape, labels=(), captions=True, numbers=(SECONDS,))

    def __len__(self) -> int:
        return self.count

    @property
    def where(self) -> str:
        return self.data.where

    @property
    def problems(self) -> tuple[str, ...]:
        return self.data.problems

    def fetch(self, indices: Indices, draws: Draws = None) -> Batch:
        patterns = self._patterns(indices, draws)
        media = np.zeros((len(patterns), *self.info.shape), np.float32)
        for sound, pattern in zip(media, patterns):
            self._play(sound, pattern)
        return Batch(torch.from_numpy(media), self._columns(patterns))

    def columns(self, indices: Indices, draws: Draws = None) -> dict[str, Column]:
        return self._columns(self._patterns(indices, draws))

    def held_out_mask(self) -> NDArray[np.bool_]:
        return self._mask

    def fingerprint(self) -> str:
        return digest(self.data.fingerprint(), f"{self.seconds} {self.voices} {self.tempo} {self.count}")

    # ------------------------------------------------------------ patterns

    def _patterns(self, indices: Indices, draws: Draws) -> list[_Pattern]:
        index = np.asarray(indices, np.int64)
        seeds = np.zeros(len(index)) if draws is None else expand(draws, "pattern")
        held_out = self._mask[index]
        rows = zip(index.tolist(), seeds.tolist(), held_out.tolist())
        return [self._pattern(i, int(seed * (1 << 52)), self._pools[held]) for i, seed, held in rows]

    def _pattern(self, index: int, seed: int, pool: NDArray[np.int64]) -> _Pattern:
        chance = uniform(keys(seed, f"sequenced/{index}", np.arange(3 + self.voices * (2 + _STEPS))))
        first, each = chance[:3], chance[3:].reshape(self.voices, 2 + _STEPS)
        rate, least = self.info.rate, min(_LEAST, self.seconds)
        low, high = self.tempo
        stop = round((least + first[0] * (self.seconds - least)) * rate)
        tempo = low + _TEMPO * int(first[1] * ((high - low) // _TEMPO + 1))
        step = 15 / tempo * rate  # samples of a sixteenth note
        count = 1 + int(first[2] * self.voices)
        voices, end = [], 1
        for k, row in enumerate(each[:count]):
            voice, gain = int(pool[int(row[0] * len(pool))]), _SOFTEST + (1 - _SOFTEST) * float(row[1])
            on = row[2:] < _DENSITY
            on[0] |= k == 0
            places = np.flatnonzero(np.resize(on, int(stop / step) + 1))
            starts = tuple(at for at in np.rint(places * step).astype(np.int64).tolist() if at < stop)
            if starts:
                voices.append((voice, gain, starts))
                end = max(end, min(starts[-1] + self._length(voice), stop))
        return _Pattern(tuple(voices), tempo, end)

    def _play(self, sound: NDArray[np.float32], pattern: _Pattern) -> None:
        """Adds the hits up, in place."""
        end, cut = pattern.end, False
        for voice, gain, starts in pattern.voices:
            whole = np.float32(gain) * self._sound(voice)
            for at in starts:
                part = whole[:, : end - at]
                sound[:, at : at + part.shape[1]] += part
            cut |= starts[-1] + whole.shape[1] > end
        if cut:
            fade = min(round(_FADE * self.info.rate), end)
            sound[:, end - fade : end] *= np.linspace(1, 0, fade + 1, dtype=np.float32)[:-1]
        sound *= np.float32(_PEAK / max(_PEAK, float(np.abs(sound).max())))

    def _columns(self, patterns: list[_Pattern]) -> dict[str, Column]:
        names = self.data.info.labels
        said = []
        for pattern in patterns:
            labels = self.data.columns([voice for voice, _, _ in pattern.voices])["label"] if names else ()
            words = list(dict.fromkeys(names[int(label)] for label in labels))
            who = f"{' and '.join(words)}, " if words else ""
            said.append(f"{who}{pattern.tempo} beats a minute")
        ends = torch.tensor([[pattern.end / self.info.rate] for pattern in patterns], dtype=torch.float32)
        return {"caption": said, "number": ends}

    # ------------------------------------------------------------ sounds

    @cached_property
    def _mask(self) -> NDArray[np.bool_]:
        some = self.data.held_out_mask().any()
        return hashed_split(self.count, HELD_OUT_SHARE if some else 0.0)

    @cached_property
    def _pools(self) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """The sounds of training patterns and of held-out ones."""
        mask = self.data.held_out_mask()
        return np.flatnonzero(~mask), np.flatnonzero(mask)

    @cached_property
    def _lengths(self) -> dict[int, int]:
        return {}

    def _length(self, index: int) -> int:
        """Samples up to the last audible one."""
        found = self._lengths.get(index)
        if found is None:
            found = self._lengths[index] = self._sound(index).shape[1]
        return found

    def _sound(self, index: int) -> NDArray[np.float32]:
        """A short sound (c, t), up to its last audible sample."""
        whole: NDArray[np.float32] = self.data.fetch([index]).media[0].numpy()
        size = np.abs(whole).max(0)
        heard = np.flatnonzero(size > _AUDIBLE * size.max())
        return whole[:, : int(heard[-1]) + 1] if len(heard) else whole[:, :1]
