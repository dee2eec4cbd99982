"""Group normalisation with what follows it: scale and shift from the noise level, and SiLU."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.autograd import forward_ad
from torch.nn import functional as F

from sfumato.nn import fused


class GroupNorm(nn.GroupNorm):
    """SiLU(GN(x) (1 + scale) + shift), each of scale, shift and SiLU optional. scale, shift: (B, C).

    Wu & He, "Group Normalization", 2018; scale and shift of Dhariwal & Nichol, "Diffusion Models Beat GANs", 2021, 4.3.
    """

    def forward(self, x: Tensor, scale: Tensor | None = None, shift: Tensor | None = None, act: bool = False) -> Tensor:
        if scale is None and fused.fits(x, x):
            return fused.group_norm(self, x, act)
        if not torch.compiler.is_compiling() and forward_ad.unpack_dual(x).tangent is not None:  # type: ignore[no-untyped-call]
            x = x.contiguous()  # torch's forward-mode formula for group norm takes no other memory layout
        y = F.group_norm(x, self.num_groups, self.weight, self.bias, self.eps)
        if scale is not None and shift is not None:
            wide = (*scale.shape, *[1] * (x.ndim - 2))
            y = torch.addcmul(shift.view(wide), y, 1 + scale.view(wide))
        # y is ours alone: without gradients to keep it for, it is written over.
        return F.silu(y, inplace=not torch.is_grad_enabled()) if act else y
