"""AdamW: what decays, when a step is left out, and its state by the names of the parameters."""

from __future__ import annotations

from typing import final

import torch
from torch import Tensor, nn

from sfumato.errors import UserError
from sfumato.train.settings import Training


def decays(module: nn.Module, weight: Tensor) -> bool:
    """Weight decay is for matrices and kernels; not for biases, gains, null tokens and embeddings."""
    return weight.squeeze().ndim >= 2 and not isinstance(module, nn.Embedding | nn.EmbeddingBag)


def trained(model: nn.Module) -> dict[str, nn.Parameter]:
    """The parameters that learn, by name, shared ones once."""
    return {name: p for name, p in model.named_parameters() if p.requires_grad}


@final
class Optimizer:
    """Fused AdamW (Loshchilov & Hutter, "Decoupled Weight Decay Regularization", 2019, algorithm 2) with clipping.

    A step with a gradient that is not finite changes nothing. No value is fetched from a GPU for that.
    """

    def __init__(self, model: nn.Module, settings: Training) -> None:
        self.parameters = trained(model)
        if not self.parameters:
            raise UserError("there is nothing to train: no parameter of the model requires a gradient")
        self._clip = settings.clip
        owner = {id(p): module for module in model.modules() for p in module.parameters(recurse=False)}
        groups: dict[bool, list[nn.Parameter]] = {True: [], False: []}
        for p in self.parameters.values():
            groups[decays(owner[id(p)], p)].append(p)
        self._adamw = torch.optim.AdamW(
            [
                {"params": params, "weight_decay": settings.weight_decay if decay else 0.0}
                for decay, params in groups.items()
                if params
            ],
            lr=settings.lr,
            betas=settings.betas,
            fused=True,
        )

    def zero(self) -> None:
        """Forget the gradients."""
        self._adamw.zero_grad(set_to_none=True)

    @torch.no_grad()
    def step(self, lr: float, loss: Tensor) -> tuple[Tensor, Tensor]:
        """One step, unless `loss` () or a gradient is not finite. Returns (norm before clipping, 1 if left out else 0)."""
        gradients = [p.grad for p in self.parameters.values() if p.grad is not None]
        norm = torch.nn.utils.get_total_norm(gradients)
        bad = (~torch.isfinite(norm + loss.to(norm.device))).float()
        for group in self._adamw.param_groups:
            group["lr"] = lr
        if norm.device.type == "cpu":
            if not bad:
                self._shorten(gradients, norm)
                self._adamw.step()
        else:  # the fused kernel reads the flag on the device
            self._shorten(gradients, norm)
            self._adamw.found_inf = bad  # type: ignore[attr-defined]
            self._adamw.step()
        return norm, bad

    def _shorten(self, gradients: list[Tensor], norm: Tensor) -> None:
        if not self._clip:
            return
        if norm.device.type == "cpu" and float(norm) <= self._clip:
            return  # a factor of 1
        torch._foreach_mul_(gradients, (self._clip / norm).clamp(max=1.0))

    def state(self) -> dict[str, Tensor]:
        """Moments and step counts: `exp_avg.name`, `exp_avg_sq.name`, `step.name`. Empty before the first step."""
        kept = self._adamw.state
        return {f"{key}.{name}": v for name, p in self.parameters.items() if p in kept for key, v in kept[p].items()}

    def load(self, state: dict[str, Tensor]) -> None:
        """Take over what `state` gave."""
        names: dict[str, dict[str, Tensor]] = {}
        for full, value in state.items():
            key, _, name = full.partition(".")
            names.setdefault(name, {})[key] = value
        self._adamw.state.clear()
        for name, values in names.items():
            p = self.parameters[name]
            on_device = p.device if p.device.type != "cpu" else torch.device("cpu")
            self._adamw.state[p] = {
                k: torch.empty_like(p if k != "step" else v, device=on_device).copy_(v) for k, v in values.items()
            }
