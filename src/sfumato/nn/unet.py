"""A U-Net for 1, 2 and 3 dimensions."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from sfumato.core.cond import Cond, CondShape
from sfumato.core.network import Network
from sfumato.errors import UserError
from sfumato.nn import fused
from sfumato.nn.attention import CrossAttention, SelfAttention
from sfumato.nn.embed import NoiseEmbedding, absolute_positions, grid_positions
from sfumato.nn.layers import (
    apply_conv,
    as_is,
    check_input,
    check_positive,
    check_shape,
    conv,
    head_count,
    norm_groups,
    to_field,
    to_inner,
    to_tokens,
    zero,
)
from sfumato.nn.norm import GroupNorm
from sfumato.nn.perturbed import Perturbed, check_blocks

Modulation = Literal["scale_shift", "shift"]

# With `attention=None`: attend at every level of at most this many positions (16 x 16, as DDPM does).
_AUTO_POSITIONS = 256


class ResBlock(nn.Module):
    """h = conv(SiLU(GN(x))); out = shortcut(x) + conv(SiLU(GN(h) (1 + scale) + shift)), the last conv starts at zero.

    With modulation `shift` the noise level is added to h before its norm instead (the DDPM block).
    mod: (B, 2 C_out) for `scale_shift`, (B, C_out) for `shift`.
    """

    def __init__(
        self, dims: int, inputs: int, outputs: int, groups: int | None, dropout: float, modulation: Modulation
    ) -> None:
        super().__init__()
        self.norm1 = GroupNorm(norm_groups(inputs, groups), inputs)
        self.conv1 = conv(dims, inputs, outputs)
        self.norm2 = GroupNorm(norm_groups(outputs, groups), outputs)
        self.drop = nn.Dropout(dropout) if dropout else None
        self.conv2 = zero(conv(dims, outputs, outputs))
        self.shortcut = nn.Linear(inputs, outputs) if inputs != outputs else None
        self.mod_width = outputs if modulation == "shift" else 2 * outputs

    def forward(self, x: Tensor, mod: Tensor, skip: Tensor | None = None) -> Tensor:
        """skip: more channels of the input, after those of x."""
        whole = skip is None or self.shortcut is not None
        if whole and fused.fits(x, self.conv1.weight):
            drop = self.drop.p if self.drop is not None and self.training else 0.0
            return fused.res_block(
                x, skip, mod, (self.norm1, self.norm2), (self.conv1, self.conv2), self.shortcut, drop
            )
        x = x if skip is None else torch.cat([x, skip], 1)
        h = self.conv1(self.norm1(x, act=True))
        if mod.shape[1] == h.shape[1]:
            h = self.norm2(h + mod.view(*mod.shape, *[1] * (x.ndim - 2)), act=True)
        else:
            h = self.norm2(h, *mod.chunk(2, 1), act=True)
        if self.drop is not None:
            h = self.drop(h)
        if self.shortcut is not None:  # a 1 x 1 convolution; as a matrix product its backward pass is 10% quicker
            x = to_field(self.shortcut(to_tokens(x)), x.shape[2:])
        out: Tensor = self.conv2(h) + x
        return out


class FieldAttention(nn.Module):
    """Self-attention over all positions of a field, then cross-attention to the condition's tokens, both residual."""

    def __init__(self, channels: int, tokens: int, heads: int, groups: int | None, qk_norm: bool = False) -> None:
        super().__init__()
        self.norm = GroupNorm(norm_groups(channels, groups), channels)
        self.attention = SelfAttention(channels, heads, qk_norm=qk_norm)
        self.cross_norm = GroupNorm(norm_groups(channels, groups), channels) if tokens else None
        self.cross = CrossAttention(channels, tokens, heads, qk_norm=qk_norm) if tokens else None

    def forward(self, x: Tensor, tokens: Tensor | None, mask: Tensor | None, identity: bool = False) -> Tensor:
        size = x.shape[2:]
        x = to_field(self.attention(to_tokens(self.norm(x)), identity=identity, beside=to_tokens(x)), size)
        if self.cross is not None and self.cross_norm is not None and tokens is not None:
            x = to_field(self.cross(to_tokens(self.cross_norm(x)), tokens, mask, beside=to_tokens(x)), size)
        return x


class Block(nn.Module):
    """A residual block and, at the levels that have it, attention: the repeated part of the U-Net."""

    def __init__(self, res: ResBlock, attention: FieldAttention | None) -> None:
        super().__init__()
        self.res = res
        self.attention = attention

    def forward(
        self,
        x: Tensor,
        mod: Tensor,
        skip: Tensor | None = None,
        tokens: Tensor | None = None,
        mask: Tensor | None = None,
        identity: bool = False,
    ) -> Tensor:
        x = self.res(x, mod, skip)
        if self.attention is not None:
            x = self.attention(x, tokens, mask, identity)
        return x


