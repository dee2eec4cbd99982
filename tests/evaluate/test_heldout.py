"""The held-out loss against closed forms."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from sfumato.codecs import Arrays
from sfumato.core import VP, Batch, Cosine, DataInfo, Flow, NetDenoiser, Network, V, Velocity
from sfumato.data import Data
from sfumato.errors import UserError
from sfumato.evaluate.heldout import held_out_loss
from sfumato.model import Model


class Points(Data):
    """Normal points (1, 64), already white."""

    def __init__(self, n: int) -> None:
        self.x = np.random.default_rng(0).normal(size=(n, 1, 64)).astype(np.float32)

    @property
    def info(self) -> DataInfo:
        return DataInfo((1, 64), "array")

    def __len__(self) -> int:
        return len(self.x)

    def fetch(self, indices: Any, draws: Any = None) -> Batch:
        assert draws is None
        return Batch(torch.from_numpy(self.x[np.asarray(indices)]))

    def held_out_mask(self) -> Any:
        return np.zeros(len(self), np.bool_)

    def fingerprint(self) -> str:
        return ""


class Linear(Network):
    """F = k(u) x: with the right k the best of all networks for white Gaussian data."""

    def __init__(self, best: bool) -> None:
        super().__init__()
        self.best = best
        self.unused = nn.Parameter(torch.zeros(1))
        self.calls: list[Tensor] = []

    def forward(self, x: Tensor, noise: Tensor, cond: Any = None) -> Tensor:
        self.calls.append(x)
        if not self.best:
            return torch.zeros_like(x)
        # Flow: x is x_t / sqrt(alpha^2 + sigma^2), E[eps - x0 | x_t] = (sigma - alpha) x_t / (alpha^2 + sigma^2)
        u = noise[:, None, None]
        return (2 * u - 1) / ((1 - u) ** 2 + u**2).sqrt() * x


def model(network: Network, process: Any = None, parameterization: Any = None) -> Model:
    denoiser = NetDenoiser(network, process or Flow(), parameterization or Velocity())
    return Model(denoiser, Arrays(Points(1).info), None, Points(1).info)


def test_of_the_best_denoiser_it_is_the_posterior_variance() -> None:
    # eps - x0 given x_t has variance 2 - (sigma - alpha)^2 / (alpha^2 + sigma^2) = 1 / (alpha^2 + sigma^2).
    found = held_out_loss(model(Linear(True)), Points(4096), n=4096, levels=4)
    assert found.levels == (0.125, 0.375, 0.625, 0.875)
    expected = [1 / ((1 - u) ** 2 + u**2) for u in found.levels]
    np.testing.assert_allclose(found.by_level, expected, rtol=0.02)  # 1024 items of 64 numbers a level
    assert found.loss == pytest.approx(np.mean(found.by_level))


def test_of_a_network_that_gives_zero_it_is_the_power_of_the_target() -> None:
    np.testing.assert_allclose(held_out_loss(model(Linear(False)), Points(4096), 4096, 4).by_level, 2.0, rtol=0.02)
    v = held_out_loss(model(Linear(False), Cosine(), V()), Points(4096), 4096, 4)
    np.testing.assert_allclose(v.by_level, 1.0, rtol=0.02)


@pytest.mark.parametrize("process", [Flow(), Cosine(), VP()])
def test_levels_are_noise_levels_of_every_process(process: Any) -> None:
    network = Linear(False)
    seen: list[Tensor] = []
    network.forward = lambda x, noise, cond=None: seen.append(noise) or torch.zeros_like(x)  # type: ignore[method-assign]
    found = held_out_loss(model(network, process, V()), Points(64), n=64, levels=8)
    torch.testing.assert_close(seen[0][:8].double(), torch.tensor(found.levels, dtype=torch.float64))


def test_the_questions_are_always_the_same() -> None:
    one = held_out_loss(model(Linear(True)), Points(100), 64, 8)
    torch.manual_seed(99)
    assert held_out_loss(model(Linear(True)), Points(100), 64, 8) == one
    assert held_out_loss(model(Linear(True)), Points(100), 64, 8, seed=1) != one
    small = held_out_loss(model(Linear(True)), Points(100), 64, 8, batch=7)
    np.testing.assert_allclose(small.by_level, one.by_level, rtol=1e-6)


def test_a_small_set_is_used_again_with_other_noise() -> None:
    network = Linear(False)
    found = held_out_loss(model(network), Points(4), n=64, levels=8)
    assert found.n == 64
    assert len(torch.cat(network.calls).unique(dim=0)) == 64


def test_the_mode_of_the_model_stays() -> None:
    for training in (True, False):
        tried = model(Linear(True)).train(training)
        held_out_loss(tried, Points(8), 8, 8)
        assert tried.training == training


def test_what_can_not_be_measured() -> None:
    with pytest.raises(UserError, match="held-out part of the data is empty"):
        held_out_loss(model(Linear(True)), Points(0))
    with pytest.raises(UserError, match="n = 4 items at 8 levels"):
        held_out_loss(model(Linear(True)), Points(8), n=4)
