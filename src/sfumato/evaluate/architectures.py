"""The networks that judge: a small one for any pictures, and two unlike ones for pictures such as CIFAR-10's."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import pairwise
from typing import Any, final

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from sfumato.errors import UserError
from sfumato.evaluate.judge import Judge

_COARSEST = 4  # positions along a side at which the convolutions stop halving


def conv(inputs: int, outputs: int, stride: int = 1, kernel: int = 3) -> nn.Conv2d:
    return nn.Conv2d(inputs, outputs, kernel, stride, kernel // 2, bias=False)


def _twice(inputs: int, outputs: int, stride: int) -> nn.Sequential:
    return nn.Sequential(
        conv(inputs, outputs, stride),
        nn.BatchNorm2d(outputs),
        nn.ReLU(),
        conv(outputs, outputs),
        nn.BatchNorm2d(outputs),
        nn.ReLU(),
    )


def _each(blocks: nn.Sequential, x: Tensor) -> list[Tensor]:
    """What each of some blocks makes, one after the other."""
    found = []
    for block in blocks:
        x = block(x)
        found.append(x)
    return found


def scaled(media: Tensor) -> Tensor:
    """0 ... 255 to about zero mean and unit deviation for photographs."""
    return media / 63.75 - 2


@final
class ConvJudge(Judge, name="conv"):
    """Convolutions, halving the size down to 4 positions a side, then `features` numbers. Quick on a CPU."""

    def __init__(
        self,
        shape: tuple[int, int, int],
        classes: tuple[str, ...],
        *,
        width: int = 16,
        features: int = 64,
        trained: Mapping[str, Any] | None = None,
    ) -> None:
        super().__init__(shape, classes, trained, drop=0.2)
        self.width = width
        channels, (height, wide) = width, shape[1:]
        blocks = [_twice(shape[0], channels, 1)]
        while max(height, wide) > _COARSEST:
            blocks.append(_twice(channels, 2 * channels, 2))
            channels, height, wide = 2 * channels, -(-height // 2), -(-wide // 2)
        self.blocks = nn.Sequential(*blocks)
        self.to_features = nn.Linear(channels * height * wide, features)
        self.head = nn.Linear(features, len(classes))

    @property
    def name(self) -> str:
        return f"conv{self.width}"

    @property
    def settings(self) -> dict[str, int]:
        return {"width": self.width, "features": self.head.in_features}

    def see(self, media: Tensor) -> Tensor:
        return F.relu(self.to_features(self.blocks(media / 127.5 - 1).flatten(1)))

    def maps(self, media: Tensor) -> list[Tensor]:
        return _each(self.blocks, media / 127.5 - 1)


@final
class Residual(nn.Module):
    """Two convolutions beside a shortcut; normalised and rectified before each."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.norm1, self.conv1 = nn.BatchNorm2d(inputs), conv(inputs, outputs, stride)
        self.norm2, self.conv2 = nn.BatchNorm2d(outputs), conv(outputs, outputs)
        self.shortcut = None if inputs == outputs else conv(inputs, outputs, stride, kernel=1)

    def forward(self, x: Tensor) -> Tensor:
        seen = F.relu(self.norm1(x))
        added: Tensor = self.conv2(F.relu(self.norm2(self.conv1(seen))))
        return added + (x if self.shortcut is None else self.shortcut(seen))


@final
class WideResNet(Judge, name="wrn"):
    """A wide residual network; features are the 64 `widen` channels of its last stage, averaged over all positions.

    Zagoruyko & Komodakis, "Wide Residual Networks", 2016, table 1: (depth - 4) / 6 blocks in each of three stages of 16, 32
    and 64 times `widen` channels. WRN-16-4 has 2.7 million parameters and 256 features.
    """

    def __init__(
        self,
        shape: tuple[int, int, int],
        classes: tuple[str, ...],
        *,
        depth: int = 16,
        widen: int = 4,
        trained: Mapping[str, Any] | None = None,
    ) -> None:
        super().__init__(shape, classes, trained)
        if depth < 10 or (depth - 4) % 6 or widen < 1:
            raise UserError(f"depth = {depth}, widen = {widen}: depth must be 10, 16, 22, 28, ... and widen at least 1")
        self.depth, self.widen = depth, widen
        self.stem = conv(shape[0], 16)
        blocks, channels = [], 16
        for stage in range(3):
            for i in range((depth - 4) // 6):
                outputs = 16 * widen * 2**stage
                blocks.append(Residual(channels, outputs, 2 if stage and i == 0 else 1))
                channels = outputs
        self.blocks = nn.Sequential(*blocks)
        self.norm = nn.BatchNorm2d(channels)
        self.head = nn.Linear(channels, len(classes))
        initialise(self)

    @property
    def name(self) -> str:
        return f"wrn{self.depth}-{self.widen}"

    @property
    def settings(self) -> dict[str, int]:
        return {"depth": self.depth, "widen": self.widen}

    def see(self, media: Tensor) -> Tensor:
        return F.relu(self.norm(self.blocks(self.stem(scaled(media))))).mean((2, 3))

    def maps(self, media: Tensor) -> list[Tensor]:
        found = _each(self.blocks, self.stem(scaled(media)))
        per_stage = len(found) // 3
        return [*found[per_stage - 1 : -1 : per_stage], F.relu(self.norm(found[-1]))]


@final
class Vgg(Judge, name="vgg"):
    """Plain convolutions without shortcuts, in four stages; features are the maxima over all positions of the last.

    After Simonyan & Zisserman, "Very Deep Convolutional Networks", 2015, configuration B without its last stage and fully
    connected layers, with batch normalisation: two convolutions a stage of 1, 2, 4 and 8 times `width` channels, between
    them the largest of 2x2. 4.7 million parameters and 512 features at width 64.
    """

    def __init__(
        self,
        shape: tuple[int, int, int],
        classes: tuple[str, ...],
        *,
        width: int = 64,
        trained: Mapping[str, Any] | None = None,
    ) -> None:
        super().__init__(shape, classes, trained)
        if min(shape[1:]) < 8:
            raise UserError(f"pictures of {shape[1]}x{shape[2]} are too small for this judge; 8x8 is the least")
        self.width = width
        channels = [shape[0], *(width * 2**stage for stage in range(4))]
        self.stages = nn.ModuleList(_twice(a, b, 1) for a, b in pairwise(channels))
        self.head = nn.Linear(channels[-1], len(classes))
        initialise(self)

    @property
    def name(self) -> str:
        return f"vgg{self.width}"

    @property
    def settings(self) -> dict[str, int]:
        return {"width": self.width}

    def see(self, media: Tensor) -> Tensor:
        x = scaled(media)
        for number, stage in enumerate(self.stages):
            x = stage(x if number == 0 else F.max_pool2d(x, 2))
        return x.amax((2, 3))

    def maps(self, media: Tensor) -> list[Tensor]:
        x, found = scaled(media), []
        for number, stage in enumerate(self.stages):
            x = stage(x if number == 0 else F.max_pool2d(x, 2))
            found.append(x)
        return found


@torch.no_grad()
def initialise(network: nn.Module) -> None:
    """Normal weights of variance 2 / (outputs x positions of the kernel): He et al. 2015, eq. 14."""
    for module in network.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
