"""A diffusion transformer with two streams, patches and a condition's tokens, for 1, 2 and 3 dimensions."""

from __future__ import annotations

import math
from collections.abc import Collection, Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from sfumato.core.cond import Cond, CondShape
from sfumato.core.network import Network
from sfumato.errors import UserError
from sfumato.nn.attention import SelfAttention, attend, rms_norm
from sfumato.nn.dit import DiTBlock, PatchNetwork, add_gated, add_gated_modulate, check_transformer, modulate
from sfumato.nn.embed import NoiseEmbedding
from sfumato.nn.layers import apply_linear, check_input, check_positive, gelu_linear, zero
from sfumato.nn.perturbed import Perturbed, check_blocks
from sfumato.nn.sizes import Size, hidden_width, sized
from sfumato.nn.split import Split


class Stream(nn.Module):
    """One stream's own half of a joint block: its projections for attention and its MLP, with its own modulation.

    x: (B, N, C); mod: six parts (B, C) as in `DiTBlock`.
    """

    def __init__(self, width: int, heads: int, hidden: int, qk_norm: bool, dropout: float) -> None:
        super().__init__()
        self.attention = SelfAttention(width, heads, qk_norm=qk_norm, zero_out=False)
        self.mlp_in = nn.Linear(width, hidden)
        self.mlp_out = nn.Linear(hidden, width)
        self.drop = nn.Dropout(dropout) if dropout else nn.Identity()
        for linear in (self.attention.qkv, self.attention.out, self.mlp_in, self.mlp_out):
            nn.init.xavier_uniform_(linear.weight)
            nn.init.zeros_(linear.bias)

    def parts(self, x: Tensor, mod: Sequence[Tensor], rope: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
        """Queries, keys and values (B, heads, N, D)."""
        return self.attention.parts(modulate(x, mod[0], mod[1]), rope)

    def after(self, x: Tensor, mixed: Tensor, mod: Sequence[Tensor]) -> Tensor:
        """The residual steps, from what attention has given: (B, N, C)."""
        branch = self.drop(apply_linear(self.attention.out, mixed))
        x, y = add_gated_modulate(x, branch, mod[2], mod[3], mod[4])
        return add_gated(x, self.drop(self.mlp_out(gelu_linear(self.mlp_in, y))), mod[5])


class Listened(nn.Module):
    """The condition's half of a joint block after which nobody asks for its tokens: keys and values alone."""

    def __init__(self, width: int, heads: int, qk_norm: bool) -> None:
        super().__init__()
        self.heads = heads
        self.kv = nn.Linear(width, 2 * width)
        self.k_scale = nn.Parameter(torch.ones(width // heads)) if qk_norm else None
        nn.init.xavier_uniform_(self.kv.weight)
        nn.init.zeros_(self.kv.bias)

    def parts(self, x: Tensor, mod: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
        """Keys and values (B, heads, L, D). mod: two parts (B, C)."""
        kv = apply_linear(self.kv, modulate(x, mod[0], mod[1]))
        k, v = (part.transpose(1, 2) for part in kv.view(*kv.shape[:2], 2, self.heads, -1).unbind(2))
        return rms_norm(k, self.k_scale), v


class MMDiTBlock(nn.Module):
    """Attention of both streams to both, everything else with weights of each stream's own (adaLN-zero).

        q, k, v = [q_c; q_x], [k_c; k_x], [v_c; v_x];   [a_c; a_x] = Attention(q, k, v)
        x = x + g1 W_x a_x;  x = x + g2 MLP_x(modulate(x, b2, s2));   c likewise with W_c, MLP_c and its modulation

    x: (B, N, C) patches, turned by `rope`; c: (B, L, C) tokens of a condition, not turned, mask (B, L).
    mod: (B, 12 C), six parts for x and six for c; (B, 8 C) in the last joint block if none follows, which gives c as it was;
    (B, 6 C) without a condition's tokens. identity: patches look at themselves and at c alone. split: how c and x lie on
    several processes, of which this one is given its tokens, and the mask of all.
    Esser et al., "Scaling Rectified Flow Transformers for High-Resolution Image Synthesis" (SD3), 2024, figure 2b.
    """

    def __init__(
        self, width: int, heads: int, hidden: int, qk_norm: bool, dropout: float, *, tokens: bool, last: bool
    ) -> None:
        super().__init__()
        self.patches = Stream(width, heads, hidden, qk_norm, dropout)
        self.words = Stream(width, heads, hidden, qk_norm, dropout) if tokens and not last else None
        self.listened = Listened(width, heads, qk_norm) if tokens and last else None
        self.mod_width = width * (6 if not tokens else 8 if last else 12)

    def forward(
        self,
        x: Tensor,
        c: Tensor | None,
        mod: Tensor,
        rope: Tensor,
        mask: Tensor | None,
        identity: bool = False,
        split: Split | None = None,
    ) -> tuple[Tensor, Tensor | None]:
        mods = mod.chunk(mod.shape[-1] // x.shape[-1], -1)
        q, k, v = self.patches.parts(x, mods[:6], rope)
        length = 0 if c is None else c.shape[1]
        asks = False
        if self.listened is not None and c is not None:
            more_k, more_v = self.listened.parts(c, mods[6:])
            k, v = torch.cat([more_k, k], 2), torch.cat([more_v, v], 2)
        elif self.words is not None and c is not None:
            more_q, more_k, more_v = self.words.parts(c, mods[6:], None)
            q, k, v = torch.cat([more_q, q], 2), torch.cat([more_k, k], 2), torch.cat([more_v, v], 2)
            asks = True
        before, patches = (length, x.shape[1]) if split is None else (split.count - split.last.count, split.last.count)
        mixed = attend(q, k, v, _allowed(mask, before, patches, asks, identity, x.device), split)
        if self.words is not None and c is not None and asks:
            c = self.words.after(c, mixed[:, :length], mods[6:])
            mixed = mixed[:, length:]
        return self.patches.after(x, mixed, mods[:6]), c


def _allowed(
    mask: Tensor | None, length: int, patches: int, asks: bool, identity: bool, device: torch.device
) -> Tensor | None:
    """What may be looked at in a joint block, as `attend` takes it. asks: whether c has queries too."""
    seen = None if mask is None or not length else F.pad(mask, (0, patches), value=True)
    if not identity:
        return seen
    own = torch.eye(patches, dtype=torch.bool, device=device)
    allowed = F.pad(own, (length, 0, length if asks else 0, 0), value=True)[None, None]
    return allowed if seen is None else allowed & seen[:, None, None]


class MMDiT(PatchNetwork, name="mmdit"):
    """Diffusion transformer in which a condition's tokens are a stream of their own, beside that of the patches.

    Both attend to both; each has its own weights, twice as many as a `dit` of the same width and depth. For (C, L), (C, H, W)
    and (C, D, H, W) of any size.

    size: xs, s, b, l or xl, one dial for width, depth and heads, as in `dit`; each of them can be set.
    depth: joint blocks; single: blocks after them in which one set of weights serves the tokens of both streams (FLUX).
    patch, mlp_ratio, qk_norm, rope_base, absolute, dropout, outputs: as in `dit`. Tokens of the condition have no rotary
    position: their encoder has told them theirs, and the patches see them at no distance.

    A condition's `tokens` are normalised and mapped to the width; masked ones change nothing. `vector` joins the noise
    embedding; `concat` joins the input. Without tokens it is a `dit`, weight for weight.
    Output: (B, outputs C, *S), exactly 0 at initialisation. Cost: 24 depth width^2 operations a token of either stream, and
    4 depth (N + L) width for the attention of N patches and L tokens.
    Esser et al., "Scaling Rectified Flow Transformers" (SD3), 2024, https://arxiv.org/abs/2403.03206
    """

    regional = True

    def __init__(
        self,
        shape: tuple[int, ...],
        cond: CondShape,
        *,
        size: Size = "xs",
        width: int | None = None,
        depth: int | None = None,
        heads: int | None = None,
        single: int = 0,
        patch: int | tuple[int, ...] = 2,
        mlp_ratio: float = 4.0,
        qk_norm: bool = True,
        rope_base: float = 100.0,
        absolute: bool = True,
        dropout: float = 0.0,
        outputs: int = 1,
    ) -> None:
        super().__init__()
        width, depth, heads = sized(size, width, depth, heads)
        hidden = hidden_width(width, mlp_ratio)
        sides = check_transformer("mmdit", shape, width, heads, patch, dropout, rope_base)
        check_positive("mmdit", depth=depth, mlp_width=hidden, outputs=outputs)
        if single < 0:
            raise UserError(f"mmdit: single = {single} must be a number of blocks, at least 0")
        self.shape, self.cond, self.patch = tuple(shape), cond, sides
        self.heads, self.head_dim, self.rope_base, self.absolute = heads, width // heads, rope_base, absolute
        self.rotary = True
        cells = math.prod(sides)
        self.embed = NoiseEmbedding(width, width, cond.vector)
        self.stem = nn.Linear((shape[0] + cond.concat) * cells, width)
        self.words_norm = nn.LayerNorm(cond.tokens) if cond.tokens else None
        self.words = nn.Linear(cond.tokens, width) if cond.tokens else None
        self.joint = nn.ModuleList(
            MMDiTBlock(
                width, heads, hidden, qk_norm, dropout, tokens=bool(cond.tokens), last=i == depth - 1 and not single
            )
            for i in range(depth)
        )
        self.single = nn.ModuleList(DiTBlock(width, heads, 0, hidden, qk_norm, dropout) for _ in range(single))
        for block in self.single:
            assert isinstance(block, DiTBlock)
            for linear in (block.attention.qkv, block.attention.out, block.mlp_in, block.mlp_out):
                nn.init.xavier_uniform_(linear.weight)
                nn.init.zeros_(linear.bias)
        of_joint = [block.mod_width for block in self.joint if isinstance(block, MMDiTBlock)]
        # One product for all blocks' modulation, and the head's, instead of a small one in each.
        self.mod_widths = [*of_joint, *[6 * width] * single, 2 * width]
        self.modulation = zero(nn.Linear(width, sum(self.mod_widths)))
        self.head = zero(nn.Linear(width, outputs * shape[0] * cells))

    @property
    def blocks(self) -> list[nn.Module]:
        """The repeated blocks in the order in which they run: units for compilation, checkpointing and sharding."""
        return [*self.joint, *self.single]

    def perturbed(self, blocks: Sequence[int] | None = None) -> Network:
        """This network with patches that see themselves and the condition alone in joint `blocks` (the middle one)."""
        every = range(len(self.joint))
        return Perturbed(self, check_blocks("mmdit", blocks, (len(every) // 2,), every))

    def forward(
        self, x: Tensor, noise: Tensor, cond: Cond | None = None, identity: Collection[int] = frozenset()
    ) -> Tensor:
        check_input(x, noise, cond, self.shape, self.cond)
        cond = cond if cond is not None else Cond()
        h, rope, grid, patches = self.enter(x, cond)
        assert rope is not None  # patches have their places here
        split = patches
        c = None
        if self.words is not None and self.words_norm is not None and cond.tokens is not None:
            words = self.split(cond.tokens.shape[1])
            told = cond.tokens if words is None else words.own(cond.tokens)
            split = None if split is None else split.after(words)
            c = self.words(self.words_norm(told.to(self.words.weight.dtype)))
        *mods, last = self.modulation(self.embed(noise, cond.vector)).split(self.mod_widths, 1)
        for i, (block, mod) in enumerate(zip(self.joint, mods)):
            h, c = block(h, c, mod, rope, cond.mask, i in identity, split=split)
        h = self._shared(h, c, mods[len(self.joint) :], rope, cond.mask, split)
        return self.leave(h, last, grid, x.shape[2:], patches)

    def _shared(
        self,
        h: Tensor,
        c: Tensor | None,
        mods: Sequence[Tensor],
        rope: Tensor,
        mask: Tensor | None,
        split: Split | None,
    ) -> Tensor:
        """The blocks that serve both streams, as one row of tokens; only the patches come back."""
        if not len(self.single):
            return h
        length, patches = (0 if c is None else c.shape[1]), h.shape[1] if split is None else split.lengths[-1]
        if c is not None:
            h = torch.cat([c, h], 1)
            still = rope.new_zeros(2, length, rope.shape[-1])
            still[0] = 1  # cosine 1 and sine 0: no turn
            rope = torch.cat([still, rope], 1)
        seen = None if mask is None or c is None else F.pad(mask, (0, patches), value=True)
        for block, mod in zip(self.single, mods):
            h = block(h, mod, rope, real=seen, split=split)
        return h[:, length:]
