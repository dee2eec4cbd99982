"""Data sets of sounds: brought to one rate, number of channels and length; unreadable ones replaced and counted."""

from __future__ import annotations

import hashlib
import threading
from abc import abstractmethod
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray

from sfumato.core.media import Batch, Column, DataInfo
from sfumato.data import buckets as shapes
from sfumato.data.base import BROKEN_SHARE, Data, Draws, Indices, choose_split, expand
from sfumato.data.broken import Ledger, listed, refuse, stand_ins, too_many
from sfumato.data.columns import Columns
from sfumato.data.order import Buckets
from sfumato.errors import UserError
from sfumato.sound import resample
from sfumato.sound.read import Head, channels_to, speeded
from sfumato.sound.wav import BadSound

SECONDS = "seconds"  # the number of `timing`
_MULTIPLE = 256  # samples that lengths found from the data are multiples of
_LONGEST = 30.0  # seconds, of lengths found from the data
_COVERED = 0.99  # share of the items that such a length holds
_PEAK = 0.9
_FULL = 0.999  # of full scale: samples beyond are clipped
_RUN = 3  # so many of them in a row
_SILENT = 1e-3  # a peak below -60 dB


@dataclass
class _Store:
    """Decoded sounds up to a number of bytes."""

    room: float
    sounds: dict[int, NDArray[np.float32]] = field(default_factory=dict)
    lock: threading.Lock = field(default_factory=threading.Lock)

    def keep(self, index: int, sound: NDArray[np.float32]) -> None:
        with self.lock:
            if index not in self.sounds and sound.nbytes <= self.room:
                self.room -= sound.nbytes
                self.sounds[index] = sound


