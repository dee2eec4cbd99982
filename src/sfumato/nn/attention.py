"""Attention over tokens (B, N, C): to themselves and to a condition's tokens."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel

from sfumato.nn.embed import rotate
from sfumato.nn.layers import apply_linear, as_is, zero
from sfumato.nn.split import Split

# cuDNN's backward pass on Hopper scores the empty part of its last tile of keys 0, not -inf: where all logits of a query
# are below -88 that overflows, and gradients are NaN (pytorch/pytorch issue 196678). Full tiles have no such part.
_TILE = 128
_WITHOUT_CUDNN = [SDPBackend.FLASH_ATTENTION, SDPBackend.EFFICIENT_ATTENTION, SDPBackend.MATH]


def attend(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None = None, split: Split | None = None) -> Tensor:
    """softmax(q k^T / sqrt(D)) v: q (B, heads, N, D), k and v (B, heads, L, D), mask (B, L), returns (B, N, heads D).

    mask: or (B or 1, 1, N, L), what each query may look at. split: how the keys lie on several processes, of which this one
    gives and gets its tokens; queries have all of its rows, or the last. The mask is that of all tokens.
    """
    asking = split
    if split is not None:
        if q.shape[2] == k.shape[2]:
            q, k, v = split.by_heads(q, k, v)
        else:
            asking = split.last
            (q,), (k, v) = asking.by_heads(q), split.by_heads(k, v)
    allowed = mask[:, None, None, :] if mask is not None and mask.ndim == 2 else mask
    mixed = _product(q, k, v, allowed).transpose(1, 2).flatten(2)
    return mixed if asking is None else asking.by_tokens(mixed)


def _product(q: Tensor, k: Tensor, v: Tensor, allowed: Tensor | None) -> Tensor:
    """PyTorch's attention, by any of its kernels but cuDNN's where that one's gradients can be NaN."""
    if q.is_cuda and torch.is_grad_enabled() and k.shape[2] % _TILE:
        with sdpa_kernel(_WITHOUT_CUDNN):
            return F.scaled_dot_product_attention(q, k, v, attn_mask=allowed)
    return F.scaled_dot_product_attention(q, k, v, attn_mask=allowed)


def rms_norm(x: Tensor, scale: Tensor | None) -> Tensor:
    """x / sqrt(mean(x^2) + 1e-6) * scale over the last axis, in the type of x; unchanged without a scale.

    The mean is summed in float32 either way; autocast (of torch 2.13, not of 2.11) would keep x and the output in it too.
    """
    if scale is None:
        return x
    with as_is(x):
        return F.rms_norm(x, x.shape[-1:], scale.to(x.dtype), 1e-6)


class SelfAttention(nn.Module):
    """Multi-head attention of tokens to themselves; optional rotary positions and RMS-normalised queries and keys.

    x: (B, N, C); rope: (2, N, head_dim // 2) from `rope_table`; mask: (B, N) bool, True where a token is real.
    split: several processes share the tokens: x and rope are this one's, the mask is that of all.
    identity: every token looks at itself alone, out = W v, whatever q and k are (perturbed attention, Ahn et al. 2024).
    qk_norm: Henry et al., "Query-Key Normalization", 2020, with the RMS norm of Dehghani et al., "ViT-22B", 2023.
    The output projection starts at zero when `zero_out`.
    """

    def __init__(self, width: int, heads: int, *, qk_norm: bool = False, zero_out: bool = True) -> None:
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(width, 3 * width)
        self.q_scale = nn.Parameter(torch.ones(width // heads)) if qk_norm else None
        self.k_scale = nn.Parameter(torch.ones(width // heads)) if qk_norm else None
        self.out = nn.Linear(width, width)
        if zero_out:
            zero(self.out)

    def forward(
        self,
        x: Tensor,
        rope: Tensor | None = None,
        mask: Tensor | None = None,
        identity: bool = False,
        beside: Tensor | None = None,
        split: Split | None = None,
    ) -> Tensor:
        """beside: (B, N, C) to which the result is added."""
        return apply_linear(self.out, self._mixed(x, rope, mask, identity, split), beside)

    def _mixed(
        self, x: Tensor, rope: Tensor | None, mask: Tensor | None, identity: bool, split: Split | None
    ) -> Tensor:
        """All heads side by side, before the output projection: (B, N, C)."""
        qkv = apply_linear(self.qkv, x)
        if identity:
            return qkv[..., 2 * x.shape[-1] :]
        return attend(*self._heads(qkv, rope), mask, split)

    def parts(self, x: Tensor, rope: Tensor | None = None) -> tuple[Tensor, Tensor, Tensor]:
        """Queries, keys and values (B, heads, N, D) of tokens, normalised and turned: for attention among several streams."""
        return self._heads(apply_linear(self.qkv, x), rope)

    def _heads(self, qkv: Tensor, rope: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
        batch, n, _ = qkv.shape
        # unbind before transposing: the gradient is then put together in the order in which qkv lies in memory
        q, k, v = (part.transpose(1, 2) for part in qkv.view(batch, n, 3, self.heads, -1).unbind(2))  # (B, heads, N, D)
        q, k = rms_norm(q, self.q_scale), rms_norm(k, self.k_scale)
        if rope is not None:
            q, k = rotate(q, rope), rotate(k, rope)
        return q, k, v


class CrossAttention(nn.Module):
    """Multi-head attention of tokens x (B, N, C) to a condition's tokens (B, L, Dc).

    One learned key and value is always visible beside the condition's: a head can look at nothing, and a sample whose
    tokens are all masked out gets a finite answer. The output projection starts at zero.
    """

    def __init__(self, width: int, tokens: int, heads: int, *, qk_norm: bool = False) -> None:
        super().__init__()
        self.heads = heads
        self.norm = nn.LayerNorm(tokens)
        self.q = nn.Linear(width, width)
        self.kv = nn.Linear(tokens, 2 * width)
        self.nothing = nn.Parameter(torch.zeros(2 * width))
        self.q_scale = nn.Parameter(torch.ones(width // heads)) if qk_norm else None
        self.k_scale = nn.Parameter(torch.ones(width // heads)) if qk_norm else None
        self.out = zero(nn.Linear(width, width))

    def forward(self, x: Tensor, tokens: Tensor, mask: Tensor | None = None, beside: Tensor | None = None) -> Tensor:
        batch, n, _ = x.shape
        q = self.q(x).view(batch, n, self.heads, -1).transpose(1, 2)
        kv = self.kv(self.norm(tokens.to(self.norm.weight.dtype)))
        kv = torch.cat([self.nothing.to(kv.dtype).expand(batch, 1, -1), kv], 1)
        k, v = (part.transpose(1, 2) for part in kv.view(batch, kv.shape[1], 2, self.heads, -1).unbind(2))
        q, k = rms_norm(q, self.q_scale), rms_norm(k, self.k_scale)
        seen = attend(q, k, v, None if mask is None else F.pad(mask, (1, 0), value=True))
        return apply_linear(self.out, seen, beside)
