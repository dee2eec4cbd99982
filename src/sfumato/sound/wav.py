"""WAV files: read without a library, checked before anything is allocated; written as 16-bit PCM."""

from __future__ import annotations

import struct
from dataclasses import dataclass
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from sfumato.errors import UserError

_PCM, _FLOAT, _EXTENSIBLE = 1, 3, 0xFFFE
_STREAMED = 0xFFFFFFFF  # the length of data that was written as it came
MOST_CHANNELS = 64
MOST_RATE = 1 << 20


class BadSound(Exception):  # noqa: N818 - half a sentence, made whole by whoever catches it
    """Why a sound can't be read, as the rest of a sentence: 'holds no samples'."""


class OtherCoding(BadSound):
    """The file is whole and its samples are coded in a way that is not read here (mu-law, ADPCM)."""


@dataclass(frozen=True)
class Head:
    """What the head of a WAV file says. frames: samples of each channel that are really there."""

    rate: int
    channels: int
    bits: int
    floating: bool
    start: int
    frames: int


def read_head(stream: BinaryIO) -> Head:
    """Read the chunks up to the samples. Raises BadSound."""
    size = stream.seek(0, 2)
    stream.seek(0)
    first = stream.read(12)
    if len(first) < 12 or first[:4] not in (b"RIFF", b"RF64") or first[8:] != b"WAVE":
        raise BadSound("is not a WAV file" if size else "is empty")
    form = b""
    while True:
        chunk = stream.read(8)
        if len(chunk) < 8:
            raise BadSound("is cut short: it has no samples" if form else "has no description of its samples")
        name, length = struct.unpack("<4sI", chunk)
        if name == b"data":
            break
        if name == b"fmt ":
            form = stream.read(min(length, 64))
            stream.seek(max(0, length - 64) + length % 2, 1)
        else:
            stream.seek(length + length % 2, 1)
    if len(form) < 16:
        raise BadSound("has no description of its samples")
    code, channels, rate, _, _, bits = struct.unpack("<HHIIHH", form[:16])
    if code == _EXTENSIBLE and len(form) >= 26:
        code = struct.unpack("<H", form[24:26])[0]
    if (code, bits) not in ((_PCM, 8), (_PCM, 16), (_PCM, 24), (_PCM, 32), (_FLOAT, 32), (_FLOAT, 64)):
        raise OtherCoding(f"is coded as format {code} of {bits} bits, which is not read; save it as 16-bit PCM")
    if not 1 <= channels <= MOST_CHANNELS:
        raise BadSound(f"says that it has {channels} channels; 1 to {MOST_CHANNELS} are read")
    if not 1 <= rate <= MOST_RATE:
        raise BadSound(f"says that it has {rate:,} samples a second; 1 to {MOST_RATE:,} are read")
    start, width = stream.tell(), channels * bits // 8
    there = size - start
    if there < length and length != _STREAMED:
        raise BadSound(f"is cut short: it says {length:,} bytes of samples and holds {there:,}")
    return Head(rate, channels, bits, code == _FLOAT, start, min(length, there) // width)


def read_wav(stream: BinaryIO, most: int | None = None) -> tuple[NDArray[np.float32], int]:
    """(c, T) float32, full scale = 1, and the rate. most: samples of each channel to read at most. Raises BadSound.

    8-bit samples are unsigned, all others signed; 24 bits are 3 bytes; floating-point samples are taken as they are.
    """
    head = read_head(stream)
    frames = head.frames if most is None else min(head.frames, most)
    stream.seek(head.start)
    raw = stream.read(frames * head.channels * head.bits // 8)
    values: NDArray[Any]
    if head.floating:
        values = np.frombuffer(raw, f"<f{head.bits // 8}").astype(np.float32)
    elif head.bits == 24:
        bytes_ = np.frombuffer(raw, np.uint8).reshape(-1, 3)
        wide = np.zeros((len(bytes_), 4), np.uint8)
        wide[:, 1:] = bytes_
        values = (wide.view("<i4")[:, 0] / 2.0**31).astype(np.float32)
    elif head.bits == 8:
        values = (np.frombuffer(raw, np.uint8).astype(np.float32) - 128) / 128
    else:
        values = (np.frombuffer(raw, f"<i{head.bits // 8}") / 2.0 ** (head.bits - 1)).astype(np.float32)
    return np.ascontiguousarray(values.reshape(-1, head.channels).T, np.float32), head.rate


def write_wav(sound: NDArray[np.float32], rate: int) -> bytes:
    """The content of a 16-bit WAV file of a sound (c, T): round(32767 x), cut at full scale."""
    if sound.ndim != 2 or not 1 <= sound.shape[0] <= MOST_CHANNELS:
        raise UserError(f"a sound is (channels, samples) with 1 to {MOST_CHANNELS} channels, not {sound.shape}")
    whole = np.rint(np.clip(np.nan_to_num(sound), -1, 1) * 32767).astype("<i2")
    raw = np.ascontiguousarray(whole.T).tobytes()
    channels = sound.shape[0]
    form = struct.pack("<HHIIHH", _PCM, channels, rate, rate * channels * 2, channels * 2, 16)
    return (
        b"RIFF"
        + struct.pack("<I", 36 + len(raw))
        + b"WAVEfmt "
        + struct.pack("<I", 16)
        + form
        + b"data"
        + (struct.pack("<I", len(raw)) + raw)
    )
