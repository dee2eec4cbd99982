"""Self-conditioning: what the network is told in training and on a walk, and that it is a part of the walk's state."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.tiny import tiny_model, tiny_spec
from torch import Tensor

from sfumato.core import Cond, CondShape, DenoisingLoss, Draws, Flow, NetDenoiser, Network, SampleNoise, Velocity
from sfumato.core.denoiser import SelfConditioned, recalling
from sfumato.errors import UserError
from sfumato.guidance import ClassifierFree
from sfumato.pipeline import Pipeline
from sfumato.samplers import DDIM, DPMpp2M, Heun, Solver, sample

TIMES = torch.linspace(1, 0, 6).double()


class Echo(Network, name="echo-for-tests"):
    """Notes what it is told, and answers with a mix of everything it is given."""

    def __init__(self) -> None:
        super().__init__()
        self.gain = torch.nn.Parameter(torch.tensor(0.3, dtype=torch.float64))
        self.heard: list[Tensor] = []

    def forward(self, x: Tensor, noise: Tensor, cond: Cond | None = None) -> Tensor:
        assert cond is not None and cond.concat is not None
        told = cond.concat[:, -x.shape[1] :]
        self.heard.append(told.detach().clone())
        out = self.gain * x - 0.2 * told + 0.1 * noise.reshape(-1, *[1] * (x.ndim - 1))
        return out if cond.vector is None else out + 0.1 * cond.vector.mean(1).reshape(-1, *[1] * (x.ndim - 1))


def denoiser() -> tuple[NetDenoiser, Echo]:
    network = Echo()
    return NetDenoiser(network, Flow(), Velocity(), self_conditioned=True), network


def start(n: int = 2) -> Tensor:
    return SampleNoise(tuple(range(n))).prior((1, 3, 3)).double()


def test_a_walk_tells_what_was_said_last() -> None:
    """Five steps by hand: Euler in x0 form, the estimate passed from each to the next."""
    net, network = denoiser()
    x = start()
    got = sample(SelfConditioned(net), DDIM(), x, TIMES)
    estimate, heard = torch.zeros_like(x), []
    for t, s in pairwise(TIMES):
        heard.append(estimate)
        both = torch.full((2,), float(t), dtype=torch.float64)
        estimate = net.recall(x, both, None, estimate)
        x = (s / t) * x + ((1 - s) - (1 - t) * s / t) * estimate
    assert torch.equal(network.heard[0], torch.zeros_like(x))
    for a, b in zip(network.heard, heard):
        torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(got, x, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("solver", [Heun(), DPMpp2M()], ids=str)
def test_a_sample_does_not_depend_on_its_neighbours(solver: Solver) -> None:
    """The estimates are rows of the state: two requests at different times get what they get alone, bit for bit."""
    net, _ = denoiser()
    x = start()
    grids = torch.stack([TIMES, 0.9 * TIMES], 1)
    both = sample(SelfConditioned(net), solver, x, grids)
    for i in range(2):
        alone = sample(SelfConditioned(net), solver, x[i : i + 1], grids[:, i])
        assert torch.equal(both[i], alone[0])


def test_a_second_walk_starts_afresh() -> None:
    net, _ = denoiser()
    told = SelfConditioned(net)
    first = sample(told, Heun(), start(), TIMES)
    assert torch.equal(sample(told, Heun(), start(), TIMES), first)


def test_guidance_tells_both_passes_the_guided_estimate() -> None:
    net, network = denoiser()
    cond, null = (Cond(vector=torch.full((2, 2), v, dtype=torch.float64)) for v in (1.0, -1.0))
    guided = ClassifierFree(scale=2.0).wrap(SelfConditioned(net), null)
    sample(guided, DDIM(), start(), TIMES, cond)
    for told in network.heard:
        assert len(told) == 4 and torch.equal(told[:2], told[2:])
    assert network.heard[0].abs().sum() == 0 < network.heard[1].abs().sum()


def test_without_estimates_it_is_told_zeros() -> None:
    """A denoiser used by itself (likelihood, a guidance's other model) is a function of x_t alone."""
    net, network = denoiser()
    x, t = start(), torch.tensor([0.4, 0.7]).double()
    assert torch.equal(net(x, t), SelfConditioned(net)(x, t))
    assert all(not told.any() for told in network.heard)
    ready = net.prepared([t], x)
    torch.testing.assert_close(ready(x, t, None), net(x, t), rtol=1e-6, atol=1e-6)


def test_others_are_walked_as_they_are() -> None:
    net = NetDenoiser(Echo(), Flow(), Velocity())
    assert recalling(net) is net


# ---------------------------------------------------------------- training


def test_training_tells_a_share_of_the_samples_their_own_estimate() -> None:
    net, network = denoiser()
    x0, draws = start(400), Draws(3, 0, 400)
    loss = DenoisingLoss(self_conditioning=0.5)(net, x0, None, draws)
    first, second = network.heard
    assert not first.any()
    told = second.flatten(1).any(1)
    assert abs(float(told.double().mean()) - 0.5) < 4 * 0.5 / 20
    assert torch.equal(told, draws.uniform("self-conditioning") < 0.5)
    assert loss.value.requires_grad and not second.requires_grad


def test_what_it_is_told_is_its_estimate_at_that_time() -> None:
    net, network = denoiser()
    x0, eps, t = start(4), start(4).flip(0), torch.tensor([0.2, 0.5, 0.8, 1.0]).double()
    DenoisingLoss(self_conditioning=1.0)._at(net, x0, None, t, eps, torch.ones(4).double())
    want = net.recall(net.process.diffuse(x0, eps, t), t, None, None)
    torch.testing.assert_close(network.heard[1], want, rtol=1e-9, atol=1e-9)


def test_both_halves_of_the_loss_are_the_loss() -> None:
    net, _ = denoiser()
    objective, x0, draws = DenoisingLoss(self_conditioning=0.5), start(8).float(), Draws(3, 0, 8)
    net.float()
    whole = objective(net, x0, None, draws)
    value, parts = objective.compute(net, x0, None, objective.plan(net, draws).tensors)
    assert torch.equal(value, whole.value) and torch.equal(parts, whole.per_sample)


def test_without_it_the_loss_is_what_it_was() -> None:
    net, network = denoiser()
    plain = NetDenoiser(network, Flow(), Velocity(), self_conditioned=True)
    x0, draws = start(8), Draws(3, 0, 8)
    assert torch.equal(DenoisingLoss()(net, x0, None, draws).value, DenoisingLoss()(plain, x0, None, draws).value)
    assert len(network.heard) == 2


def test_a_share_is_a_share() -> None:
    with pytest.raises(UserError, match=r"self_conditioning = 1\.5"):
        DenoisingLoss(self_conditioning=1.5)


# ---------------------------------------------------------------- a model


@pytest.mark.parametrize("network", ["dit", "unet"])
def test_a_model_folder_keeps_it(tmp_path: Path, network: str) -> None:
    spec = replace(tiny_spec(network=network), self_conditioned=True)
    model = tiny_model(spec)
    inputs: Any = model.denoiser.network
    assert inputs.cond.concat == model.codec.shape[0] and inputs.cond == CondShape(
        inputs.cond.vector, inputs.cond.tokens, model.codec.shape[0]
    )
    pipeline = Pipeline(model, spec)
    folder = pipeline.save_pretrained(tmp_path / "model")
    again = Pipeline.from_pretrained(folder)
    assert again.model.denoiser.self_conditioned
    asked: Any = {"prompt": "a seven", "seed": 3, "num_inference_steps": 3, "output_type": "pt"}
    assert torch.equal(again(**asked).media, pipeline(**asked).media)
    alone, bare = tiny_model(spec), replace(spec, self_conditioned=False)
    alone.denoiser.self_conditioned = False  # a network with room for an estimate that nobody tells
    with pytest.raises(UserError, match="concat of width"):
        Pipeline(alone, bare)(**asked)
