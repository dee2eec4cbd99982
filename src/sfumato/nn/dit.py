"""A diffusion transformer for 1, 2 and 3 dimensions."""

from __future__ import annotations

import math
from abc import ABC
from collections.abc import Collection, Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from sfumato.core.cond import Cond, CondShape
from sfumato.core.network import Network
from sfumato.errors import UserError
from sfumato.nn import fused
from sfumato.nn.attention import CrossAttention, SelfAttention
from sfumato.nn.embed import NoiseEmbedding, absolute_positions, grid_positions, rope_table
from sfumato.nn.layers import check_input, check_positive, check_shape, gelu_linear, zero
from sfumato.nn.perturbed import Perturbed, check_blocks
from sfumato.nn.refine import Refiner
from sfumato.nn.sizes import Size, hidden_width, sized
from sfumato.nn.split import Split, TokenNetwork


def modulate(x: Tensor, shift: Tensor, scale: Tensor) -> Tensor:
    """LN(x) (1 + scale) + shift, the norm without weights of its own. x: (B, N, C); shift, scale: (B, C)."""
    if fused.takes_tokens(x, shift, scale):
        return fused.gate_norm(x, None, None, scale, shift)[1]
    return torch.addcmul(shift[:, None], F.layer_norm(x, x.shape[-1:], eps=1e-6), 1 + scale[:, None])


def add_gated(x: Tensor, branch: Tensor, gate: Tensor) -> Tensor:
    """x + gate branch. x, branch: (B, N, C); gate: (B, C)."""
    if fused.takes_tokens(x, branch, gate):
        return fused.gate_norm(x, branch, gate, None, None)[0]
    return torch.addcmul(x, gate[:, None], branch)


def add_gated_modulate(x: Tensor, branch: Tensor, gate: Tensor, shift: Tensor, scale: Tensor) -> tuple[Tensor, Tensor]:
    """`add_gated`, and `modulate` of it: (x', LN(x') (1 + scale) + shift)."""
    if fused.takes_tokens(x, branch, gate, shift, scale):
        return fused.gate_norm(x, branch, gate, scale, shift)
    x = add_gated(x, branch, gate)
    return x, modulate(x, shift, scale)


class DiTBlock(nn.Module):
    """Attention, cross-attention where the condition has tokens, and an MLP, modulated by the noise level (adaLN-zero).

        x = x + g1 Attention(modulate(x, b1, s1));  x = x + Cross(LN(x), tokens);  x = x + g2 MLP(modulate(x, b2, s2))

    with mod = (b1, s1, g1, b2, s2, g2) = W e + b, W = b = 0 at the start, so that every block starts as the identity.
    x: (B, N, C); mod: (B, 6 C); real: (B, N), True for tokens of x that may be looked at; split: as in `SelfAttention`.
    Peebles & Xie, "DiT", 2022, section 3.2; cross-attention as in PixArt-alpha.
    """

    def __init__(self, width: int, heads: int, tokens: int, hidden: int, qk_norm: bool, dropout: float) -> None:
        super().__init__()
        self.attention = SelfAttention(width, heads, qk_norm=qk_norm, zero_out=False)
        self.cross_norm = nn.LayerNorm(width, eps=1e-6) if tokens else None
        self.cross = CrossAttention(width, tokens, heads, qk_norm=qk_norm) if tokens else None
        self.mlp_in = nn.Linear(width, hidden)
        self.mlp_out = nn.Linear(hidden, width)
        self.drop = nn.Dropout(dropout) if dropout else nn.Identity()

    def forward(
        self,
        x: Tensor,
        mod: Tensor,
        rope: Tensor | None,
        tokens: Tensor | None = None,
        mask: Tensor | None = None,
        identity: bool = False,
        real: Tensor | None = None,
        split: Split | None = None,
    ) -> Tensor:
        b1, s1, g1, b2, s2, g2 = mod.chunk(6, -1)
        attended = self.attention(modulate(x, b1, s1), rope, real, identity=identity, split=split)
        if self.cross is not None and self.cross_norm is not None and tokens is not None:
            x = add_gated(x, self.drop(attended), g1)
            x = x + self.cross(self.cross_norm(x), tokens, mask)
            y = modulate(x, b2, s2)
        else:
            x, y = add_gated_modulate(x, self.drop(attended), g1, b2, s2)
        return add_gated(x, self.drop(self.mlp_out(gelu_linear(self.mlp_in, y))), g2)


