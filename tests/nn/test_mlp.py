"""The perceptron: the checks of every network, plain vectors, and what its condition means."""

from __future__ import annotations

import pytest
import torch

from sfumato.core import Cond, CondShape
from sfumato.errors import UserError
from sfumato.nn import MLP, DiT, UNet
from sfumato.spec import Spec
from sfumato.testing import check_network


def shaken(shape: tuple[int, ...], cond: CondShape) -> MLP:
    torch.manual_seed(0)
    network = MLP(shape, cond, width=16, depth=2).eval()
    with torch.no_grad():
        for p in network.parameters():
            p.add_(0.1 * torch.randn_like(p))
    return network


def test_the_checks_of_every_network() -> None:
    check_network(Spec(MLP, width=16, depth=2), sizes=[(), (11,), (7, 5), (3, 4, 2)])


def test_a_field_is_its_flat_vector() -> None:
    """The same weights on (2, 3) and on (6,) give the same numbers in another shape."""
    field, vector = shaken((2, 3), CondShape()), shaken((6,), CondShape())
    vector.load_state_dict(field.state_dict())
    x, noise = torch.randn(4, 2, 3), torch.rand(4)
    assert torch.equal(field(x, noise).flatten(1), vector(x.flatten(1), noise))


def test_tokens_are_a_set() -> None:
    """Their order and the masked ones make no difference; a real one does."""
    network = shaken((3,), CondShape(tokens=5))
    x, noise, tokens = torch.randn(2, 3), torch.rand(2), torch.randn(2, 4, 5)
    mask = torch.tensor([[True, True, True, False], [True, False, False, False]])
    out = network(x, noise, Cond(tokens=tokens, mask=mask))
    filled = torch.where(mask[..., None], tokens, 7.0)
    assert torch.allclose(network(x, noise, Cond(tokens=filled, mask=mask)), out, atol=1e-6)
    assert torch.allclose(network(x, noise, Cond(tokens=tokens.flip(1), mask=mask.flip(1))), out, atol=1e-6)
    short = network(x[:1], noise[:1], Cond(tokens=tokens[:1, :3]))
    assert torch.allclose(short, out[:1], atol=1e-6)
    assert not torch.allclose(network(x, noise, Cond(tokens=tokens + 1, mask=mask)), out, atol=1e-3)
    none = network(x, noise, Cond(tokens=tokens, mask=torch.zeros_like(mask)))
    assert torch.allclose(none, network(x, noise, Cond(tokens=torch.zeros(2, 1, 5))), atol=1e-6)


def test_concat_joins_the_input() -> None:
    """A network on (3,) with 2 more numbers computes what one on 5 does, up to the head."""
    network, wide = shaken((3,), CondShape(concat=2)), shaken((5,), CondShape())
    x, more, noise = torch.randn(2, 3), torch.randn(2, 2), torch.rand(2)
    state = network.state_dict()
    head = {k: wide.state_dict()[k].clone() for k in ("head.weight", "head.bias")}
    for k, v in head.items():
        v[:3] = state[k]
    wide.load_state_dict({**state, **head})
    joined = wide(torch.cat([x, more], 1), noise)[:, :3]
    assert torch.allclose(network(x, noise, Cond(concat=more)), joined, atol=1e-6)


def test_refusals() -> None:
    for bad in ({"width": 0}, {"depth": 0}, {"dropout": 1.0}, {"outputs": 0}):
        with pytest.raises(UserError, match="mlp"):
            MLP((3,), CondShape(), **bad)  # type: ignore[arg-type]
    with pytest.raises(UserError, match="mlp takes data of shape"):
        MLP((), CondShape())
    for other in (UNet, DiT):
        with pytest.raises(UserError, match="plain vectors are for network=mlp"):
            other((3,), CondShape())
    with pytest.raises(UserError, match=r"built for samples of shape \(3,\) and got \(4,\)"):
        MLP((3,), CondShape(), width=8)(torch.randn(2, 4), torch.rand(2))
