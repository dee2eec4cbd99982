"""AdamW whose moments are kept in 8 bits: 2.03 bytes of state a parameter instead of 8.

Blocks of 256 values share one float32 scale, their largest magnitude s, and a value is a code of its own:

    m = s sign(q) (|q| / 127)^2,  q = -127 ... 127;        v = s (q / 255)^4,  q = 0 ... 255

so that m and sqrt(v) have equal codes, finest near 0: the relative step is 2 / q, 0.8% at the largest value of a block and
8% at a hundredth of it (sqrt(v)). Blockwise scales and a code that is finer near 0: Dettmers et al., "8-bit Optimizers via
Block-wise Quantization", 2022, sections 2.1 and 2.2 (there a tree of decimal exponents takes the place of the powers).

A value between two codes is rounded up as often as it lies near the upper one, so that its mean over the steps is exact.
Rounding to the nearest would stand still: with b2 = 0.99 a moment moves by 1% a step, which is less than half a code. The
threshold of a value follows the golden ratio over the steps and over its place in the block; there is no generator, so a
resumed run equals an uninterrupted one, and nothing is random in a CUDA graph. v > 0 never rounds to 0, by which m would be
divided.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import final

import torch
from torch import Tensor, nn

from sfumato.train.optim import EPS, Optimizer, Rules

BLOCK = 256
_LARGEST = 1 << 22  # elements that are worked on at once: 16 MiB in float32
_GOLDEN, _SILVER = (math.sqrt(5) - 1) / 2, math.sqrt(2) - 1
_TINY = torch.finfo(torch.float32).tiny


def thresholds(count: Tensor, shift: float) -> Tensor:
    """Where the values of a block are rounded up in step `count` (0-dim), (BLOCK,) in [0, 1); even over steps and places."""
    place = torch.arange(BLOCK, device=count.device, dtype=torch.float64) * _SILVER + shift
    return ((place + count.double() * _GOLDEN) % 1).float()


def encode_signed(x: Tensor, threshold: Tensor) -> tuple[Tensor, Tensor]:
    """x: (n, BLOCK) to codes (n, BLOCK) int8 and scales (n, 1)."""
    size = x.abs()
    scale = size.amax(1, keepdim=True)
    size = size.div_(scale.clamp(min=_TINY)).mul_(127**2)  # in units of the smallest code
    low = size.sqrt().floor_()
    up = size.addcmul_(low, low, value=-1) > (2 * low + 1).mul_(threshold)
    return low.add_(up).clamp_(max=127).mul_(x.sign()).to(torch.int8), scale


def decode_signed(codes: Tensor, scale: Tensor) -> Tensor:
    """The inverse of `encode_signed`."""
    x = codes.float()
    return x.mul_(x.abs()).mul_(scale / 127**2)


def encode_positive(x: Tensor, threshold: Tensor) -> tuple[Tensor, Tensor]:
    """x >= 0: (n, BLOCK) to codes (n, BLOCK) uint8 and scales (n, 1)."""
    scale = x.amax(1, keepdim=True)
    size = x.div(scale.clamp(min=_TINY)).mul_(255**4)
    low = size.sqrt().sqrt_().floor_()
    below, above = low**4, (low + 1) ** 4
    up = size.sub_(below) > above.sub_(below).mul_(threshold)
    return low.add_(up).clamp_(max=255).maximum(x > 0).to(torch.uint8), scale


def decode_positive(codes: Tensor, scale: Tensor) -> Tensor:
    """The inverse of `encode_positive`."""
    return (codes.float().div_(255) ** 4).mul_(scale)


@dataclass
class _Bucket:
    """Parameters side by side, each from the start of a block on. codes: (blocks, BLOCK); scales: (blocks, 1)."""

    blocks: dict[str, slice]
    first: Tensor
    first_scale: Tensor
    second: Tensor
    second_scale: Tensor

    def tensors(self) -> dict[str, Tensor]:
        """The four parts of the state."""
        return {
            "first": self.first,
            "first_scale": self.first_scale,
            "second": self.second,
            "second_scale": self.second_scale,
        }

    def gather(self, gradients: Mapping[str, Tensor]) -> Tensor:
        """Gradients as blocks, zeros between parameters and for those that have none."""
        out = torch.zeros(self.first.shape, device=self.first.device)
        names = [name for name in self.blocks if name in gradients]
        torch._foreach_copy_([self.view(out, name, gradients[name]) for name in names], [gradients[n] for n in names])
        return out

    def view(self, blocks: Tensor, name: str, like: Tensor) -> Tensor:
        """The part of `blocks` that belongs to a parameter, in its shape."""
        return blocks[self.blocks[name]].view(-1)[: like.numel()].view(like.shape)


@final
class AdamW8(Optimizer, name="adamw8"):
    """AdamW with both moments in 8 bits; a step is computed in float32 from the moments as they are stored.

    Differs from `AdamW` by rounding alone, 2% of an update's length (tests/train/test_optimizers.py).
    """

    def __init__(self, model: nn.Module, settings: Rules) -> None:
        super().__init__(model, settings)
        self._buckets = [self._bucket(names) for names in _grouped(self.parameters)]

    def _bucket(self, names: list[str]) -> _Bucket:
        blocks, at = {}, 0
        for name in names:
            n = -(-self.parameters[name].numel() // BLOCK)
            blocks[name] = slice(at, at + n)
            at += n
        codes, device = (at, BLOCK), self.device
        return _Bucket(
            blocks,
            torch.zeros(codes, dtype=torch.int8, device=device),
            torch.zeros(at, 1, device=device),
            torch.zeros(codes, dtype=torch.uint8, device=device),
            torch.zeros(at, 1, device=device),
        )

    def update(self, gradients: Mapping[str, Tensor], lr: float | Tensor, bad: Tensor | None) -> None:
        for bucket in self._buckets:
            given = [name for name in bucket.blocks if name in gradients]
            if given:
                self._update(bucket, given, gradients, lr, bad)

    def _update(
        self, bucket: _Bucket, given: list[str], gradients: Mapping[str, Tensor], lr: float | Tensor, bad: Tensor | None
    ) -> None:
        b1, b2 = self.betas
        g = bucket.gather(gradients)
        m = decode_signed(bucket.first, bucket.first_scale).lerp_(g, 1 - b1)
        v = decode_positive(bucket.second, bucket.second_scale).mul_(b2).addcmul_(g, g, value=1 - b2)
        root = (v / (1 - b2**self.count)).sqrt_().add_(EPS)
        change = torch.mul(m, lr / (1 - b1**self.count), out=g).div_(root)
        if bad is not None:
            change = torch.where(bad > 0, 0.0, change)
        self._store(bucket, given, m, v, bad)
        for decay in {self.decay[name] for name in given} - {0.0}:
            factor = 1 - lr * decay if bad is None else 1 - lr * decay * (1 - bad)
            torch._foreach_mul_([self.weight(name) for name in given if self.decay[name] == decay], factor)
        weights = [self.weight(name) for name in given]
        torch._foreach_sub_(weights, [bucket.view(change, name, w) for name, w in zip(given, weights)])

    def _store(self, bucket: _Bucket, given: list[str], m: Tensor, v: Tensor, bad: Tensor | None) -> None:
        first = encode_signed(m, thresholds(self.count, 0.0))
        second = encode_positive(v, thresholds(self.count, 0.5))
        for kept, new in zip(bucket.tensors().values(), (*first, *second)):
            chosen = new if bad is None else torch.where(bad > 0, kept, new)
            if len(given) == len(bucket.blocks):
                kept.copy_(chosen)
            else:
                for name in given:
                    kept[bucket.blocks[name]] = chosen[bucket.blocks[name]]

    def moments(self) -> dict[str, Tensor]:
        return {
            f"{kind}.{name}": tensor[blocks]
            for bucket in self._buckets
            for kind, tensor in bucket.tensors().items()
            for name, blocks in bucket.blocks.items()
        }


def _grouped(parameters: Mapping[str, Tensor]) -> Iterator[list[str]]:
    """Names in groups of at most `_LARGEST` elements; a larger parameter alone."""
    group: list[str] = []
    size = 0
    for name, p in parameters.items():
        if group and size + p.numel() > _LARGEST:
            yield group
            group, size = [], 0
        group.append(name)
        size += p.numel()
    if group:
        yield group
