"""A judge of sounds: convolutions over log-mel magnitudes."""

from __future__ import annotations

import math
from collections.abc import Mapping
from itertools import pairwise
from typing import Any, final

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from sfumato.errors import UserError
from sfumato.evaluate.judge import Judge
from sfumato.sound import Frames, mel_bank

BANDS = 40
FLOOR = 1e-4  # -80 dB
_FEWEST = 16  # frames: four times halved


class LogMel(nn.Module):
    """Sounds (B, c, T) to ln max(B |S|, floor) of their mean channel, (B, bands, frames): windows of 32 ms, every 16."""

    bank: Tensor

    def __init__(self, rate: int, bands: int = BANDS) -> None:
        super().__init__()
        window = 2 ** max(5, round(rate * 0.032).bit_length() - 1)
        self.frames = Frames(window, window // 2)
        bank = mel_bank(self.frames.bins, bands, rate)
        self.register_buffer("bank", (bank / bank.sum(1, keepdim=True)).float(), persistent=False)

    def forward(self, media: Tensor) -> Tensor:
        found: Tensor = (self.bank @ self.frames(media.float().mean(1)).abs()).clamp_min(FLOOR).log()
        return found


def _part(inputs: int, outputs: int) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(inputs, outputs, 3, padding=1, bias=False), nn.BatchNorm2d(outputs), nn.ReLU(), nn.MaxPool2d(2)
    )


@final
class SoundJudge(Judge, name="sound"):
    """Four 3x3 convolutions with pooling over log-mel magnitudes, then the mean and largest value of each channel over
    all time.

    shape: (c, T) of a sound, full scale = 1. width: channels of the first convolution. `features` numbers, at most 64
    by default, so that distances need few items.
    """

    def __init__(
        self,
        shape: tuple[int, ...],
        classes: tuple[str, ...],
        *,
        rate: int,
        width: int = 24,
        features: int = 64,
        trained: Mapping[str, Any] | None = None,
    ) -> None:
        super().__init__(shape, classes, trained, drop=0.2)
        if len(shape) != 2:
            raise UserError(f"judge sound: looks at sounds (channels, samples), not at items of shape {shape}")
        self.rate, self.width = rate, width
        self.mel = LogMel(rate)
        widths = [1, width, 2 * width, 4 * width, 4 * width]
        self.parts = nn.Sequential(*(_part(a, b) for a, b in pairwise(widths)))
        rows = BANDS // 16
        self.to_features = nn.Linear(2 * widths[-1] * rows, features)
        self.head = nn.Linear(features, len(classes))

    @property
    def name(self) -> str:
        return f"sound{self.width}"

    @property
    def settings(self) -> dict[str, int]:
        return {"rate": self.rate, "width": self.width, "features": self.head.in_features}

    def see(self, media: Tensor) -> Tensor:
        return self.see_bands(self.mel(media))

    def see_bands(self, bands: Tensor) -> Tensor:
        """Log-mel magnitudes (B, bands, frames) to features."""
        short = max(0, _FEWEST - bands.shape[2])
        bands = F.pad(bands, (0, short), value=math.log(FLOOR)) if short else bands
        h = self.parts((bands / 3 + 2)[:, None])
        pooled = torch.cat([h.mean(3), h.amax(3)], 1).flatten(1)
        return F.relu(self.to_features(pooled))
