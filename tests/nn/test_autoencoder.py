"""Autoencoders and their bottlenecks: exact re-orderings, closed forms, and sizes."""

from __future__ import annotations

import pytest
import torch
from torch.distributions import Normal, kl_divergence
from torch.nn import functional as F

from sfumato.errors import UserError
from sfumato.nn import FSQ, KL, VQ, ConvAutoencoder
from sfumato.nn.autoencoder import Grow, Shrink, fold, matched, unfold
from sfumato.nn.discriminator import PatchCritic, adaptive_weight, hinge, unlearning
from sfumato.nn.layers import zero
from sfumato.spec import Spec

SIZES = ((16,), (8, 12), (4, 8, 4))


def shaken(module: torch.nn.Module) -> torch.nn.Module:
    """Off the zero initialisation, so that every weight matters."""
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for p in module.parameters():
            p.add_(0.1 * torch.randn(p.shape, generator=generator))
    return module


def test_fold_is_pixel_unshuffle_and_unfold_its_inverse() -> None:
    x = torch.randn(2, 3, 8, 12).contiguous(memory_format=torch.channels_last)
    assert torch.equal(fold(x, (2, 2)), F.pixel_unshuffle(x, 2))
    assert torch.equal(unfold(fold(x, (2, 2)), (2, 2)), x)
    for size, factors in (((6, 4), (1, 2)), ((4, 6, 8), (2, 3, 4))):
        x = torch.randn(2, 3, *size)
        assert torch.equal(unfold(fold(x, factors), factors), x)
        assert fold(x, factors).is_contiguous(
            memory_format=torch.channels_last if len(size) == 2 else torch.channels_last_3d
        )


@pytest.mark.parametrize("dims", [1, 2, 3])
def test_changes_of_size_begin_as_re_orderings_that_undo_each_other(dims: int) -> None:
    size = {1: (1, 8), 2: (8, 4), 3: (4, 8, 4)}[dims]
    x = torch.randn(2, 3, *size)
    down, up = Shrink(dims, 3, 3 * 2**dims, True), Grow(dims, 3 * 2**dims, 3, True)
    zero(down.conv), zero(up.conv)
    assert torch.equal(up(down(x)), x)
    fewer = Shrink(dims, 4, 4, True)
    zero(fewer.conv)
    small = fewer(torch.ones(1, 4, *size))
    assert torch.equal(small, torch.ones_like(small))  # averages of channels keep a constant


def test_matched_averages_neighbours_and_repeats_each() -> None:
    x = torch.arange(6.0).view(1, 6, 1, 1)
    assert matched(x, 3).flatten().tolist() == [0.5, 2.5, 4.5]
    assert matched(x[:, :2], 4).flatten().tolist() == [0, 0, 1, 1]


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("bottleneck", [None, Spec(FSQ, levels=(4, 5)), Spec(VQ, codes=16)])
def test_samples_do_not_mix_and_every_weight_learns(size: tuple[int, ...], bottleneck: Spec | None) -> None:
    torch.manual_seed(0)
    net = ConvAutoencoder((3, *size), channels=2, factor=4, width=8, blocks=1, mults=(1, 2), bottleneck=bottleneck)
    shaken(net)
    x = torch.randn(3, 3, *size)
    z = net.encode(x)
    assert z.shape == (3, *net.latent_shape(size))
    assert torch.allclose(net.encode(x[:1]), z[:1], atol=1e-5)
    assert torch.allclose(net.decode(z[1:]), net.decode(z)[1:], atol=1e-5)
    z, penalty = net(x, torch.randn(3, *net.latent_shape(size)))
    (net.made(z).square().sum() + penalty.sum()).backward()
    assert [name for name, p in net.named_parameters() if p.grad is None or not p.grad.any()] == []


def test_a_height_of_one_is_the_same_network() -> None:
    torch.manual_seed(0)
    net = shaken(ConvAutoencoder((2, 16), channels=2, factor=4, width=8, blocks=1, attention=True)).eval()
    x = torch.randn(1, 2, 16)
    shifted = torch.cat([x, x.flip(2)])
    assert torch.allclose(net.decode(net.encode(shifted))[:1], net.decode(net.encode(x)), atol=1e-5)  # type: ignore[operator]


