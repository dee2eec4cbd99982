"""Errors by noise level against closed forms."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from tests.evaluate.test_heldout import Linear, Points
from torch import Tensor

from sfumato.codecs import Arrays
from sfumato.conditioners import Label
from sfumato.core import VP, X0, Batch, Cosine, DataInfo, Flow, NetDenoiser, Network, Process, Velocity
from sfumato.errors import UserError
from sfumato.evaluate import LevelErrors
from sfumato.model import Model

INFO = DataInfo((1, 64), "array")


def model(network: Network, process: Process, parameterization: Any = None) -> Model:
    return Model(NetDenoiser(network, process, parameterization or Velocity()), Arrays(INFO), None, INFO)


@pytest.mark.parametrize("process", [Flow(), Cosine()], ids=repr)
def test_of_the_best_denoiser_it_is_the_posterior_variance(process: Process) -> None:
    """White data: 1 / (1 + SNR); and the mean, zero, is off by 1."""
    found = LevelErrors((-16.0, -4.0, 0.0, 2.0))(model(Linear(best=True), process), Points(2000), Points(2000), n=2000)
    assert [level.log_snr for level in found.levels] == [-16.0, -4.0, 0.0, 2.0]
    for level in found.levels:
        assert level.unasked is None
        assert level.asked == pytest.approx(1 / (1 + math.exp(level.log_snr)), rel=0.02)
    assert found.mean == pytest.approx(1.0, rel=0.02) and found.at_noise == pytest.approx(1.0, rel=0.02)
    assert set(found.scores()) == {"x0_-16", "x0_-4", "x0_0", "x0_2", "mean", "at_noise"}


class Told(Network):
    """x0 = the condition's first number where there is one, else `guess`."""

    def __init__(self, guess: float) -> None:
        super().__init__()
        self.guess = torch.nn.Parameter(torch.tensor(guess))

    def forward(self, x: Tensor, noise: Tensor, cond: Any = None) -> Tensor:
        value = cond.vector[:, 0] + (cond.vector[:, 1] > 0) * self.guess
        return value[:, None, None].expand_as(x)


class Signs(Points):
    """-1 everywhere in class 0 and 1 in class 1, as often."""

    def __init__(self, n: int) -> None:
        self.x = np.ones((n, 1, 64), np.float32) * np.where(np.arange(n) % 2, 1, -1)[:, None, None]

    @property
    def info(self) -> DataInfo:
        return DataInfo((1, 64), "array", labels=("minus", "plus"))

    def fetch(self, indices: Any, draws: Any = None) -> Batch:
        index = np.asarray(indices)
        return Batch(torch.from_numpy(self.x[index]), {"label": torch.from_numpy(index % 2)})


@pytest.mark.parametrize("guess", [0.0, 0.5])
def test_asked_and_unasked_are_told_apart(guess: float) -> None:
    """Asked, the network is right; unasked it says `guess`, whose error is 1 + guess^2, and the mean's is 1."""
    data = Signs(64)
    conditioner = Label(data.info, width=2)
    with torch.no_grad():
        conditioner.table.weight.copy_(torch.tensor([[-1.0, 0.0], [1.0, 0.0], [0.0, 1.0]]))
    one = Model(NetDenoiser(Told(guess), Flow(), X0()), Arrays(data.info), conditioner, data.info)
    found = LevelErrors((-10.0, 0.0))(one, data, data, n=64, batch=16)
    for level in found.levels:
        assert level.asked == pytest.approx(0.0, abs=1e-9) and level.unasked == pytest.approx(1 + guess**2)
    assert found.mean == pytest.approx(1.0) and found.at_noise == pytest.approx(1 + guess**2)
    assert {"asked_-10", "unasked_-10", "asked_0", "unasked_0", "mean", "at_noise"} == set(found.scores())


def test_levels_beyond_the_process_are_its_end() -> None:
    found = LevelErrors((-40.0, -30.0, 0.0))(model(Linear(best=True), VP()), Points(50), Points(50), n=50)
    assert [level.log_snr for level in found.levels] == [round(float(VP().logsnr(torch.ones(1))), 2), 0.0]


def test_it_is_a_function_of_its_arguments_and_leaves_the_mode_as_it_was() -> None:
    data, one = Points(50), model(Linear(best=True), Flow()).train()
    first = LevelErrors()(one, data, data, n=20, batch=8)
    again = LevelErrors()(one, data, data, n=20, batch=20)
    assert [a.asked for a in first.levels] == pytest.approx([b.asked for b in again.levels], rel=1e-6) and one.training
    assert LevelErrors()(one, data, data, n=20, seed=1) != again


@pytest.mark.parametrize(
    ("levels", "said"),
    [
        ((), "none are given"),
        ((0.0, -2.0), "in rising order"),
        ((float("nan"),), "in rising order"),
        ((-200.0,), "-100"),
    ],
)
def test_impossible_levels_are_refused(levels: tuple[float, ...], said: str) -> None:
    with pytest.raises(UserError, match=said):
        LevelErrors(levels)


def test_an_empty_part_is_refused() -> None:
    with pytest.raises(UserError, match="a part of the data is empty"):
        LevelErrors()(model(Linear(best=True), Flow()), Points(0), Points(4))
