"""Sounds: WAV and FLAC files, spectrograms, and a player in the report."""

from __future__ import annotations

import base64
import io
import math
from collections.abc import Mapping, Sequence
from functools import cache
from html import escape
from pathlib import Path
from typing import final

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from sfumato import media
from sfumato.core.media import DataInfo
from sfumato.errors import UserError
from sfumato.kinds.base import MediaKind
from sfumato.sound import Frames, mel_bank, read_wav, write_wav
from sfumato.sound.wav import BadSound, read_head

_BANDS = 80  # rows of a spectrogram
_WIDE = (96, 512)  # its columns, at least and at most
_RANGE = 70.0  # dB from black to white
_PLAYED = 30.0  # seconds of a sound in a report at most
# black, violet, orange, light yellow: dark to light for grey printers and for most colour vision
_COLOURS = ((0, 0, 4), (81, 18, 124), (183, 55, 121), (252, 137, 97), (252, 253, 191))


@final
class Audio(MediaKind, name="audio"):
    """float32 (c, T), full scale = 1, at `info.rate` samples a second."""

    codec = "mel"
    noun = "sounds"
    suffixes = (".wav", ".flac", ".png", ".npy")

    def picture(self, item: Tensor, info: DataInfo) -> Image.Image:
        """The spectrogram: time to the right, mel bands upwards, 70 dB below the loudest from black to light."""
        return _coloured(_levels(item, info.rate))

    def encode(
        self,
        item: Tensor,
        info: DataInfo,
        suffix: str,
        text: Mapping[str, str] | None = None,
        options: Mapping[str, str] | None = None,
    ) -> bytes:
        if suffix == ".npy":
            return super().encode(item, info, suffix)
        if suffix == ".png":
            return media.png(self.picture(item, info), text)
        sound = item.detach().cpu().float().numpy()
        return write_wav(sound, info.rate) if suffix == ".wav" else _flac(sound, info.rate)

    def read(self, file: Path, info: DataInfo) -> Tensor | None:
        if file.suffix != ".wav":
            return super().read(file, info) if file.suffix == ".npy" else None
        try:
            with file.open("rb") as stream:
                return torch.from_numpy(read_wav(stream)[0])
        except BadSound as reason:
            raise UserError(f"{file}: {reason}") from None

    def is_whole(self, file: Path) -> bool:
        if file.suffix == ".npy":
            return super().is_whole(file)
        try:
            with file.open("rb") as stream:
                if file.suffix == ".wav":
                    read_head(stream)
                    return True
                first = stream.read(4)
                stream.seek(-8, io.SEEK_END)
                return stream.read(4) == b"IEND" if file.suffix == ".png" else first == b"fLaC"
        except (OSError, BadSound):
            return False

    def viewer(self, items: Sequence[Tensor], info: DataInfo, captions: Sequence[str]) -> str:
        """A player for each sound, its samples inside the page."""
        players = []
        for number, item in enumerate(items):
            said = escape(captions[number]) if number < len(captions) else ""
            raw = write_wav(item[:, : int(_PLAYED * info.rate)].cpu().float().numpy(), info.rate)
            source = f"data:audio/wav;base64,{base64.b64encode(raw).decode()}"
            shown = base64.b64encode(media.png(self.picture(item, info))).decode()
            players.append(
                f'<figure><img src="data:image/png;base64,{shown}" alt="spectrogram of {said}" width="192" height="80">'
                f'<br><audio controls preload="none" src="{source}" style="width:192px;height:32px"></audio>'
                f"<figcaption>{said}</figcaption></figure>"
            )
        return f'<div class="history">{"".join(players)}</div>'


@cache
def _bank(window: int, rate: int) -> Tensor:
    bank = mel_bank(window // 2 + 1, _BANDS, rate)
    return (bank / bank.sum(1, keepdim=True)).float()


def _levels(item: Tensor, rate: int) -> NDArray[np.float64]:
    """(bands, columns) of 0 ... 1, the highest band first; channels are averaged."""
    sound = torch.nan_to_num(item.detach().cpu().float()).mean(0)
    window = 2 ** max(6, round(math.log2(max(rate, 1) * 0.03)))
    hop = max(1, min(window // 4, math.ceil(len(sound) / _WIDE[0])))
    hop = max(hop, math.ceil(len(sound) / _WIDE[1]))
    while window < 2 * hop:
        window *= 2
    frames = Frames(window, hop + (window - hop) % 2)
    sizes = _bank(window, rate) @ frames(sound).abs()
    level = 20 * torch.log10(sizes.clamp_min(1e-6))
    top = max(float(level.max()), -60.0) if level.numel() else 0.0
    return ((level - top) / _RANGE + 1).clamp(0, 1).flip(0).double().numpy()


def _coloured(levels: NDArray[np.float64]) -> Image.Image:
    stops = np.linspace(0, 1, len(_COLOURS))
    channels = [np.interp(levels, stops, [colour[i] for colour in _COLOURS]) for i in range(3)]
    return Image.fromarray(np.rint(np.stack(channels, -1)).astype(np.uint8))


def _flac(sound: NDArray[np.float32], rate: int) -> bytes:
    try:
        import soundfile
    except (ImportError, OSError):
        raise UserError(
            "FLAC files need the extra `audio` (pip install 'sfumato[audio]'); or write .wav, which needs nothing"
        ) from None
    stream = io.BytesIO()
    soundfile.write(stream, np.clip(np.nan_to_num(sound.T), -1, 1), rate, format="FLAC", subtype="PCM_16")
    return stream.getvalue()
