"""Embeddings of a noise level and of positions."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

# Noise levels lie in [0, 1]; the sinusoids were designed for the 1,000 steps of DDPM.
_SCALE = 1000.0
_MAX_PERIOD = 10_000.0


def sinusoids(values: Tensor, width: int) -> Tensor:
    """[cos(f_k v), sin(f_k v)] with f_k = 10000^(-k / half), k < half = width // 2; an odd width ends in a zero column.

    values: (...,), returns (..., width), computed in float32 or wider whatever the type of the input.
    Vaswani et al., "Attention Is All You Need", 2017, section 3.5.
    """
    values = values if values.dtype == torch.float64 else values.float()
    half = width // 2
    k = torch.arange(half, dtype=values.dtype, device=values.device)
    angles = values[..., None] * torch.exp(-math.log(_MAX_PERIOD) / max(half, 1) * k)
    return F.pad(torch.cat([angles.cos(), angles.sin()], -1), (0, width - 2 * half))


class NoiseEmbedding(nn.Module):
    """Noise level (B,) in [0, 1] and an optional condition vector (B, Dv) to one vector (B, out).

        e = SiLU(W2 SiLU(W1 sinusoids(1000 u)) + Wv v)

    The last SiLU is here because every block starts its own projection of `e` with one: it is taken once.
    """

    def __init__(self, width: int, out: int, vector: int = 0) -> None:
        super().__init__()
        self.width = width
        self.first = nn.Linear(width, out)
        self.second = nn.Linear(out, out)
        self.vector = nn.Linear(vector, out) if vector else None

    def forward(self, noise: Tensor, vector: Tensor | None = None) -> Tensor:
        dtype = self.first.weight.dtype
        u = noise.to(torch.float64 if dtype == torch.float64 else torch.float32)
        e = self.second(F.silu(self.first(sinusoids(_SCALE * u, self.width).to(dtype))))
        if self.vector is not None and vector is not None:
            e = e + self.vector(vector.to(dtype))
        return F.silu(e)


def grid_positions(size: Sequence[int], device: torch.device | None = None) -> Tensor:
    """Whole-number coordinates of every cell of a grid, last axis fastest: (prod(size), len(size)) float32."""
    axes = [torch.arange(n, dtype=torch.float32, device=device) for n in size]
    return torch.stack(torch.meshgrid(*axes, indexing="ij"), -1).flatten(0, -2)


def absolute_positions(positions: Tensor, width: int) -> Tensor:
    """Fixed sinusoids of each coordinate side by side, (N, width); channels left over are zero."""
    axes = positions.shape[1]
    each = width // axes
    return F.pad(sinusoids(positions, each).flatten(1), (0, width - axes * each))


def rope_table(positions: Tensor, head_dim: int, base: float) -> Tensor:
    """Cosines and sines of axial rotary embedding: positions (N, d) to (2, N, head_dim // 2).

    The pairs of channels are shared evenly among the d axes; axis a turns pair k by positions[:, a] * base^(-k / n),
    n pairs an axis. Pairs left over (head_dim // 2 not divisible by d) do not turn.
    Su et al., "RoFormer", 2021, section 3.2.2; axes as in Heo et al., "Rotary Position Embedding for ViT", 2024.
    """
    axes, pairs = positions.shape[1], head_dim // 2
    each = pairs // axes
    k = torch.arange(each, dtype=positions.dtype, device=positions.device)
    angles = (positions[:, :, None] * torch.exp(-math.log(base) / max(each, 1) * k)).flatten(1)
    angles = F.pad(angles, (0, pairs - each * axes))
    return torch.stack([angles.cos(), angles.sin()])


def rotate(x: Tensor, table: Tensor) -> Tensor:
    """Turn the pairs (x_k, x_{k + D/2}) of the last axis: x (..., N, D), table (2, N, D // 2) from `rope_table`."""
    cos, sin = table.to(x.dtype)
    halves = x.view(
        *x.shape[:-1], 2, -1
    )  # halves in an axis of their own: a compiler has one load where `cat` takes four
    turned: Tensor = halves * cos[:, None] + halves.flip(-2) * torch.stack([-sin, sin], 1)
    return turned.flatten(-2)
