"""AdamW: what decays, when a step is left out, and its state by the names of the parameters.

It calls the fused kernel that is behind `torch.optim.AdamW(fused=True)` (equal to it bit for bit:
tests/train/test_optim.py), without the class around it: that imports torch's compiler, a second or two at every start, and
costs half a millisecond a step for a hundred parameters, 2% of a step of a small model on a CPU.
"""

from __future__ import annotations

from typing import final

import torch
from torch import Tensor, nn

from sfumato.errors import UserError
from sfumato.train.settings import Training

_EPS = 1e-8


def decays(module: nn.Module, weight: Tensor) -> bool:
    """Weight decay is for matrices and kernels; not for biases, gains, null tokens and embeddings."""
    return weight.squeeze().ndim >= 2 and not isinstance(module, nn.Embedding | nn.EmbeddingBag)


def trained(model: nn.Module) -> dict[str, nn.Parameter]:
    """The parameters that learn, by name, shared ones once."""
    return {name: p for name, p in model.named_parameters() if p.requires_grad}


@final
class Optimizer:
    """AdamW (Loshchilov & Hutter, "Decoupled Weight Decay Regularization", 2019, algorithm 2) after clipping by global norm.

    A step whose loss or gradient is not finite changes nothing. On a GPU the kernel is told so by a flag that lies there:
    nothing is fetched, nobody waits.
    """

    def __init__(self, model: nn.Module, settings: Training) -> None:
        self.parameters = trained(model)
        if not self.parameters:
            raise UserError("there is nothing to train: no parameter of the model requires a gradient")
        self._betas, self._clip = settings.betas, settings.clip
        owner = {id(p): module for module in model.modules() for p in module.parameters(recurse=False)}
        self._decay = {
            name: settings.weight_decay if decays(owner[id(p)], p) else 0.0 for name, p in self.parameters.items()
        }
        self._first = {name: torch.zeros_like(p) for name, p in self.parameters.items()}
        self._second = {name: torch.zeros_like(p) for name, p in self.parameters.items()}
        device = next(iter(self.parameters.values())).device
        self._count = torch.zeros((), device=device)  # steps that were made; float32 as the kernel wants it

    def zero(self) -> None:
        """Forget the gradients."""
        for p in self.parameters.values():
            p.grad = None

    @torch.no_grad()
    def step(self, lr: float, loss: Tensor) -> tuple[Tensor, Tensor]:
        """One step, unless `loss` () or a gradient is not finite. Returns (norm before clipping, 1 if left out else 0)."""
        gradients = {name: p.grad for name, p in self.parameters.items() if p.grad is not None}
        norm = torch.linalg.vector_norm(torch.stack(torch._foreach_norm(list(gradients.values()))))
        bad = (~torch.isfinite(norm + loss)).float()
        on_host = norm.device.type == "cpu"
        if on_host and bad:
            return norm, bad
        if self._clip and not (on_host and norm <= self._clip):  # a factor of 1 is not worth a pass over the gradients
            torch._foreach_mul_(list(gradients.values()), (self._clip / norm).clamp(max=1.0))
        self._count += 1 - bad
        for decay in set(self._decay.values()):
            names = [name for name in gradients if self._decay[name] == decay]
            if not names:
                continue
            torch._fused_adamw_(
                [self.parameters[name].data for name in names],
                [gradients[name] for name in names],
                [self._first[name] for name in names],
                [self._second[name] for name in names],
                [],
                [self._count] * len(names),
                lr=lr,
                beta1=self._betas[0],
                beta2=self._betas[1],
                weight_decay=decay,
                eps=_EPS,
                amsgrad=False,
                maximize=False,
                grad_scale=None,
                found_inf=None if on_host else bad,
            )
        return norm, bad

    def state(self) -> dict[str, Tensor]:
        """Moments and step count: `first.name`, `second.name`, `count`."""
        first = {f"first.{name}": v for name, v in self._first.items()}
        return {**first, **{f"second.{name}": v for name, v in self._second.items()}, "count": self._count}

    @torch.no_grad()
    def load(self, state: dict[str, Tensor]) -> None:
        """Take over what `state` gave."""
        for name, ours in self.state().items():
            ours.copy_(state[name])
