"""Standard normal noise made where it is used: a function of a sample's key alone, for training on a GPU.

Philox4x32-10 (Salmon et al., "Parallel random numbers: as easy as 1, 2, 3", 2011), the key a sample's 64 bits, the counter
the place in it; four words give four normals by Box and Muller. The kernel and the plain version agree to float32 rounding.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from importlib.util import find_spec
from typing import Any

import torch
from torch import Tensor

_ROUNDS = 10
_MULTIPLY = (0xD2511F53, 0xCD9E8D57)
_WEYL = (0x9E3779B9, 0xBB67AE85)
_WORD = 0xFFFFFFFF


def normal(keys: Tensor, shape: Sequence[int]) -> Tensor:
    """Standard normal noise (B, *shape) float32 on the device of the keys (B,) int64. Nothing is waited for."""
    n = math.prod(shape)
    if keys.is_cuda and find_spec("triton") is not None:
        from sfumato.core.philox_kernel import fill

        out = torch.empty(len(keys), n, device=keys.device)
        fill(keys, out)
        return out.view(len(keys), *shape)
    return plain_normal(keys, n).view(len(keys), *shape)


def plain_normal(keys: Tensor, n: int) -> Tensor:
    """The same in tensor operations: (B, n)."""
    words = _words(keys, -(-n // 4))
    one, two = ((w.float() + 0.5) * 2.0**-32 for w in (words[:2], words[2:]))
    # words 0 and 1 are radii, words 2 and 3 angles
    radius, angle = (-2 * one.log()).sqrt(), 2 * math.pi * two
    four = torch.cat([radius * angle.cos(), radius * angle.sin()])  # (4, B, n / 4)
    return four.permute(1, 2, 0).flatten(1)[:, :n].contiguous()


def _words(keys: Tensor, count: int) -> Tensor:
    """(4, B, count) int64 holding unsigned 32-bit words."""
    k = [(keys & _WORD)[:, None], ((keys >> 32) & _WORD)[:, None]]
    at = torch.arange(count, device=keys.device, dtype=torch.int64)[None]
    zero: Any = torch.zeros_like(at)
    c = [at, zero, zero, zero]
    for _ in range(_ROUNDS):
        high = [_high(c[0], _MULTIPLY[0]), _high(c[2], _MULTIPLY[1])]
        low = [(c[0] * _MULTIPLY[0]) & _WORD, (c[2] * _MULTIPLY[1]) & _WORD]
        c = [high[1] ^ c[1] ^ k[0], low[1], high[0] ^ c[3] ^ k[1], low[0]]
        k = [(k[0] + _WEYL[0]) & _WORD, (k[1] + _WEYL[1]) & _WORD]
    return torch.stack([word.expand(len(keys), count) for word in c])


def _high(a: Tensor, b: int) -> Tensor:
    """The upper 32 of the 64 bits of a product of two words; int64 wraps around, which leaves the bits right."""
    return ((a * b) >> 32) & _WORD