class PatchNetwork(TokenNetwork, ABC):
    """How a transformer over patches begins and ends. What a subclass sets is explained there."""

    patch: tuple[int, ...]
    stem: nn.Linear
    head: nn.Linear
    absolute: bool
    rotary: bool
    head_dim: int
    rope_base: float

    def enter(self, x: Tensor, cond: Cond) -> tuple[Tensor, Tensor | None, tuple[int, ...], Split | None]:
        """x (B, C, *S) to its tokens (B, N, width), the table that turns queries and keys, the grid of patches, and how
        the tokens are shared by several processes, if they are: then they are this process's."""
        if cond.concat is not None:
            x = torch.cat([x, cond.concat.to(x.dtype)], 1)
        tokens, grid = patchify(x, self.patch)
        places, split = grid_positions(grid, x.device), self.split(tokens.shape[1])
        if split is not None:
            tokens, places = split.own(tokens), split.own(places, 0)
        h = self.stem(tokens.to(self.stem.weight.dtype))
        positions = places.to(torch.promote_types(h.dtype, torch.float32))
        if self.absolute:
            h = h + absolute_positions(positions, h.shape[-1]).to(h.dtype)
        return h, rope_table(positions, self.head_dim, self.rope_base) if self.rotary else None, grid, split

    def leave(self, h: Tensor, mod: Tensor, grid: tuple[int, ...], size: torch.Size, split: Split | None) -> Tensor:
        """Tokens (B, N, width), modulated by mod (B, 2 width) for the last time, to the field (B, outputs C, *size)."""
        out = self.head(modulate(h, *mod.chunk(2, -1)))
        out = out if split is None else split.together(out)
        return unpatchify(out, self.patch, grid, size)


