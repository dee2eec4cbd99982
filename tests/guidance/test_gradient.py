"""Guidance by classifiers, regressors and energies, on densities where the posterior is known."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from sfumato.core import VE, VP, Cond, DiscreteVP, Flow, KarrasGrid, Process, lift
from sfumato.errors import UserError
from sfumato.guidance import Classifier, ClassifierFree, Energy
from sfumato.samplers import Heun, sample
from sfumato.testing import GaussianDenoiser, MixtureDenoiser
from tests.guidance.exact import ASKED, NULL, PROCESSES, TIMES, Squared, noise

MEANS = torch.tensor([[-1.0, 0.5], [0.3, 1.2], [1.5, -0.7]]).double()
STD = 0.4
Y = torch.tensor([0, 1, 2, 1])  # the class asked of each sample
X = noise(4, 2)


def class_log_prob(process: Process, y: Tensor):  # type: ignore[no-untyped-def]
    """log p(class y | x_t) of the mixture of MEANS with equal weights: a softmax over Gaussian densities."""

    def log_prob(x_t: Tensor, t: Tensor) -> Tensor:
        alpha, sigma = process.scales(t)
        variance = (alpha * STD).square() + sigma.square()
        away = x_t[:, None] - lift(alpha, x_t)[:, None] * MEANS
        logits = -away.square().sum(-1) / (2 * variance[:, None])
        return logits.log_softmax(-1).gather(1, y[: len(x_t), None])[:, 0]

    return log_prob


@pytest.mark.parametrize("process", PROCESSES, ids=lambda p: p.kind)
def test_the_exact_classifier_gives_the_class(process: Process) -> None:
    """The mixture guided by its own class posterior is the one component, E[x0 | x_t, y], to rounding."""
    mixture = MixtureDenoiser(process, MEANS, STD)
    component = GaussianDenoiser(process, std=STD)
    guided = Classifier(class_log_prob(process, Y)).wrap(mixture)
    x = X * lift((process.alpha(TIMES).square() + process.sigma(TIMES).square()).sqrt(), X)
    want = component(x, TIMES, Cond(vector=MEANS[Y]))
    with torch.no_grad():  # as solvers call it
        got = guided(x, TIMES)
    torch.testing.assert_close(got, want, rtol=0, atol=1e-10)
    assert not got.requires_grad and not x.requires_grad


def test_walks_with_the_classifier_end_in_the_class() -> None:
    """The same trajectories as those of the component alone, with a scale for every sample."""
    process = VP()
    times = KarrasGrid(0.01, 100.0)(process, 20)
    scale = torch.tensor([1.0, 1.0, 0.0, 1.0], dtype=torch.float64)
    mixture = MixtureDenoiser(process, MEANS, STD)
    guided = Classifier(class_log_prob(process, Y)).wrap(mixture, scale=scale)
    got = sample(guided, Heun(), X, times)
    alone = sample(GaussianDenoiser(process, std=STD), Heun(), X, times, Cond(vector=MEANS[Y]))
    torch.testing.assert_close(got[[0, 1, 3]], alone[[0, 1, 3]], rtol=0, atol=1e-8)
    assert torch.equal(got[2], sample(mixture, Heun(), X, times)[2])


@pytest.mark.parametrize("process", PROCESSES, ids=lambda p: p.kind)
def test_the_exact_regressor_gives_the_posterior(process: Process) -> None:
    """x0 ~ N(m, S), y = A x0 + noise: conditioning the joint Gaussian of (x0, x_t, y) on both is the guided denoiser."""
    prior = torch.tensor([[0.5, 0.2], [0.2, 0.3]], dtype=torch.float64)
    mean = torch.tensor([0.7, -0.4], dtype=torch.float64)
    matrix = torch.tensor([[1.0, -0.5]], dtype=torch.float64)
    spread, y = 0.3, torch.tensor([0.9], dtype=torch.float64)

    def of_x(alpha: Tensor, sigma: Tensor) -> Tensor:  # covariance of x_t
        return alpha**2 * prior + sigma**2 * torch.eye(2).double()

    class Prior:
        def __init__(self) -> None:
            self.process = process

        def __call__(self, x_t: Tensor, t: Tensor, cond: Cond | None = None) -> Tensor:
            rows = []
            for x, alpha, sigma in zip(x_t, *process.scales(t)):
                rows.append(mean + alpha * prior @ torch.linalg.solve(of_x(alpha, sigma), x - alpha * mean))
            return torch.stack(rows)

    def log_prob(x_t: Tensor, t: Tensor) -> Tensor:
        """y | x_t is Gaussian about A E[x0 | x_t] with covariance A Cov[x0 | x_t] A^T + spread^2."""
        found = []
        for x, alpha, sigma in zip(x_t, *process.scales(t)):
            gain = alpha * torch.linalg.solve(of_x(alpha, sigma), prior).T
            about = matrix @ (mean + gain @ (x - alpha * mean))
            variance = matrix @ (prior - alpha * gain @ prior) @ matrix.T + spread**2
            found.append((-(y - about).square() / (2 * variance)).sum())
        return torch.stack(found)

    x = X * lift(process.sigma(TIMES) + process.alpha(TIMES), X)
    got = Classifier(log_prob).wrap(Prior())(x, TIMES)
    for row, x_row, alpha, sigma in zip(got, x, *process.scales(TIMES)):
        seen = torch.cat([alpha * torch.eye(2).double(), matrix])  # (x_t, y) = seen x0 + noise
        covariance = seen @ prior @ seen.T + torch.diag(
            torch.cat([sigma.square().expand(2), torch.tensor([spread**2], dtype=torch.float64)])
        )
        both = torch.cat([x_row, y]) - seen @ mean
        torch.testing.assert_close(
            row, mean + prior @ seen.T @ torch.linalg.solve(covariance, both), rtol=0, atol=1e-10
        )


@pytest.mark.parametrize("process", PROCESSES, ids=lambda p: p.kind)
def test_a_linear_energy_tilts_a_gaussian(process: Process) -> None:
    """exp(-a . x0) moves N(m, std^2) to N(m - std^2 a, std^2), and the guided denoiser is that one's, exactly."""
    a = torch.tensor([0.7, -1.3], dtype=torch.float64)
    guided = Energy(lambda x0: x0 @ a, 2.0).wrap(GaussianDenoiser(process))
    moved = GaussianDenoiser(process)(X, TIMES, Cond(vector=(0.5 - 2 * 0.7**2 * a).expand(4, 2)))
    with torch.no_grad():
        torch.testing.assert_close(guided(X, TIMES), moved, rtol=0, atol=1e-12)