class Down(nn.Module):
    """Half the size, rounded up: convolution of stride 2."""

    def __init__(self, dims: int, channels: int) -> None:
        super().__init__()
        self.conv = conv(dims, channels, channels, stride=2)

    def forward(self, x: Tensor) -> Tensor:
        return apply_conv(self.conv, x)


class Up(nn.Module):
    """Twice the size by nearest neighbour, cropped to the size of the skip that it will meet, then a convolution."""

    def __init__(self, dims: int, channels: int) -> None:
        super().__init__()
        self.factors = (1, 2) if dims == 1 else (2,) * dims
        self.conv = conv(dims, channels, channels)

    def forward(self, x: Tensor, size: torch.Size) -> Tensor:
        doubled = tuple(n * f for n, f in zip(x.shape[2:], self.factors)) == size
        if doubled and fused.fits(x, self.conv.weight):
            whole = fused.conv_enlarged(self.conv, x, self.factors)
            if whole is not None:
                return whole
        with as_is(x):  # it copies values, and autocast would make them float32 first
            x = F.interpolate(x, scale_factor=tuple(map(float, self.factors)), mode="nearest")
        if x.shape[2:] != size:
            for axis, n in enumerate(size, start=2):
                x = x.narrow(axis, 0, n)
            x = to_inner(x)
        return apply_conv(self.conv, x)


