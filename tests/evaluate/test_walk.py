"""The error of a walk against closed forms."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from tests.evaluate.test_heldout import Linear, Points
from torch import Tensor, nn

from sfumato.codecs import Arrays
from sfumato.core import Cosine, DataInfo, Flow, NetDenoiser, Network, Process, Velocity
from sfumato.errors import UserError
from sfumato.evaluate import WalkError
from sfumato.model import Model

INFO = DataInfo((1, 64), "array")


class Growing(Network):
    """F = -3 x_t: the ODE of `flow` is dx = -3 x dt, which makes x grow by e^(3 u) from u to 0."""

    def __init__(self) -> None:
        super().__init__()
        self.unused = nn.Parameter(torch.zeros(1))

    def forward(self, x: Tensor, noise: Tensor, cond: Any = None) -> Tensor:
        u = noise[:, None, None]
        return -3 * ((1 - u) ** 2 + u**2).sqrt() * x


def model(network: Network, process: Process) -> Model:
    return Model(NetDenoiser(network, process, Velocity()), Arrays(INFO), None, INFO).double()


@pytest.mark.parametrize("process", [Flow(), Cosine()], ids=repr)
@pytest.mark.parametrize("level", [0.3, 0.6, 0.9])
def test_of_an_exact_model_a_walk_scales_x_to_the_deviation_of_the_data(process: Process, level: float) -> None:
    x0, eps = torch.randn(2, 8, 1, 64, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    time = process.time(torch.tensor([2 * math.log((1 - level) / level)], dtype=torch.float64))
    alpha, sigma = process.scales(time)
    x = alpha * x0 + sigma * eps
    total = alpha**2 + sigma**2
    walked, one = WalkError(level, steps=2000).errors(model(Linear(best=True), process).denoiser, x0, eps)
    assert torch.allclose(one, (alpha / total * x - x0).square().mean((1, 2)), rtol=1e-6)
    assert torch.allclose(walked, (x / total.sqrt() - x0).square().mean((1, 2)), rtol=5e-3)


def test_the_ratio_of_an_exact_model_follows_from_the_correlation() -> None:
    r = 0.4 / math.hypot(0.4, 0.6)
    found = WalkError(0.6, steps=200)(model(Linear(best=True), Flow()).float(), Points(2000), n=2000)
    assert found == pytest.approx(1 + (1 - r) / (1 + r), rel=0.02)


def test_a_model_whose_walk_grows_is_far_above_two() -> None:
    data, growing = Points(200), model(Growing(), Flow()).float()
    found = WalkError(0.6, steps=400)(growing, data, n=200)
    power = 0.4**2 + 0.6**2  # of x_u; its product with x0 is 0.4
    want = (math.exp(3.6) * power - 2 * math.exp(1.8) * 0.4 + 1) / (2.8**2 * power - 2 * 2.8 * 0.4 + 1)
    assert want > 4 and found == pytest.approx(want, rel=0.05)


def test_it_is_a_function_of_its_arguments_and_leaves_the_mode_as_it_was() -> None:
    data, one = Points(50), model(Linear(best=True), Flow()).float().train()
    first = WalkError()(one, data, n=20, batch=8)
    assert first == pytest.approx(WalkError()(one, data, n=20, batch=20), rel=1e-6) and one.training
    assert WalkError()(one, data, n=20, seed=1) != first


@pytest.mark.parametrize(
    ("settings", "said"), [({"level": 0.0}, "level=0"), ({"level": 1.0}, "level=1"), ({"steps": 1}, "steps=1")]
)
def test_impossible_walks_are_refused(settings: dict[str, Any], said: str) -> None:
    with pytest.raises(UserError, match=said):
        WalkError(**settings)


def test_an_empty_part_is_refused() -> None:
    with pytest.raises(UserError, match="held-out part of the data is empty"):
        WalkError()(model(Linear(best=True), Flow()), Points(0))
