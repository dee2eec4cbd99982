"""The peers' networks: `UNet2DModel` of diffusers, and DiT-XL/2 as its paper describes it.

The U-Net has the shape of google/ddpm-cifar10-32; the transformer is written here from the paper (Peebles & Xie, "Scalable
Diffusion Models with Transformers", 2022).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import cast, final

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from benchmarks._gpu import SHAPES, Kind, Sizes


def peer_unet(size: Sizes) -> nn.Module:
    """diffusers' `UNet2DModel` with the settings published as google/ddpm-cifar10-32."""
    from diffusers import UNet2DModel

    levels, build = range(len(size.unet_mults)), cast(Callable[..., nn.Module], UNet2DModel)
    down = ["AttnDownBlock2D" if i == size.unet_attention else "DownBlock2D" for i in levels]
    return build(
        sample_size=32,
        in_channels=3,
        out_channels=3,
        block_out_channels=tuple(size.unet_width * m for m in size.unet_mults),
        layers_per_block=2,
        down_block_types=tuple(down),
        up_block_types=tuple(name.replace("Down", "Up") for name in reversed(down)),
        attention_head_dim=None,
        norm_num_groups=size.unet_groups,
        norm_eps=1e-6,
        act_fn="silu",
        freq_shift=1,
        flip_sin_to_cos=False,
        downsample_padding=0,
        dropout=0.0,
    )


def peer_one_image(kind: Kind, size: Sizes) -> tuple[nn.Module, Callable[[], Tensor]]:
    """For `count`: a peer's network on torch's default device, and a call of it for one image."""
    x, k = torch.empty(1, *SHAPES[kind]), torch.empty(1)
    if kind == "unet":
        unet = peer_unet(size)
        return unet, lambda: unet(x, k, return_dict=False)[0]
    dit = PaperDiT(size)
    label = torch.empty(1, dtype=torch.int64)
    return dit, lambda: dit(x, k, label)


def waves(values: Tensor, width: int) -> Tensor:
    """cos and sin of each value at width / 2 frequencies from 1 down to 1/10000. (N,) to (N, width), float32."""
    half = width // 2
    rates = torch.exp(-math.log(10_000) / half * torch.arange(half, dtype=torch.float32, device=values.device))
    angles = values.float()[:, None] * rates
    return torch.cat([angles.cos(), angles.sin()], 1)


@final
class PaperBlock(nn.Module):
    """A transformer block with adaptive layer norm: 6 vectors from the condition shift, scale and gate both halves."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm = nn.LayerNorm(width, 1e-6, elementwise_affine=False)
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.wide, self.narrow = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)
        self.condition = nn.Sequential(nn.SiLU(), nn.Linear(width, 6 * width))

    def forward(self, x: Tensor, c: Tensor) -> Tensor:
        shift1, scale1, gate1, shift2, scale2, gate2 = self.condition(c)[:, None].chunk(6, -1)
        x = x + gate1 * self.attention(self.norm(x) * (1 + scale1) + shift1)
        hidden = F.gelu(self.wide(self.norm(x) * (1 + scale2) + shift2), approximate="tanh")
        made: Tensor = x + gate2 * self.narrow(hidden)
        return made

    def attention(self, x: Tensor) -> Tensor:
        split = self.qkv(x).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        mixed = F.scaled_dot_product_attention(*split.unbind(0))
        made: Tensor = self.out(mixed.transpose(1, 2).flatten(2))
        return made


@final
class PaperDiT(nn.Module):
    """DiT with adaLN-zero, sections 3.1 and 3.2 of its paper. Gives 2 C channels: eps, and where its variance lies.

    x: (B, C, side, side); k: (B,) timesteps 0 ... 999; label: (B,) of 0 ... classes, the last being "no class".
    """

    positions: Tensor

    def __init__(self, size: Sizes) -> None:
        super().__init__()
        (channels, side, _), width, patch = SHAPES["dit"], size.dit_width, size.dit_patch
        self.patch, self.grid = patch, side // patch
        self.stem = nn.Conv2d(channels, width, patch, patch)
        self.time = nn.Sequential(nn.Linear(256, width), nn.SiLU(), nn.Linear(width, width))
        self.label = nn.Embedding(size.classes + 1, width)
        self.layers = nn.ModuleList(PaperBlock(width, size.dit_heads) for _ in range(size.dit_depth))
        self.norm = nn.LayerNorm(width, 1e-6, elementwise_affine=False)
        self.condition = nn.Sequential(nn.SiLU(), nn.Linear(width, 2 * width))
        self.head = nn.Linear(width, 2 * channels * patch * patch)
        at = torch.arange(self.grid)
        rows, columns = at.repeat_interleave(self.grid), at.repeat(self.grid)
        self.register_buffer("positions", torch.cat([waves(p, width // 2) for p in (columns, rows)], 1)[None])
        self.start()

    def start(self) -> None:
        """Matrices by Xavier, embeddings small, and zeros in the gates and the head: every block is the identity."""
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.xavier_uniform_(module.weight)
                nn.init.zeros_(module.bias)
        nn.init.xavier_uniform_(self.stem.weight.view(len(self.stem.weight), -1))
        for name, parameter in self.named_parameters():
            if name in ("label.weight", "time.0.weight", "time.2.weight"):
                nn.init.normal_(parameter, std=0.02)
        gates = [m[1] for m in self.modules() if isinstance(m, nn.Sequential) and isinstance(m[0], nn.SiLU)]
        for parameter in nn.ModuleList([*gates, self.head]).parameters():
            nn.init.zeros_(parameter)

    def forward(self, x: Tensor, k: Tensor, label: Tensor) -> Tensor:
        h = self.stem(x).flatten(2).transpose(1, 2)
        h = h + self.positions.to(h.dtype)
        c = self.time(waves(k, 256).to(self.label.weight.dtype)) + self.label(label)
        for layer in self.layers:
            h = layer(h, c)
        shift, scale = self.condition(c)[:, None].chunk(2, -1)
        h = self.head(self.norm(h) * (1 + scale) + shift)
        h = h.unflatten(1, (self.grid, self.grid)).unflatten(-1, (self.patch, self.patch, -1))
        made: Tensor = h.permute(0, 5, 1, 3, 2, 4).flatten(4).flatten(2, 3)
        return made
