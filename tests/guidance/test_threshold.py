"""Thresholds against the textbook, diffusers, and the range of real media."""

from __future__ import annotations

from itertools import pairwise

import pytest
import torch
from torch import Tensor

from sfumato.codecs import Arrays, Pixels
from sfumato.core import VP, Cond, DataInfo, Flow, KarrasGrid, UniformGrid
from sfumato.errors import UserError
from sfumato.guidance import ClassifierFree, Dynamic, Static
from sfumato.samplers import DDIM, sample
from tests.guidance.exact import ASKED, NULL, TIMES, Squared, noise

X = noise(4, 3, 8)
LOW, HIGH = torch.tensor([-1.5, -0.7, -2.0]).double(), torch.tensor([0.5, 1.3, 1.0]).double()


class Fixed:
    """Always the same estimate."""

    process = Flow()

    def __init__(self, x0: Tensor) -> None:
        self.x0 = x0

    def __call__(self, x_t: Tensor, t: Tensor, cond: Cond | None = None) -> Tensor:
        return self.x0


def test_ddim_with_clipping_is_the_textbooks() -> None:
    """Clip the estimate of x0, work out eps again from x_t and it, take the step with both."""
    process = VP()
    times = KarrasGrid(0.01, 100.0)(process, 15)
    inner = ClassifierFree(6.0).wrap(Squared(process), NULL)
    x, clipped = X, 0
    for t, s in pairwise(times):
        (alpha_t, sigma_t), (alpha_s, sigma_s) = process.scales(t), process.scales(s)
        x0 = inner(x, t.expand(4), ASKED)
        kept = torch.stack([channel.clamp(low, high) for channel, low, high in zip(x0.unbind(1), LOW, HIGH)], 1)
        clipped += int((kept != x0).sum())
        x = alpha_s * kept + sigma_s * (x - alpha_t * kept) / sigma_t
    assert clipped > 100
    got = sample(Static().wrap(inner, (LOW, HIGH)), DDIM(), X, times, ASKED)
    torch.testing.assert_close(got, x, rtol=0, atol=1e-10)
    assert (got >= LOW[:, None]).all() and (got <= HIGH[:, None]).all()  # the last step ends at an estimate


def test_ddim_with_clipping_is_that_of_diffusers() -> None:
    """Their scheduler with the clipped estimate put back into eps, on a chain of 1,000 steps walked in 20."""
    diffusers = pytest.importorskip("diffusers")
    from sfumato.core import DiscreteVP

    process, steps = DiscreteVP("linear"), 20
    theirs = diffusers.DDIMScheduler(
        clip_sample=True, clip_sample_range=0.8, timestep_spacing="trailing", set_alpha_to_one=True
    )
    theirs.set_timesteps(steps)
    inner = Squared(process)
    x = X.clone()
    for k in theirs.timesteps.tolist():
        t = torch.full((4,), (k + 1) / 1000, dtype=torch.float64)
        alpha, sigma = process.scales(t[0])
        eps = (x - alpha * inner(x, t)) / sigma
        x = theirs.step(eps, k, x, use_clipped_model_output=True).prev_sample
    range_ = (torch.tensor(-0.8), torch.tensor(0.8))
    got = sample(Static().wrap(inner, range_), DDIM(), X, UniformGrid()(process, steps))
    torch.testing.assert_close(got, x, rtol=0, atol=1e-4)  # their table is in float32


@pytest.mark.parametrize("rule", [Static(), Dynamic(), Dynamic(1.0)], ids=repr)
def test_estimates_in_range_are_not_changed(rule: Static | Dynamic) -> None:
    inside = (
        LOW[:, None] + torch.rand(4, 3, 8, generator=torch.Generator().manual_seed(1)).double() * (HIGH - LOW)[:, None]
    )
    inside[0, 0, 0], inside[0, 1, 0] = LOW[0], HIGH[1]
    assert torch.equal(rule.wrap(Fixed(inside), (LOW, HIGH))(X, TIMES), inside)


