"""Codecs without a network: pixels and plain arrays."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import final

import torch
from torch import Tensor

from sfumato.codecs.base import Codec, Whitening
from sfumato.core import DataInfo
from sfumato.errors import UserError


@final
class Pixels(Codec, name="pixels"):
    """uint8 pictures: h = v / 127.5 - 1, then whitened per channel. Decoding rounds to the nearest of 0 ... 255."""

    def __init__(self, info: DataInfo) -> None:
        super().__init__()
        if info.kind != "image":
            raise UserError(f"codec=pixels is for uint8 pictures, and this data is '{info.kind}'; use codec=arrays")
        self._shape = info.shape
        self.whitening = Whitening(info.shape[0])

    @property
    def shape(self) -> tuple[int, ...]:
        return self._shape

    def encode(self, media: Tensor) -> Tensor:
        return media.to(torch.float32) / 127.5 - 1

    def whiten(self, h: Tensor) -> Tensor:
        x0: Tensor = self.whitening(h)
        return x0

    def decode(self, x0: Tensor) -> Tensor:
        return ((self.whitening.inverse(x0) + 1) * 127.5).round().clamp(0, 255).to(torch.uint8)

    def measure(self, media: Iterable[Tensor]) -> None:
        self.whitening.fit(self.encode(batch) for batch in media)

    def log_volume(self, media: Tensor) -> Tensor:
        return self.whitening.log_volume(media) - media[0].numel() * math.log(127.5)

    def values(self) -> Tensor:
        ramp = torch.arange(256, device=self.whitening.mean.device)
        x0: Tensor = self.whitening(self.encode(ramp.expand(1, self._shape[0], 256)))
        return x0[0]


@final
class Arrays(Codec, name="arrays"):
    """Floating-point fields of any rank and channel count, whitened per channel; decoding has no range to clip to."""

    def __init__(self, info: DataInfo) -> None:
        super().__init__()
        self._shape = info.shape
        self.whitening = Whitening(info.shape[0])

    @property
    def shape(self) -> tuple[int, ...]:
        return self._shape

    def encode(self, media: Tensor) -> Tensor:
        return media.to(torch.float32)

    def whiten(self, h: Tensor) -> Tensor:
        x0: Tensor = self.whitening(h)
        return x0

    def decode(self, x0: Tensor) -> Tensor:
        return self.whitening.inverse(x0)

    def measure(self, media: Iterable[Tensor]) -> None:
        self.whitening.fit(self.encode(batch) for batch in media)

    def log_volume(self, media: Tensor) -> Tensor:
        return self.whitening.log_volume(media)
