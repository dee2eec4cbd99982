"""Codecs of sounds that lose nothing: samples in a row, and complex spectra."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Literal, final, get_args

import torch
from torch import Tensor
from torch.nn import functional as F

from sfumato.codecs.base import Codec, Whitening
from sfumato.core import DataInfo
from sfumato.errors import UserError
from sfumato.sound import Frames

Beyond = Literal["cut", "lower"]


def check_sound(info: DataInfo, codec: str) -> None:
    """Refuse data that are not sounds."""
    if info.kind != "audio" or len(info.shape) != 2:
        raise UserError(
            f"codec={codec} is for sounds, and this data is '{info.kind}' of shape {info.shape}; leave codec out"
        )


@final
class Waveform(Codec, name="waveform"):
    """The samples themselves: h = x, whitened; `fold` samples in a row become channels of one position.

    x (c, T) -> x0 (c fold, ceil(T / fold)); zeros are put behind the last sample. A network pays by the position, so that
    fold = 8 is 8 times cheaper and sees 8 times as far. Exact, and it keeps volumes. beyond: what decoding does to a sound
    that goes beyond full scale: cut it off there (what is kept in an edit stays as it was), or turn all of it down.
    """

    def __init__(self, info: DataInfo, *, fold: int = 1, beyond: Beyond = "cut") -> None:
        super().__init__()
        check_sound(info, "waveform")
        self.beyond = _checked(beyond)
        if fold < 1:
            raise UserError(f"waveform: fold = {fold} must be at least 1")
        self.fold, self.samples = fold, info.shape[1]
        self._shape = (info.shape[0] * fold, -(-info.shape[1] // fold))
        self.whitening = Whitening(self._shape[0])

    @property
    def shape(self) -> tuple[int, ...]:
        return self._shape

    def encode(self, media: Tensor) -> Tensor:
        x = F.pad(media.float(), (0, -media.shape[-1] % self.fold))
        return x.reshape(*x.shape[:2], -1, self.fold).transpose(2, 3).flatten(1, 2)

    def whiten(self, h: Tensor) -> Tensor:
        x0: Tensor = self.whitening(h)
        return x0

    def decode(self, x0: Tensor) -> Tensor:
        h = self.whitening.inverse(x0)
        h = h.reshape(len(h), -1, self.fold, h.shape[-1]).transpose(2, 3).flatten(2)
        return within(_own_length(h, x0, self.shape, self.samples), self.beyond)

    def measure(self, media: Iterable[Tensor]) -> None:
        self.whitening.fit(self.encode(batch) for batch in media)

    def log_volume(self, media: Tensor) -> Tensor:
        if media.shape[-1] % self.fold:
            raise UserError(
                f"waveform: fold = {self.fold} does not divide {media.shape[-1]} samples, so there is no likelihood"
            )
        return self.whitening.log_volume(self.encode(media))


@final
class Spectrogram(Codec, name="spectrogram"):
    """Complex short-time spectra with their magnitudes compressed, real and imaginary parts as channels.

        h = a |S|^b exp(i angle S),      S of `sound.Frames` (window, hop)

    x (c, T) -> x0 (c window, ceil(T / hop)): the imaginary parts of the first and last bin are 0 and left out. b =
    `power` brings quiet parts up to what can be learned; a makes no difference once h is whitened. Decoding is the
    exact inverse: the nearest signal of spectra that belong to none. Compressed complex spectra for diffusion: Richter
    et al., "Speech enhancement and dereverberation with diffusion-based generative models", 2023, eq. 29. beyond: as of
    `Waveform`.
    """

    def __init__(
        self, info: DataInfo, *, window: int = 256, hop: int = 64, power: float = 0.5, beyond: Beyond = "cut"
    ) -> None:
        super().__init__()
        check_sound(info, "spectrogram")
        self.beyond = _checked(beyond)
        if window % 2:
            raise UserError(f"spectrogram: window = {window} must be even")
        if not 0 < power <= 1:
            raise UserError(f"spectrogram: power = {power} must lie in (0, 1]")
        self.frames, self.power, self.samples = Frames(window, hop), power, info.shape[1]
        self._shape = (info.shape[0] * window, self.frames.count(info.shape[1]))
        self.whitening = Whitening(self._shape[0])

    @property
    def shape(self) -> tuple[int, ...]:
        return self._shape

    def encode(self, media: Tensor) -> Tensor:
        spectrum = self.frames(media)
        size = spectrum.abs()
        h = spectrum * torch.where(size > 0, size, torch.ones_like(size)).pow(self.power - 1)
        return torch.cat([h.real, h.imag[..., 1:-1, :]], -2).flatten(1, 2)

    def whiten(self, h: Tensor) -> Tensor:
        x0: Tensor = self.whitening(h)
        return x0

    def decode(self, x0: Tensor) -> Tensor:
        h = self.whitening.inverse(x0)
        h = h.reshape(len(h), -1, self.frames.window, h.shape[-1])
        real, imaginary = h[:, :, : self.frames.bins], h[:, :, self.frames.bins :]
        compressed = torch.complex(real, F.pad(imaginary, (0, 0, 1, 1)))
        size = compressed.abs()
        spectrum = compressed * torch.where(size > 0, size, torch.ones_like(size)).pow(1 / self.power - 1)
        return within(_own_length(self.frames.inverse(spectrum), x0, self.shape, self.samples), self.beyond)

    def measure(self, media: Iterable[Tensor]) -> None:
        self.whitening.fit(self.encode(batch) for batch in media)


def within(sounds: Tensor, beyond: Beyond) -> Tensor:
    """Sounds (B, c, T) within full scale: cut off there, or each that goes beyond it turned down to it as a whole."""
    if beyond == "cut":
        return sounds.clamp(-1, 1)
    return sounds / sounds.abs().amax((1, 2), keepdim=True).clamp_min(1.0)


def _checked(beyond: Beyond) -> Beyond:
    if beyond not in get_args(Beyond):
        raise UserError(f"beyond={beyond} is not known; cut or lower")
    return beyond


def _own_length(sound: Tensor, x0: Tensor, shape: tuple[int, ...], samples: int) -> Tensor:
    """Cut what was put behind the last sample: a part of the last frame. Longer or shorter x0 keep whole frames."""
    return sound[..., :samples] if x0.shape[-1] == shape[-1] else sound
