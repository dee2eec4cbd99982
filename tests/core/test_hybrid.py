"""Learned variance: the KL, its ends, its optimum on a Gaussian, and what it leaves alone."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from tests.tiny import tiny_model, tiny_spec
from torch import Tensor, nn
from torch.distributions import Normal, kl_divergence

from sfumato import modelfolder
from sfumato.core import (
    VE,
    VP,
    X0,
    Cond,
    CondShape,
    Cosine,
    DataInfo,
    DenoisingLoss,
    DiscreteVP,
    Draws,
    Flow,
    HybridLoss,
    MinSNR,
    NetDenoiser,
    Network,
    Process,
    V,
    gaussian_kl,
)
from sfumato.errors import UserError
from sfumato.model import ModelSpec
from sfumato.nn import MLP, DiT, UNet
from sfumato.recipes.build import model_spec_of
from sfumato.recipes.load import load_recipe
from sfumato.spec import Spec
from sfumato.testing import GaussianDenoiser

STD = 0.7


class Exact(Network):
    """E[x0 | x_t] of N(0, 0.7^2), read by `X0`, with a weight on it, and one number for the variance."""

    def __init__(self, process: Process) -> None:
        super().__init__()
        self.denoiser = GaussianDenoiser(process, mean=0.0, std=STD)
        self.gain, self.logit = nn.Parameter(torch.ones(()).double()), nn.Parameter(torch.zeros(()).double())

    def forward(self, x: Tensor, noise: Tensor, cond: Cond | None = None) -> Tensor:
        process, u = self.denoiser.process, noise.double()
        t = process.time(2 * ((1 - u) / u).log())
        x_t = x / X0().coeffs(*process.scales(t)).c_in[:, None]
        return torch.cat([self.gain * self.denoiser(x_t, t), self.logit.expand_as(x)], 1)


def exact(process: Process) -> tuple[NetDenoiser, Exact]:
    network = Exact(process)
    return NetDenoiser(network, process, X0(), learned_variance=True), network


def drawn(n: int, d: int = 16) -> tuple[Tensor, Tensor]:
    x0, eps = torch.randn(2, n, d, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    return STD * x0, eps


def test_kl_is_torchs() -> None:
    a, b, c, d = torch.randn(4, 50, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    want = kl_divergence(Normal(a, (b / 2).exp()), Normal(c, (d / 2).exp()))
    assert torch.allclose(gaussian_kl(a, b, c, d), want)
    assert torch.equal(gaussian_kl(a, b, a, b), torch.zeros_like(a))


def test_variances_are_beta_tilde_and_beta() -> None:
    betas = torch.linspace(1e-4, 0.02, 1000, dtype=torch.float64)
    kept = torch.cumprod(1 - betas, 0)
    k = torch.arange(2, 1001)
    small, large = DiscreteVP("linear").variances(k.double() / 1000, (k - 1).double() / 1000)
    assert torch.allclose(large, betas[1:], rtol=1e-9)
    assert torch.allclose(small, (1 - kept[:-1]) / (1 - kept[1:]) * betas[1:], rtol=1e-9)


@pytest.mark.parametrize("process", [Flow(), Cosine(), VP(), VE(), DiscreteVP("cosine")], ids=repr)
def test_variances_bound_those_of_gaussian_data(process: Process) -> None:
    """Var(x_s | x_t) from the joint covariance of (x_s, x_t) for data of deviation 0, 0.7 and 1; finite at pure noise."""
    t, s = torch.tensor([1.0, 0.8, 0.31]).double(), torch.tensor([0.9, 0.2, 0.3]).double()
    (alpha_t, sigma_t), (alpha_s, sigma_s) = process.scales(t), process.scales(s)

    def conditional(std: float) -> Tensor:
        total_t, total_s = (alpha_t * std) ** 2 + sigma_t**2, (alpha_s * std) ** 2 + sigma_s**2
        covariance = alpha_t / alpha_s * total_s  # x_t = a x_s + new noise
        return total_s - covariance**2 / total_t

    small, large = process.variances(t, s)
    assert torch.allclose(small, conditional(0.0), rtol=1e-6) and torch.allclose(large, conditional(1.0), rtol=1e-6)
    assert bool(((small < conditional(STD)) & (conditional(STD) < large)).all())


@pytest.mark.parametrize("process", [Flow(), VP(), VE()], ids=repr)
def test_the_best_v_gives_the_posterior_variance(process: Process) -> None:
    """With the exact mean, the bound is least where the step's variance is Var(x_s | x_t) of the data."""
    steps, k, n = 20, 8, 12_000
    denoiser, network = exact(process)
    x0, eps = drawn(n)
    objective, step = HybridLoss(steps=steps, lambda_vlb=1.0), torch.full((n,), float(k)).double()
    low, high = -12.0, 12.0
    for _ in range(20):  # the gradient in the logit changes sign once
        with torch.no_grad():
            network.logit.fill_((low + high) / 2)
        (slope,) = torch.autograd.grad(objective.at(denoiser, x0, None, step, eps).value, network.logit)
        low, high = ((low + high) / 2, high) if slope < 0 else (low, (low + high) / 2)
    t, s = torch.tensor(k / steps).double(), torch.tensor((k - 1) / steps).double()
    small, large = process.variances(t, s)
    learned = torch.exp(torch.lerp(small.log(), large.log(), torch.sigmoid(network.logit.detach())))
    (alpha_t, sigma_t), (alpha_s, sigma_s) = process.scales(t), process.scales(s)
    total_t, total_s = (alpha_t * STD) ** 2 + sigma_t**2, (alpha_s * STD) ** 2 + sigma_s**2
    want = total_s - (alpha_t / alpha_s * total_s) ** 2 / total_t
    assert learned.item() == pytest.approx(want.item(), rel=0.01)
    assert want.item() != pytest.approx(small.item(), rel=0.05)


