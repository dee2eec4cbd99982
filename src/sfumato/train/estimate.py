"""What a run will cost, from two real steps that leave no trace."""

from __future__ import annotations

import copy
import time
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from sfumato.core import Draws
from sfumato.data import Data, Order
from sfumato.train.device import choose_device, choose_precision, wait
from sfumato.train.ema import Ema
from sfumato.train.optim import Optimizer, trained
from sfumato.train.settings import Training
from sfumato.train.task import Task


@dataclass(frozen=True)
class Estimate:
    """parameters: that learn. seconds_per_step: of the second step. memory_bytes: weights, gradients, optimizer, averages
    and activations together. minutes, samples: of the whole run, one of them the budget."""

    parameters: int
    seconds_per_step: float
    memory_bytes: int
    minutes: float
    samples: int


def estimate(task: Task, data: Data, settings: Training, *, seed: int = 0, device: str = "auto") -> Estimate:
    """Run two real steps on a copy of the task. Nothing is written, and `task` and torch's generators are as before."""
    chosen = choose_device(device)
    dtype = choose_precision(settings.precision, chosen)
    copied = copy.deepcopy(task).to(chosen).train()
    cuda = [chosen.index or 0] if chosen.type == "cuda" else []
    train = data.split("train")
    order, micro = Order(len(train), seed), settings.batch // settings.accumulate
    with torch.random.fork_rng(devices=cuda):
        optimizer, ema = Optimizer(copied, settings), Ema(copied.model, settings.ema)
        saved = _Saved(copied)
        if cuda:
            torch.cuda.reset_peak_memory_stats(chosen)
        seconds = 0.0
        for step in range(2):
            begun = time.perf_counter()
            optimizer.zero()
            value = torch.zeros((), device=chosen)
            for part in range(settings.accumulate):
                first = step * settings.batch + part * micro
                batch = train.fetch(order(np.arange(first, first + micro)))
                with saved.measure(), torch.autocast(chosen.type, dtype, enabled=dtype != torch.float32):
                    loss = copied.loss(batch, Draws(seed, first, micro))
                (loss.value / settings.accumulate).backward()  # type: ignore[no-untyped-call]
                value += loss.value.detach() / settings.accumulate
            optimizer.step(0.0, value)
            ema.update(step + 1)
            wait(chosen)
            seconds = time.perf_counter() - begun
    kept = _bytes(list(copied.state_dict().values())) + _bytes(list(ema.state().values()))
    kept += _bytes(list(optimizer.state().values())) + _bytes(
        list(trained(copied).values())
    )  # gradients as the weights
    memory = torch.cuda.max_memory_allocated(chosen) if cuda else kept + saved.most
    parameters = sum(p.numel() for p in trained(copied).values())
    if settings.minutes is not None:
        steps = int(60 * settings.minutes / seconds)
        return Estimate(parameters, seconds, memory, settings.minutes, steps * settings.batch)
    samples = settings.samples or 0
    return Estimate(parameters, seconds, memory, samples / settings.batch * seconds / 60, samples)


def _bytes(tensors: list[Tensor]) -> int:
    return sum(t.numel() * t.element_size() for t in tensors)


class _Saved:
    """Counts what autograd keeps for the backward pass: the activations. Weights are counted elsewhere."""

    def __init__(self, task: Task) -> None:
        self._weights = {p.untyped_storage().data_ptr() for p in task.parameters()}
        self._seen: dict[int, int] = {}
        self.most = 0

    def measure(self) -> torch.autograd.graph.saved_tensors_hooks:
        """A context in which saved tensors are counted, each storage once."""
        self._seen = {}
        return torch.autograd.graph.saved_tensors_hooks(self._pack, lambda kept: kept)

    def _pack(self, tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in self._weights:
            self._seen[storage.data_ptr()] = storage.nbytes()
            self.most = max(self.most, sum(self._seen.values()))
        return tensor
