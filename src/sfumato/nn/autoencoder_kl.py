"""The autoencoder of latent diffusion as diffusers stores it (`AutoencoderKL`), so that trained weights can be used.

Modules have the names of that format's tensors: a file's weights are loaded as they are.
Rombach et al., "High-Resolution Image Synthesis with Latent Diffusion Models", 2022, appendix E.1.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import final

from torch import Tensor, nn
from torch.nn import functional as F

from sfumato.nn.attention import attend
from sfumato.nn.autoencoder import Autoencoder
from sfumato.nn.bottleneck import KL
from sfumato.nn.layers import apply_conv, check_shape, conv, norm_groups, to_field, to_inner, to_tokens
from sfumato.nn.norm import GroupNorm

_EPS = 1e-6  # of that network's norms


def _norm(channels: int, groups: int) -> GroupNorm:
    return GroupNorm(norm_groups(channels, groups), channels, eps=_EPS)


class _Residual(nn.Module):
    def __init__(self, inputs: int, outputs: int, groups: int) -> None:
        super().__init__()
        self.norm1, self.conv1 = _norm(inputs, groups), conv(2, inputs, outputs)
        self.norm2, self.conv2 = _norm(outputs, groups), conv(2, outputs, outputs)
        self.conv_shortcut = conv(2, inputs, outputs, kernel=1) if inputs != outputs else None

    def forward(self, x: Tensor) -> Tensor:
        h = apply_conv(self.conv2, self.norm2(apply_conv(self.conv1, self.norm1(x, act=True)), act=True))
        return h + (x if self.conv_shortcut is None else apply_conv(self.conv_shortcut, x))


class _Attention(nn.Module):
    """Self-attention over all positions with one head."""

    def __init__(self, channels: int, groups: int) -> None:
        super().__init__()
        self.group_norm = _norm(channels, groups)
        self.to_q, self.to_k, self.to_v = (nn.Linear(channels, channels) for _ in range(3))
        self.to_out = nn.ModuleList([nn.Linear(channels, channels)])

    def forward(self, x: Tensor) -> Tensor:
        tokens = to_tokens(self.group_norm(x))
        q, k, v = (layer(tokens).unsqueeze(1) for layer in (self.to_q, self.to_k, self.to_v))
        return x + to_field(self.to_out[0](attend(q, k, v)), x.shape[2:])


class _Down(nn.Module):
    """Stride 2 with one row and column of zeros after the last."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, 2)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.conv(F.pad(x, (0, 1, 0, 1)))
        return out


