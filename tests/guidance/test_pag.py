"""Perturbed attention guidance: the perturbed pass against networks built another way, and the formula around it."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn

from sfumato.core import Cond, CondShape, Flow, NetDenoiser, Network, Velocity
from sfumato.errors import UserError
from sfumato.guidance import Chain, ClassifierFree, PerturbedAttention
from sfumato.nn import DiT, SelfAttention, UNet
from sfumato.testing import GaussianDenoiser
from tests.guidance.exact import TIMES, noise

CONDITION = CondShape(vector=3, tokens=4)


def shaken(network: Network) -> Network:
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.add_(0.2 * torch.randn(parameter.shape, generator=generator))
    return network.double().eval()


def cond(batch: int = 4, seed: int = 2) -> Cond:
    return Cond(vector=noise(batch, 3, seed=seed), tokens=noise(batch, 5, 4, seed=seed + 1))


def dit(size: tuple[int, ...] = (6, 4)) -> DiT:
    made = shaken(DiT((2, *size), CONDITION, width=16, depth=3, heads=2, patch=2))
    assert isinstance(made, DiT)
    return made


def unet(**settings: object) -> UNet:
    made = shaken(UNet((2, 6, 5), CONDITION, width=8, mults=(1, 2), blocks=1, groups=4, **settings))  # type: ignore[arg-type]
    assert isinstance(made, UNet)
    return made


X = noise(4, 2, 6, 4)
LEVEL = torch.tensor([0.1, 0.4, 0.6, 0.9])


@pytest.mark.parametrize("blocks", [(0,), (1,), (0, 2), None])
def test_the_identity_is_attention_of_every_token_to_itself_alone(blocks: tuple[int, ...] | None) -> None:
    """Queries and keys that are one constant vector, turned by the position and very long: the softmax is one-hot."""
    network = dit()
    alone = copy.deepcopy(network)
    with torch.no_grad():
        for i in (1,) if blocks is None else blocks:
            attention = alone.blocks[i].attention
            attention.qkv.weight[:32] = 0
            attention.qkv.bias[:32] = 1
            for scale in (attention.q_scale, attention.k_scale):
                assert scale is not None
                scale.fill_(300.0)
    got = network.perturbed(blocks)(X, LEVEL, cond())
    torch.testing.assert_close(got, alone(X, LEVEL, cond()), rtol=0, atol=1e-11)
    assert (got - network(X, LEVEL, cond())).abs().max() > 1e-3


class Itself(nn.Module):
    """What self-attention is for a token that sees itself alone: one linear map, made of two."""

    def __init__(self, attention: SelfAttention) -> None:
        super().__init__()
        width = attention.out.in_features
        values, bias = attention.qkv.weight[2 * width :], attention.qkv.bias[2 * width :]
        self.map = nn.Linear(width, width).double()
        with torch.no_grad():
            self.map.weight.copy_(attention.out.weight @ values)
            self.map.bias.copy_(attention.out.weight @ bias + attention.out.bias)

    def forward(
        self, x: Tensor, rope: object = None, mask: object = None, identity: bool = False, beside: Tensor | None = None
    ) -> Tensor:
        assert not identity
        out: Tensor = self.map(x)
        return out if beside is None else beside + out


@pytest.mark.parametrize("blocks", [None, (0, 3)])
def test_the_same_in_a_unet(blocks: tuple[int, ...] | None) -> None:
    """The middle block is number 2 of 6 here: two on the way down, two in the middle, four on the way up."""
    network = unet()
    x, level = noise(4, 2, 6, 5), LEVEL
    if blocks == (0, 3):
        with pytest.raises(
            UserError, match=r"guidance.blocks = 3: this block of the unet has no self-attention; those that"
        ):
            network.perturbed(blocks)
        blocks = (0, 7)
    alone = copy.deepcopy(network)
    for i in (2,) if blocks is None else blocks:
        found = alone.blocks[i].attention
        assert found is not None
        found.attention = Itself(found.attention)  # type: ignore[assignment]
    got = network.perturbed(blocks)(x, level, cond())
    torch.testing.assert_close(got, alone(x, level, cond()), rtol=0, atol=1e-12)
    assert (got - network(x, level, cond())).abs().max() > 1e-3


def test_a_view_has_no_weights_of_its_own_and_leaves_the_network_as_it_was() -> None:
    network = dit().train()
    network.blocks[1].eval()
    before, weights = network(X, LEVEL, cond()), {k: v.clone() for k, v in network.state_dict().items()}
    view = network.perturbed()
    view(X, LEVEL, cond())
    assert {id(p) for p in view.parameters()} == {id(p) for p in network.parameters()}
    assert torch.equal(network(X, LEVEL, cond()), before)
    assert network.state_dict().keys() == weights.keys()
    assert all(torch.equal(network.state_dict()[k], v) for k, v in weights.items())
    assert network.training and not network.blocks[1].training
    with torch.no_grad():
        network.head.weight.zero_()
        network.head.bias.zero_()
    assert not view(X, LEVEL, cond()).any()


def test_formula_and_a_scale_for_every_sample() -> None:
    network = dit()
    inner = NetDenoiser(network, Flow(), Velocity())
    worse = NetDenoiser(network.perturbed((2,)), Flow(), Velocity())
    scale = torch.tensor([0.0, 0.5, 1.0, 4.0], dtype=torch.float64)
    got = PerturbedAttention(blocks=(2,)).wrap(inner, scale=scale)(X, TIMES, cond())
    asked = inner(X, TIMES, cond())
    want = asked + scale[:, None, None, None] * (asked - worse(X, TIMES, cond()))
    torch.testing.assert_close(got, want, rtol=0, atol=1e-14)
    assert torch.equal(got[0], asked[0])
    calls: list[int] = []
    handle = network.register_forward_hook(lambda module, args, out: calls.append(len(args[0])))
    assert torch.equal(PerturbedAttention(0.0).wrap(inner)(X, TIMES, cond()), asked)
    assert calls == [4]  # neutral: nothing is perturbed
    PerturbedAttention(1.0).wrap(inner)(X, TIMES, cond())
    assert calls == [4, 4, 4]
    handle.remove()


def test_with_classifier_free_guidance_it_is_the_papers_sum() -> None:
    """D_null + w (D_cond - D_null) + s (D_cond - D_perturbed), whichever was named first, with the call's scale for cfg."""
    inner = NetDenoiser(dit(), Flow(), Velocity())
    null = cond(seed=9)
    asked, nothing = inner(X, TIMES, cond()), inner(X, TIMES, null)
    perturbed = NetDenoiser(inner.network.perturbed(), Flow(), Velocity())(X, TIMES, cond())  # type: ignore[operator]
    scale = torch.tensor([1.0, 2.0, 3.0, 4.0], dtype=torch.float64)
    want = nothing + scale[:, None, None, None] * (asked - nothing) + 1.5 * (asked - perturbed)
    chain = Chain(ClassifierFree(), PerturbedAttention(1.5))
    torch.testing.assert_close(chain.wrap(inner, null, scale)(X, TIMES, cond()), want, rtol=0, atol=1e-13)
    by_hand = PerturbedAttention(1.5).wrap(ClassifierFree().wrap(inner, null, scale))
    assert torch.equal(by_hand(X, TIMES, cond()), chain.wrap(inner, null, scale)(X, TIMES, cond()))
    # the other way round both branches are perturbed
    worse_null = NetDenoiser(inner.network.perturbed(), Flow(), Velocity())(X, TIMES, null)  # type: ignore[operator]
    a, b = asked + 1.5 * (asked - perturbed), nothing + 1.5 * (nothing - worse_null)
    other = Chain(PerturbedAttention(1.5), ClassifierFree()).wrap(inner, null, scale)(X, TIMES, cond())
    torch.testing.assert_close(other, b + scale[:, None, None, None] * (a - b), rtol=0, atol=1e-13)


def test_networks_that_can_not_be_perturbed_are_named() -> None:
    bare = NetDenoiser(
        UNet((2, 6, 5), CondShape(), width=8, mults=(1, 2), blocks=1, groups=4, attention=(), middle_attention=False),
        Flow(),
        Velocity(),
    )
    with pytest.raises(
        UserError, match="this unet has no self-attention to perturb; use another guidance, or train with"
    ):
        PerturbedAttention().wrap(bare)
    with pytest.raises(
        UserError, match=r"guidance.blocks = 7: this block of the dit has no self-attention; .* 0, 1, 2$"
    ):
        PerturbedAttention(blocks=(0, 7)).wrap(NetDenoiser(dit(), Flow(), Velocity()))
    with pytest.raises(UserError, match="needs a network with self-attention, unet or dit, and not GaussianDenoiser"):
        PerturbedAttention().wrap(GaussianDenoiser(Flow()))
