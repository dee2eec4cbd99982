"""Perturbed attention guidance: away from what the network believes when its tokens can't see one another."""

from __future__ import annotations

from dataclasses import dataclass
from typing import final

import torch
from torch import Tensor

from sfumato.core import Cond, Denoiser, NetDenoiser, lift
from sfumato.errors import UserError
from sfumato.guidance.base import Given, Guidance, Wrapped, check_scale, innermost, spread
from sfumato.nn import Perturbable


@final
@dataclass(frozen=True)
class PerturbedAttention(Guidance, name="pag"):
    """Perturbed attention guidance: D = D + s (D_net - D_perturbed), the self-attention maps of some blocks the identity.

    blocks: of the network, as `network.blocks` counts them; none for the middle one. D_net and D_perturbed are the
    network's own for what was asked; around another guidance (`second` in a `chain`) D is the guided one, as in the paper.
    s = 0 is no guidance. Works without a condition and needs no dropout of conditions in training.

    Ahn et al., "Self-Rectifying Diffusion Sampling with Perturbed-Attention Guidance", 2024 (on eps there; on x0 here, s
    the same).
    Cost: a second pass over a batch of B; a third one around another guidance.
    """

    scale: float = 1.0
    blocks: tuple[int, ...] | None = None

    def __post_init__(self) -> None:
        check_scale(self.scale, self.neutral)

    @property
    def neutral(self) -> float:
        return 0.0

    @property
    def by_condition(self) -> bool:
        return False

    def around(self, denoiser: Denoiser, given: Given) -> Denoiser:
        base = innermost(denoiser)
        if not isinstance(base, NetDenoiser) or not isinstance(base.network, Perturbable):
            what = base.network.kind if isinstance(base, NetDenoiser) else ""
            raise UserError(
                f"guidance=pag needs a network with self-attention, unet or dit, and not {what or type(base).__name__}"
            )
        view = base.network.perturbed(self.blocks)
        return _Perturbed(denoiser, self.scales(given), base, base.through(view))


@final
@dataclass(frozen=True)
class _Perturbed(Wrapped):
    scale: Tensor
    base: Denoiser
    perturbed: Denoiser

    def __call__(self, x_t: Tensor, t: Tensor, cond: Cond | None = None) -> Tensor:
        guided = self.inner(x_t, t, cond)
        scale = torch.where(t > 0, spread(self.scale, t), 0.0)
        if not bool(scale.any()):
            return guided
        asked = guided if self.inner is self.base else self.base(x_t, t, cond)
        return guided + lift(scale, x_t) * (asked - self.perturbed(x_t, t, cond))
