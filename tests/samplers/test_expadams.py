"""`exp-adams` and its grid: the integrals against sums of many terms, and what the defaults are made of."""

from __future__ import annotations

import math

import pytest
import torch

from sfumato.core import VP, DiscreteVP, Flow, LogisticGrid, UniformGrid
from sfumato.errors import UserError
from sfumato.samplers import ExpAdams
from sfumato.samplers.dpmpp import exponential_step
from sfumato.samplers.expadams import level_weights, levels_of
from sfumato.samplers.multistep import half_logsnr
from sfumato.samplers.tuned import unrolled


@pytest.mark.parametrize("power", [0.1, 0.25, 1.0, 2.0])
def test_the_weights_are_the_integrals_of_the_polynomial(power: float) -> None:
    process = VP()
    times = torch.tensor([0.8, 0.6, 0.35, 0.1], dtype=torch.float64)
    lam = half_logsnr(process, times)
    step = exponential_step(process, times[2], times[3], 0.0)
    points = [levels_of(lam[i], power) for i in (2, 1, 0)]
    weights = level_weights(step, lam[3], points, power)
    y = math.exp(-float(step.h)) + (1 - math.exp(-float(step.h))) * (torch.arange(200_000).double() + 0.5) / 200_000
    u = levels_of(lam[3] + y.log(), power)
    for k in range(3):  # exact for 1, u and u^2
        found = torch.stack([w * p**k for w, p in zip(weights, points)]).sum()
        assert float(found) == pytest.approx(float(step.on_data * (u**k).mean()), rel=1e-8)


def test_power_one_is_the_level_of_the_straight_paths() -> None:
    times = torch.linspace(0.05, 0.95, 7, dtype=torch.float64)
    torch.testing.assert_close(levels_of(half_logsnr(Flow(), times), 1.0), times)


def test_a_walk_from_alpha_0_has_finite_weights() -> None:
    times = UniformGrid()(Flow(), 6)
    for power in (0.25, 1.0):
        table = unrolled(ExpAdams(power=power, free_start=False), Flow(), times)
        assert torch.isfinite(table).all()


def test_by_default_a_part_of_the_predictor_is_of_one_order_less() -> None:
    """In the last step but one of a walk of 10, 4 / 5 of the parabola's step and 1 / 5 of the line's."""
    process, times = DiscreteVP(), LogisticGrid()(DiscreteVP(), 10)
    lam = half_logsnr(process, times)[6:9]
    step = exponential_step(process, times[8], times[9], 0.0)
    u = [levels_of(value, 0.25) for value in lam.flip(0)]
    line, parabola = (level_weights(step, half_logsnr(process, times)[9], u[:p], 0.25) for p in (2, 3))
    _, out, corrected, *_ = ExpAdams().table(process, times)[0][8]  # over x, five that are carried, D
    predictor = out - corrected  # what the step adds to the corrected x
    expected = [0.8 * w + 0.2 * v for w, v in zip(parabola, [*line, torch.zeros_like(line[0])])]
    torch.testing.assert_close(predictor[[6, 2, 3]], torch.stack(expected), rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("power", [0.0, 0.05, 2.5])
def test_a_power_that_is_none_is_refused(power: float) -> None:
    with pytest.raises(UserError, match="power"):
        ExpAdams(power=power)


class TestLogisticGrid:
    def test_equal_steps_of_the_straight_paths(self) -> None:
        times = LogisticGrid(center=0.0, scale=1.0, leap=1.0)(Flow(), 8)
        torch.testing.assert_close(times, UniformGrid()(Flow(), 8))

    def test_the_last_step_is_a_leap(self) -> None:
        times = LogisticGrid(center=0.0, scale=1.0, leap=1.6)(Flow(), 8)
        steps = -times.diff()
        assert float(steps[-1]) == pytest.approx(1.6 / 8)
        assert float(steps[:-1].max() - steps[:-1].min()) < 1e-12

    @pytest.mark.parametrize("leap", [0.0, 2.0])
    def test_a_leap_that_is_none_is_refused(self, leap: float) -> None:
        with pytest.raises(UserError, match="leap"):
            LogisticGrid(leap=leap)

    def test_few_steps_and_many_fall(self) -> None:
        for n in (*range(1, 12), 100, 1000):
            for process in (Flow(), VP(), DiscreteVP()):
                times = LogisticGrid()(process, n)
                assert len(times) == n + 1 and bool((times.diff() < 0).all())
