"""Averages of a model that is sharded among processes."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from typing import Generic, TypeVar, final

import torch
from torch import Tensor, nn

from sfumato.train.ema import power_beta, power_gamma
from sfumato.train.optim import local
from sfumato.train.parallel import Parallel

M = TypeVar("M", bound=nn.Module)


@final
class ShardedEma(Generic[M]):
    """What `Ema` is, each process with the averages of its slices. `models` puts them together, on the main process.

    spare: a copy of the model from before it was sharded, in evaluation mode.
    """

    def __init__(self, model: M, stds: Sequence[float], spare: M, parallel: Parallel) -> None:
        self.gammas = [power_gamma(std) for std in stds]
        self._source, self._spare, self._parallel = model, spare, parallel
        learning = {name: p for name, p in model.named_parameters() if p.requires_grad}
        self._names = list(learning)
        self._live = [local(p.detach()) for p in learning.values()]
        self._kept = [[t.clone() for t in self._live] for _ in stds]

    @property
    def spare(self) -> M:
        """A model of that kind in the host's memory, with no weights of its own."""
        return self._spare

    @property
    def models(self) -> list[M]:
        """The averaged models as wholes on the main process, elsewhere `spare`. Every process must ask."""
        made = []
        for kept in self._kept:
            whole = self._parallel.whole(dict(zip(self._names, kept)))
            if not self._parallel.main:
                made.append(self._spare)
                continue
            average = copy.deepcopy(self._spare).to(self._live[0].device)
            with torch.no_grad():
                for name, p in average.named_parameters():
                    if name in whole:
                        p.copy_(whole[name])
            made.append(average)
        return made

    @torch.no_grad()
    def update(self, n: int) -> None:
        """Take in the weights after step n = 1, 2, ..."""
        for gamma, kept in zip(self.gammas, self._kept):
            torch._foreach_lerp_(kept, self._live, 1 - power_beta(gamma, n))

    @torch.no_grad()
    def copy_buffers(self) -> None:
        """Give the copies the buffers of the model as they are now."""
        theirs = dict(self._source.named_buffers())
        for name, ours in self._spare.named_buffers():
            if name in theirs and theirs[name].shape == ours.shape:
                ours.copy_(theirs[name])

    def state(self) -> dict[str, Tensor]:
        """This process's slices of the averaged weights: `0.name`, `1.name`, ..."""
        return {f"{i}.{k}": v for i, kept in enumerate(self._kept) for k, v in zip(self._names, kept)}

    @torch.no_grad()
    def load(self, state: Mapping[str, Tensor]) -> None:
        """Take over what `state` gave."""
        for name, ours in self.state().items():
            ours.copy_(state[name])
        self.copy_buffers()
