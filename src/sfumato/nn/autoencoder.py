"""Autoencoders for 1, 2 and 3 dimensions: between a field and a latent with fewer positions."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import final

from torch import Tensor, nn
from torch.nn import functional as F

from sfumato.errors import UserError
from sfumato.nn.bottleneck import KL, Bottleneck, Squeezed
from sfumato.nn.layers import apply_conv, check_positive, check_shape, conv, head_count, norm_groups, to_inner, zero
from sfumato.nn.norm import GroupNorm
from sfumato.nn.unet import FieldAttention
from sfumato.registry import Registered
from sfumato.spec import Spec


class Autoencoder(nn.Module, Registered, ABC, family="autoencoder"):
    """A field x (B, C, *S) of about unit deviation to z (B, c, *S / factor) and back. Built as `Autoencoder(shape, *, ...)`.

    shape: (C, *S) of one field; S may differ from call to call, in multiples of `factor`. A subclass sets `channels` (c),
    `factor` (of every axis) and `bottleneck`.
    """

    shape: tuple[int, ...]
    channels: int
    factor: int
    bottleneck: Bottleneck

    @property
    @abstractmethod
    def last(self) -> nn.Module:
        """The layer that makes the output."""

    @abstractmethod
    def hidden(self, x: Tensor) -> Tensor:
        """x to what the bottleneck reads, (B, bottleneck.inputs, *s)."""

    @abstractmethod
    def made(self, z: Tensor) -> Tensor:
        """z to a field (B, C, *S), float32."""

    @final
    def latent_shape(self, size: Sequence[int]) -> tuple[int, ...]:
        """(c, *s) of the latent of a field of this size. Raises UserError for sizes that `factor` does not divide."""
        if any(n % self.factor or n < 1 for n in size):
            near = "x".join(str(max(1, round(n / self.factor)) * self.factor) for n in size)
            raise UserError(
                f"size {'x'.join(map(str, size))}: the autoencoder makes one position of {self.factor} in every "
                f"direction, so sizes must be multiples of {self.factor}; set data.size={near.replace('x', ',')} or so"
            )
        return (self.channels, *(n // self.factor for n in size))

    @final
    def encode(self, x: Tensor) -> Tensor:
        """x (B, C, *S) to its latent z (B, c, *s), float32, the same every time."""
        self._check(x)
        return self.bottleneck.code(self.hidden(x)).float()

    @final
    def decode(self, z: Tensor) -> Tensor:
        """z (B, c, *s), a latent or near one, to a field (B, C, *S), float32."""
        return self.made(self.bottleneck.settle(z))

    def forward(self, x: Tensor, eps: Tensor) -> Squeezed:
        """In training: the latent that `made` reads. eps: (B, c, *s) standard normal, for bottlenecks that draw."""
        self._check(x)
        squeezed: Squeezed = self.bottleneck(self.hidden(x), eps)
        return squeezed

    def _check(self, x: Tensor) -> None:
        if x.ndim != len(self.shape) + 1 or x.shape[1] != self.shape[0]:
            raise UserError(
                f"the autoencoder takes fields of {self.shape[0]} channels and {len(self.shape) - 1} axes, and got "
                f"{tuple(x.shape[1:])}"
            )
        self.latent_shape(x.shape[2:])


# ---------------------------------------------------------------- space and channels


def fold(x: Tensor, factors: Sequence[int]) -> Tensor:
    """(B, C, *S) to (B, C prod(f), *S / f): a block of positions becomes channels, those of one channel side by side.

    Shi et al., "Sub-pixel convolution", 2016, and its inverse. Channels-last in and out; one copy.
    """
    axes = len(factors)
    split = [part for n, f in zip(x.shape[2:], factors) for part in (n // f, f)]
    parts = x.movedim(1, -1).reshape(len(x), *split, x.shape[1])
    places, inside = [1 + 2 * i for i in range(axes)], [2 + 2 * i for i in range(axes)]
    moved = parts.permute(0, *places, 1 + 2 * axes, *inside)
    return moved.flatten(1 + axes).movedim(-1, 1)


def unfold(x: Tensor, factors: Sequence[int]) -> Tensor:
    """The inverse of `fold`: (B, C prod(f), *s) to (B, C, *s f)."""
    axes, channels = len(factors), x.shape[1] // math.prod(factors)
    parts = x.movedim(1, -1).reshape(len(x), *x.shape[2:], channels, *factors)
    order = [axis for i in range(axes) for axis in (1 + i, 2 + axes + i)]
    moved = parts.permute(0, *order, 1 + axes)
    return moved.reshape(len(x), *(n * f for n, f in zip(x.shape[2:], factors)), channels).movedim(-1, 1)


def matched(x: Tensor, channels: int) -> Tensor:
    """As many channels as asked for, without a weight: means of neighbours, or each repeated."""
    have = x.shape[1]
    if have == channels:
        return x
    last = x.movedim(1, -1)
    if have % channels == 0:
        return last.reshape(*last.shape[:-1], channels, have // channels).mean(-1).movedim(-1, 1)
    return last.repeat_interleave(channels // have, -1).movedim(-1, 1)


def _can_match(have: int, channels: int) -> bool:
    return have % channels == 0 or channels % have == 0


# ---------------------------------------------------------------- blocks


class PlainBlock(nn.Module):
    """x + conv(SiLU(GN(conv(SiLU(GN(x)))))), the last convolution starts at zero."""

    def __init__(self, dims: int, width: int, groups: int | None) -> None:
        super().__init__()
        self.norm1, self.conv1 = GroupNorm(norm_groups(width, groups), width), conv(dims, width, width)
        self.norm2, self.conv2 = GroupNorm(norm_groups(width, groups), width), zero(conv(dims, width, width))

    def forward(self, x: Tensor) -> Tensor:
        h = apply_conv(self.conv1, self.norm1(x, act=True))
        return x + apply_conv(self.conv2, self.norm2(h, act=True))


class Shrink(nn.Module):
    """Half the size: a convolution of stride 2, beside it each block of positions as channels, averaged to the width.

    Chen et al., "Deep Compression Autoencoder", 2024, section 3.1: with the shortcut the block starts as a re-ordering, and
    deep compression trains as easily as shallow.
    """

    def __init__(self, dims: int, inputs: int, outputs: int, shortcut: bool) -> None:
        super().__init__()
        self.factors = (1, 2) if dims == 1 else (2,) * dims
        self.conv = conv(dims, inputs, outputs, stride=2)
        self.outputs = outputs
        self.shortcut = shortcut and _can_match(inputs * 2**dims, outputs)

    def forward(self, x: Tensor) -> Tensor:
        h = apply_conv(self.conv, x)
        return h + matched(fold(x, self.factors), self.outputs) if self.shortcut else h


class Grow(nn.Module):
    """Twice the size: nearest neighbour and a convolution, beside it channels repeated and spread over the block."""

    def __init__(self, dims: int, inputs: int, outputs: int, shortcut: bool) -> None:
        super().__init__()
        self.factors = (1, 2) if dims == 1 else (2,) * dims
        self.conv = conv(dims, inputs, outputs)
        self.folded = outputs * 2**dims
        self.shortcut = shortcut and _can_match(inputs, self.folded)

    def forward(self, x: Tensor) -> Tensor:
        h = apply_conv(self.conv, F.interpolate(x, scale_factor=tuple(map(float, self.factors)), mode="nearest"))
        return h + unfold(matched(x, self.folded), self.factors) if self.shortcut else h


@final
class ConvAutoencoder(Autoencoder, name="conv"):
    """Residual convolutions, halving the size level by level down to `factor`, and their mirror image.

    channels: of the latent. factor: positions of one axis that become one, a power of two.
    patch: positions of an axis that are stacked as channels before the first convolution, a power of two: everything then
    runs on a field that much smaller, several times quicker. width: channels of the finest level; mults: level i has
    width * mults[i], the last one for all that follow. blocks: residual blocks a level, in the encoder; `extra` more of them
    in the decoder. middle: residual blocks at the coarsest level. attention: over all positions there, which ties the result
    to the size and to seams of tiles. bottleneck: `kl`, `vq`, `fsq` or `plain`; none: kl.
    shortcut: averages and copies of channels beside every change of size (Chen et al. 2024, arXiv 2410.10733), which makes
    factors of 16 to 64 trainable. groups: of the norms.

    Cost of a factor-8 one at width 128: 9 G multiply-adds to encode a picture of 128 x 128 and 11 G to decode it, where
    `autoencoder-kl` needs 34 G and 78 G.
    """

    def __init__(
        self,
        shape: tuple[int, ...],
        *,
        channels: int = 4,
        factor: int = 8,
        patch: int = 2,
        width: int = 64,
        mults: tuple[int, ...] = (1, 2, 4),
        blocks: int = 2,
        extra: int = 0,
        middle: int = 1,
        attention: bool = False,
        bottleneck: Spec[Bottleneck] | None = None,
        shortcut: bool = True,
        groups: int | None = None,
    ) -> None:
        super().__init__()
        check_shape(shape, "autoencoder conv")
        check_positive("autoencoder conv", channels=channels, width=width, mults=min(mults, default=0), blocks=blocks)
        for name, value in (("extra", extra), ("middle", middle)):
            if value < 0:
                raise UserError(f"autoencoder conv: {name} = {value}: can't be negative")
        for name, value in (("factor", factor), ("patch", patch)):
            if value < 1 or value & (value - 1):
                raise UserError(f"autoencoder conv: {name} = {value}: must be a power of two")
        if patch > factor:
            raise UserError(f"autoencoder conv: patch = {patch} is more than factor = {factor}; use at most that")
        self.shape, self.channels, self.factor = tuple(shape), channels, factor
        self.bottleneck = (bottleneck or Spec(KL)).build(channels)
        dims, levels = len(shape) - 1, (factor // patch).bit_length()
        self.dims, self.patch = dims, (1, patch) if dims == 1 else (patch,) * dims
        widths = [width * mults[min(level, len(mults) - 1)] for level in range(levels)]
        stacked, deepest = shape[0] * patch**dims, widths[-1]

        def row(level: int, count: int) -> list[nn.Module]:
            return [PlainBlock(dims, widths[level], groups) for _ in range(count)]

        def between() -> list[nn.Module]:
            made = row(levels - 1, middle)
            if attention:
                made.insert(-1, FieldAttention(deepest, 0, head_count(deepest, None), groups))
            return made

        self.stem = conv(dims, stacked, width)
        down: list[nn.Module] = []
        for level in range(levels):
            down += row(level, blocks)
            if level < levels - 1:
                down.append(Shrink(dims, widths[level], widths[level + 1], shortcut))
        self.down = nn.ModuleList([*down, *between()])
        self.norm = GroupNorm(norm_groups(deepest, groups), deepest)
        self.to_latent = conv(dims, deepest, self.bottleneck.inputs)
        self.from_latent = conv(dims, channels, deepest)
        up = between()
        for level in reversed(range(levels)):
            up += row(level, blocks + extra)
            if level:
                up.append(Grow(dims, widths[level], widths[level - 1], shortcut))
        self.up = nn.ModuleList(up)
        self.out_norm = GroupNorm(norm_groups(width, groups), width)
        self.head = conv(dims, width, stacked)

    @property
    def last(self) -> nn.Module:
        return self.head

    def hidden(self, x: Tensor) -> Tensor:
        h = apply_conv(self.stem, fold(to_inner(x), self.patch).to(self.stem.weight.dtype))
        for module in self.down:
            h = _through(module, h)
        h = apply_conv(self.to_latent, self.norm(h, act=True))
        return h.squeeze(2) if self.dims == 1 else h

    def made(self, z: Tensor) -> Tensor:
        h = apply_conv(self.from_latent, to_inner(z).to(self.from_latent.weight.dtype))
        for module in self.up:
            h = _through(module, h)
        h = unfold(apply_conv(self.head, self.out_norm(h, act=True)), self.patch).float()
        return h.squeeze(2) if self.dims == 1 else h


def _through(module: nn.Module, h: Tensor) -> Tensor:
    out: Tensor = module(h, None, None) if isinstance(module, FieldAttention) else module(h)
    return out
