"""What a data set holds and what a batch of it looks like: the words that data, codecs and conditioners share."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from torch import Tensor

Column = Tensor | Sequence[str]


@dataclass(frozen=True)
class DataInfo:
    """What every item of a data set looks like.

    shape: (C, *S) of one item. kind: `image` (uint8, shown as pictures), `array` (float32, any rank), or another
    `MediaKind` (`sfumato.kinds`).
    labels: class names, index = label; empty if there are none. captions: whether items have a caption.
    numbers: names of the numeric columns. rate: samples a second along the last axis, for sounds; else 0.
    encoded: sha256 of the autoencoder whose latents the items are, of media as described by the rest; "" for media.
    """

    shape: tuple[int, ...]
    kind: str = "image"
    labels: tuple[str, ...] = ()
    captions: bool = False
    numbers: tuple[str, ...] = ()
    rate: int = 0
    encoded: str = ""


@dataclass(frozen=True)
class Batch:
    """B items. media: (B, C, *S), uint8 or float32, as its kind says.

    conditions: by column: `label` (B,) int64, `caption` B strings, `number` (B, K) float32; `picture` (B, 3, H, W) uint8
    where items are asked for by what they look like.
    """

    media: Tensor
    conditions: Mapping[str, Column] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.media)
