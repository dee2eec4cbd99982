"""Convolutions behind a transformer over patches."""

from __future__ import annotations

import pytest
import torch

from sfumato.core.cond import Cond, CondShape
from sfumato.errors import UserError
from sfumato.nn import DiT


def _dit(shape: tuple[int, ...], refine: int, concat: int = 0, **settings: int) -> DiT:
    torch.manual_seed(0)
    return DiT(shape, CondShape(concat=concat), width=8, depth=1, heads=1, refine=refine, **settings)


@pytest.mark.parametrize("shape", [(2, 11), (1, 6, 9), (3, 4, 6, 5)])
def test_it_starts_as_nothing(shape: tuple[int, ...]) -> None:
    generator = torch.Generator().manual_seed(1)
    x, noise = torch.randn(3, *shape, generator=generator), torch.rand(3, generator=generator)
    cond = Cond(concat=torch.randn(3, 1, *shape[1:], generator=generator))
    plain, refined = _dit(shape, 0, concat=1, outputs=2), _dit(shape, 8, concat=1, outputs=2)
    for network in (plain, refined):
        network.load_state_dict(plain.state_dict(), strict=False)
        torch.nn.init.ones_(network.head.weight)
    assert torch.equal(plain(x, noise, cond), refined(x, noise, cond))
    assert refined.refiner is not None
    torch.nn.init.ones_(refined.refiner.head.weight)
    assert not torch.allclose(plain(x, noise, cond), refined(x, noise, cond), atol=1e-3)


@pytest.mark.parametrize("refine", [0, 8])
def test_what_tokens_can_not_carry_comes_through(refine: int) -> None:
    """Sixteen independent numbers a patch through tokens of eight: at best half of the variance, without convolutions.
    At noise level 1 nothing is asked for."""
    network = _dit((1, 8, 8), refine, patch=4)
    optimizer = torch.optim.Adam(network.parameters(), lr=1e-2)
    generator = torch.Generator().manual_seed(1)
    for _ in range(300):
        x = torch.randn(32, 1, 8, 8, generator=generator)
        noise = (torch.arange(32) % 2).float()
        loss = (network(x, noise) - x * (1 - noise).view(-1, 1, 1, 1)).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    x = torch.randn(200, 1, 8, 8, generator=generator)
    with torch.no_grad():
        left = float((network(x, torch.zeros(200)) - x).square().mean())
        none = float(network(x, torch.ones(200)).square().mean())
    assert (left < 0.02 if refine else left > 0.45) and none < 0.01


def test_too_few_channels_are_refused() -> None:
    with pytest.raises(UserError, match="refine = 2 must be at least 4 channels, or 0"):
        _dit((1, 8, 8), 2)
