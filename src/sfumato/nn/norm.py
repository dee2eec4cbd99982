"""Group normalisation with what follows it: scale and shift from the noise level, and SiLU."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class GroupNorm(nn.GroupNorm):
    """SiLU(GN(x) (1 + scale) + shift), each of scale, shift and SiLU optional. scale, shift: (B, C).

    Wu & He, "Group Normalization", 2018; scale and shift of Dhariwal & Nichol, "Diffusion Models Beat GANs", 2021, 4.3.
    """

    def forward(self, x: Tensor, scale: Tensor | None = None, shift: Tensor | None = None, act: bool = False) -> Tensor:
        y = F.group_norm(x, self.num_groups, self.weight, self.bias, self.eps)
        if scale is not None and shift is not None:
            wide = (*scale.shape, *[1] * (x.ndim - 2))
            y = torch.addcmul(shift.view(wide), y, 1 + scale.view(wide))
        return F.silu(y) if act else y