def test_the_mean_is_not_taught_by_the_bound() -> None:
    """Its gradient is that of L_simple bit for bit, whatever lambda; the variance's comes from the bound alone."""
    x0, eps = drawn(64)
    k = torch.arange(1, 65).double()
    gradients = {}
    for strength in (0.0, 5.0):
        denoiser, network = exact(VP())
        objective = HybridLoss(steps=64, lambda_vlb=strength, weighting=MinSNR())
        objective.at(denoiser, x0 + 0.3, None, k, eps).value.backward()
        assert network.gain.grad is not None and network.logit.grad is not None
        gradients[strength] = (network.gain.grad.item(), network.logit.grad.item())
    assert gradients[0.0][0] == gradients[5.0][0] != 0
    assert gradients[0.0][1] == 0 != gradients[5.0][1]


def test_the_simple_part_is_the_denoising_loss() -> None:
    x0, eps = drawn(32)
    denoiser, _ = exact(Cosine())
    k = torch.arange(1, 33).double()
    got = HybridLoss(steps=32, lambda_vlb=0.0, weighting=MinSNR()).at(denoiser, x0, None, k, eps)
    want = DenoisingLoss(weighting=MinSNR()).at(denoiser, x0, None, k / 32, eps)
    assert torch.equal(got.value, want.value) and torch.equal(got.per_sample, want.per_sample)


def test_the_last_step_has_no_bound() -> None:
    """From k = 1 the chain reaches exactly clean data: nothing to learn, and nothing infinite."""
    x0, eps = drawn(8)
    denoiser, _ = exact(VP())
    one = torch.ones(8).double()
    with_bound, without = (HybridLoss(10, strength).at(denoiser, x0, None, one, eps).value for strength in (1.0, 0.0))
    assert torch.equal(with_bound, without) and torch.isfinite(with_bound)


def test_the_bound_is_a_mean_over_steps() -> None:
    """lambda steps KL, in nats a dimension, from torch's KL of the two posteriors."""
    steps, k, process = 10, 6, Flow()
    x0, eps = drawn(5)
    denoiser, _ = exact(process)
    t, s = (torch.full((5,), v / steps).double() for v in (k, k - 1))
    x_t = process.diffuse(x0, eps, t)
    x0_hat, v = denoiser.with_variance(x_t, t)
    assert torch.equal(v, torch.full_like(x0, 0.5)) and torch.equal(denoiser(x_t, t), x0_hat)
    small, large = (value[:, None] for value in process.variances(t, s))
    true, ours = process.posterior(x0, x_t, t, s), process.posterior(x0_hat, x_t, t, s)
    between = (small * large).sqrt().sqrt()  # v = 1/2 is the geometric mean of the variances
    kl = kl_divergence(Normal(true.mean, true.variance.sqrt()), Normal(ours.mean, between))
    step = torch.full((5,), float(k)).double()
    parts = [HybridLoss(steps, lam).at(denoiser, x0, None, step, eps).value for lam in (0.0, 0.1)]
    assert (parts[1] - parts[0]).item() == pytest.approx((0.1 * steps * kl.mean()).item(), rel=1e-6)