class DiT(PatchNetwork, name="dit"):
    """Diffusion transformer over patches, for (C, L), (C, H, W) and (C, D, H, W) of any size.

    size: xs, s, b, l or xl, one dial for width, depth and heads (192, 6, 6 to 1152, 28, 16); each of them can be set.
    width: channels of a token; depth: blocks; heads: attention heads, width / heads channels each; mlp_ratio: hidden
    width of the MLP over `width`; the next multiple of 16 is taken.
    patch: side of a patch along every axis, or one number an axis. Sizes that it does not divide are padded with zeros
    at the end and the output is cropped.
    qk_norm: RMS norm of queries and keys. rope_base: the slowest rotary wavelength is 2 pi times about this many
    patches. absolute: also add fixed sinusoids of the position to the tokens (rotary positions alone are relative).
    rotary: without it and `absolute` the network knows no positions: with patch=1 it treats tokens as a set.
    refine: channels of convolutions at full resolution behind the blocks (`Refiner`), for patches of more numbers than tokens
    are wide: without them such a network can't even copy its input. 0 for none, else at least 4.
    outputs: fields given, each of C channels; a learned variance is a second one and sets it.

    A condition's `tokens` are attended to in every block; `vector` joins the noise embedding; `concat` joins the input.
    Output: (B, outputs C, *S), exactly 0 at initialisation. Cost: 24 depth width^2 + 4 depth N width operations a token.
    Peebles & Xie, "Scalable Diffusion Models with Transformers", 2022; Su et al., "RoFormer", 2021.
    """

    regional = True  # its blocks gain from torch.compile, one compilation for all

    def __init__(
        self,
        shape: tuple[int, ...],
        cond: CondShape,
        *,
        size: Size = "xs",
        width: int | None = None,
        depth: int | None = None,
        heads: int | None = None,
        patch: int | tuple[int, ...] = 2,
        mlp_ratio: float = 4.0,
        qk_norm: bool = True,
        rope_base: float = 100.0,
        absolute: bool = True,
        rotary: bool = True,
        dropout: float = 0.0,
        refine: int = 0,
        outputs: int = 1,
    ) -> None:
        super().__init__()
        width, depth, heads = sized(size, width, depth, heads)
        hidden = hidden_width(width, mlp_ratio)
        sides = check_transformer("dit", shape, width, heads, patch, dropout, rope_base)
        check_positive("dit", depth=depth, mlp_width=hidden, outputs=outputs)
        self.shape, self.cond, self.patch = tuple(shape), cond, sides
        self.heads, self.head_dim, self.rope_base, self.absolute = heads, width // heads, rope_base, absolute
        self.rotary = rotary
        cells = math.prod(sides)
        self.embed = NoiseEmbedding(width, width, cond.vector)
        self.stem = nn.Linear((shape[0] + cond.concat) * cells, width)
        self.layers = nn.ModuleList(DiTBlock(width, heads, cond.tokens, hidden, qk_norm, dropout) for _ in range(depth))
        for module in self.modules():
            if isinstance(module, DiTBlock):
                for linear in (module.attention.qkv, module.attention.out, module.mlp_in, module.mlp_out):
                    nn.init.xavier_uniform_(linear.weight)
                    nn.init.zeros_(linear.bias)
        # One product for all blocks' modulation, and the head's, instead of a small one in each.
        self.mod_widths = [6 * width] * depth + [2 * width]
        self.modulation = zero(nn.Linear(width, sum(self.mod_widths)))
        self.head = zero(nn.Linear(width, outputs * shape[0] * cells))
        self.refiner: Refiner | None = None
        if refine:
            if refine < 4:
                raise UserError(f"dit: refine = {refine} must be at least 4 channels, or 0 for none; 16 is usual")
            self.refiner = Refiner(len(shape) - 1, shape[0] + cond.concat, outputs * shape[0], refine, width)

    @property
    def blocks(self) -> list[DiTBlock]:
        """The repeated blocks in the order in which they run: units for compilation, checkpointing and sharding."""
        return [layer for layer in self.layers if isinstance(layer, DiTBlock)]

    def perturbed(self, blocks: Sequence[int] | None = None) -> Network:
        """This network with identity self-attention in `blocks` (the middle one), its weights shared."""
        every = range(len(self.layers))
        return Perturbed(self, check_blocks("dit", blocks, (len(every) // 2,), every))

    def forward(
        self, x: Tensor, noise: Tensor, cond: Cond | None = None, identity: Collection[int] = frozenset()
    ) -> Tensor:
        check_input(x, noise, cond, self.shape, self.cond)
        cond = cond if cond is not None else Cond()
        h, rope, grid, split = self.enter(x, cond)
        e = self.embed(noise, cond.vector)
        *mods, last = self.modulation(e).split(self.mod_widths, 1)
        for i, (block, mod) in enumerate(zip(self.layers, mods)):
            h = block(h, mod, rope, cond.tokens, cond.mask, i in identity, split=split)
        out = self.leave(h, last, grid, x.shape[2:], split)
        if self.refiner is None:
            return out
        seen = x if cond.concat is None else torch.cat([x, cond.concat.to(x.dtype)], 1)
        refined: Tensor = self.refiner(seen, out, e)
        return refined


def patchify(x: Tensor, patch: tuple[int, ...]) -> tuple[Tensor, tuple[int, ...]]:
    """(B, C, *S) to tokens (B, N, C prod(patch)) and the grid of patches; zeros at the end where S is not divisible."""
    batch, channels, *size = x.shape
    grid = tuple(-(-n // p) for n, p in zip(size, patch))
    short = [g * p - n for n, p, g in zip(size, patch, grid)]
    if any(short):
        x = F.pad(x, [e for s in reversed(short) for e in (0, s)])
    dims = len(patch)
    x = x.reshape(batch, channels, *[n for pair in zip(grid, patch) for n in pair])
    x = x.permute(0, *range(2, 2 + 2 * dims, 2), 1, *range(3, 3 + 2 * dims, 2))
    return x.reshape(batch, math.prod(grid), channels * math.prod(patch)), grid


def unpatchify(tokens: Tensor, patch: tuple[int, ...], grid: tuple[int, ...], size: torch.Size) -> Tensor:
    """The inverse of `patchify`, cropped to `size`."""
    dims = len(patch)
    x = tokens.reshape(len(tokens), *grid, -1, *patch)
    order = [n for a in range(dims) for n in (1 + a, 2 + dims + a)]
    x = x.permute(0, 1 + dims, *order).reshape(len(tokens), -1, *[g * p for g, p in zip(grid, patch)])
    for axis, n in enumerate(size, start=2):
        x = x.narrow(axis, 0, n)
    return x.contiguous()


def check_transformer(
    name: str,
    shape: tuple[int, ...],
    width: int,
    heads: int,
    patch: int | tuple[int, ...],
    dropout: float,
    rope_base: float,
) -> tuple[int, ...]:
    """The sides of a patch along every axis. Raises UserError for settings that no transformer over patches can have."""
    check_shape(shape, name)
    dims = len(shape) - 1
    sides = (patch,) * dims if isinstance(patch, int) else tuple(patch)
    if len(sides) != dims:
        raise UserError(f"{name}: patch = {sides} has {len(sides)} entries for {dims} dimensions; give one, or {dims}")
    check_positive(name, width=width, heads=heads, patch=min(sides))
    _check_heads(name, width, heads)
    if not 0 <= dropout < 1:
        raise UserError(f"{name}: dropout = {dropout} must be at least 0 and below 1")
    if rope_base <= 1:
        raise UserError(f"{name}: rope_base = {rope_base} must be above 1")
    return sides


def _check_heads(name: str, width: int, heads: int) -> None:
    fitting = [h for h in range(1, width // 2 + 1) if width % h == 0 and (width // h) % 2 == 0]
    if heads not in fitting:
        nearest = min(fitting, key=lambda h: abs(h - heads)) if fitting else None
        remedy = f"use heads={nearest}, or another width" if nearest else "use an even width"
        raise UserError(
            f"{name}: heads = {heads} does not split width = {width} into heads of an even number of channels; {remedy}"
        )
