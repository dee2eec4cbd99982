"""The deep-compression autoencoder as diffusers stores it (`AutoencoderDC`), so that trained weights can be used.

Modules have the names of that format's tensors: a file's weights are loaded as they are.
Chen et al., "Deep Compression Autoencoder for Efficient High-Resolution Diffusion Models", 2024; its blocks with linear
attention: Cai et al., "EfficientViT: Multi-Scale Linear Attention", 2023.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import nullcontext
from typing import Any, final

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from sfumato.errors import UserError
from sfumato.nn.autoencoder import Autoencoder, fold, matched, unfold
from sfumato.nn.bottleneck import Plain
from sfumato.nn.layers import check_shape, to_inner

_ACTS: dict[str, Callable[[Tensor], Tensor]] = {"relu": F.relu, "silu": F.silu, "relu6": F.relu6}
_TWO = (2, 2)
_EPS = 1e-15  # of the sum that attention divides by


class _RmsNorm(nn.Module):
    """x / rms(x) weight + bias over channels; x: (B, C, *S)."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.weight, self.bias = nn.Parameter(torch.ones(channels)), nn.Parameter(torch.zeros(channels))

    def forward(self, x: Tensor) -> Tensor:
        last = x.movedim(1, -1).float()
        normed = last * torch.rsqrt(last.square().mean(-1, keepdim=True) + 1e-5)
        return (normed.to(x.dtype) * self.weight + self.bias).movedim(-1, 1)


def _norm(name: str, channels: int) -> nn.Module:
    return nn.BatchNorm2d(channels) if name == "batch_norm" else _RmsNorm(channels)


class _Residual(nn.Module):
    def __init__(self, width: int, norm: str, act: str) -> None:
        super().__init__()
        self.conv1, self.conv2 = nn.Conv2d(width, width, 3, 1, 1), nn.Conv2d(width, width, 3, 1, 1, bias=False)
        self.norm, self.act = _norm(norm, width), _ACTS[act]

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.norm(self.conv2(self.act(self.conv1(x))))
        return out + x


