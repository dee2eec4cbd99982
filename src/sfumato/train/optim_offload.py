"""Training state in the host's memory: weights and gradients that travel, and averages that stay there.

A GPU then holds weights, gradients and activations only. A step moves 4 bytes a parameter each way over the bus and
updates on the CPU: slow, and the last resort after 8-bit moments, micro-batches and recomputation.
The idea: Ren et al., "ZeRO-Offload", 2021.
"""

from __future__ import annotations

import copy
from collections.abc import Iterable, Mapping, Sequence
from typing import Generic, TypeVar, final

import torch
from torch import Tensor, nn

from sfumato.train.ema import Ema, power_beta, power_gamma

M = TypeVar("M", bound=nn.Module)


@final
class Host:
    """The host's copies of parameters and of their gradients; in pinned memory where a GPU reads and writes them.

    A parameter that something else has changed since the last step (a checkpoint that was loaded) is fetched again: torch
    counts the changes of every tensor.
    """

    def __init__(self, parameters: Mapping[str, nn.Parameter]) -> None:
        self._live = dict(parameters)
        self.weights = {name: _host_like(p) for name, p in parameters.items()}
        self._gradients = {name: _host_like(p) for name, p in parameters.items()}
        self._seen: dict[str, int] = {}
        self.refresh()

    @torch.no_grad()
    def refresh(self) -> None:
        """Fetch the parameters that were changed elsewhere."""
        stale = [name for name, p in self._live.items() if self._seen.get(name) != p._version]
        for name in stale:
            self.weights[name].copy_(self._live[name], non_blocking=True)
            self._seen[name] = self._live[name]._version
        if stale:
            self._wait()

    @torch.no_grad()
    def fetch(self, gradients: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Gradients on the host, and weights that are up to date there."""
        self.refresh()
        for name, gradient in gradients.items():
            self._gradients[name].copy_(gradient, non_blocking=True)
        self._wait()
        return {name: self._gradients[name] for name in gradients}

    @torch.no_grad()
    def put(self, names: Iterable[str]) -> None:
        """Bring the weights of `names` back to the device."""
        for name in names:
            p = self._live[name]
            p.copy_(self.weights[name], non_blocking=True)
            self._seen[name] = p._version

    def of(self, parameters: Iterable[nn.Parameter]) -> list[Tensor]:
        """The host's copies of parameters, whatever they are called."""
        names = {id(p): name for name, p in self._live.items()}
        return [self.weights[names[id(p)]] for p in parameters]

    def _wait(self) -> None:
        for device in {p.device for p in self._live.values() if p.is_cuda}:
            torch.cuda.synchronize(device)


@final
class HostEma(Generic[M]):
    """What `Ema` is, with the averages in the host's memory; they meet the device only while `models` is looked at.

    Reads the optimizer's copies of the weights, so that none travels for the averages.
    """

    def __init__(self, model: M, stds: Sequence[float], host: Host) -> None:
        self.gammas = [power_gamma(std) for std in stds]
        self._source, self._host = model, host
        self._names = [name for name, p in model.named_parameters() if p.requires_grad]
        self._live = host.of(p for p in model.parameters() if p.requires_grad)
        self._averages = [on_host(model) for _ in stds]
        self._kept = [[dict(a.named_parameters())[name].data for name in self._names] for a in self._averages]
        self._shown: list[M] = []

    @property
    def models(self) -> list[M]:
        """Copies of the averaged models on the device, made when asked for and kept until the next `update`."""
        if not self._shown:
            device = next(self._source.parameters()).device
            self._shown = [copy.deepcopy(average).to(device) for average in self._averages]
        return self._shown

    @torch.no_grad()
    def update(self, n: int) -> None:
        """Take in the weights after step n = 1, 2, ..."""
        self._shown = []
        self._host.refresh()
        for gamma, kept in zip(self.gammas, self._kept):
            torch._foreach_lerp_(kept, self._live, 1 - power_beta(gamma, n))

    @torch.no_grad()
    def copy_buffers(self) -> None:
        """Give the copies the buffers of the model as they are now."""
        theirs = dict(self._source.named_buffers())
        for average in [*self._averages, *self._shown]:
            for name, ours in average.named_buffers():
                if name in theirs and theirs[name].shape == ours.shape:  # a cached table may exist in one of them only
                    ours.copy_(theirs[name])

    def state(self) -> dict[str, Tensor]:
        """The averaged weights: `0.name`, `1.name`, ..."""
        return {f"{i}.{k}": v for i, kept in enumerate(self._kept) for k, v in zip(self._names, kept)}

    @torch.no_grad()
    def load(self, state: Mapping[str, Tensor]) -> None:
        """Take over what `state` gave."""
        self._shown = []
        for name, ours in self.state().items():
            ours.copy_(state[name])
        self.copy_buffers()


def averages(model: M, stds: Sequence[float], offload: str, host: Host | None) -> Ema[M] | HostEma[M]:
    """The averages of a model, where `train.offload` wants them. host: the optimizer's."""
    return Ema(model, stds) if offload != "all" or host is None else HostEma(model, stds, host)


def _host_like(p: Tensor) -> Tensor:
    return torch.empty_like(p, device="cpu", requires_grad=False, pin_memory=p.is_cuda)


def on_host(model: M) -> M:
    """A copy for evaluation in the host's memory; the device holds none in between."""
    tensors = [*model.parameters(), *model.buffers()]
    memo: dict[int, Tensor] = {}
    for tensor in tensors:
        moved = tensor.detach().to("cpu", copy=True)
        memo[id(tensor)] = nn.Parameter(moved, requires_grad=False) if isinstance(tensor, nn.Parameter) else moved
    return copy.deepcopy(model, memo).eval()
