"""What every network must do, for the built-in ones in 1, 2 and 3 dimensions."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from sfumato.core.cond import Cond, CondShape
from sfumato.core.network import Network
from sfumato.errors import UserError
from sfumato.nn import DiT, MMDiT, UNet
from sfumato.spec import Spec

SHAPES = [(1, 11), (3, 7, 5), (1, 28, 28), (2, 6, 5, 4), (2, 1)]
FULL = CondShape(vector=5, tokens=6, concat=2)
Build = Callable[..., Network]


def unet(shape: tuple[int, ...], cond: CondShape = FULL, **settings: Any) -> Network:
    torch.manual_seed(0)
    return UNet(shape, cond, **{"width": 8, "mults": (1, 2), "blocks": 1, **settings})


def dit(shape: tuple[int, ...], cond: CondShape = FULL, **settings: Any) -> Network:
    torch.manual_seed(0)
    return DiT(shape, cond, **{"width": 24, "depth": 2, "heads": 2, **settings})


def mmdit(shape: tuple[int, ...], cond: CondShape = FULL, **settings: Any) -> Network:
    torch.manual_seed(0)
    return MMDiT(shape, cond, **{"width": 24, "depth": 2, "heads": 2, **settings})


def awake(network: nn.Module, seed: int = 0, size: float = 0.2) -> nn.Module:
    """Moves every parameter off its initial value, so that layers which start at zero take part."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.add_(size * torch.randn(parameter.shape, generator=generator))
    return network.eval()


def inputs(shape: tuple[int, ...], n: int = 3, seed: int = 1, cond: CondShape = FULL) -> tuple[Tensor, Tensor, Cond]:
    g = torch.Generator().manual_seed(seed)
    x, noise = torch.randn(n, *shape, generator=g), torch.rand(n, generator=g)
    mask = torch.arange(4) < torch.randint(1, 5, (n, 1), generator=g)
    return (
        x,
        noise,
        Cond(
            torch.randn(n, cond.vector, generator=g) if cond.vector else None,
            torch.randn(n, 4, cond.tokens, generator=g) if cond.tokens else None,
            mask if cond.tokens else None,
            torch.randn(n, cond.concat, *shape[1:], generator=g) if cond.concat else None,
        ),
    )


both = pytest.mark.parametrize("build", [unet, dit, mmdit])
everywhere = pytest.mark.parametrize("shape", SHAPES, ids=str)


@both
@everywhere
def test_output_starts_at_zero_and_has_the_input_shape(build: Build, shape: tuple[int, ...]) -> None:
    out = build(shape)(*inputs(shape))
    assert out.shape == (3, *shape)
    assert torch.equal(out, torch.zeros_like(out))


@both
@everywhere
def test_a_sample_depends_on_nothing_of_its_neighbours(build: Build, shape: tuple[int, ...]) -> None:
    network = awake(build(shape))
    x, noise, cond = inputs(shape)
    before = network(x, noise, cond)
    assert cond.vector is not None and cond.tokens is not None and cond.concat is not None and cond.mask is not None
    changes = [
        (x.clone(), noise, cond),
        (x, noise.clone(), cond),
        *(
            (x, noise, dataclasses.replace(cond, **{k: getattr(cond, k).clone()}))
            for k in ("vector", "tokens", "concat")
        ),
    ]
    for part, changed in enumerate(changes):
        target = (changed[0], changed[1], changed[2].vector, changed[2].tokens, changed[2].concat)[part]
        assert target is not None
        target[1] = torch.sin(3 * target[1])
        after = network(*changed)
        assert torch.equal(after[0], before[0]) and torch.equal(after[2], before[2]), part
        assert not torch.allclose(after[1], before[1], atol=1e-6), part


@both
@everywhere
def test_batch_of_one_gives_the_same_as_its_row_in_a_batch(build: Build, shape: tuple[int, ...]) -> None:
    network = awake(build(shape)).double()
    x, noise, cond = inputs(shape)
    whole = network(x.double(), noise, cond.to("cpu", torch.float64))
    for i in range(3):
        one = network(x[i : i + 1].double(), noise[i : i + 1], cond.to("cpu", torch.float64)[i : i + 1])
        torch.testing.assert_close(one[0], whole[i], rtol=1e-9, atol=1e-9)


