"""The adaptive Dormand-Prince pair against closed forms: order, tolerance, direction, independence of the batch."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from sfumato.core import VP, Cosine, Flow, lift
from sfumato.errors import SfumatoError, UserError
from sfumato.samplers.rk45 import integrate, step
from sfumato.testing import GaussianDenoiser


def logistic(y: Tensor, t: Tensor) -> Tensor:
    return lift(t, y) * y * (1 - y)


def logistic_at(y0: Tensor, t0: float, t1: float) -> Tensor:
    """y(t1): the logit grows by (t1^2 - t0^2) / 2."""
    return torch.sigmoid(torch.logit(y0) + (t1**2 - t0**2) / 2)


def starts(n: int = 8, d: int = 3, seed: int = 0) -> Tensor:
    return torch.rand(n, d, generator=torch.Generator().manual_seed(seed), dtype=torch.float64) * 0.8 + 0.1


def fixed(y: Tensor, t0: float, t1: float, n: int) -> tuple[Tensor, Tensor]:
    """n equal steps; the value, and the largest local error that was estimated."""
    h = torch.full((len(y),), (t1 - t0) / n, dtype=torch.float64)
    worst = torch.zeros(())

    def f(y: tuple[Tensor, ...], t: Tensor) -> tuple[Tensor, ...]:
        return (logistic(y[0], t),)

    k = f((y,), torch.full_like(h, t0))
    for i in range(n):
        (y,), (error,), k = step(f, (y,), t0 + i * h, h, k)
        worst = torch.maximum(worst, error.abs().max())
    return y, worst


def test_a_step_has_order_5_and_its_error_estimate_order_4() -> None:
    y, exact = starts(), logistic_at(starts(), 0.0, 2.0)
    errors, estimates = [], []
    for n in (16, 32):
        found, worst = fixed(y, 0.0, 2.0, n)
        errors.append(float((found - exact).abs().max()))
        estimates.append(float(worst))
    assert math.log2(errors[0] / errors[1]) == pytest.approx(5, abs=0.2)
    assert math.log2(estimates[0] / estimates[1]) == pytest.approx(5, abs=0.3)  # local: one more than its order


@pytest.mark.parametrize("tolerance", [1e-4, 1e-6, 1e-8, 1e-10])
def test_the_tolerance_is_honoured(tolerance: float) -> None:
    y, evaluations = integrate(logistic, starts(), 0.0, 3.0, rtol=tolerance, atol=tolerance)
    assert float((y - logistic_at(starts(), 0.0, 3.0)).abs().max()) < 5 * tolerance
    assert int(evaluations.max()) < 12 * tolerance**-0.2 + 40  # the fifth root of the tolerance


def test_linear_systems() -> None:
    """y' = A y with complex eigenvalues: y(t) = exp(t A) y(0)."""
    a = torch.tensor([[-0.5, 2.0], [-2.0, -0.5]], dtype=torch.float64)
    y0 = torch.randn(5, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    y, _ = integrate(lambda y, t: y @ a.T, y0, 1.0, 4.0, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(y, y0 @ torch.linalg.matrix_exp(3 * a).T, rtol=0, atol=1e-7)


def test_there_and_back() -> None:
    there, _ = integrate(logistic, starts(), 0.0, 2.0, rtol=1e-10, atol=1e-10)
    back, _ = integrate(logistic, there, 2.0, 0.0, rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(back, starts(), rtol=0, atol=1e-8)


@pytest.mark.parametrize("process", [Flow(), Cosine(), VP()])
def test_the_probability_flow_of_a_gaussian(process: object) -> None:
    """From noise to data in w = ln u, z = x / (alpha + sigma), against the exact flow."""
    denoiser = GaussianDenoiser(process)  # type: ignore[arg-type]
    one, small = torch.ones((), dtype=torch.float64), torch.tensor(12.0, dtype=torch.float64)
    t1 = denoiser.process.time(small)
    ends = [denoiser.process.level(t).log() for t in (one, t1)]

    def slope(z: Tensor, w: Tensor) -> Tensor:
        t = denoiser.process.time(2 * (torch.log1p(-w.exp()) - w))
        alpha, sigma = (lift(c, z) for c in denoiser.process.scales(t))
        return z - denoiser((alpha + sigma) * z, t)

    eps = torch.randn(6, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    x1 = denoiser.process.sigma(one) * eps
    z, _ = integrate(slope, x1 / sum(denoiser.process.scales(one)), *ends, rtol=1e-9, atol=1e-9)
    exact = denoiser.flow(x1, one.expand(6), t1.expand(6))
    torch.testing.assert_close(z * sum(denoiser.process.scales(t1)), exact, rtol=0, atol=1e-7)


def test_a_sample_takes_its_own_steps_whatever_else_is_in_the_batch() -> None:
    speeds = torch.tensor([[1.0], [30.0], [4.0]], dtype=torch.float64)

    def f(y: tuple[Tensor, Tensor], t: Tensor) -> tuple[Tensor, Tensor]:
        return torch.zeros_like(y[0]), y[0] * torch.cos(lift(t, y[1]) * y[0])

    start = (speeds, torch.zeros_like(speeds))
    (_, together), counts = integrate(f, start, 0.0, 3.0, rtol=1e-7, atol=1e-7)
    for i in range(3):
        (_, alone), count = integrate(f, tuple(part[i : i + 1] for part in start), 0.0, 3.0, rtol=1e-7, atol=1e-7)
        assert torch.equal(alone[0], together[i]) and int(count) == int(counts[i])
    torch.testing.assert_close(together, torch.sin(3 * speeds), rtol=0, atol=3e-5)
    assert counts[1] > 3 * counts[0]


def test_ends_of_its_own_for_every_sample() -> None:
    ends = torch.tensor([0.5, 1.0, -0.7, 0.0], dtype=torch.float64)
    y, counts = integrate(lambda y, t: y, torch.ones(4, 2, dtype=torch.float64), 0.0, ends, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(y, ends.exp()[:, None].expand(4, 2), rtol=1e-8, atol=0)
    assert torch.equal(y[3], torch.ones(2, dtype=torch.float64)) and counts[3] == 2


def test_the_hardest_tensor_decides() -> None:
    """A part that moves much faster than the other one is integrated as well as it would be alone."""

    def f(y: tuple[Tensor, Tensor], t: Tensor) -> tuple[Tensor, Tensor]:
        return torch.zeros_like(y[0]), torch.cos(40 * lift(t, y[1])) * 40

    still, fast = torch.ones(2, 1000, dtype=torch.float64), torch.zeros(2, 1, dtype=torch.float64)
    (_, y), _ = integrate(f, (still, fast), 0.0, 1.0, rtol=1e-8, atol=1e-8)
    torch.testing.assert_close(y, torch.full_like(y, math.sin(40)), rtol=0, atol=2e-6)


def test_what_can_not_be_integrated_is_named() -> None:
    y = torch.ones(3, 2, dtype=torch.float64)
    with pytest.raises(UserError, match=r"float32 resolve\s+rtol >= 1e-06"):
        integrate(lambda y, t: y, y.float(), 0.0, 1.0, rtol=1e-9)
    with pytest.raises(UserError, match="floating type"):
        integrate(lambda y, t: y, y.long(), 0.0, 1.0)

    def broken(y: Tensor, t: Tensor) -> Tensor:
        bad = torch.tensor([0.0, 1.0, 0.0], dtype=torch.float64) * (t > 0.5)
        return y + lift(torch.where(bad > 0, torch.nan, 0.0), y)

    with pytest.raises(SfumatoError, match=r"sample 1 have shrunk to .* at t = 0\.5: the slope is not finite there"):
        integrate(broken, y, 0.0, 1.0)
    with pytest.raises(SfumatoError, match=r"slope of sample 1 is not finite at t = 0\.75"):
        integrate(broken, y, 0.75, 1.0)
    with pytest.raises(SfumatoError, match=r"sample 0 stands at t = .* raise max_evaluations = 100"):
        integrate(lambda y, t: -1e6 * (y - lift(t, y).cos()), y, 0.0, 1.0, max_evaluations=100)


def test_a_blow_up_is_noticed() -> None:
    """y' = y^2 from 1 reaches infinity at t = 1."""
    with pytest.raises(SfumatoError, match=r"shrunk to .* at t = 1: the (equation|slope)"):
        integrate(lambda y, t: y * y, torch.ones(1, 1, dtype=torch.float64), 0.0, 2.0)
