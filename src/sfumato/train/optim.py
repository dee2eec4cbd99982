"""Optimizers: what they share, and AdamW.

AdamW calls the fused kernel that is behind `torch.optim.AdamW(fused=True)` (equal to it bit for bit:
tests/train/test_optim.py), without the class around it: that imports torch's compiler, a second or two at every start, and
costs half a millisecond a step for a hundred parameters, 2% of a step of a small model on a CPU.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from typing import Protocol, final

import torch
from torch import Tensor, nn

from sfumato.errors import UserError
from sfumato.registry import Registered
from sfumato.train.optim_offload import Host

EPS = 1e-8


class Rules(Protocol):
    """What an optimizer reads of the settings of a run (`Training`)."""

    @property
    def betas(self) -> tuple[float, float]:
        """Decay of AdamW's two moments a step."""

    @property
    def weight_decay(self) -> float:
        """Decay of the weights, times the rate, a step."""

    @property
    def clip(self) -> float:
        """Longest gradient; 0 for any."""

    @property
    def offload(self) -> str:
        """`none`, or what lies in the host's memory."""


def decays(module: nn.Module, weight: Tensor) -> bool:
    """Weight decay is for matrices and kernels; not for biases, gains, null tokens and embeddings."""
    return sum(n > 1 for n in weight.shape) >= 2 and not isinstance(module, nn.Embedding | nn.EmbeddingBag)


def trained(model: nn.Module) -> dict[str, nn.Parameter]:
    """The parameters that learn, by name, shared ones once."""
    return {name: p for name, p in model.named_parameters() if p.requires_grad}


def local(tensor: Tensor) -> Tensor:
    """What this process holds of a tensor: the tensor itself unless it is sharded among several (a DTensor)."""
    held: Tensor = getattr(tensor, "_local_tensor", tensor)
    return held


class Optimizer(Registered, ABC, family="optimizer"):
    """Clips by global norm, leaves out steps that are not finite, and hands the rest to `update` of its kind.

    A step whose loss or gradient is not finite changes nothing. On a GPU `update` is told so by a flag that lies there:
    nothing is fetched, nobody waits. With `offload` the state and a copy of the weights lie in the host's memory and
    `update` works on those; then gradients are fetched and weights brought back every step (`Host`).

    Its settings are the keyword-only arguments of its constructor: `train.optimizer.NAME`.
    """

    def __init__(self, model: nn.Module, settings: Rules) -> None:
        self.parameters = trained(model)
        if not self.parameters:
            raise UserError("there is nothing to train: no parameter of the model requires a gradient")
        self.betas, self.clip = settings.betas, settings.clip
        owner = {id(p): module for module in model.modules() for p in module.parameters(recurse=False)}
        self.decay = {
            name: settings.weight_decay if decays(owner[id(p)], p) else 0.0 for name, p in self.parameters.items()
        }
        self.host = Host(self.parameters) if settings.offload != "none" else None
        self.across: Callable[[Tensor], Tensor] | None = None  # sums over what other processes hold of the parameters
        self.count = torch.zeros((), device=self.device)  # steps that were made; float32 as the kernel wants it

    @property
    def device(self) -> torch.device:
        """Where the state lies."""
        on = next(iter(self.parameters.values())).device
        return on if self.host is None else torch.device("cpu")

    @property
    def capturable(self) -> bool:
        """Whether `step` can be recorded in a CUDA graph: with a rate (0-dim tensor) that lies on the device too."""
        return self.host is None

    def weight(self, name: str) -> Tensor:
        """The values of a parameter that `update` changes: the parameter's own, or the host's copy of them."""
        return local(self.parameters[name].data) if self.host is None else self.host.weights[name]

    def zero(self) -> None:
        """Forget the gradients."""
        for p in self.parameters.values():
            p.grad = None

    @torch.no_grad()
    def step(self, lr: float | Tensor, loss: Tensor) -> tuple[Tensor, Tensor]:
        """One step, unless `loss` () or a gradient is not finite. Returns (norm before clipping, 1 if left out else 0).

        lr: a number, or a 0-dim float32 tensor on the device of the state.
        """
        gradients = {name: local(p.grad) for name, p in self.parameters.items() if p.grad is not None}
        norm = torch.linalg.vector_norm(torch.stack(torch._foreach_norm(list(gradients.values()))))
        if self.across is not None:
            norm = self.across(norm.square()).sqrt()
        bad = (~torch.isfinite(norm + loss)).float()
        on_host = norm.device.type == "cpu"
        known = on_host or self.host is not None
        if known and bad:
            return norm, bad
        if self.clip and not (on_host and norm <= self.clip):  # a factor of 1 is not worth a pass over the gradients
            torch._foreach_mul_(list(gradients.values()), (self.clip / norm).clamp(max=1.0))
        if self.host is not None:
            gradients = self.host.fetch(gradients)
        self.count += 1 - bad.to(self.count.device)
        self.update(gradients, lr, None if known else bad)
        if self.host is not None:
            self.host.put(gradients)
        return norm, bad

    @abstractmethod
    def update(self, gradients: Mapping[str, Tensor], lr: float | Tensor, bad: Tensor | None) -> None:
        """Change `weight(name)` for each of `gradients` (clipped; they may be written over); `count` is this step's number.

        bad: on a device, a 0-dim 1 where nothing may change, else 0, and then gradients may hold anything. None: all is well.
        """

    @abstractmethod
    def moments(self) -> dict[str, Tensor]:
        """All state but `count`, as `kind.name of the parameter`; the very tensors, to be read and written."""

    def state(self) -> dict[str, Tensor]:
        """Everything that a resumed run needs: `moments` and `count`."""
        return {**self.moments(), "count": self.count}

    @torch.no_grad()
    def load(self, state: Mapping[str, Tensor]) -> None:
        """Take over what `state` gave."""
        for name, ours in self.state().items():
            ours.copy_(state[name])


