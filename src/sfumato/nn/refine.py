"""Convolutions at full resolution behind a transformer over patches."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from sfumato.nn.layers import apply_conv, conv, to_inner, zero
from sfumato.nn.unet import ResBlock


class Refiner(nn.Module):
    """out + head((1 + g) res(stem([x, out]), m)), convolutions on a network's input x (B, K, *S) and output out (B, M, *S).

    What no token can carry, for a patch has more numbers than the tokens are wide, is seen here as it is: neighbours across
    patches too, and x itself, which at little noise is nearly what is asked for and at much noise is of no use. So all of it
    is gated by the noise level e (B, embed): (m, g) = W e, for each channel. res: a residual block of the U-Net. W and the
    head are zero at the start, so that out comes back as it is.
    """

    def __init__(self, dims: int, inputs: int, outputs: int, width: int, embed: int) -> None:
        super().__init__()
        self.stem = conv(dims, inputs + outputs, width)
        self.res = ResBlock(dims, width, width, None, 0.0, "scale_shift")
        self.modulation = zero(nn.Linear(embed, self.res.mod_width + width))
        self.head = zero(conv(dims, width, outputs))

    def forward(self, x: Tensor, out: Tensor, e: Tensor) -> Tensor:
        mod, gate = self.modulation(e).split([self.res.mod_width, self.head.in_channels], 1)
        h = self.res(apply_conv(self.stem, to_inner(torch.cat([x.to(out.dtype), out], 1))), mod)
        h = apply_conv(self.head, h * (1 + gate).view(*gate.shape, *[1] * (h.ndim - 2)))
        return out + (h.squeeze(2) if out.ndim == 3 else h)
