"""Bottlenecks of autoencoders: what is kept of the encoder's output, and what is fed to the decoder."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from typing import NamedTuple, final

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from sfumato.errors import UserError
from sfumato.registry import Registered


class Squeezed(NamedTuple):
    """z: (B, c, *s), what the decoder reads. penalty: (B,), to be added to the loss, its weight included."""

    z: Tensor
    penalty: Tensor


class Bottleneck(nn.Module, Registered, ABC, family="bottleneck"):
    """Built as `Bottleneck(channels, *, settings)`, channels c of the latent."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.channels = channels

    @property
    def inputs(self) -> int:
        """Channels that the encoder gives."""
        return self.channels

    @abstractmethod
    def code(self, h: Tensor) -> Tensor:
        """The encoder's h (B, inputs, *s) to the latent (B, c, *s) that is stored and modelled: no randomness."""

    @abstractmethod
    def forward(self, h: Tensor, eps: Tensor) -> Squeezed:
        """In training. eps: (B, c, *s) standard normal."""

    def settle(self, z: Tensor) -> Tensor:
        """Any z (B, c, *s), a sampled one say, to the nearest that the decoder has learnt to read."""
        return z


@final
class Plain(Bottleneck, name="plain"):
    """No bottleneck but the number of channels: z = h."""

    def code(self, h: Tensor) -> Tensor:
        return h

    def forward(self, h: Tensor, eps: Tensor) -> Squeezed:
        return Squeezed(h, h.new_zeros(len(h)))


@final
class KL(Bottleneck, name="kl"):
    """z = mean + exp(logvar / 2) eps in training, the mean afterwards; penalty = weight KL(N(mean, var) | N(0, 1)) / n.

    KL in nats, n the numbers of the latent. Kingma & Welling, "Auto-Encoding Variational Bayes", 2013, eq. 10; as the slight
    regularisation of latent diffusion: Rombach et al. 2022, appendix G.
    """

    def __init__(self, channels: int, *, weight: float = 1e-6) -> None:
        super().__init__(channels)
        _at_least_0("kl", weight=weight)
        self.weight = weight

    @property
    def inputs(self) -> int:
        return 2 * self.channels

    def code(self, h: Tensor) -> Tensor:
        return h[:, : self.channels]

    def forward(self, h: Tensor, eps: Tensor) -> Squeezed:
        mean, logvar = h.float().chunk(2, 1)
        logvar = logvar.clamp(-30.0, 20.0)  # exp stays finite in float32
        nats = 0.5 * (mean.square() + logvar.exp() - 1 - logvar)
        return Squeezed(mean + (0.5 * logvar).exp() * eps, self.weight * nats.flatten(1).mean(1))


@final
class VQ(Bottleneck, name="vq"):
    """The nearest of `codes` learnt vectors at every position, both sides on the unit sphere, and z = that code.

        penalty = |sg(h) - e|^2 + commitment |h - sg(e)|^2, the mean over positions; gradients pass e as if it were h

    van den Oord et al., "Neural Discrete Representation Learning", 2017, eq. 3; on the sphere, which keeps codes in use:
    Yu et al., "Vector-quantized Image Modeling with Improved VQGAN", 2021, section 3.2. Memory: positions x codes.
    """

    def __init__(self, channels: int, *, codes: int = 1024, commitment: float = 0.25) -> None:
        super().__init__(channels)
        _at_least_0("vq", commitment=commitment)
        if codes < 2:
            raise UserError(f"vq: codes = {codes}: at least 2")
        self.commitment = commitment
        self.codes = nn.Parameter(F.normalize(torch.randn(codes, channels), dim=1))

    def indices(self, z: Tensor) -> Tensor:
        """The code of every position, (B, *s) int64. On the sphere the nearest has the largest product."""
        return (self._unit(z).movedim(1, -1) @ self._sphere().T).argmax(-1)

    def lookup(self, indices: Tensor) -> Tensor:
        """(B, *s) to (B, c, *s)."""
        return self._sphere()[indices].movedim(-1, 1)

    def _sphere(self) -> Tensor:
        return F.normalize(self.codes.float(), dim=1)

    @staticmethod
    def _unit(h: Tensor) -> Tensor:
        return F.normalize(h.float(), dim=1)

    def code(self, h: Tensor) -> Tensor:
        return self.settle(h)

    def settle(self, z: Tensor) -> Tensor:
        return self.lookup(self.indices(z))

    def forward(self, h: Tensor, eps: Tensor) -> Squeezed:
        unit = self._unit(h)
        with torch.no_grad():
            chosen = self.indices(unit)
        near = self.lookup(chosen)
        learn = (near - unit.detach()).square().sum(1)
        commit = (near.detach() - unit).square().sum(1)
        penalty = (learn + self.commitment * commit).flatten(1).mean(1)
        return Squeezed(unit + (near - unit).detach(), penalty)


@final
class FSQ(Bottleneck, name="fsq"):
    """Channel i is bounded and rounded to one of levels[i] equal steps of [-1, 1]: a codebook without codes to learn.

        z_i = round(a tanh(h_i + s) - o) / floor(L / 2),   a = (L - 1) / 2 (1 - 1e-3),   o = 1/2 for even L, s = atanh(o / a)

    Mentzer et al., "Finite Scalar Quantization", 2023, section 3.1; gradients pass the rounding.
    """

    def __init__(self, channels: int, *, levels: tuple[int, ...] = (8, 5, 5, 5)) -> None:
        super().__init__(channels)
        if len(levels) != channels or min(levels) < 3:
            raise UserError(
                f"fsq: levels = {','.join(map(str, levels))}: one number of at least 3 for each of the {channels} channels"
            )
        self.levels = tuple(levels)
        reach = [(n - 1) / 2 * (1 - 1e-3) for n in levels]
        offset = [0.5 if n % 2 == 0 else 0.0 for n in levels]
        moved = [math.atanh(o / a) for o, a in zip(offset, reach)]
        table = torch.tensor([reach, offset, moved, [float(n // 2) for n in levels]])
        self.register_buffer("table", table, persistent=False)

    table: Tensor

    def _rows(self, like: Tensor) -> list[Tensor]:
        return [row.view(1, -1, *[1] * (like.ndim - 2)) for row in self.table.to(like.device)]

    def code(self, h: Tensor) -> Tensor:
        reach, offset, moved, half = self._rows(h)
        return ((h.float() + moved).tanh() * reach - offset).round() / half

    def settle(self, z: Tensor) -> Tensor:
        _, _, _, half = self._rows(z)
        low = torch.tensor([-(n // 2) for n in self.levels], device=z.device).view_as(half)
        high = torch.tensor([(n - 1) // 2 for n in self.levels], device=z.device).view_as(half)
        return (z.float() * half).round().clamp(low, high) / half

    def forward(self, h: Tensor, eps: Tensor) -> Squeezed:
        reach, offset, moved, half = self._rows(h)
        smooth = ((h.float() + moved).tanh() * reach - offset) / half
        return Squeezed(smooth + (self.code(h) - smooth).detach(), h.new_zeros(len(h), dtype=torch.float32))


def _at_least_0(name: str, **settings: float) -> None:
    for key, value in settings.items():
        if not 0 <= value < math.inf:
            raise UserError(f"{name}: {key} = {value}: must be at least 0")