@final
class Moments:
    """The two moments of some of an optimizer's parameters, and AdamW's step with them.

        m = b1 m + (1 - b1) g,   v = b2 v + (1 - b2) g^2,
        p = (1 - lr decay) p - lr (m / (1 - b1^n)) / (sqrt(v / (1 - b2^n)) + eps)

    Loshchilov & Hutter, "Decoupled Weight Decay Regularization", 2019, algorithm 2.
    """

    def __init__(self, owner: Optimizer, names: list[str]) -> None:
        self.owner = owner
        self.first = {name: torch.zeros_like(owner.weight(name)) for name in names}
        self.second = {name: torch.zeros_like(owner.weight(name)) for name in names}

    def update(self, gradients: Mapping[str, Tensor], lr: float | Tensor, bad: Tensor | None) -> None:
        """One step; gradients of other parameters are left alone."""
        owner = self.owner
        for decay in set(owner.decay.values()):
            names = [name for name in gradients if owner.decay[name] == decay and name in self.first]
            if not names:
                continue
            torch._fused_adamw_(
                [owner.weight(name) for name in names],
                [gradients[name] for name in names],
                [self.first[name] for name in names],
                [self.second[name] for name in names],
                [],
                [owner.count] * len(names),
                lr=lr,
                beta1=owner.betas[0],
                beta2=owner.betas[1],
                weight_decay=decay,
                eps=EPS,
                amsgrad=False,
                maximize=False,
                grad_scale=None,
                found_inf=bad,
            )

    def state(self) -> dict[str, Tensor]:
        """`first.name` and `second.name`."""
        first = {f"first.{name}": v for name, v in self.first.items()}
        return {**first, **{f"second.{name}": v for name, v in self.second.items()}}


@final
class AdamW(Optimizer, name="adamw"):
    """AdamW with both moments in float32: 8 bytes of state a parameter. See `Moments`."""

    def __init__(self, model: nn.Module, settings: Rules) -> None:
        super().__init__(model, settings)
        self._moments = Moments(self, list(self.parameters))

    def update(self, gradients: Mapping[str, Tensor], lr: float | Tensor, bad: Tensor | None) -> None:
        self._moments.update(gradients, lr, bad)

    def moments(self) -> dict[str, Tensor]:
        return self._moments.state()