@dataclass(frozen=True, kw_only=True)
class Sounds(Data):
    """A set of sounds, each resampled to `rate`, mixed to `channels`, and cut or followed by silence to `seconds`.

    rate: by default that of all files; where they differ it has to be set. channels: 1 or 2; by default what all files
    have. Mono is the mean of all channels, stereo from mono twice the same; files of more than 2 channels need
    channels=1. seconds: length of an item; by default what holds 99% of the items, 30 at most. place: what part of a
    longer sound is taken: the start, or one chosen by the draw. level: `peak` brings every sound to a peak of 0.9;
    `keep` leaves it. speed: draws play a sound faster or slower by up to this share (0.05), pitch and all: more voices
    from few recordings. timing: also give the sound's own length as the number `seconds`, for models that are asked for
    it. held_out: share of the items that training does not see; by default the set's own test part, else 0.05. cache:
    GiB of decoded sounds to keep in memory. broken: share of the sounds seen that may be unreadable (another one stands
    in). buckets: so many lengths in training instead of one: items sorted by length and cut into that many parts, each
    as long as its longest; granule: samples of one length in a row, a multiple of the batch.
    """

    rate: int | None = None
    channels: int | None = None
    seconds: float | None = None
    place: Literal["start", "random"] = "start"
    level: Literal["keep", "peak"] = "keep"
    speed: float = 0.0
    timing: bool = False
    held_out: float | None = None
    cache: float = 2.0
    broken: float = BROKEN_SHARE
    buckets: int = 0
    granule: int = shapes.GRANULE

    def __post_init__(self) -> None:
        if self.rate is not None and not 1000 <= self.rate <= 768_000:
            raise UserError(f"rate = {self.rate}: must lie in 1,000 to 768,000 samples a second")
        if self.channels not in (None, 1, 2):
            raise UserError(f"channels = {self.channels}: sounds have 1 (mono) or 2 (stereo)")
        if self.seconds is not None and not 0 < self.seconds <= 600:
            raise UserError(f"seconds = {self.seconds}: must be above 0 and at most 600")
        if not 0 <= self.speed < 0.5:
            raise UserError(f"speed = {self.speed}: a share of the speed, at least 0 and below 0.5")
        if self.cache < 0:
            raise UserError(f"cache = {self.cache}: must be GiB of at least 0")
        if not 0 <= self.broken <= 1:
            raise UserError(f"broken = {self.broken}: must be a share of the sounds, from 0 to 1")
        shapes.check_settings(self.buckets, _MULTIPLE, self.granule)
        _ = self.info, self._mask

    @property
    @abstractmethod
    def table(self) -> Columns:
        """Labels, captions and numbers of all items, without the timing."""

    @abstractmethod
    def head(self, index: int) -> Head:
        """Rate, channels and length of a sound as it is stored. Raises BadSound."""

    @abstractmethod
    def load(self, index: int) -> NDArray[np.float32]:
        """The sound (c, T) as it is stored, full scale = 1. Raises BadSound."""

    @abstractmethod
    def name_of(self, index: int) -> str:
        """What messages call a sound."""

    def own_split(self) -> NDArray[np.bool_] | None:
        """(N,) True for the set's own test part, if it has one."""
        return None

    @cached_property
    def info(self) -> DataInfo:
        """Shape, rate, classes and so on."""
        made = self._timed.info((self._form.channels, self._lengths[0]), "audio")
        return replace(made, rate=self._form.rate)

    @property
    def broken_share(self) -> float:
        return self.broken

    @property
    def bucketing(self) -> Buckets | None:
        if not self.buckets:
            return None
        return Buckets(tuple((n,) for n in self._lengths), self._bucket_of, self.granule)

    def unreadable(self, indices: Indices | None = None) -> dict[int, str]:
        return self._ledger.among(None if indices is None else np.asarray(indices, np.int64))

    @property
    def problems(self) -> tuple[str, ...]:
        bad = self._ledger.among()
        said = [f"{len(bad)} of {len(self)} sounds can't be read, others stand in: {listed(bad)}"] if bad else []
        others = [i for i, head in self._heads.items() if head.rate != self._form.rate]
        if others:
            said.append(f"{len(others)} of {len(self)} sounds have another rate and are resampled to {self._form.rate}")
        long = int((self._own_frames > self._lengths[-1 if self.buckets else 0]).sum())
        if long:
            most = max(self._lengths) / self._form.rate
            said.append(f"{long} of {len(self)} sounds are longer than {most:g} s and are cut")
        return tuple(said)

    def remarks(self, index: int) -> tuple[str, ...]:
        """What is doubtful about a sound that can be read: silence, clipping, another rate than the set's."""
        sound = self._decoded(index)
        if sound is None:
            return ()
        peak = float(np.abs(sound).max(initial=0.0))
        rate = self._heads[index].rate
        other = (f"of another rate ({rate})",) if rate != self._form.rate else tuple[str, ...]()
        if peak < _SILENT:
            return ("silent (peak below -60 dB)", *other)
        full = np.abs(self._stored(index)) >= _FULL
        run = full[:, : full.shape[1] - _RUN + 1].copy()
        for k in range(1, _RUN):
            run &= full[:, k : full.shape[1] - _RUN + 1 + k]
        return (*(("clipped (3 or more samples in a row at full scale)",) if run.any() else ()), *other)

    def item_digest(self, index: int) -> str:
        """sha256 of the samples and of what is made of them."""
        sound = self._decoded(index)
        if sound is None:
            return super().item_digest(index)
        return hashlib.sha256(f"{self.info.shape} {self.level} ".encode() + sound.tobytes()).hexdigest()

    def held_out_mask(self) -> NDArray[np.bool_]:
        return self._mask

    def columns(self, indices: Indices, draws: Draws = None) -> dict[str, Column]:
        return self._timed.take(indices, draws)

    def fetch(self, indices: Indices, draws: Draws = None) -> Batch:
        """Items by index; one that can't be read is replaced by another of its split, columns included."""
        longest = self._lengths[0] if not self.buckets else max(self._lengths)
        return self._batch([int(i) for i in indices], draws, longest)

    def fetch_bucket(self, indices: Indices, draws: Draws = None) -> Batch:
        """Items of one bucket in its length, a replacement being of that bucket too."""
        index = np.asarray(indices, np.int64)
        of = self.bucketing
        return self._batch(index.tolist(), draws, self._lengths[0 if of is None else of.one_of(index)])

    def _batch(self, wanted: list[int], draws: Draws, length: int) -> Batch:
        found = [self._readable(index) for index in wanted]
        media = np.zeros((len(wanted), self._form.channels, length), np.float32)
        place = expand(draws, "place") if draws is not None and self.place == "random" else np.zeros(len(wanted))
        speed = 2 * expand(draws, "speed") - 1 if draws is not None and self.speed else np.zeros(len(wanted))
        for row, (_, sound), at, faster in zip(media, found, place.tolist(), speed.tolist()):
            part = speeded(sound, 1 + self.speed * faster)
            spare = part.shape[1] - length
            first = min(int(at * (spare + 1)), spare) if spare > 0 else 0
            part = part[:, first : first + length]
            row[:, : part.shape[1]] = part
        return Batch(torch.from_numpy(media), self.columns([i for i, _ in found], draws))

    def _readable(self, index: int) -> tuple[int, NDArray[np.float32]]:
        """The sound, or the first stand-in that can be read, and its index."""
        found = self._decoded(index)
        if found is not None:
            return index, found
        alike = self._mask == self._mask[index]
        if self.buckets:
            alike &= self._bucket_of == self._bucket_of[index]
        for other in stand_ins(index, np.flatnonzero(alike)):
            found = self._decoded(other)
            if found is not None:
                return other, found
        raise UserError(f"{self.where}: no sound can be read: {listed(self._ledger.among())}")

    def _decoded(self, index: int) -> NDArray[np.float32] | None:
        """(c, T) at the set's rate and level, whole; None if it can't be read."""
        if index in self._ledger:
            return None
        kept = self._store.sounds.get(index)
        if kept is not None:
            return kept
        try:
            sound = channels_to(self._stored(index), self._form.channels)
        except BadSound as reason:
            self._ledger.mark(index, f"{self.name_of(index)} ({reason})")
            return None
        rate = self._heads[index].rate if index in self._heads else self._form.rate
        if rate != self._form.rate:
            sound = resample(torch.from_numpy(sound), rate, self._form.rate).numpy()
        if self.level == "peak":
            sound = sound * np.float32(_PEAK / max(float(np.abs(sound).max(initial=0.0)), 1e-4))
        self._store.keep(index, sound)
        return sound

    def _stored(self, index: int) -> NDArray[np.float32]:
        """`load`, checked."""
        sound = self.load(index)
        if not sound.size:
            raise BadSound("holds no samples")
        if not np.isfinite(sound).all():
            raise BadSound("holds NaN or infinite samples")
        return sound

    # ---------------------------------------------------------------- what is decided from all heads

    @cached_property
    def _ledger(self) -> Ledger:
        return Ledger()

    @cached_property
    def _store(self) -> _Store:
        return _Store(self.cache * 2**30)

    @cached_property
    def _mask(self) -> NDArray[np.bool_]:
        return choose_split(len(self), self.held_out, self.own_split())

    @cached_property
    def _heads(self) -> dict[int, Head]:
        found = {}
        for index in range(len(self)):
            try:
                found[index] = self.head(index)
            except BadSound as reason:
                self._ledger.mark(index, f"{self.name_of(index)} ({reason})")
        bad = self._ledger.among()
        if not found:
            raise UserError(f"{self.where}: no sound can be read: {listed(bad)}")
        if too_many(len(bad), len(self), len(self), self.broken):
            raise refuse(self.where, bad, len(self), self.broken)
        return found

    @cached_property
    def _form(self) -> Head:
        """Rate and channels of the items."""
        heads = self._heads
        rate = self.rate or self._alike({head.rate: i for i, head in heads.items()}, "rate", "samples a second")
        wide = [i for i, head in heads.items() if head.channels > 2]
        if wide and self.channels != 1:
            raise UserError(
                f"{self.where}: {self.name_of(wide[0])} has {heads[wide[0]].channels} channels; "
                "set channels=1 to mix them into one"
            )
        channels = self.channels or self._alike({head.channels: i for i, head in heads.items()}, "channels", "channels")
        return Head(rate, channels, 0)

    def _alike(self, found: dict[int, int], setting: str, unit: str) -> int:
        if len(found) > 1:
            few, many = sorted(found)[0], sorted(found)[-1]
            raise UserError(
                f"{self.where}: {self.name_of(found[few])} has {few} {unit} and {self.name_of(found[many])} {many}; "
                f"set {setting}={few} or {setting}={many} to convert all"
            )
        return next(iter(found))

    @cached_property
    def _own_frames(self) -> NDArray[np.int64]:
        """(N,) length of every sound at the set's rate; of unreadable ones the median."""
        rate = self._form.rate
        known = {i: -(-head.frames * rate // head.rate) for i, head in self._heads.items()}
        frames = np.full(len(self), int(np.median(list(known.values()))), np.int64)
        frames[list(known)] = list(known.values())
        return frames

    @cached_property
    def _lengths(self) -> tuple[int, ...]:
        """Lengths that items are brought to; the longest first."""
        rate, frames = self._form.rate, self._own_frames
        if self.seconds is not None:
            longest = max(1, round(self.seconds * rate))
        else:
            covered = int(np.quantile(frames, _COVERED, method="higher"))
            longest = min(-(-covered // _MULTIPLE) * _MULTIPLE, int(_LONGEST * rate) // _MULTIPLE * _MULTIPLE)
        if not self.buckets:
            return (longest,)
        count = max(1, min(self.buckets, len(frames) // self.granule))
        order = np.sort(np.minimum(frames, longest))
        ends = [int(order[len(order) * (part + 1) // count - 1]) for part in range(count - 1)]
        return tuple(sorted({longest, *(-(-n // _MULTIPLE) * _MULTIPLE for n in ends if n < longest)}, reverse=True))

    @cached_property
    def _bucket_of(self) -> NDArray[np.int64]:
        """(N,) number of the shortest length that holds an item."""
        rising = np.asarray(self._lengths[::-1], np.int64)
        place = np.minimum(np.searchsorted(rising, np.minimum(self._own_frames, rising[-1])), len(rising) - 1)
        return np.asarray(len(rising) - 1 - place)

    @cached_property
    def _timed(self) -> Columns:
        """The table with the timing."""
        if not self.timing:
            return self.table
        table, longest = self.table, max(self._lengths)
        own = (np.minimum(self._own_frames, longest) / self._form.rate).astype(np.float32)[:, None]
        numbers = own if table.numbers is None else np.concatenate([table.numbers, own], 1)
        return replace(table, numbers=numbers, number_names=(*table.number_names, SECONDS))
