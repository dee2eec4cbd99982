"""The log-density of the probability-flow ODE against analytic densities."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor
from torch.distributions import Categorical, Independent, MixtureSameFamily, Normal

from sfumato.core import Cond, Flow, Process
from sfumato.errors import SfumatoError, UserError
from sfumato.evaluate import OdeLikelihood
from sfumato.evaluate.likelihood import Levels
from sfumato.testing import PROCESSES, GaussianDenoiser, MixtureDenoiser

MEAN, STD = 0.1, 0.7
TOLERANCE = 0.005  # nats a dimension


def gaussian(n: int = 64, shape: tuple[int, ...] = (2, 3)) -> tuple[Tensor, Tensor]:
    """Samples and their exact log-densities."""
    eps = torch.randn(n, *shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    x0 = MEAN + STD * eps
    return x0, Normal(MEAN, STD).log_prob(x0).flatten(1).sum(1)


def probes(n: int, count: int, shape: tuple[int, ...]) -> Tensor:
    return torch.randn(n, count, *shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


@pytest.mark.parametrize("process", PROCESSES, ids=str)
def test_a_gaussian_on_every_process(process: Process) -> None:
    x0, truth = gaussian()
    denoiser = GaussianDenoiser(process, MEAN, STD)
    for method in (
        OdeLikelihood(divergence="exact"),
        OdeLikelihood(divergence="hutchinson", probes=2),  # signs are exact where the Jacobian is diagonal
        OdeLikelihood(divergence="exact", evaluations=60),
    ):
        found = method(denoiser, x0, noise=probes(64, method.probes, (2, 3)))
        error = (found.log_p - truth[:, None]) / 6
        assert float(error.mean().abs()) < TOLERANCE / 5
        assert float(error.abs().max()) < TOLERANCE


def test_gaussian_probes_are_unbiased_and_signs_vary_less() -> None:
    means = torch.tensor([[0.6, 0.3, 0.0], [-0.6, 0.2, 0.4]], dtype=torch.float64)
    denoiser = MixtureDenoiser(Flow(), means, std=0.5)
    x0 = means[[0, 1]] + 0.1
    exact = OdeLikelihood(divergence="exact", rtol=1e-5, atol=1e-5)(denoiser, x0).log_p
    spread = {}
    for probe in ("rademacher", "gaussian"):
        method = OdeLikelihood(divergence="hutchinson", probes=100, probe=probe, rtol=1e-3, atol=1e-3)  # type: ignore[arg-type]
        found = method(denoiser, x0, noise=probes(2, 100, (3,))).log_p
        spread[probe] = found.std(1)
        assert bool(((found.mean(1) - exact[:, 0]).abs() < 4 * found.std(1) / math.sqrt(100)).all())
    assert bool((spread["rademacher"] < spread["gaussian"] / 2).all())


@pytest.mark.parametrize("process", PROCESSES[:4], ids=str)
def test_a_mixture_in_the_plane(process: Process) -> None:
    """Eight modes on a circle and one in the middle: -E ln p over its own samples."""
    angles = torch.arange(8, dtype=torch.float64) * math.pi / 4
    means = torch.cat([torch.stack([angles.cos(), angles.sin()], 1), torch.zeros(1, 2, dtype=torch.float64)])
    exact = MixtureSameFamily(Categorical(torch.ones(9)), Independent(Normal(means, torch.full_like(means, 0.15)), 1))
    torch.manual_seed(0)
    x0 = exact.sample((256,))
    found = OdeLikelihood()(MixtureDenoiser(process, means, 0.15), x0)
    error = (found.log_p[:, 0] - exact.log_prob(x0)) / 2
    assert float(error.mean().abs()) < TOLERANCE
    assert float(error.abs().max()) < 4 * TOLERANCE


def test_other_means_for_other_conditions() -> None:
    x0, _ = gaussian(4)
    asked = torch.tensor([0.0, 0.5, -0.5, 1.0], dtype=torch.float64)
    cond = Cond(vector=asked[:, None, None])
    found = OdeLikelihood()(GaussianDenoiser(Flow(), std=STD), x0, cond).log_p[:, 0]
    truth = Normal(asked[:, None, None], STD).log_prob(x0).flatten(1).sum(1)
    torch.testing.assert_close(found, truth, rtol=0, atol=6 * TOLERANCE)


@pytest.mark.parametrize("logsnr_max", [3.0, 6.0])
def test_it_is_the_density_of_the_data_with_the_least_noise_added(logsnr_max: float) -> None:
    x0, _ = gaussian()
    method = OdeLikelihood(logsnr_max=logsnr_max, rtol=1e-7, atol=1e-7)
    found = method(GaussianDenoiser(Flow(), MEAN, STD), x0).log_p[:, 0]
    noisy = Normal(MEAN, math.sqrt(STD**2 + math.exp(-logsnr_max)))
    torch.testing.assert_close(found, noisy.log_prob(x0).flatten(1).sum(1), rtol=0, atol=1e-5)


def test_the_fixed_grid_has_order_4() -> None:
    means = torch.tensor([[0.6, 0.3, 0.0], [-0.6, 0.2, 0.4]], dtype=torch.float64)
    denoiser, x0 = MixtureDenoiser(Flow(), means, std=0.4), gaussian(4, (3,))[0]
    exact = OdeLikelihood(rtol=1e-11, atol=1e-11)(denoiser, x0).log_p
    errors = [float((OdeLikelihood(evaluations=n)(denoiser, x0).log_p - exact).abs().max()) for n in (160, 320)]
    assert math.log2(errors[0] / errors[1]) == pytest.approx(4, abs=0.3)


def test_a_sample_alone_has_the_same_density() -> None:
    means = torch.tensor([[0.6, 0.3, 0.0], [-0.6, 0.2, 0.4]], dtype=torch.float64)
    denoiser = MixtureDenoiser(Flow(), means, std=0.2)
    x0, noise = gaussian(5, (3,))[0], probes(5, 2, (3,))
    method = OdeLikelihood(divergence="hutchinson", probes=2)
    together = method(denoiser, x0, noise=noise)
    for i in range(5):
        alone = method(denoiser, x0[i : i + 1], noise=noise[i : i + 1])
        torch.testing.assert_close(alone.log_p[0], together.log_p[i], rtol=0, atol=1e-9)
        assert int(alone.evaluations) == int(together.evaluations[i])


@pytest.mark.parametrize("process", PROCESSES, ids=str)
def test_levels_are_those_of_the_process(process: Process) -> None:
    levels = Levels(process, 12.0)
    nodes = levels.spread(9)
    t = levels.time(nodes)
    assert float(t[-1]) == 1.0
    torch.testing.assert_close(process.level(t).log(), nodes, rtol=0, atol=1e-9)
    assert float(process.logsnr(t[0])) == pytest.approx(12, abs=1e-6)
    torch.testing.assert_close(Levels.uneven(Levels.even(nodes)), nodes, rtol=0, atol=1e-12)
    steps = Levels.even(nodes).diff()
    torch.testing.assert_close(steps, steps.mean().expand(9), rtol=1e-9, atol=0)


def test_what_can_not_be_computed() -> None:
    x0, _ = gaussian(2)
    with pytest.raises(UserError, match="probes = 0"):
        OdeLikelihood(probes=0)
    with pytest.raises(UserError, match="multiple of 4"):
        OdeLikelihood(evaluations=10)
    with pytest.raises(UserError, match="logsnr_max = 90"):
        OdeLikelihood(logsnr_max=90)
    with pytest.raises(UserError, match="needs noise"):
        OdeLikelihood(divergence="hutchinson")(GaussianDenoiser(Flow()), x0)
    with pytest.raises(UserError, match="raise logsnr_max"):
        Levels(PROCESSES[3], -12.0)  # ve ends at a log-SNR of -8.8

    class Broken:
        process = Flow()

        def __call__(self, x_t: Tensor, t: Tensor, cond: Cond | None = None) -> Tensor:
            return x_t * torch.where(t > 0.5, torch.nan, 1.0)[:, None, None]

    with pytest.raises(SfumatoError, match=r"sample 0 .*slope is not finite"):
        OdeLikelihood()(Broken(), x0)
    with pytest.raises(SfumatoError, match="log-density of sample 0 is not finite"):
        OdeLikelihood(evaluations=8)(Broken(), x0)