class UNet(Network, name="unet"):
    """U-Net with residual blocks, attention and skip connections, for (C, L), (C, H, W) and (C, D, H, W) of any size.

    width: channels of the finest level; mults: channels of level i are width * mults[i], each level half the size of
    the one before, rounded up (what goes up again is cropped to the skip it meets, so that odd sizes need no padding).
    blocks: residual blocks a level on the way down (one more on the way up).
    attention: levels with attention, 0 the finest; None: every level of at most 256 positions.
    middle_attention: attention in the middle block, at the coarsest level.
    head_dim: channels of an attention head; None: the widest of at most 64 that divides the level's channels.
    qk_norm: RMS norm of queries and keys, which keeps attention from growing sharper and sharper at high rates.
    groups: groups of every group norm; None: at most 32, with at least 8 channels in each.
    modulation: how the noise level and the condition's vector enter a block: `scale_shift` after its second norm, or
    `shift` before it (Ho et al., 2020).
    absolute: fixed sinusoids of the position, through a learned layer, join the coarsest level. Without them the network
    feels where it is by the border alone, which does not reach the middle of a long signal: that a sound ends after so many
    seconds can't be learned there.
    outputs: fields given, each of C channels; a learned variance is a second one and sets it.

    A condition's `tokens` are attended to wherever there is attention; `vector` joins the noise embedding; `concat`
    joins the input. Output: (B, outputs C, *S), exactly 0 at initialisation.
    Ronneberger et al., "U-Net", 2015; Ho et al., "DDPM", 2020, appendix B; Dhariwal & Nichol, 2021.
    """

    def __init__(
        self,
        shape: tuple[int, ...],
        cond: CondShape,
        *,
        width: int = 64,
        mults: tuple[int, ...] = (1, 2, 2),
        blocks: int = 2,
        attention: tuple[int, ...] | None = None,
        middle_attention: bool = True,
        head_dim: int | None = None,
        qk_norm: bool = False,
        groups: int | None = None,
        dropout: float = 0.0,
        modulation: Modulation = "scale_shift",
        absolute: bool = False,
        outputs: int = 1,
    ) -> None:
        super().__init__()
        check_shape(shape, "unet")
        check_positive(
            "unet",
            width=width,
            blocks=blocks,
            groups=groups or 1,
            levels=len(mults),
            mults=min(mults, default=1),
            outputs=outputs,
        )
        if not 0 <= dropout < 1:
            raise UserError(f"unet: dropout = {dropout} must be at least 0 and below 1")
        self.shape, self.cond = tuple(shape), cond
        dims, levels = len(shape) - 1, len(mults)
        attends = _attention_levels(shape[1:], levels, attention)
        if cond.tokens and not attends and not middle_attention:
            raise UserError(
                "unet: the condition has tokens but no level has attention to read them; "
                "name a level in `attention` or set middle_attention=True"
            )
        channels, given = [width * m for m in mults], outputs * shape[0]
        emb = 4 * width

        def block(inputs: int, outputs: int, attend: bool) -> Block:
            res = ResBlock(dims, inputs, outputs, groups, dropout, modulation)
            heads = head_count(outputs, head_dim) if attend else 1
            return Block(res, FieldAttention(outputs, cond.tokens, heads, groups, qk_norm) if attend else None)

        self.embed = NoiseEmbedding(width, emb, cond.vector)
        self.stem = conv(dims, shape[0] + cond.concat, width)
        self.down, self.shrink, skips, at = nn.ModuleList(), nn.ModuleList(), [width], width
        for level, outputs in enumerate(channels):
            for _ in range(blocks):
                self.down.append(block(at, outputs, level in attends))
                skips.append(at := outputs)
            if level < levels - 1:
                self.shrink.append(Down(dims, at))
                skips.append(at)
        self.place = nn.Linear(at, at) if absolute else None
        self.middle = nn.ModuleList([block(at, at, middle_attention), block(at, at, False)])
        self.up, self.grow = nn.ModuleList(), nn.ModuleList()
        for level, outputs in reversed(list(enumerate(channels))):
            for _ in range(blocks + 1):
                self.up.append(block(at + skips.pop(), outputs, level in attends))
                at = outputs
            if level:
                self.grow.append(Up(dims, at))
        self.norm = GroupNorm(norm_groups(at, groups), at)
        self.head = zero(conv(dims, at, given))
        self.per_level = blocks
        # One product for all blocks' modulation instead of a small one in each.
        self.mod_widths = [b.res.mod_width for b in self.blocks]
        self.modulation = nn.Linear(emb, sum(self.mod_widths))

    @property
    def blocks(self) -> list[Block]:
        """The repeated blocks in the order in which they run: units for compilation, checkpointing and sharding."""
        return [b for part in (self.down, self.middle, self.up) for b in part if isinstance(b, Block)]

    def perturbed(self, blocks: Sequence[int] | None = None) -> Network:
        """This network with identity self-attention in `blocks` (the middle one), counted as in `self.blocks`."""
        attending = [i for i, block in enumerate(self.blocks) if block.attention is not None]
        usual = [i for i in attending if i == len(self.down)]
        return Perturbed(self, check_blocks("unet", blocks, usual, attending))

    def forward(
        self, x: Tensor, noise: Tensor, cond: Cond | None = None, identity: Collection[int] = frozenset()
    ) -> Tensor:
        check_input(x, noise, cond, self.shape, self.cond)
        cond = cond if cond is not None else Cond()
        split = self.modulation(self.embed(noise, cond.vector)).split(self.mod_widths, 1)
        mods = iter([(mod, i in identity) for i, mod in enumerate(split)])
        if cond.concat is not None:
            x = torch.cat([x, cond.concat.to(x.dtype)], 1)
        h = apply_conv(self.stem, to_inner(x))
        h, skips = self._descend(h, mods, cond)
        if self.place is not None:
            grid = h.shape[-(len(self.shape) - 1) :]  # 1-D fields have a height of 1 in here
            places = absolute_positions(grid_positions(grid, h.device), h.shape[1])
            h = h + to_field(self.place(places.to(h.dtype))[None], h.shape[2:])
        for block in self.middle:
            mod, alone = next(mods)
            h = block(h, mod, None, cond.tokens, cond.mask, alone)
        h = self._ascend(h, skips, mods, cond)
        out = apply_conv(self.head, self.norm(h, act=True))
        return out.squeeze(2) if len(self.shape) == 2 else out

    def _descend(self, h: Tensor, mods: Iterator[tuple[Tensor, bool]], cond: Cond) -> tuple[Tensor, list[Tensor]]:
        skips = [h]
        for i, block in enumerate(self.down):
            if i and i % self.per_level == 0:
                h = self.shrink[i // self.per_level - 1](h)
                skips.append(h)
            mod, alone = next(mods)
            h = block(h, mod, None, cond.tokens, cond.mask, alone)
            skips.append(h)
        return h, skips

    def _ascend(self, h: Tensor, skips: list[Tensor], mods: Iterator[tuple[Tensor, bool]], cond: Cond) -> Tensor:
        for i, block in enumerate(self.up):
            if i and i % (self.per_level + 1) == 0:
                h = self.grow[i // (self.per_level + 1) - 1](h, skips[-1].shape[2:])
            mod, alone = next(mods)
            h = block(h, mod, skips.pop(), cond.tokens, cond.mask, alone)
        return h


def _attention_levels(size: tuple[int, ...], levels: int, asked: tuple[int, ...] | None) -> set[int]:
    if asked is not None:
        for level in asked:
            if not 0 <= level < levels:
                raise UserError(
                    f"unet: attention level {level} does not exist; with {levels} entries in mults the levels are "
                    f"0 (finest) to {levels - 1}"
                )
        return set(asked)
    chosen = set()
    for level in range(levels):
        positions = 1
        for n in size:
            positions *= -(-n // 2**level)
        if positions <= _AUTO_POSITIONS:
            chosen.add(level)
    return chosen
