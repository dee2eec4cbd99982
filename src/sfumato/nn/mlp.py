"""A residual perceptron for plain vectors."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from sfumato.core.cond import Cond, CondShape
from sfumato.core.network import Network
from sfumato.errors import UserError
from sfumato.nn.embed import NoiseEmbedding
from sfumato.nn.layers import check_input, check_positive, zero


class MLPBlock(nn.Module):
    """h + W2 SiLU(W1 (LN(h) (1 + scale) + shift)), W2 = 0 at the start. h: (B, C); emb: (B, E), SiLU taken."""

    def __init__(self, width: int, hidden: int, emb: int, dropout: float) -> None:
        super().__init__()
        self.modulation = nn.Linear(emb, 2 * width)
        self.first = nn.Linear(width, hidden)
        self.second = zero(nn.Linear(hidden, width))
        self.drop = nn.Dropout(dropout) if dropout else nn.Identity()

    def forward(self, h: Tensor, emb: Tensor) -> Tensor:
        scale, shift = self.modulation(emb).chunk(2, -1)
        normed = torch.addcmul(shift, F.layer_norm(h, h.shape[-1:], eps=1e-6), 1 + scale)
        out: Tensor = h + self.second(self.drop(F.silu(self.first(normed))))
        return out


class MLP(Network, name="mlp"):
    """Residual perceptron for plain vectors (D,) and for fields of any shape, which it flattens.

    width: of the residual stream; depth: residual blocks, each with a hidden layer of mlp_ratio * width.
    outputs: vectors given, each of the input's size; a learned variance is a second one and sets it.

    It knows nothing of neighbours in a field: for pictures larger than about 16 x 16 use `unet` or `dit`.
    A condition's `vector` joins the noise embedding, and so does the mean over its real `tokens`, since there are no
    positions that could attend; `concat` is flattened and joins the input. Output: (B, outputs C, *S), exactly 0 at
    initialisation. Cost: 2 (1 + outputs) width D + depth (4 mlp_ratio + 4) width^2 operations a sample.
    """

    def __init__(
        self,
        shape: tuple[int, ...],
        cond: CondShape,
        *,
        width: int = 128,
        depth: int = 4,
        mlp_ratio: float = 2.0,
        dropout: float = 0.0,
        outputs: int = 1,
    ) -> None:
        super().__init__()
        if not shape or min(shape) < 1:
            raise UserError(f"mlp takes data of shape (D,) or (C, *S) with every size at least 1, not {tuple(shape)}")
        hidden = int(mlp_ratio * width)
        check_positive("mlp", width=width, depth=depth, mlp_width=hidden, outputs=outputs)
        if not 0 <= dropout < 1:
            raise UserError(f"mlp: dropout = {dropout} must be at least 0 and below 1")
        self.shape, self.cond = tuple(shape), cond
        places = math.prod(shape[1:])
        self.embed = NoiseEmbedding(width, width, cond.vector + cond.tokens)
        self.stem = nn.Linear((shape[0] + cond.concat) * places, width)
        self.layers = nn.ModuleList(MLPBlock(width, hidden, width, dropout) for _ in range(depth))
        self.modulation = zero(nn.Linear(width, 2 * width))
        self.head = zero(nn.Linear(width, outputs * shape[0] * places))

    @property
    def blocks(self) -> list[MLPBlock]:
        """The repeated blocks in the order in which they run: units for compilation, checkpointing and sharding."""
        return [layer for layer in self.layers if isinstance(layer, MLPBlock)]

    def forward(self, x: Tensor, noise: Tensor, cond: Cond | None = None) -> Tensor:
        check_input(x, noise, cond, self.shape, self.cond)
        cond = cond if cond is not None else Cond()
        size = x.shape[2:]
        inputs = x.flatten(1) if cond.concat is None else torch.cat([x.flatten(1), cond.concat.to(x).flatten(1)], 1)
        emb = self.embed(noise, _vector(cond))
        h = self.stem(inputs.to(self.stem.weight.dtype))
        for block in self.layers:
            h = block(h, emb)
        scale, shift = self.modulation(emb).chunk(2, -1)
        out: Tensor = self.head(torch.addcmul(shift, F.layer_norm(h, h.shape[-1:], eps=1e-6), 1 + scale))
        return out.reshape(len(x), -1, *size)


def _vector(cond: Cond) -> Tensor | None:
    """The condition as one vector (B, Dv + Dc): its vector, and the mean over its real tokens."""
    parts = [] if cond.vector is None else [cond.vector]
    if cond.tokens is not None:
        real = cond.tokens.new_ones(cond.tokens.shape[:2]) if cond.mask is None else cond.mask.to(cond.tokens)
        total = (cond.tokens * real[..., None]).sum(1)
        parts.append(total / real.sum(1, keepdim=True).clamp(min=1))
    return torch.cat(parts, -1) if parts else None