class _Up(nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = conv(2, channels, channels)

    def forward(self, x: Tensor) -> Tensor:
        return apply_conv(self.conv, F.interpolate(x, scale_factor=2.0, mode="nearest"))


class _Middle(nn.Module):
    def __init__(self, channels: int, groups: int, attention: bool) -> None:
        super().__init__()
        self.resnets = nn.ModuleList(_Residual(channels, channels, groups) for _ in range(2))
        self.attentions = nn.ModuleList([_Attention(channels, groups)] if attention else [])

    def forward(self, x: Tensor) -> Tensor:
        x = self.resnets[0](x)
        for attention in self.attentions:
            x = attention(x)
        out: Tensor = self.resnets[1](x)
        return out


class _Level(nn.Module):
    def __init__(self, inputs: int, outputs: int, layers: int, groups: int, change: str) -> None:
        super().__init__()
        made = [_Residual(inputs if i == 0 else outputs, outputs, groups) for i in range(layers)]
        self.resnets = nn.ModuleList(made)
        self.downsamplers = nn.ModuleList([_Down(outputs)] if change == "down" else [])
        self.upsamplers = nn.ModuleList([_Up(outputs)] if change == "up" else [])

    def forward(self, x: Tensor) -> Tensor:
        for module in (*self.resnets, *self.downsamplers, *self.upsamplers):
            x = module(x)
        return x


class _Encoder(nn.Module):
    def __init__(
        self, inputs: int, outputs: int, widths: Sequence[int], layers: int, groups: int, attend: bool
    ) -> None:
        super().__init__()
        self.conv_in = conv(2, inputs, widths[0])
        before, last = [widths[0], *widths], len(widths) - 1
        self.down_blocks = nn.ModuleList(
            _Level(before[i], w, layers, groups, "down" if i < last else "") for i, w in enumerate(widths)
        )
        self.mid_block = _Middle(widths[-1], groups, attend)
        self.conv_norm_out, self.conv_out = _norm(widths[-1], groups), conv(2, widths[-1], outputs)

    def forward(self, x: Tensor) -> Tensor:
        h = apply_conv(self.conv_in, to_inner(x).to(self.conv_in.weight.dtype))
        for module in (*self.down_blocks, self.mid_block):
            h = module(h)
        return apply_conv(self.conv_out, self.conv_norm_out(h, act=True))


class _Decoder(nn.Module):
    def __init__(
        self, inputs: int, outputs: int, widths: Sequence[int], layers: int, groups: int, attend: bool
    ) -> None:
        super().__init__()
        self.conv_in = conv(2, inputs, widths[-1])
        falling = list(reversed(widths))
        before, last = [falling[0], *falling], len(widths) - 1
        self.up_blocks = nn.ModuleList(
            _Level(before[i], w, layers + 1, groups, "up" if i < last else "") for i, w in enumerate(falling)
        )
        self.mid_block = _Middle(widths[-1], groups, attend)
        self.conv_norm_out, self.conv_out = _norm(widths[0], groups), conv(2, widths[0], outputs)

    def forward(self, z: Tensor) -> Tensor:
        h = apply_conv(self.conv_in, to_inner(z).to(self.conv_in.weight.dtype))
        for module in (self.mid_block, *self.up_blocks):
            h = module(h)
        return apply_conv(self.conv_out, self.conv_norm_out(h, act=True))


@final
class AutoencoderKL(Autoencoder, name="autoencoder-kl"):
    """diffusers' `AutoencoderKL` for pictures, equal to it within rounding (tests/nn/test_autoencoder_import.py).

    channels: of the latent. widths: of the levels, each half the size of the one before. layers: residual blocks a level.
    quant, post_quant: 1x1 convolutions beside the latent. attention: in the middle. weight: of the KL term in training.
    Made by `codec=FOLDER` of such a folder; a new one is better made as `conv`, which needs a fifth of the operations.
    """

    def __init__(
        self,
        shape: tuple[int, ...],
        *,
        channels: int = 4,
        widths: tuple[int, ...] = (128, 256, 512, 512),
        layers: int = 2,
        groups: int = 32,
        quant: bool = True,
        post_quant: bool = True,
        attention: bool = True,
        inputs: int = 3,
        weight: float = 1e-6,
    ) -> None:
        super().__init__()
        check_shape(shape, "autoencoder-kl")
        self.shape, self.channels, self.factor = (inputs, *shape[1:]), channels, 2 ** (len(widths) - 1)
        self.bottleneck = KL(channels, weight=weight)
        self.encoder = _Encoder(inputs, 2 * channels, widths, layers, groups, attention)
        self.decoder = _Decoder(channels, inputs, widths, layers, groups, attention)
        self.quant_conv = conv(2, 2 * channels, 2 * channels, kernel=1) if quant else None
        self.post_quant_conv = conv(2, channels, channels, kernel=1) if post_quant else None

    @property
    def last(self) -> nn.Module:
        return self.decoder.conv_out

    def hidden(self, x: Tensor) -> Tensor:
        h: Tensor = self.encoder(x)
        return h if self.quant_conv is None else apply_conv(self.quant_conv, h)

    def made(self, z: Tensor) -> Tensor:
        if self.post_quant_conv is not None:
            z = apply_conv(self.post_quant_conv, z.to(self.post_quant_conv.weight.dtype))
        out: Tensor = self.decoder(z)
        return out.float()
