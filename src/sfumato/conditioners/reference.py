"""Another item of the same kind as a reference: samples are to be like it in style, voice or class."""

from __future__ import annotations

import math
from collections.abc import Mapping
from functools import cache
from typing import final

import torch
from torch import Tensor

from sfumato.conditioners.field import FieldConditioner
from sfumato.core.media import Column, DataInfo
from sfumato.errors import UserError
from sfumato.kinds import kind_of
from sfumato.sound import Frames, mel_bank

_WINDOW = 0.04  # seconds of a window, about; a quarter of it from one to the next
_FLOOR = 1e-4  # of full scale, -80 dB
_MIDDLE, _SPREAD = -6.0, 2.5  # about the mean and deviation of the log magnitudes of sounds


@final
class Reference(FieldConditioner, name="reference"):
    """Another item, in whose manner samples are to be. Reads `reference`: (B, C, *S), media of the data's own kind and shape.

    Sounds are read as log-mel magnitudes, `bands` of them by frames of about 10 ms, so that phases mean nothing; pictures and
    voxels by their values. width: of tokens and vector; depth: transformer blocks; heads: attention heads; patch: positions
    (frames, pixels, cells) a side of one token.
    """

    columns = ("reference",)

    def __init__(
        self,
        info: DataInfo,
        *,
        bands: int = 64,
        width: int = 128,
        depth: int = 2,
        heads: int = 4,
        patch: int = 8,
    ) -> None:
        if bands < 1:
            raise UserError(f"reference: bands = {bands} must be at least 1")
        shape = tuple(info.shape)
        if info.kind == "audio":
            shape = (shape[0] * bands, _front(info.rate, bands)[0].count(shape[1]))
        if not 2 <= len(shape) <= 4:
            raise UserError(f"reference: is for media of 1 to 3 axes, and an item here is {tuple(info.shape)}")
        super().__init__(shape, width, depth, heads, patch)
        self.info, self.bands = info, bands

    @property
    def media(self) -> Mapping[str, DataInfo]:
        return {"reference": self.info}

    def prepare(self, conditions: Mapping[str, Column]) -> dict[str, Tensor]:
        found = self.column(conditions, getattr(torch, kind_of(self.info).dtype))
        if tuple(found.shape[1:]) != tuple(self.info.shape):
            raise UserError(f"'reference' has items of shape {tuple(found.shape[1:])}, not {tuple(self.info.shape)}")
        return {"reference": self._log_mel(found) if self.info.kind == "audio" else found}

    def _log_mel(self, sounds: Tensor) -> Tensor:
        """(B, c, T) to (B, c bands, frames), about white. On the host, so that it is float32 whatever the weights are."""
        frames, bank = _front(self.info.rate, self.bands)
        magnitudes = bank @ frames(sounds).abs()
        white: Tensor = (magnitudes.clamp_min(_FLOOR).log().flatten(1, 2) - _MIDDLE) / _SPREAD
        return white

    def field(self, media: Tensor) -> Tensor:
        values = media.to(self.pool.weight.dtype)
        return values / 127.5 - 1 if media.dtype == torch.uint8 else values


@cache
def _front(rate: int, bands: int) -> tuple[Frames, Tensor]:
    """Spectra for a rate, and the weights (bands, bins) of mel bands, rows of sum 1."""
    window = max(32, 2 ** round(math.log2(max(rate, 2) * _WINDOW)))
    frames = Frames(window, window // 4)
    bank = mel_bank(frames.bins, bands, rate)
    return frames, (bank / bank.sum(1, keepdim=True)).float()
