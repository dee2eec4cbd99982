"""Optimal transport within a batch: exact assignments, and what a coupling may and may not change."""

from __future__ import annotations

from itertools import permutations

import numpy as np
import pytest
import torch
from torch import Tensor

from sfumato.core import (
    Cond,
    CondShape,
    DenoisingLoss,
    Draws,
    Flow,
    NetDenoiser,
    Network,
    OptimalTransport,
    Velocity,
)
from sfumato.core.coupling import assign
from sfumato.nn import MLP
from sfumato.spec import as_spec, parse


@pytest.mark.parametrize("n", [1, 2, 3, 6])
def test_assign_is_the_best_of_all_permutations(n: int) -> None:
    rng = np.random.default_rng(n)
    for trial in range(40):
        cost = rng.normal(size=(n, n)) * 10.0 ** rng.integers(-6, 6)
        if trial % 3 == 0:
            cost = rng.integers(0, 3, (n, n)).astype(float)  # many ties
        best = min(cost[range(n), list(p)].sum() for p in permutations(range(n)))
        found = assign(cost)
        assert sorted(found) == list(range(n))
        assert cost[range(n), found].sum() == pytest.approx(best, rel=1e-12, abs=1e-300)


def test_assign_finds_a_hidden_permutation() -> None:
    """A matrix with zeros on one permutation and more elsewhere, shifted by prices that change no assignment's rank."""
    rng = np.random.default_rng(0)
    n = 200
    hidden = rng.permutation(n)
    cost = rng.uniform(0.01, 1, (n, n))
    cost[np.arange(n), hidden] = 0
    cost += rng.normal(size=(n, 1)) * 5 + rng.normal(size=n) * 5
    assert (assign(cost) == hidden).all()


def test_in_one_dimension_it_is_sorting() -> None:
    """The best assignment for squared distance keeps the order: the k-th smallest x0 gets the k-th smallest noise."""
    x0, eps = torch.randn(2, 256, 1, generator=torch.Generator().manual_seed(0))
    coupled = OptimalTransport()(x0, eps)
    assert torch.equal(coupled[x0[:, 0].argsort(), 0], eps[:, 0].sort().values)


def test_noise_moved_by_a_constant_stays_with_its_sample() -> None:
    """x0 = eps + c is coupled to its own noise: the identity is the optimal map of a shift."""
    eps = torch.randn(64, 3, 4, generator=torch.Generator().manual_seed(0))
    shuffled = eps[torch.randperm(64, generator=torch.Generator().manual_seed(1))]
    assert torch.equal(OptimalTransport()(eps + 2, shuffled), eps)


class Watcher(Network):
    """Keeps what it is shown."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[tuple[Tensor, Cond | None]] = []

    def forward(self, x: Tensor, noise: Tensor, cond: Cond | None = None) -> Tensor:
        self.seen.append((x, cond))
        return torch.zeros_like(x)


def test_only_the_noise_is_permuted() -> None:
    """x_t is made of x0 in its own order, with its own condition and time; the noise of the batch is all used once."""
    draws, x0 = Draws(0, 0, 32), Draws(0, 0, 32).normal((2,), "data") + 3
    network = Watcher()
    denoiser = NetDenoiser(network, Flow(), Velocity())
    asked = Cond(vector=x0)
    coupled = DenoisingLoss(coupling=OptimalTransport())(denoiser, x0, asked, draws)
    plain = DenoisingLoss()(denoiser, x0, asked, draws)
    assert torch.equal(coupled.t, plain.t) and network.seen[0][1] is asked
    t, raw = coupled.t[:, None].float(), draws.normal((2,))
    root = (t**2 + (1 - t) ** 2).sqrt()
    noise = (network.seen[0][0] * root - (1 - t) * x0) / t
    matched = torch.cdist(noise, raw).argmin(1)
    assert sorted(matched.tolist()) == list(range(32)) and matched.tolist() != list(range(32))
    assert torch.allclose(noise, raw[matched], atol=1e-3)
    assert (x0 - raw[matched]).square().sum() < (x0 - raw).square().sum()
    again = DenoisingLoss(coupling=OptimalTransport())(denoiser, x0, asked, draws)
    assert torch.equal(again.per_sample, coupled.per_sample)


def test_straighter_paths_have_less_to_regress_on() -> None:
    """The variance of the target eps - x0 given x_t falls: 1-D data has a monotone map, whose flow is deterministic."""
    n = 192
    draws = Draws(0, 0, n)
    x0 = draws.normal((1,), "data")
    eps = draws.normal((1,))
    left = OptimalTransport()(x0, eps) - x0
    assert left.var() < 0.05 * (eps - x0).var()  # both are N(0, 1): the map is nearly the identity


def test_it_is_written_down() -> None:
    spec = as_spec(DenoisingLoss(coupling=OptimalTransport()))
    assert spec.to_dict()["coupling"] == {"type": "ot"}
    loss = parse(DenoisingLoss, {"type": "denoising", "coupling": "ot"}).build()
    assert loss == DenoisingLoss(coupling=OptimalTransport())
    network = MLP((2,), CondShape(), width=8, depth=1)
    value = loss(NetDenoiser(network, Flow(), Velocity()), torch.randn(4, 2), None, Draws(0, 0, 4)).value
    value.backward()
    assert network.head.weight.grad is not None and network.head.weight.grad.any()
