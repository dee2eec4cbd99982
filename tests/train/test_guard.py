"""Where it begins that a step is not finite."""

from __future__ import annotations

import torch
from torch import nn

from sfumato.core import Batch, Draws, Loss
from sfumato.train import Task
from sfumato.train.guard import diagnose
from tests.train.tiny import TinyData


class Rooted(nn.Module):
    """first, second, third one after the other, but registered in another order; the slope of the root at 0 is infinite."""

    def __init__(self) -> None:
        super().__init__()
        self.second, self.third, self.first = (nn.Linear(2, 2) for _ in range(3))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        out: torch.Tensor = self.third((0 * self.second(self.first(x)).square()).sqrt())
        return out


class RootedTask(Task):
    def __init__(self) -> None:
        super().__init__()
        self.model = Rooted()

    def loss(self, batch: Batch, draws: Draws) -> Loss:
        each = self.model(batch.media.flatten(1)[:, :2]).square().mean(1)
        return Loss(each.mean(), each, torch.zeros(len(each)))


def test_the_gradient_that_is_named_is_the_first_on_the_way_back() -> None:
    said = diagnose(RootedTask(), TinyData(n=8).fetch(range(4)), Draws(0, 0, 4), 1e-3, torch.float32)
    assert "the loss is finite and the gradient of 'model.second." in said
