"""Log-mel magnitudes: a second of speech in some thousand numbers, and back by a vocoder or Griffin-Lim."""

from __future__ import annotations

import math
from collections.abc import Iterable
from pathlib import Path
from typing import Any, final

import torch
from torch import Tensor

from sfumato.codecs.audio import check_sound, within
from sfumato.codecs.audio_vocoder import Vocoder, load_vocoder
from sfumato.codecs.base import Codec, Whitening
from sfumato.core import DataInfo
from sfumato.errors import UserError
from sfumato.sound import Frames, from_mel, griffin_lim, mel_bank
from sfumato.spec import Spec


@final
class Mel(Codec, name="mel"):
    """h = ln max(B |S|, floor): mean magnitudes in mel bands, frame by frame; the phases are lost.

    x (c, T) -> x0 (c bands, ceil(T / hop)). S: `sound.Frames` of `window` and `hop` samples; B: `sound.mel_bank` from
    `low` to `high` Hz (none: half the rate), rows scaled to sum 1. floor: in dB of full scale; what is quieter is
    silence. Decoding: `vocoder`, with the trained weights of the folder `weights` (read when the codec is measured, and
    stored with the model); without one the magnitudes are fitted to the bands and the phases found by `iterations` of
    fast Griffin-Lim.
    """

    bank: Tensor

    def __init__(
        self,
        info: DataInfo,
        *,
        window: int = 256,
        hop: int = 64,
        bands: int = 64,
        low: float = 0.0,
        high: float | None = None,
        floor: float = -80.0,
        iterations: int = 32,
        vocoder: Spec[Vocoder] | None = None,
        weights: str | None = None,
    ) -> None:
        super().__init__()
        check_sound(info, "mel")
        if iterations < 1:
            raise UserError(f"mel: iterations = {iterations} must be at least 1")
        if weights is not None and vocoder is None:
            raise UserError(f"mel: weights = {weights} are those of a vocoder; set vocoder= too")
        top = info.rate / 2 if high is None else high
        if top > info.rate / 2:
            raise UserError(f"mel: high = {high:g} Hz is above half the rate of {info.rate} samples a second; lower it")
        self.frames, self.iterations, self.samples = Frames(window, hop), iterations, info.shape[1]
        self.floor = 10 ** (floor / 20)
        self.described: dict[str, Any] = {
            "rate": info.rate, "window": window, "hop": hop, "bands": bands, "low": low, "high": top, "floor": floor
        }  # fmt: skip
        bank = mel_bank(self.frames.bins, bands, info.rate, low, top)
        bank = (bank / bank.sum(1, keepdim=True)).float()
        self.register_buffer("bank", bank, persistent=False)
        self.bands = bands
        self._shape = (info.shape[0] * bands, self.frames.count(info.shape[1]))
        self.whitening = Whitening(self._shape[0])
        self.settings = {} if vocoder is None else vocoder.to_dict()
        self.weights = weights
        self.vocoder = None if vocoder is None else vocoder.build(bank)

    @property
    def shape(self) -> tuple[int, ...]:
        return self._shape

    def encode(self, media: Tensor) -> Tensor:
        return self.magnitudes(media).clamp_min(self.floor).log().flatten(1, 2)

    def magnitudes(self, media: Tensor) -> Tensor:
        """B |S| of sounds (B, c, T): (B, c, bands, frames)."""
        with torch.autocast(media.device.type, enabled=False):  # a logarithm follows: 8 bits would not do
            found: Tensor = self.bank @ self.frames(media).abs()
        return found

    def whiten(self, h: Tensor) -> Tensor:
        x0: Tensor = self.whitening(h)
        return x0

    def decode(self, x0: Tensor) -> Tensor:
        h = self.whitening.inverse(x0)
        h = h.reshape(len(h), -1, self.bands, h.shape[-1]).clamp(math.log(self.floor), 1.0)
        own = self.samples if x0.shape[-1] == self.shape[-1] else None
        made = self.sound(h, own)
        return within(made, "lower")

    def sound(self, h: Tensor, samples: int | None = None) -> Tensor:
        """Log-mel magnitudes (B, c, bands, frames) to sounds (B, c, samples), by the vocoder if there is one."""
        if self.vocoder is not None:
            spectrum: Tensor = self.vocoder(h.flatten(0, 1))
            made: Tensor = self.frames.inverse(spectrum, samples)
            return made.reshape(*h.shape[:2], -1)
        return self.by_griffin_lim(h, samples)

    def by_griffin_lim(self, h: Tensor, samples: int | None = None) -> Tensor:
        """The same without the vocoder."""
        quiet = h <= math.log(self.floor) + 1e-3  # the floor is no sound
        return griffin_lim(self.frames, from_mel(self.bank, h.exp() * ~quiet), samples, iterations=self.iterations)

    @torch.no_grad()
    def measure(self, media: Iterable[Tensor]) -> None:
        self.whitening.fit(self.encode(batch) for batch in media)
        if self.vocoder is not None:
            if self.weights is None:
                raise UserError(
                    "codec.vocoder has no weights yet; set codec.weights=FOLDER of a trained vocoder, or vocoder=none"
                )
            load_vocoder(Path(self.weights), self.vocoder, self.settings, self.described)
