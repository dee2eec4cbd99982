"""Classifier-free guidance on an exact denoiser, where the answer is a formula."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from sfumato.core import Cond, Denoiser, Flow, Process, UniformGrid, lift
from sfumato.errors import UserError
from sfumato.guidance import ClassifierFree
from sfumato.samplers import DDIM, Heun, sample
from sfumato.testing import GaussianDenoiser
from tests.guidance.exact import noise

PROCESS = Flow()
ASKED, NULL = Cond(vector=torch.tensor([[1.0], [2.0], [3.0], [4.0]]).double()), Cond(vector=torch.zeros(4, 1).double())
X, T = noise(4, 3), torch.tensor([0.2, 0.4, 0.6, 0.8]).double()


def exact(scale: Tensor) -> Tensor:
    denoiser = GaussianDenoiser(PROCESS)
    asked, anything = denoiser(X, T, ASKED), denoiser(X, T, NULL)
    return anything + lift(scale, X) * (asked - anything)


@pytest.mark.parametrize("scale", [0.0, 1.0, 1.5, 7.0])
def test_formula(scale: float) -> None:
    got = ClassifierFree(scale).wrap(GaussianDenoiser(PROCESS), NULL)(X, T, ASKED)
    assert torch.allclose(got, exact(torch.full((4,), scale).double()), atol=1e-12)


def test_scale_per_sample() -> None:
    scale = torch.tensor([0.0, 1.0, 2.0, 5.0]).double()
    got = ClassifierFree().wrap(GaussianDenoiser(PROCESS), NULL, scale)(X, T, ASKED)
    assert torch.allclose(got, exact(scale), atol=1e-12)


def test_interval_in_logsnr() -> None:
    """Guided only where low <= lambda <= high; lambda of Flow at 0.2, 0.4, 0.6, 0.8 is 2.77, 0.81, -0.81, -2.77."""
    got = ClassifierFree(3.0, interval=(-1.0, 1.0)).wrap(GaussianDenoiser(PROCESS), NULL)(X, T, ASKED)
    assert torch.allclose(got, exact(torch.tensor([1.0, 3.0, 3.0, 1.0]).double()), atol=1e-12)


def test_rescale_restores_the_deviation() -> None:
    guided = ClassifierFree(6.0, rescale=1.0).wrap(GaussianDenoiser(PROCESS), NULL)(X, T, ASKED)
    asked = GaussianDenoiser(PROCESS)(X, T, ASKED)
    assert torch.allclose(guided.std(1), asked.std(1))


def test_rescale_is_that_of_diffusers() -> None:
    utils = pytest.importorskip("diffusers.guiders.guider_utils")
    guided = ClassifierFree(6.0, rescale=0.7).wrap(GaussianDenoiser(PROCESS), NULL)(X, T, ASKED)
    theirs = utils.rescale_noise_cfg(exact(torch.full((4,), 6.0)), GaussianDenoiser(PROCESS)(X, T, ASKED), 0.7)
    torch.testing.assert_close(guided, theirs, rtol=1e-12, atol=0)


def test_a_negative_prompt_mirrors() -> None:
    """For Gaussians of equal deviation, away from b towards a by w is the Gaussian about b + w (a - b)."""
    away = Cond(vector=torch.full((4, 1), -2.0).double())
    got = ClassifierFree(3.0).wrap(GaussianDenoiser(PROCESS), away)(X, T, ASKED)
    moved = Cond(vector=away.vector + 3 * (ASKED.vector - away.vector))
    torch.testing.assert_close(got, GaussianDenoiser(PROCESS)(X, T, moved), rtol=0, atol=1e-13)


def test_guidance_nests() -> None:
    """Guiding a guided denoiser: the scales multiply for the same null, N + v (N + w (D - N) - N)."""
    inner: Denoiser = ClassifierFree(2.0).wrap(GaussianDenoiser(PROCESS), NULL)
    got = sample(_Twice(inner), DDIM(), X, UniformGrid()(PROCESS, 4), ASKED)
    once = ClassifierFree(6.0).wrap(GaussianDenoiser(PROCESS), NULL)
    want = sample(once, DDIM(), X, UniformGrid()(PROCESS, 4), ASKED)
    assert torch.allclose(got, want, atol=1e-10)
    nested = ClassifierFree(3.0).wrap(inner, NULL)
    assert torch.allclose(sample(nested, DDIM(), X, UniformGrid()(PROCESS, 4), ASKED), want, atol=1e-10)


class _Twice:
    """v = 3 around a w = 2 denoiser, whose own null branch answers for the null condition."""

    def __init__(self, inner: Denoiser) -> None:
        self.inner = inner

    @property
    def process(self) -> Process:
        return PROCESS

    def __call__(self, x_t: Tensor, t: Tensor, cond: Cond | None = None) -> Tensor:
        anything = self.inner(x_t, t, NULL)  # guiding null towards null is null
        return anything + 3 * (self.inner(x_t, t, cond) - anything)


def test_any_solver_takes_it() -> None:
    """For Gaussians of equal deviation, guidance by w is the same Gaussian with the mean moved to w times as far."""
    guided = ClassifierFree(2.0).wrap(GaussianDenoiser(PROCESS), NULL)
    y = sample(guided, Heun(), X, UniformGrid()(PROCESS, 64), ASKED)
    moved = sample(GaussianDenoiser(PROCESS), Heun(), X, UniformGrid()(PROCESS, 64), Cond(vector=2 * ASKED.vector))
    assert torch.allclose(y, moved, atol=1e-10)


def test_bad_rescale() -> None:
    for rescale in (1.5, -0.1, float("nan")):
        with pytest.raises(UserError, match=r"guidance rescale must lie in \[0, 1\], not"):
            ClassifierFree(rescale=rescale)