class _Gathered(nn.Module):
    """Queries, keys and values of a neighbourhood of `kernel` positions a side."""

    def __init__(self, width: int, heads: int, kernel: int) -> None:
        super().__init__()
        n = 3 * width
        self.proj_in = nn.Conv2d(n, n, kernel, padding=kernel // 2, groups=n, bias=False)
        self.proj_out = nn.Conv2d(n, n, 1, groups=3 * heads, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.proj_out(self.proj_in(x))
        return out


class _LinearAttention(nn.Module):
    """v (relu(k)^T relu(q)) / sum, at several scales: cost linear in the positions."""

    def __init__(self, width: int, head_dim: int, kernels: Sequence[int], norm: str) -> None:
        super().__init__()
        heads = width // head_dim
        inner, self.head_dim = heads * head_dim, head_dim
        self.to_q, self.to_k, self.to_v = (nn.Linear(width, inner, bias=False) for _ in range(3))
        self.to_qkv_multiscale = nn.ModuleList(_Gathered(inner, heads, kernel) for kernel in kernels)
        self.to_out = nn.Linear(inner * (1 + len(kernels)), width, bias=False)
        self.norm_out = _norm(norm, width)

    def forward(self, x: Tensor) -> Tensor:
        last = x.movedim(1, -1)
        qkv = torch.cat([self.to_q(last), self.to_k(last), self.to_v(last)], -1).movedim(-1, 1)
        scales = torch.cat([qkv, *(module(qkv) for module in self.to_qkv_multiscale)], 1)
        whole = torch.autocast("cuda", enabled=False) if x.is_cuda else nullcontext()
        with whole:  # sums over all positions
            rows = scales.float().reshape(len(x), -1, 3 * self.head_dim, x.shape[2] * x.shape[3])
            q, k, v = rows.chunk(3, 2)
            q, k = F.relu(q), F.relu(k)
            total = k.sum(-1).unsqueeze(2) @ q
            seen = (v @ k.transpose(2, 3)) @ q / (total + _EPS)
        field = seen.reshape(len(x), -1, *x.shape[2:]).to(x.dtype)
        out: Tensor = self.norm_out(self.to_out(field.movedim(1, -1)).movedim(-1, 1))
        return out + x


class _Gated(nn.Module):
    """A gated pair of 1x1 and depthwise convolutions, four times as wide inside."""

    def __init__(self, width: int) -> None:
        super().__init__()
        inner = 8 * width
        self.conv_inverted = nn.Conv2d(width, inner, 1)
        self.conv_depth = nn.Conv2d(inner, inner, 3, 1, 1, groups=inner)
        self.conv_point = nn.Conv2d(inner // 2, width, 1, bias=False)
        self.norm = _RmsNorm(width)

    def forward(self, x: Tensor) -> Tensor:
        h, gate = self.conv_depth(F.silu(self.conv_inverted(x))).chunk(2, 1)
        out: Tensor = self.norm(self.conv_point(h * F.silu(gate)))
        return out + x


class _ViTBlock(nn.Module):
    def __init__(self, width: int, head_dim: int, kernels: Sequence[int], norm: str) -> None:
        super().__init__()
        self.attn, self.conv_out = _LinearAttention(width, head_dim, kernels, norm), _Gated(width)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.conv_out(self.attn(x))
        return out


class _Down(nn.Module):
    """Half the size; beside it, with a shortcut, averages of the channels that a block of positions makes."""

    def __init__(self, inputs: int, outputs: int, folded: bool, shortcut: bool) -> None:
        super().__init__()
        self.outputs, self.folded, self.shortcut = outputs, folded, shortcut
        self.conv = nn.Conv2d(inputs, outputs // 4 if folded else outputs, 3, 1 if folded else 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        h: Tensor = self.conv(x)
        h = fold(h, _TWO) if self.folded else h
        return h + matched(fold(x, _TWO), self.outputs) if self.shortcut else h


class _Up(nn.Module):
    def __init__(self, inputs: int, outputs: int, folded: bool, shortcut: bool) -> None:
        super().__init__()
        self.outputs, self.folded, self.shortcut = outputs, folded, shortcut
        self.conv = nn.Conv2d(inputs, 4 * outputs if folded else outputs, 3, 1, 1)

    def forward(self, x: Tensor) -> Tensor:
        if self.folded:
            h = unfold(self.conv(x), _TWO)
        else:
            h = self.conv(F.interpolate(x, scale_factor=2.0, mode="nearest"))
        return h + unfold(matched(x, 4 * self.outputs), _TWO) if self.shortcut else h


class _Half(nn.Module):
    """An encoder or a decoder: modules under that format's names."""


@final
class AutoencoderDC(Autoencoder, name="autoencoder-dc"):
    """diffusers' `AutoencoderDC` for pictures, equal to it within rounding (tests/nn/test_autoencoder_import.py).

    channels: of the latent. encoder_*, decoder_*: widths, number and type (`res` or `vit`) of blocks by level, and kernels of
    the neighbourhoods that attention sees at each (0: none; one number a level). folded_down, folded_up: sizes change by
    re-ordering channels instead of strides and interpolation. Made by `codec=FOLDER` of such a folder; a new deep-compression
    autoencoder, of any dimension, is `conv` with factor=32.
    """

    def __init__(
        self,
        shape: tuple[int, ...],
        *,
        channels: int = 32,
        encoder_widths: tuple[int, ...] = (128, 256, 512, 512, 1024, 1024),
        decoder_widths: tuple[int, ...] = (128, 256, 512, 512, 1024, 1024),
        encoder_layers: tuple[int, ...] = (2, 2, 2, 3, 3, 3),
        decoder_layers: tuple[int, ...] = (3, 3, 3, 3, 3, 3),
        encoder_blocks: tuple[str, ...] = ("res",) * 6,
        decoder_blocks: tuple[str, ...] = ("res",) * 6,
        encoder_kernels: tuple[int, ...] = (0, 0, 0, 5, 5, 5),
        decoder_kernels: tuple[int, ...] = (0, 0, 0, 5, 5, 5),
        decoder_norms: tuple[str, ...] = ("rms_norm",) * 6,
        decoder_acts: tuple[str, ...] = ("silu",) * 6,
        folded_down: bool = True,
        folded_up: bool = True,
        encoder_shortcut: bool = True,
        decoder_shortcut: bool = True,
        decoder_act: str = "relu",
        head_dim: int = 32,
        inputs: int = 3,
    ) -> None:
        super().__init__()
        check_shape(shape, "autoencoder-dc")
        for act in (*decoder_acts, decoder_act):
            if act not in _ACTS:
                raise UserError(f"autoencoder-dc: the activation '{act}' is not known; known: {', '.join(_ACTS)}")
        levels = len(encoder_widths)
        self.shape, self.channels, self.factor = (inputs, *shape[1:]), channels, 2 ** (levels - 1)
        self.bottleneck = Plain(channels)
        self.encoder_shortcut, self.decoder_shortcut, self.decoder_act = encoder_shortcut, decoder_shortcut, decoder_act

        def block(kind: str, width: int, kernel: int, norm: str, act: str) -> nn.Module:
            return (
                _ViTBlock(width, head_dim, (kernel,) if kernel else (), norm)
                if kind == "vit"
                else _Residual(width, norm, act)
            )

        self.encoder: Any = _Half()
        widths, layers = encoder_widths, encoder_layers
        self.encoder.conv_in = _ends(
            widths, layers, lambda w: nn.Conv2d(inputs, w, 3, 1, 1), lambda w: _Down(inputs, w, folded_down, False)
        )
        rows = []
        for i, (width, count) in enumerate(zip(widths, layers)):
            row = [block(encoder_blocks[i], width, encoder_kernels[i], "rms_norm", "silu") for _ in range(count)]
            if i < levels - 1 and count:
                row.append(_Down(width, widths[i + 1], folded_down, True))
            rows.append(nn.Sequential(*row))
        self.encoder.down_blocks = nn.ModuleList(rows)
        self.encoder.conv_out = nn.Conv2d(widths[-1], channels, 3, 1, 1)

        self.decoder: Any = _Half()
        widths, layers = decoder_widths, decoder_layers
        self.decoder.conv_in = nn.Conv2d(channels, widths[-1], 3, 1, 1)
        rows = []
        for i, (width, count) in enumerate(zip(widths, layers)):
            row = [_Up(widths[i + 1], width, folded_up, True)] if i < levels - 1 and count else []
            made = [
                block(decoder_blocks[i], width, decoder_kernels[i], decoder_norms[i], decoder_acts[i])
                for _ in range(count)
            ]
            rows.append(nn.Sequential(*row, *made))
        self.decoder.up_blocks = nn.ModuleList(rows)
        self.decoder.norm_out = _RmsNorm(widths[0] if layers[0] else widths[1])
        self.decoder.conv_out = _ends(
            widths, layers, lambda w: nn.Conv2d(w, inputs, 3, 1, 1), lambda w: _Up(w, inputs, folded_up, False)
        )

    @property
    def last(self) -> nn.Module:
        made: nn.Module = self.decoder.conv_out
        return made.conv if isinstance(made, _Up) else made

    def hidden(self, x: Tensor) -> Tensor:
        h = self.encoder.conv_in(to_inner(x))
        for row in self.encoder.down_blocks:
            h = row(h)
        out: Tensor = self.encoder.conv_out(h)
        return out + matched(h, self.channels) if self.encoder_shortcut else out

    def made(self, z: Tensor) -> Tensor:
        z = to_inner(z)
        h = self.decoder.conv_in(z)
        if self.decoder_shortcut:
            h = h + matched(z, h.shape[1])
        for row in reversed(self.decoder.up_blocks):
            h = row(h)
        out: Tensor = self.decoder.conv_out(_ACTS[self.decoder_act](self.decoder.norm_out(h)))
        return out.float()


def _ends(
    widths: Sequence[int],
    layers: Sequence[int],
    whole: Callable[[int], nn.Module],
    changing: Callable[[int], nn.Module],
) -> nn.Module:
    """The first layer of an encoder or the last of a decoder: the finest level may have no blocks and be skipped."""
    return whole(widths[0]) if layers[0] else changing(widths[1])
