"""The critic of reconstructions: patches judged real or made."""

from __future__ import annotations

from typing import final

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn import functional as F

from sfumato.nn.layers import apply_conv, check_positive, check_shape, conv, norm_groups, to_inner
from sfumato.nn.norm import GroupNorm
from sfumato.registry import Registered


class Critic(nn.Module, Registered, family="critic"):
    """x (B, C, *S) to numbers (B, 1, *s), one a patch: the higher, the more like data. Built as `Critic(shape, *, ...)`."""


@final
class PatchCritic(Critic, name="patch"):
    """Convolutions of kernel 4 and stride 2 with group norm, one number a patch; of 1, 2 and 3 dimensions.

    width: channels after the first; each layer has twice as many, up to 8 times. layers: with stride 2; a patch is
    of about 2^(layers + 2) positions a side, 34 for 3 layers. A smaller field gets fewer.
    Isola et al., "Image-to-Image Translation with Conditional Adversarial Networks", 2017, section 3.2.2.
    """

    def __init__(self, shape: tuple[int, ...], *, width: int = 64, layers: int = 3) -> None:
        super().__init__()
        check_shape(shape, "critic patch")
        check_positive("critic patch", width=width, layers=layers)
        dims, at = len(shape) - 1, width
        while layers > 1 and min(shape[1:]) < 2 ** (layers + 1):
            layers -= 1
        self.first = conv(dims, shape[0], width, kernel=4, stride=2)
        self.convs, self.norms = nn.ModuleList(), nn.ModuleList()
        for layer in range(1, layers + 1):
            wider = width * min(2**layer, 8)
            self.convs.append(conv(dims, at, wider, kernel=4, stride=2 if layer < layers else 1))
            self.norms.append(GroupNorm(norm_groups(wider, None), wider))
            at = wider
        self.last = conv(dims, at, 1, kernel=3)

    def forward(self, x: Tensor) -> Tensor:
        h = F.leaky_relu(apply_conv(self.first, to_inner(x).to(self.first.weight.dtype)), 0.2)
        for layer, norm in zip(self.convs, self.norms):
            h = F.leaky_relu(norm(apply_conv(layer, h)), 0.2)  # type: ignore[arg-type]
        return apply_conv(self.last, h).float()


def unlearning(module: nn.Module, x: Tensor) -> Tensor:
    """module(x) whose gradient reaches x and none of the module's weights: how one network learns from another one's view."""
    still = {name: p.detach() for name, p in module.named_parameters()}
    out: Tensor = functional_call(module, still, (x,))
    return out


def hinge(real: Tensor, made: Tensor) -> Tensor:
    """The critic's loss, mean max(0, 1 - D(x)) + max(0, 1 + D(made)), each sample alone (B,). Lim & Ye 2017, eq. 7."""
    return 0.5 * (F.relu(1 - real) + F.relu(1 + made)).flatten(1).mean(1)


@torch.no_grad()
def adaptive_weight(reconstruction: Tensor, adversarial: Tensor, most: float = 1e4) -> Tensor:
    """|d L_rec / d w| / (|d L_adv / d w| + 1e-6) for the last layer's weights w, at most `most`: (). Gradients are given.

    Esser et al., "Taming Transformers for High-Resolution Image Synthesis", 2021, eq. 7.
    """
    ratio: Tensor = torch.linalg.vector_norm(reconstruction) / (torch.linalg.vector_norm(adversarial) + 1e-6)
    return ratio.clamp(max=most)