@both
@pytest.mark.parametrize("shape", [(1, 11), (3, 7, 5), (2, 6, 5, 4)], ids=str)
def test_gradients_reach_every_parameter(build: Build, shape: tuple[int, ...]) -> None:
    network = awake(build(shape)).train()
    network(*inputs(shape)).square().mean().backward()
    idle = [name for name, p in network.named_parameters() if p.grad is None or not bool(p.grad.abs().sum() > 0)]
    assert idle == []


@both
def test_state_dict_round_trip_is_bitwise(build: Build) -> None:
    shape = (3, 7, 5)
    network, fresh = awake(build(shape)), build(shape).eval()
    fresh.load_state_dict({k: v.clone() for k, v in network.state_dict().items()})
    assert torch.equal(network(*inputs(shape)), fresh(*inputs(shape)))
    assert torch.equal(network(*inputs(shape)), copy.deepcopy(network)(*inputs(shape)))


@both
@pytest.mark.parametrize("shape", [(1, 11), (3, 7, 5), (2, 6, 5, 4)], ids=str)
def test_precisions_agree(build: Build, shape: tuple[int, ...]) -> None:
    x, noise, cond = inputs(shape)
    network = awake(build(shape), size=0.1).requires_grad_(False)
    exact = copy.deepcopy(network).double()(x.double(), noise.double(), cond.to("cpu", torch.float64))
    spread = float(exact.std())
    single = network(x, noise, cond)
    half = copy.deepcopy(network).bfloat16()(x.bfloat16(), noise, cond.to("cpu", torch.bfloat16))
    with torch.autocast("cpu", torch.bfloat16):
        mixed = network(x, noise, cond)
    assert exact.dtype == torch.float64 and single.dtype == torch.float32 and half.dtype == torch.bfloat16
    assert float((single - exact).abs().max()) < 1e-4 * spread
    for low in (half, mixed):
        assert float((low.double() - exact).pow(2).mean().sqrt()) < 0.05 * spread


@both
def test_masked_tokens_change_nothing(build: Build) -> None:
    shape = (3, 7, 5)
    network = awake(build(shape)).double()
    x, noise, cond = inputs(shape)
    cond = cond.to("cpu", torch.float64)
    before = network(x.double(), noise, cond)
    longer = cond.pad(9)
    assert longer.tokens is not None and longer.mask is not None
    junk = torch.where(longer.mask[:, :, None], longer.tokens, torch.full_like(longer.tokens, 7.0))
    after = network(x.double(), noise, dataclasses.replace(longer, tokens=junk))
    torch.testing.assert_close(after, before, rtol=1e-9, atol=1e-9)
    nothing = network(x.double(), noise, dataclasses.replace(cond, mask=torch.zeros_like(cond.mask)))
    assert bool(nothing.isfinite().all()) and not torch.allclose(nothing, before)


@both
def test_noise_level_is_seen_at_both_ends(build: Build) -> None:
    shape = (1, 8, 8)
    network = awake(build(shape, CondShape()))
    x = inputs(shape, 1)[0].expand(4, -1, -1, -1)
    out = network(x, torch.tensor([0.0, 0.001, 0.999, 1.0])).detach()
    assert bool(out.isfinite().all())
    assert min(float((out[i] - out[j]).abs().max()) for i in range(4) for j in range(i)) > 1e-3


