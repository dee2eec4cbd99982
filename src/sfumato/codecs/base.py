"""The contract of every codec: between what people look at and what a network is trained on."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable
from typing import ClassVar

import torch
from torch import Tensor, nn

from sfumato.errors import UserError
from sfumato.registry import Registered


class Codec(nn.Module, Registered, ABC, family="codec"):
    """media -> h (worth storing) -> x0 (white) -> media. Built as `Codec(info, *, settings)`.

    x0 has zero mean and unit deviation in every channel over the user's own data: `measure` sees to it once, and the
    figures are stored with the model as buffers.
    """

    measured: ClassVar[int] = 4096  # items that `measure` is given at most: 1% of a deviation or better

    @property
    @abstractmethod
    def shape(self) -> tuple[int, ...]:
        """(C, *S) of x0."""

    @abstractmethod
    def encode(self, media: Tensor) -> Tensor:
        """media (B, ...) of the data set to h (B, ...), the form that is measured and may be cached."""

    @abstractmethod
    def whiten(self, h: Tensor) -> Tensor:
        """h to x0 (B, C, *S), float32."""

    @abstractmethod
    def decode(self, x0: Tensor) -> Tensor:
        """x0 (B, C, *S) back to media, rounded and clipped to what media can be."""

    def decode_tiled(self, x0: Tensor, tile: int) -> Tensor:
        """`decode` in the memory of a tile of media, at most `tile` positions a side, where a network decodes.

        Tiles have to meet before media are rounded, which is why the codec does it: `sfumato.nn.tiling.tiled` around its
        network. Here it is `decode`: without a network every position is decoded alone, and there is nothing to save.
        """
        return self.decode(x0)

    @abstractmethod
    def measure(self, media: Iterable[Tensor]) -> None:
        """Set the whitening from batches of media."""

    def log_volume(self, media: Tensor) -> Tensor:
        """ln |d x0 / d media| of each item, (B,) float64: ln p(media) = ln p(x0) + log_volume. Exact, or a UserError.

        media (B, ...) in the units of the data set, a number between two grey levels included.
        """
        raise UserError(f"codec={self.kind} does not keep volumes, so a likelihood of its media is not defined")

    def values(self) -> Tensor | None:
        """The x0 of each of the K values that media can take, by channel (C, K); None where media are continuous."""
        return None

    def bounds(self) -> tuple[Tensor, Tensor] | None:
        """The range of x0 by channel, (low (C,), high (C,)): that of its values; None where media have no range."""
        values = self.values()
        return None if values is None else (values.amin(1), values.amax(1))


class Whitening(nn.Module):
    """x0 = (h - mean) / std, per channel. A channel that does not vary keeps deviation 1."""

    mean: Tensor
    std: Tensor

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(channels))
        self.register_buffer("std", torch.ones(channels))

    def _column(self, v: Tensor, like: Tensor) -> Tensor:
        return v.reshape(1, -1, *[1] * (like.ndim - 2))

    def forward(self, h: Tensor) -> Tensor:
        """h (B, C, *S) to x0."""
        return (h - self._column(self.mean, h)) / self._column(self.std, h)

    def inverse(self, x0: Tensor) -> Tensor:
        """x0 (B, C, *S) to h."""
        return x0.float() * self._column(self.std, x0) + self._column(self.mean, x0)

    def log_volume(self, h: Tensor) -> Tensor:
        """ln |d x0 / d h| of each item: minus the sum of ln std over its numbers. h (B, C, *S), returns (B,) float64."""
        numbers = h[0, 0].numel()
        return -(numbers * self.std.cpu().double().log().sum()).expand(len(h))

    @torch.no_grad()
    def fit(self, batches: Iterable[Tensor]) -> None:
        """Mean and deviation per channel over all batches of h, in float64 (Chan's parallel update)."""
        count = 0
        mean = torch.zeros_like(self.mean, dtype=torch.float64, device="cpu")
        total = torch.zeros_like(mean)  # sum of squared differences from the mean
        for batch in batches:
            values = batch.detach().to("cpu", torch.float64).transpose(0, 1).flatten(1)
            n = values.shape[1]
            here = values.mean(1)
            delta = here - mean
            total += (values - here[:, None]).square().sum(1) + delta.square() * (count * n / (count + n))
            mean += delta * (n / (count + n))
            count += n
        if count:
            std = (total / count).sqrt()
            self.mean.copy_(mean)
            self.std.copy_(torch.where(std > 1e-6 * (1 + mean.abs()), std, torch.ones_like(std)))
