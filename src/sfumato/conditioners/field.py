"""Media as a condition: a field (C, *S) to tokens and a vector, by an encoder that is trained with the network."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from sfumato.conditioners.base import Conditioner
from sfumato.conditioners.text import TextBlock
from sfumato.core.cond import Cond, CondShape
from sfumato.core.media import Column
from sfumato.errors import UserError
from sfumato.nn import grid_positions, rope_table

_CONVS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
_POOLS = (nn.AdaptiveAvgPool1d, nn.AdaptiveAvgPool2d, nn.AdaptiveAvgPool3d)
_FIRST = 32  # channels at full size, at most
_GROUPS = 8
_ROPE_BASE = 100.0
_QUERIES = 8


class FieldEncoder(nn.Module):
    """A field (B, C, *S) to tokens (B, N, width): convolutions down to one token for each `patch` of S, then a transformer.

        x = Conv3(field);  log2(patch) times: x = SiLU(GroupNorm(Conv4, stride 2 (x)));  depth blocks with rotary positions

    1 to 3 axes; N is the product of ceil(S / patch). Convolutions before attention: Xiao et al., "Early Convolutions Help
    Transformers See Better", 2021.
    """

    def __init__(self, shape: Sequence[int], width: int, depth: int, heads: int, patch: int) -> None:
        super().__init__()
        dims, levels = len(shape) - 1, int(math.log2(patch))
        conv = _CONVS[dims - 1]
        widths = [min(width, max(_GROUPS, min(_FIRST, width) * 2**k)) for k in range(levels)] + [width]
        self.stem = conv(shape[0], widths[0], 3, padding=1)
        self.down = nn.ModuleList(conv(a, b, 4, stride=2, padding=1) for a, b in pairwise(widths))
        self.norms = nn.ModuleList(nn.GroupNorm(_GROUPS, b) for b in widths[1:])
        self.layers = nn.ModuleList(TextBlock(width, heads) for _ in range(depth))
        self.norm = nn.LayerNorm(width)
        self.patch, self.head_dim = patch, width // heads

    def forward(self, field: Tensor) -> Tensor:
        short = [-n % self.patch for n in field.shape[2:]]
        x = self.stem(F.pad(field, [e for s in reversed(short) for e in (0, s)]) if any(short) else field)
        for down, norm in zip(self.down, self.norms):
            x = F.silu(norm(down(x)))
        places = grid_positions(x.shape[2:], x.device)
        tokens = x.flatten(2).transpose(1, 2)
        rope = rope_table(places, self.head_dim, _ROPE_BASE)
        for layer in self.layers:
            tokens = layer(tokens, rope)
        found: Tensor = self.norm(tokens)
        return found


class FieldConditioner(Conditioner):
    """What conditioners by media share: `field` makes numbers (B, C, *S) of the media, a `FieldEncoder` reads them.

    Gives `tokens` (B, N, width), and `vector` (B, width), which sums them up:

        vector = W [p_1 ... p_8] + V coarse(field),   p_k = sum_n softmax_n(q_k tokens_n) tokens_n

    coarse: means over 8 parts of each axis (4 of three axes), a shortcut that says what is where before the encoder has
    learnt anything. q_k: learned, as in the attention pooling of Lee et al., "Set Transformer", 2019, section 3.2: the mean
    would be that of the background, which is most of a picture. 'Anything' is one learned token (N times, which attention
    can't tell from once) and a learned vector.
    """

    def __init__(self, shape: Sequence[int], width: int, depth: int, heads: int, patch: int) -> None:
        super().__init__()
        for name, value in {"width": width, "depth": depth, "heads": heads, "patch": patch}.items():
            if value < (0 if name == "depth" else 1):
                raise UserError(f"{self.kind}: {name} = {value} must be at least {0 if name == 'depth' else 1}")
        if width % (2 * heads) or width % _GROUPS:
            raise UserError(
                f"{self.kind}: width = {width} must be a multiple of 2 heads = {2 * heads}, and of {_GROUPS}"
            )
        if patch & (patch - 1):
            raise UserError(f"{self.kind}: patch = {patch} must be a power of 2: each halving is one convolution")
        self.width = width
        self.tokens = math.prod(-(-n // patch) for n in shape[1:])
        self.encoder = FieldEncoder(shape, width, depth, heads, patch)
        self.queries = nn.Parameter(torch.randn(_QUERIES, width) / math.sqrt(width))
        self.pool = nn.Linear(_QUERIES * width, width)
        axes = len(shape) - 1
        parts = 4 if axes == 3 else 8
        self.parts = _POOLS[axes - 1](parts)
        self.coarse = nn.Linear(shape[0] * parts**axes, width)
        self.anything = nn.Parameter(torch.randn(width))  # as a token after the last norm
        self.anything_pooled = nn.Parameter(torch.randn(width) / math.sqrt(3))

    @property
    def shape(self) -> CondShape:
        return CondShape(vector=self.width, tokens=self.width)

    def field(self, media: Tensor) -> Tensor:
        """Prepared media (B, ...) as numbers (B, C, *S), about 0 where there is nothing and of about unit deviation."""
        raise NotImplementedError

    def forward(self, prepared: Mapping[str, Tensor]) -> Cond:
        field = self.field(prepared[self.columns[0]])
        field = field.to(self.pool.weight.dtype)
        tokens = self.encoder(field)
        looked_at = (self.queries @ tokens.transpose(1, 2)).softmax(2)
        coarse = self.coarse(self.parts(field).flatten(1))
        return Cond(vector=self.pool((looked_at @ tokens).flatten(1)) + coarse, tokens=tokens)

    def null(self, n: int) -> Cond:
        return Cond(vector=self.anything_pooled.expand(n, -1), tokens=self.anything.expand(n, self.tokens, -1))

    def column(self, conditions: Mapping[str, Column], dtype: torch.dtype) -> Tensor:
        """The column of media, checked: (B, C, *S) of a type. Raises UserError."""
        name = self.columns[0]
        column = conditions.get(name)
        if column is None:
            raise UserError(f"the {self.kind} conditioner needs a '{name}' for every sample, and the data has none")
        wanted = self.media[name].shape
        if not isinstance(column, Tensor) or column.dtype != dtype or column.ndim != 1 + len(wanted):
            found = (
                f"{column.dtype} of shape {tuple(column.shape)}" if isinstance(column, Tensor) else f"{column!r:.40}"
            )
            raise UserError(f"'{name}' must be media {dtype} (B, {', '.join(map(str, wanted))}), not {found}")
        if column.shape[1] != wanted[0]:
            raise UserError(f"'{name}' has {column.shape[1]} channels and this conditioner reads {wanted[0]}")
        return column
