"""Reading one sound: files of any kind that `soundfile` knows, WAV without it, and small changes to samples."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from sfumato.sound.wav import MOST_RATE, BadSound, OtherCoding, read_head, read_wav

SUFFIXES = (".wav", ".flac", ".ogg", ".mp3")
LONGEST = 600  # seconds of a file
_BLOCK = 1 << 20


@dataclass(frozen=True)
class Head:
    """rate: samples a second. frames: samples of each channel."""

    rate: int
    channels: int
    frames: int


def head_of(file: Path) -> Head:
    """What the head of a file says; nothing is decoded. Raises BadSound."""
    try:
        with file.open("rb") as stream:
            found = read_head(stream)
        return _checked(Head(found.rate, found.channels, found.frames))
    except BadSound as reason:
        if file.suffix.lower() == ".wav" and not (isinstance(reason, OtherCoding) and _known(file)):
            raise
    except OSError as error:
        raise BadSound(error.strerror or "can't be opened") from None
    return _opened(file)[0]


def load_file(file: Path) -> NDArray[np.float32]:
    """The samples of a file (c, T), full scale = 1. Raises BadSound."""
    try:
        with file.open("rb") as stream:
            return read_wav(stream)[0]
    except BadSound as reason:
        if file.suffix.lower() == ".wav" and not (isinstance(reason, OtherCoding) and _known(file)):
            raise
    except OSError as error:
        raise BadSound(error.strerror or "can't be opened") from None
    return _opened(file, load=True)[1]


def _known(file: Path) -> bool:
    """Whether `soundfile` is there to read a WAV file that is not plain PCM (mu-law, ADPCM)."""
    try:
        import soundfile
    except (ImportError, OSError):
        return False
    try:
        soundfile.info(str(file))
    except (RuntimeError, OSError):
        return False
    return True


def _opened(file: Path, load: bool = False) -> tuple[Head, NDArray[np.float32]]:
    try:
        import soundfile
    except (ImportError, OSError):
        raise BadSound("needs the extra `audio` (pip install 'sfumato[audio]') to be read") from None
    try:
        with soundfile.SoundFile(str(file)) as stream:
            head = _checked(Head(stream.samplerate, stream.channels, stream.frames))
            if not load:
                return head, np.zeros((head.channels, 0), np.float32)
            blocks = []  # as many as are there: a head can promise anything
            while len(block := stream.read(_BLOCK, dtype="float32", always_2d=True)):
                blocks.append(block)
                if sum(map(len, blocks)) > LONGEST * head.rate:
                    raise BadSound(f"is longer than {LONGEST} s; cut it into pieces")
    except (RuntimeError, OSError) as error:
        said = str(error).splitlines()[0].partition(": ")[2] or str(error).splitlines()[0]
        raise BadSound(f"can't be decoded: {said.rstrip('.')}") from None
    whole = np.concatenate(blocks) if blocks else np.zeros((0, head.channels), np.float32)
    return head, np.ascontiguousarray(whole.T)


def _checked(head: Head) -> Head:
    if head.frames < 1:
        raise BadSound("holds no samples")
    if not 1 <= head.rate <= MOST_RATE:
        raise BadSound(f"says that it has {head.rate:,} samples a second")
    if head.frames > LONGEST * head.rate:
        raise BadSound(f"is {head.frames / head.rate:,.0f} s long; cut it into pieces of at most {LONGEST} s")
    return head


def channels_to(sound: NDArray[np.float32], channels: int) -> NDArray[np.float32]:
    """(c, T) with another number of channels: the mean for one, the same twice for two."""
    if len(sound) == channels:
        return sound
    mono = sound.mean(0, keepdims=True)
    return mono if channels == 1 else np.repeat(mono, channels, 0)


def speeded(sound: NDArray[np.float32], factor: float) -> NDArray[np.float32]:
    """A sound (c, T) played `factor` times as fast, by linear interpolation: for factors near 1 alone."""
    if factor == 1:
        return sound
    at = np.arange(int((sound.shape[1] - 1) / factor) + 1) * factor
    grid = np.arange(sound.shape[1])
    return np.stack([np.interp(at, grid, channel) for channel in sound]).astype(np.float32)
