"""A judge of voxel models: a small 3-D convolutional classifier that also looks at how much of each colour there is."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, final

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from sfumato.evaluate.colours import Palette
from sfumato.evaluate.judge import Judge

_COARSEST = 4


def _conv(inputs: int, outputs: int, stride: int = 1) -> nn.Conv3d:
    return nn.Conv3d(inputs, outputs, 3, stride, 1, bias=False)


def _twice(inputs: int, outputs: int, stride: int) -> nn.Sequential:
    return nn.Sequential(
        _conv(inputs, outputs, stride), nn.BatchNorm3d(outputs), nn.ReLU(),
        _conv(outputs, outputs), nn.BatchNorm3d(outputs), nn.ReLU(),
    )  # fmt: skip


@final
class VoxelJudge(Judge, name="conv3d"):
    """Convolutions, halving the sides down to 4; features are mean and maximum over all positions of the last stage.

    To their logits come those of a `Palette` of the occupied cells, of colours^3 bins; 0 (which folders without the
    setting mean): the convolutions alone see colours. shape: (4, X, Y, Z). width: channels of the first
    stage, doubled in each of the next up to 8 times as many. 0.9 million parameters and 256 features at 32^3 and width 16,
    beside 4,096 a class for 16^3 bins.
    """

    def __init__(
        self,
        shape: tuple[int, ...],
        classes: tuple[str, ...],
        *,
        width: int = 16,
        colours: int = 0,
        trained: Mapping[str, Any] | None = None,
    ) -> None:
        super().__init__(shape, classes, trained, drop=0.3)
        self.width, self.colours = width, colours
        channels, side = width, -(-max(shape[1:]) // 2)
        stages = [_twice(4, width, 2)]
        while side > _COARSEST:
            outputs = min(2 * channels, 8 * width)
            stages.append(_twice(channels, outputs, 2))
            channels, side = outputs, -(-side // 2)
        self.stages = nn.Sequential(*stages)
        self.head = nn.Linear(2 * channels, len(classes))
        self.palette = Palette(shape[0], colours, len(classes)) if colours else None

    @property
    def name(self) -> str:
        return f"conv3d{self.width}"

    @property
    def settings(self) -> dict[str, int]:
        return {"width": self.width, "colours": self.colours}

    def forward(self, media: Tensor) -> Tensor:
        """media (B, 4, X, Y, Z) of 0 ... 255 to logits (B, classes)."""
        media = self._checked(media)
        logits: Tensor = super().forward(media)
        if self.palette is None:
            return logits
        palette: Tensor = self.palette(media, media[:, 3] > 127)
        return logits + palette

    def see(self, media: Tensor) -> Tensor:
        occupied = (media[:, 3:] > 127).to(media.dtype)
        x = torch.cat([(media[:, :3] / 127.5 - 1) * occupied, 2 * occupied - 1], 1)
        x = F.relu(self.stages(x))
        return torch.cat([x.mean((2, 3, 4)), x.amax((2, 3, 4))], 1)