@both
def test_forward_mode_and_second_derivatives_work(build: Build) -> None:
    # Distillation needs J v by forward mode, gradient penalties need the second derivative.
    shape = (1, 5, 6)
    network = awake(build(shape, CondShape())).double()
    x, noise, _ = inputs(shape, 2)
    x, v = x.double(), torch.randn(2, *shape, dtype=torch.float64, generator=torch.Generator().manual_seed(2))
    with torch.nn.attention.sdpa_kernel(torch.nn.attention.SDPBackend.MATH):
        _, jv = torch.func.jvp(lambda y: network(y, noise), (x,), (v,))
    step = 1e-6
    difference = (network(x + step * v, noise) - network(x - step * v, noise)) / (2 * step)
    torch.testing.assert_close(jv, difference, rtol=1e-5, atol=1e-6)
    x.requires_grad_()
    with torch.nn.attention.sdpa_kernel(torch.nn.attention.SDPBackend.MATH):
        (slope,) = torch.autograd.grad((network(x, noise) * v).sum(), x, create_graph=True)
        (bend,) = torch.autograd.grad((slope * v).sum(), x)
    assert bool(bend.isfinite().all()) and bool((bend.abs().sum() > 0).all())


@both
def test_settings_come_from_a_spec(build: Build) -> None:
    name = build.__name__
    network = build((1, 8, 8))
    spec: Spec[Any] = Spec(type(network), width=24)
    assert type(network).kind == name and spec.width == 24
    assert isinstance(spec.build((1, 8, 8), CondShape()), type(network))


@both
def test_blocks_are_the_repeated_modules(build: Build) -> None:
    network: Any = build((1, 8, 8))
    blocks = network.blocks
    assert len({type(b) for b in blocks}) == 1
    calls: list[int] = []
    for i, b in enumerate(blocks):
        b.register_forward_hook(lambda *_, i=i: calls.append(i))
    network(*inputs((1, 8, 8)))
    assert calls == list(range(len(blocks)))


REFUSED = [
    (unet, (1, 8, 8), {"attention": (2,)}, "attention level 2 does not exist"),
    (unet, (1, 8, 8), {"head_dim": 3}, "head_dim = 3 does not divide"),
    (unet, (1, 8, 8), {"groups": 3}, "groups = 3 does not divide"),
    (unet, (1, 8, 8), {"mults": ()}, "levels = 0 must be at least 1"),
    (unet, (1, 8, 8), {"dropout": 1.0}, "dropout = 1.0"),
    (unet, (1, 8, 8), {"attention": (), "middle_attention": False}, "condition has tokens but no level"),
    (unet, (1, 8, 8, 8, 8), {}, r"not \(1, 8, 8, 8, 8\)"),
    (unet, (0, 8), {}, "every size at least 1"),
    (dit, (1, 8, 8), {"heads": 5}, "heads = 5 does not split width = 24.*use heads=4"),
    (dit, (1, 8, 8), {"patch": (2,)}, "has 1 entries for 2 dimensions"),
    (dit, (1, 8, 8), {"patch": 0}, "patch = 0 must be at least 1"),
    (dit, (1, 8, 8), {"depth": 0}, "depth = 0 must be at least 1"),
    (dit, (1, 8, 8), {"rope_base": 1.0}, "rope_base = 1.0"),
    (dit, (8,), {}, r"not \(8,\)"),
]


@pytest.mark.parametrize(("build", "shape", "settings", "says"), REFUSED)
def test_refused_at_build(build: Build, shape: tuple[int, ...], settings: dict[str, Any], says: str) -> None:
    with pytest.raises(UserError, match=says):
        build(shape, **settings)


@both
def test_wrong_input_is_named(build: Build) -> None:
    network = build((3, 8, 8))
    x, noise, cond = inputs((3, 8, 8))
    with pytest.raises(UserError, match=r"shape \(3, 8, 8\) and got \(1, 8, 8\)"):
        network(x[:, :1], noise, cond)
    with pytest.raises(UserError, match=r"shape \(3,\), and got \(3, 4\)"):
        network(x, noise[:, None].expand(-1, 4), cond)
    with pytest.raises(UserError, match="vector of width 5 and got width 0"):
        network(x, noise)
    with pytest.raises(UserError, match="tokens of width 6 and got width 2"):
        network(x, noise, dataclasses.replace(cond, tokens=torch.zeros(3, 4, 2)))