def test_draws_decide_and_cover_the_steps() -> None:
    denoiser, _ = exact(VP())
    x0, _ = drawn(100, 2)
    whole = HybridLoss(steps=10)(denoiser, x0, None, Draws(0, 7, 100))
    half = HybridLoss(steps=10)(denoiser, x0[50:], None, Draws(0, 57, 50))
    assert torch.equal(whole.per_sample[50:], half.per_sample)
    counts = torch.bincount((whole.t * 10).round().long(), minlength=11)
    assert counts[0] == 0 and counts[1:].min() >= 8 and counts.sum() == 100


def test_refusals() -> None:
    x0, _ = drawn(4)
    plain = NetDenoiser(MLP((16,), CondShape(), width=8, depth=1).double(), VP(), V())
    with pytest.raises(UserError, match="needs a network with a learned variance"):
        HybridLoss()(plain, x0, None, Draws(0, 0, 4))
    with pytest.raises(UserError, match="no learned variance; train it with objective=hybrid"):
        plain.with_variance(x0, torch.full((4,), 0.5).double())
    for bad in ((1, 0.1), (10, -1.0)):
        with pytest.raises(UserError, match="hybrid needs"):
            HybridLoss(*bad)


# ------------------------------------------------------------------------------------------------ networks and models
@pytest.mark.parametrize(
    "spec", [Spec(UNet, width=8, mults=(1, 2), blocks=1), Spec(DiT, width=16, depth=1, heads=2), Spec(MLP, width=16)]
)
def test_the_second_output_is_beside_the_first(spec: Spec[Network]) -> None:
    """A network with two outputs whose head starts with another's head gives, in its first half, what that one gives."""
    torch.manual_seed(0)
    one, two = (spec.with_(outputs=n).build((2, 7, 5), CondShape()).eval() for n in (1, 2))
    with torch.no_grad():
        for p in one.parameters():
            p.add_(0.1 * torch.randn_like(p))
        for (name, p), q in zip(one.named_parameters(), two.parameters()):
            if p.shape == q.shape:
                q.copy_(p)
            else:
                assert name.startswith("head")
                q[: len(p)] = p
    x, noise = torch.randn(3, 2, 7, 5), torch.tensor([0.1, 0.5, 0.9])
    assert two(x, noise).shape == (3, 4, 7, 5)
    assert torch.allclose(two(x, noise)[:, :2], one(x, noise), atol=1e-6)


def test_a_model_with_learned_variance_round_trips(tmp_path: Path) -> None:
    plain = tiny_spec(conditioner="none")
    spec = ModelSpec(plain.info, plain.network, plain.process, plain.parameterization, plain.codec, None, True)
    assert ModelSpec.from_dict(spec.to_dict()) == spec
    old = plain.to_dict()
    del old["learned_variance"]  # a folder of an earlier version
    assert ModelSpec.from_dict(old) == plain
    model = tiny_model(spec)
    modelfolder.save(tmp_path / "model", model, spec, sampling={}, trained={})
    loaded = modelfolder.load(tmp_path / "model").model
    x, t = torch.randn(2, *spec.info.shape), torch.tensor([0.2, 0.7]).double()
    for ours, theirs in zip(loaded.denoiser.with_variance(x, t), model.denoiser.with_variance(x, t)):
        assert torch.equal(ours, theirs) and ours.shape == x.shape


def test_the_objective_asks_for_the_second_output() -> None:
    info = DataInfo((1, 8, 8))
    spec = load_recipe("digits", {"objective": "hybrid", "objective.steps": "50"})
    assert model_spec_of(spec.build(), info).learned_variance
    assert not model_spec_of(load_recipe("digits", {}).build(), info).learned_variance
