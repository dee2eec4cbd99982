"""The average of the weights against its closed form."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from sfumato.errors import UserError
from sfumato.train import Ema, power_beta, power_gamma


@pytest.mark.parametrize(("std", "gamma"), [(0.05, 16.97), (0.1, 6.94), (0.15, 3.56), (0.2, 1.83)])
def test_gamma_of_a_relative_deviation(std: float, gamma: float) -> None:
    # The first two are the paper's (section 3.1); all follow from the moments of the density (gamma + 1) tau^gamma on [0, 1].
    found = power_gamma(std)
    assert found == pytest.approx(gamma, abs=0.01)
    assert np.sqrt((found + 1) / ((found + 2) ** 2 * (found + 3))) == pytest.approx(std, rel=1e-9)


@pytest.mark.parametrize("std", [0.0, -0.1, 0.3, float("nan")])
def test_a_deviation_that_no_profile_has_is_refused(std: float) -> None:
    with pytest.raises(UserError, match="relative deviation must lie in"):
        power_gamma(std)


class Weights(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.w = nn.Parameter(torch.full((3,), 1e6, dtype=torch.float64))
        self.fixed = nn.Parameter(torch.zeros(2), requires_grad=False)
        self.register_buffer("b", torch.zeros(1))


def test_the_average_is_the_closed_form_of_the_power_function() -> None:
    # Weight of step i in the average after step n: (i / n)^(gamma + 1) - ((i - 1) / n)^(gamma + 1).
    model, stds, n = Weights(), (0.05, 0.12), 300
    ema = Ema(model, stds)
    values = torch.from_numpy(np.random.default_rng(0).normal(size=(n, 3)))
    for i in range(n):
        model.w.data.copy_(values[i])
        ema.update(i + 1)
    edges = np.arange(n + 1) / n
    for std, average in zip(stds, ema.models):
        weight = np.diff(edges ** (power_gamma(std) + 1))
        assert weight.sum() == pytest.approx(1)
        np.testing.assert_allclose(average.w.numpy(), weight @ values.numpy(), rtol=1e-10)


def test_the_first_step_forgets_the_initial_weights() -> None:
    assert power_beta(16.97, 1) == 0.0
    model = Weights()
    ema = Ema(model, (0.05,))
    model.w.data.fill_(2.0)
    ema.update(1)
    assert torch.equal(ema.models[0].w, model.w)


def test_the_copy_learns_nothing_and_follows_buffers() -> None:
    model = Weights().train()
    ema = Ema(model, (0.05,))
    assert not ema.models[0].training and model.training
    assert not any(p.requires_grad for p in ema.models[0].parameters())
    model.b.fill_(3.0)
    ema.copy_buffers()
    assert ema.models[0].b == 3.0


def test_state_goes_round() -> None:
    model = Weights()
    one, two = Ema(model, (0.05, 0.1)), Ema(model, (0.05, 0.1))
    model.w.data.fill_(1.0)
    one.update(1)
    model.w.data.fill_(5.0)
    one.update(2)
    two.load({k: v.clone() for k, v in one.state().items()})
    assert one.state().keys() == {"0.w", "1.w"}
    assert all(torch.equal(v, two.state()[k]) for k, v in one.state().items())