@pytest.mark.parametrize("process", [Flow(), DiscreteVP(zero_terminal_snr=True)], ids=lambda p: p.kind)
def test_nothing_is_guided_where_there_is_only_noise(process: Process) -> None:
    """alpha = 0: finite, and the estimate as it was; alpha = 1 throughout: guided from the first evaluation on."""
    t = torch.tensor([1.0, 1.0, 0.5, 1.0], dtype=torch.float64)
    inner = MixtureDenoiser(process, MEANS, STD)
    for guided in (Classifier(class_log_prob(process, Y)).wrap(inner), Energy(lambda x0: x0.sum(1)).wrap(inner)):
        got = guided(X, t)
        assert torch.equal(got[[0, 1, 3]], inner(X, t)[[0, 1, 3]])
        assert not torch.isclose(got[2], inner(X, t)[2]).any()
    exploding = VE()
    x, one = 80 * X, torch.ones(4, dtype=torch.float64)
    got = Classifier(class_log_prob(exploding, Y)).wrap(MixtureDenoiser(exploding, MEANS, STD))(x, one)
    want = GaussianDenoiser(exploding, std=STD)(x, one, Cond(vector=MEANS[Y]))
    torch.testing.assert_close(got, want, rtol=0, atol=1e-9)


def test_around_classifier_free_guidance_it_adds() -> None:
    """D_cfg + w sigma^2 / alpha grad log p: the gradient of a classifier does not pass through the network."""
    process = Flow()
    free = ClassifierFree(3.0).wrap(Squared(process), NULL)
    classifier = Classifier(class_log_prob(process, Y), 1.5)
    both, one = classifier.wrap(free)(X, TIMES, ASKED), classifier.wrap(Squared(process))(X, TIMES, ASKED)
    difference = one - Squared(process)(X, TIMES, ASKED)
    torch.testing.assert_close(both, free(X, TIMES, ASKED) + difference, rtol=0, atol=1e-12)


def test_functions_that_can_not_guide_are_named() -> None:
    inner = Squared(Flow())
    with pytest.raises(
        UserError, match=r"log_prob gave shape \(\) for a batch of 4; it must give one number a sample, \(4,\)"
    ):
        Classifier(lambda x, t: x.sum()).wrap(inner)(X, TIMES)
    with pytest.raises(UserError, match=r"energy gave shape \(4, 2\) for a batch of 4"):
        Energy(lambda x0: x0).wrap(inner)(X, TIMES)
    with pytest.raises(UserError, match="log_prob does not depend on its input in a way that can be differentiated"):
        Classifier(lambda x, t: torch.zeros(4)).wrap(inner)(X, TIMES)
