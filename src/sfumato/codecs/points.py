"""Point clouds: sets of points, as a sequence whose order means nothing."""

from __future__ import annotations

from collections.abc import Iterable
from typing import final

import torch
from torch import Tensor

from sfumato.codecs.base import Codec, Whitening
from sfumato.core import DataInfo
from sfumato.errors import UserError


@final
class Points(Codec, name="points"):
    """float32 (B, 3 or 6, P): h = (x, y, z), and 2 c - 1 for colours c of 0 to 1; whitened per channel.

    The points' own order is kept, and changes nothing for a network without positions (`dit` with patch=1, rotary=false and
    absolute=false). Decoding clips colours to 0 ... 1.
    """

    def __init__(self, info: DataInfo) -> None:
        super().__init__()
        if info.kind != "points" or info.shape[0] not in (3, 6):
            raise UserError(f"codec=points is for point clouds (3 or 6, P), not {info.kind} data of {info.shape}")
        self._shape = info.shape
        self.whitening = Whitening(info.shape[0])

    @property
    def shape(self) -> tuple[int, ...]:
        return self._shape

    def encode(self, media: Tensor) -> Tensor:
        media = media.to(torch.float32)
        return media if media.shape[1] == 3 else torch.cat([media[:, :3], 2 * media[:, 3:] - 1], 1)

    def whiten(self, h: Tensor) -> Tensor:
        x0: Tensor = self.whitening(h)
        return x0

    def decode(self, x0: Tensor) -> Tensor:
        h = self.whitening.inverse(x0)
        return h if h.shape[1] == 3 else torch.cat([h[:, :3], ((h[:, 3:] + 1) / 2).clamp(0, 1)], 1)

    def measure(self, media: Iterable[Tensor]) -> None:
        self.whitening.fit(self.encode(batch) for batch in media)

    def log_volume(self, media: Tensor) -> Tensor:
        doubled = torch.log(torch.tensor(2.0, dtype=torch.float64)) * (media[0, 3:].numel())
        return self.whitening.log_volume(media) + doubled