def test_sizes_that_do_not_divide_are_refused_with_one_that_does() -> None:
    net = ConvAutoencoder((3, 16, 16), width=8, blocks=1)
    with pytest.raises(UserError, match=r"size 20x16: .* multiples of 8; set data.size=16,16"):
        net.encode(torch.zeros(1, 3, 20, 16))
    with pytest.raises(UserError, match="3 channels and 2 axes"):
        net.encode(torch.zeros(1, 1, 16, 16))
    for settings, said in (({"factor": 6}, "power of two"), ({"patch": 16}, "at most"), ({"extra": -1}, "negative")):
        with pytest.raises(UserError, match=said):
            ConvAutoencoder((3, 16, 16), **settings)  # type: ignore[arg-type]


# ---------------------------------------------------------------- bottlenecks


def test_kl_penalty_is_the_divergence_and_eps_0_gives_the_mean() -> None:
    h = torch.randn(3, 4, 5, generator=torch.Generator().manual_seed(0))
    mean, logvar = h.chunk(2, 1)
    kl = KL(2, weight=0.25)
    z, penalty = kl(h, torch.zeros(3, 2, 5))
    exact = kl_divergence(Normal(mean, (0.5 * logvar).exp()), Normal(0.0, 1.0)).flatten(1).mean(1)
    assert torch.allclose(penalty, 0.25 * exact, rtol=1e-5)
    assert torch.equal(z, mean) and torch.equal(kl.code(h), mean)
    noisy, _ = kl(h, torch.ones(3, 2, 5))
    assert torch.allclose(noisy - mean, (0.5 * logvar).exp(), rtol=1e-5)


def test_vq_takes_the_nearest_code_and_its_gradient_is_the_inputs() -> None:
    torch.manual_seed(0)
    vq = VQ(3, codes=20)
    h = torch.randn(2, 3, 4, 5, requires_grad=True)
    unit = F.normalize(h, dim=1)
    near = torch.cdist(unit.movedim(1, -1).reshape(-1, 3), F.normalize(vq.codes, dim=1)).argmin(1)
    assert torch.equal(vq.indices(h).flatten(), near)
    z, penalty = vq(h, torch.zeros(2, 3, 4, 5))
    assert torch.allclose(z, vq.code(h), atol=1e-6)
    assert torch.allclose(vq.settle(vq.code(h)), vq.code(h))
    weight = torch.randn_like(z)
    (through,) = torch.autograd.grad((z * weight).sum(), h, retain_graph=True)
    (straight,) = torch.autograd.grad((F.normalize(h, dim=1) * weight).sum(), h)
    assert torch.allclose(through, straight, atol=1e-6)
    apart = (vq.code(h) - unit).square().sum(1).flatten(1).mean(1)
    assert torch.allclose(penalty, 1.25 * apart, rtol=1e-4)


def test_fsq_has_exactly_its_levels_evenly_spaced() -> None:
    fsq = FSQ(3, levels=(3, 5, 8))
    h = torch.linspace(-20, 20, 4001).view(1, 1, -1).expand(1, 3, -1)
    z = fsq.code(h)
    for channel, levels in enumerate((3, 5, 8)):
        values = z[0, channel].unique()
        assert len(values) == levels and values.abs().max() <= 1
        assert torch.allclose(values.diff(), torch.tensor(1 / (levels // 2)))
    assert torch.equal(fsq.settle(z + 0.05 / 4), z)  # off a level by less than half a step
    assert torch.equal(fsq.settle(10 * z.sign()).abs(), fsq.settle(10 * z.sign()).abs().clamp(max=1))
    with pytest.raises(UserError, match="each of the 4 channels"):
        FSQ(4, levels=(8, 5))


# ---------------------------------------------------------------- the critic


@pytest.mark.parametrize("size", [(64,), (32, 32), (16, 16, 16)])
def test_what_learns_from_a_critic_leaves_its_weights_alone(size: tuple[int, ...]) -> None:
    torch.manual_seed(0)
    critic = PatchCritic((2, *size), width=8)
    x = torch.randn(2, 2, *size, requires_grad=True)
    (usual,) = torch.autograd.grad(critic(x).sum(), x)
    out = unlearning(critic, x)
    assert torch.equal(out, critic(x))
    out.sum().backward()
    assert torch.equal(x.grad, usual)  # type: ignore[arg-type]
    assert all(p.grad is None for p in critic.parameters())


def test_hinge_and_adaptive_weight_in_closed_form() -> None:
    real, made = torch.tensor([[2.0, 0.0], [1.0, -1.0]]), torch.tensor([[-2.0, 0.0], [-1.0, 1.0]])
    assert hinge(real, made).tolist() == [0.5, 1.0]
    assert float(adaptive_weight(torch.tensor([3.0, 4.0]), torch.tensor([0.0, 2.0]))) == pytest.approx(2.5, rel=1e-5)
    assert float(adaptive_weight(torch.ones(1), torch.zeros(1))) == 1e4