@pytest.mark.parametrize("quantile", [0.5, 0.9, 0.995])
def test_dynamic_is_that_of_diffusers(quantile: float) -> None:
    """In units where the range is [-1, 1]; theirs has an upper limit of the divisor, set out of reach."""
    diffusers = pytest.importorskip("diffusers")
    peer = diffusers.DDIMScheduler(thresholding=True, dynamic_thresholding_ratio=quantile, sample_max_value=1e9)
    x0 = noise(4, 3, 8, seed=5) * torch.tensor([0.1, 1.0, 3.0, 10.0]).double()[:, None, None]
    plain = Dynamic(quantile).wrap(Fixed(x0), (torch.tensor(-1.0), torch.tensor(1.0)))(X, TIMES)
    torch.testing.assert_close(plain, peer._threshold_sample(x0), rtol=0, atol=1e-12)
    # whitened by channel: media = middle + half x0 of each, the same rule there
    mean, std = torch.tensor([0.1, -0.3, 0.4]).double()[:, None], torch.tensor([0.5, 0.8, 0.2]).double()[:, None]
    bounds = ((-1 - mean) / std)[:, 0], ((1 - mean) / std)[:, 0]
    white = Dynamic(quantile).wrap(Fixed((x0 - mean) / std), bounds)(X, TIMES)
    torch.testing.assert_close(white * std + mean, peer._threshold_sample(x0), rtol=0, atol=1e-12)


def test_a_sample_keeps_its_own_quantile_and_held_data_have_no_part_in_it() -> None:
    x0 = noise(4, 6, 3, seed=5) * torch.tensor([0.5, 1.0, 3.0, 10.0]).double()[:, None, None]
    bounds = (torch.tensor(-1.0), torch.tensor(1.0))
    whole = Dynamic(0.8).wrap(Fixed(x0), bounds)(X, TIMES)
    for i in range(4):
        row = slice(i, i + 1)
        assert torch.equal(Dynamic(0.8).wrap(Fixed(x0[row]), bounds)(X, TIMES[row])[0], whole[i])
    data = 5 * torch.ones(4, 2, 3).double()
    t = torch.cat([TIMES[:, None].expand(4, 6), torch.zeros(4, 2)], 1)
    for rule in (Dynamic(0.8), Static()):
        got = rule.wrap(Fixed(torch.cat([x0, data], 1)), bounds)(X, t)
        assert torch.equal(got[:, 6:], data)
        torch.testing.assert_close(got[:, :6], rule.wrap(Fixed(x0), bounds)(X, TIMES), rtol=0, atol=1e-14)


def test_the_range_is_that_of_the_media() -> None:
    """At the bounds pixels decode to 0 and 255; clipping to them changes no picture, as decoding clips too."""
    codec = Pixels(DataInfo((3, 4, 4), "image"))
    codec.measure([torch.randint(20, 230, (8, 3, 4, 4), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))])
    found = codec.bounds()
    assert found is not None
    low, high = (bound[None, :, None, None].expand(1, 3, 4, 4) for bound in found)
    assert not codec.decode(low).any() and (codec.decode(high) == 255).all()
    extremes = torch.stack([torch.zeros(3, 4, 4), torch.full((3, 4, 4), 255)]).to(torch.uint8)
    white = codec.whiten(codec.encode(extremes))
    torch.testing.assert_close(torch.cat([low, high]), white, rtol=0, atol=1e-6)
    far = 9 * noise(2, 3, 4, 4).float()
    kept = Static().wrap(Fixed(far), found)(far, TIMES[:2])
    assert torch.equal(codec.decode(kept), codec.decode(far))


def test_bad_input_is_one_sentence() -> None:
    for quantile in (0.0, 1.5, float("nan")):
        with pytest.raises(UserError, match=r"threshold quantile must lie in \(0, 1\], not"):
            Dynamic(quantile)
    codec = Arrays(DataInfo((2, 5), "array"))
    with pytest.raises(UserError, match="threshold=static: this codec's media have no range to keep to; leave it out"):
        Static().wrap(Squared(Flow()), codec.bounds())
