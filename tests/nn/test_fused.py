"""Fused parts against the plain ones: in Triton's interpreter on a CPU, in bfloat16 on a GPU."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from sfumato.core import Cond, CondShape
from sfumato.core.philox import normal, plain_normal
from sfumato.nn import DiT, UNet, fused
from sfumato.nn.autoencoder import ConvAutoencoder
from sfumato.nn.captured import regional
from sfumato.nn.fused import norm, tokens
from sfumato.nn.layers import gelu_linear

pytestmark = pytest.mark.skipif(not fused.has_triton(), reason="Triton is not installed")
CUDA = torch.cuda.is_available()

NETWORKS: list[tuple[tuple[int, ...], dict[str, Any]]] = [
    ((1, 6, 6), {"width": 16, "mults": (1, 2), "blocks": 1, "modulation": "shift"}),
    ((3, 8, 6), {"width": 16, "mults": (1, 2), "blocks": 1}),
    ((3, 7, 5), {"width": 24, "mults": (1, 2), "blocks": 1, "groups": 4}),
    ((2, 11), {"width": 16, "mults": (1, 2), "blocks": 1}),
    ((1, 3, 4, 5), {"width": 8, "mults": (1, 2), "blocks": 1}),
]
DROPPING = (NETWORKS[1][0], {**NETWORKS[1][1], "dropout": 0.3})


@pytest.fixture
def interpreted(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    if CUDA:
        pytest.skip("kernels run for real here")
    monkeypatch.setattr(fused, "_interpreted", True)
    yield


def _network(shape: tuple[int, ...], settings: dict[str, Any]) -> UNet:
    torch.manual_seed(0)
    network = UNet(shape, CondShape(tokens=6), **settings)
    for p in network.parameters():
        nn.init.normal_(p, std=0.15) if p.ndim > 1 else nn.init.normal_(p, mean=0.5, std=0.2)
    return network


def _run(network: UNet | DiT, x: Tensor) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
    network.zero_grad()
    torch.manual_seed(1)  # of dropout
    x = x.clone().requires_grad_()
    device, dtype = x.device, x.dtype
    tokens = torch.linspace(-1, 1, len(x) * 18).view(len(x), 3, 6).to(device, dtype)
    cond = Cond(tokens=tokens) if network.cond.tokens else Cond()
    out = network(x, torch.linspace(0.1, 0.9, len(x), device=device), cond)
    ramp = torch.arange(out.numel(), device=device).view_as(out).sin()
    (out.float() * ramp).sum().backward()  # type: ignore[no-untyped-call]
    assert x.grad is not None
    return out.detach(), x.grad, {k: p.grad.clone() for k, p in network.named_parameters() if p.grad is not None}


def _apart(a: Tensor, b: Tensor) -> float:
    return float((a.double() - b.double()).norm() / b.double().norm())


@pytest.mark.parametrize(("shape", "settings"), [NETWORKS[0], DROPPING, *NETWORKS[2:]])
def test_a_unet_of_fused_parts_equals_the_plain_one(
    interpreted: None, shape: tuple[int, ...], settings: dict[str, Any]
) -> None:
    network, x = _network(shape, settings), torch.randn(2, *shape)
    ours = _run(network, x)
    with fused.plain():
        theirs = _run(network, x)
    assert not torch.equal(ours[0], theirs[0])  # the fused parts did run
    assert _apart(ours[0], theirs[0]) < 2e-6
    assert _apart(ours[1], theirs[1]) < 5e-6
    assert ours[2].keys() == theirs[2].keys()
    for name, grad in theirs[2].items():
        assert _apart(ours[2][name], grad) < 1e-4, name


@pytest.mark.parametrize(
    ("shape", "settings", "programs"),
    [(*NETWORKS[1], 264), (*NETWORKS[2], 1), (*NETWORKS[3], 264), (*NETWORKS[4], 264)],
)
def test_without_gradients_convolutions_of_few_positions_are_shared_out(
    interpreted: None, shape: tuple[int, ...], settings: dict[str, Any], programs: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    from sfumato.nn.fused import norm

    monkeypatch.setattr(norm, "_PROGRAMS", programs)  # how finely; 1: not at all
    launched: list[str] = []
    launch = norm._launch
    monkeypatch.setattr(norm, "_launch", lambda name, *a, **k: (launched.append(name), launch(name, *a, **k)))
    network, x, u = _network(shape, settings), torch.randn(2, *shape), torch.tensor([0.3, 0.9])
    cond = Cond(tokens=torch.randn(2, 3, 6))
    with torch.no_grad():
        ours = network(x, u, cond)
        with fused.plain():
            theirs = network(x, u, cond)
    convolutions = sum(isinstance(m, (torch.nn.Conv2d, torch.nn.Conv3d)) for m in network.modules())
    assert launched.count("conv_parts") == (
        convolutions if len(shape) < 4 else 0
    )  # weights ask for gradients: no matter
    assert ours.shape == theirs.shape and _apart(ours, theirs) < 2e-6


@pytest.mark.parametrize("positions", [40, 1200])
def test_a_field_that_does_not_fit_into_one_tile_is_normed_in_parts(
    interpreted: None, positions: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    from sfumato.nn.fused import norm
    from sfumato.nn.norm import GroupNorm

    monkeypatch.setattr(norm, "_TILE", 1024)
    layer, x = GroupNorm(4, 48), torch.randn(2, 48, 1, positions) + 40  # a mean far from 0 costs no digits
    nn.init.normal_(layer.weight, 1)
    results = []
    for plain, kind in ((False, torch.float32), (True, torch.float32), (True, torch.float64)):
        layer, at = layer.to(kind), x.to(kind).contiguous(memory_format=torch.channels_last).requires_grad_()
        if plain:
            with fused.plain():
                out = layer(at, act=True)
        else:
            out = layer(at, act=True)
        out.square().sum().backward()
        assert at.grad is not None
        results.append((out.detach(), at.grad))
    for ours, theirs, exact in zip(*results):
        assert _apart(ours, exact) < 1.5 * _apart(theirs, exact) + 2e-6


@pytest.mark.parametrize("size", [(6, 5), (3, 4, 2)])
def test_kernels_get_the_layout_that_they_read_whatever_comes(interpreted: None, size: tuple[int, ...]) -> None:
    """What a convolution makes of one channel lies as torch's own layout has it, and so may a gradient."""
    from sfumato.nn.fused.norm import Normed, convolve_parts, norm_backward, norm_forward

    torch.manual_seed(0)
    x, other, grad = (torch.randn(2, 16, *size) for _ in range(3))
    n = Normed(2, 1e-5, True, torch.randn(32), torch.randn(32))
    results = []
    last = torch.channels_last if len(size) == 2 else torch.channels_last_3d
    for layout in (torch.contiguous_format, last):
        first, second, wide, beside = (
            t.contiguous(memory_format=layout) for t in (x, other, torch.cat([grad, grad], 1), grad)
        )
        out, stats = norm_forward(first, second, n)
        back = norm_backward(first, second, wide, n, stats, (beside, beside))
        assert back.second is not None and back.beside is not None
        found = [out, back.first, back.second, back.gamma, back.beta, back.beside]
        if len(size) == 2:
            found.append(convolve_parts(first, torch.ones(4, 16, 3, 3).contiguous(memory_format=last)).data)
        results.append(found)
    assert all(torch.equal(a, b) for a, b in zip(*results, strict=True))


def test_an_autoencoder_of_one_channel_equals_the_plain_one(interpreted: None) -> None:
    torch.manual_seed(0)
    network, x = (
        ConvAutoencoder((1, 8, 8), channels=3, factor=2, patch=1, width=8, mults=(1, 2)),
        torch.rand(2, 1, 8, 8),
    )
    for p in network.parameters():
        nn.init.normal_(p, std=0.2) if p.ndim > 1 else nn.init.normal_(p, mean=0.5, std=0.2)
    ours = network.decode(network.encode(x)).detach()
    with fused.plain():
        theirs = network.decode(network.encode(x)).detach()
    assert not torch.equal(ours, theirs) and _apart(ours, theirs) < 2e-6


def test_the_noise_kernel_equals_the_plain_generator() -> None:
    keys = torch.tensor([5, -7, 123456789123, 2**62 + 11])
    if CUDA:
        made = normal(keys.cuda(), (3, 7, 11)).cpu()
    else:
        from sfumato.core.philox_kernel import fill

        made = torch.zeros(4, 231)
        fill(keys, made)
    assert torch.allclose(made.flatten(1), plain_normal(keys, 231), atol=2e-6, rtol=0)


@pytest.mark.skipif(not CUDA, reason="needs a GPU")
@pytest.mark.parametrize(("shape", "settings"), [*NETWORKS, ((3, 32, 32), {"width": 64, "mults": (1, 2, 2)})])
def test_in_bfloat16_the_fused_parts_are_as_near_to_float64_as_the_plain_ones(
    shape: tuple[int, ...], settings: dict[str, Any]
) -> None:
    x = torch.randn(4, *shape)
    exact = _run(_network(shape, settings).double(), x.double())
    found = []
    for plain in (False, True):
        network = _network(shape, settings).cuda().to(torch.bfloat16)
        if plain:
            with fused.plain():
                found.append(_run(network, x.cuda().to(torch.bfloat16)))
        else:
            found.append(_run(network, x.cuda().to(torch.bfloat16)))
    ours, theirs = found
    for i in (0, 1):
        assert _apart(ours[i].cpu(), exact[i]) < 1.2 * _apart(theirs[i].cpu(), exact[i]) + 2e-3
    whole = [torch.cat([g[2][k].cpu().double().flatten() for k in exact[2]]) for g in (ours, theirs, exact)]
    assert _apart(whole[0], whole[2]) < 1.2 * _apart(whole[1], whole[2]) + 2e-3


@pytest.mark.skipif(not CUDA, reason="needs a GPU")
@pytest.mark.parametrize("n", [1, 4])
@pytest.mark.parametrize(
    ("shape", "settings"),
    [
        ((3, 32, 32), {"width": 64, "mults": (1, 2, 2)}),
        ((3, 8, 8), {"width": 64, "mults": (1, 2, 2)}),  # a shortcut beside parts, of one input and of two
        ((16, 431), {"width": 80, "mults": (1, 2, 4)}),
    ],
)
def test_in_bfloat16_without_gradients_too(n: int, shape: tuple[int, ...], settings: dict[str, Any]) -> None:
    x, u, cond = torch.randn(n, *shape), torch.linspace(0.1, 0.9, n), Cond(tokens=torch.randn(n, 3, 6))
    network, half = _network(shape, settings).double(), torch.bfloat16
    with torch.no_grad():
        exact = network(x.double(), u, cond.to("cpu", torch.float64))
        network = network.cuda().to(half)
        ours = network(x.cuda().to(half), u.cuda(), cond.to("cuda", half)).cpu()
        with fused.plain():
            theirs = network(x.cuda().to(half), u.cuda(), cond.to("cuda", half)).cpu()
    assert _apart(ours, exact) < 1.2 * _apart(theirs, exact) + 2e-3


@pytest.mark.skipif(not CUDA, reason="needs a GPU")
def test_a_captured_network_is_the_network() -> None:
    from sfumato.nn.captured import Captured

    network = _network((3, 8, 8), {"width": 32, "mults": (1, 2), "blocks": 1}).cuda().to(torch.bfloat16).eval()
    captured = Captured(network)
    with torch.no_grad():
        for n in (4, 2, 4):
            x = torch.randn(n, 3, 8, 8, device="cuda", dtype=torch.bfloat16)
            u, cond = torch.rand(n, device="cuda"), Cond(tokens=torch.randn(n, 3, 6, device="cuda", dtype=x.dtype))
            assert _apart(captured(x, u, cond), network(x, u, cond)) < 1e-2
            again = captured(x, u, cond)
            assert torch.equal(again, captured(x, u, cond))
        assert len(captured._graphs) == 2


def test_no_axis_of_a_launch_but_the_first_grows_with_the_field(monkeypatch: pytest.MonkeyPatch) -> None:
    """The others end at 65,535 programs: 256 fields of 32^3 positions did not start."""
    grids: list[tuple[int, ...]] = []
    for module in (norm, tokens):
        monkeypatch.setattr(module, "_launch", lambda name, grid, *args, **settings: grids.append(grid))
    rows = 10_000_000
    x, bias = torch.empty(rows, 1), torch.empty(1)
    norm.mix(x, x, None, None, bias)
    norm.mix(None, x, None, torch.empty(8, 1), bias)
    norm.column_sums(x)
    torch.ops.sfumato.bias_gelu(x[None], bias)
    torch.ops.sfumato.bias_gelu_back(x[None], x[None], bias)
    torch.ops.sfumato.gate_norm(x[None], None, None, x[:1], x[:1])
    assert len(grids) >= 6 and max(grid[0] for grid in grids) > 65_535
    assert all(size <= 65_535 for grid in grids for size in grid[1:])


@pytest.mark.skipif(not CUDA, reason="needs a GPU")
def test_more_rows_are_summed_than_a_second_axis_of_a_launch_would_take() -> None:
    x, y = torch.randn(2, 5_000_000, 16, device="cuda", dtype=torch.bfloat16)
    bias = torch.randn(16, device="cuda", dtype=torch.bfloat16)
    assert _apart(norm.mix(x, y, None, None, bias), x.double() + y.double() + bias.double()) < 3e-3


@pytest.mark.skipif(not CUDA, reason="needs a GPU")
def test_a_product_that_ends_in_gelu_is_the_two_one_after_the_other() -> None:
    layer, x = nn.Linear(64, 96).cuda().to(torch.bfloat16), torch.randn(2, 5, 64, device="cuda", dtype=torch.bfloat16)
    with torch.no_grad():
        ours = gelu_linear(layer, x)
        product = nn.functional.linear(*(v.double() for v in (x, layer.weight, layer.bias)))
        exact = nn.functional.gelu(product, approximate="tanh")
    assert ours.shape == (2, 5, 96) and _apart(ours, exact) < 3e-3


def _dit(tokens: int = 0) -> DiT:
    torch.manual_seed(0)
    network = DiT((3, 10, 8), CondShape(tokens=tokens), width=48, depth=2, heads=2, patch=2)
    for p in network.parameters():
        nn.init.normal_(p, std=0.15) if p.ndim > 1 else nn.init.normal_(p, mean=0.5, std=0.2)
    return network


@pytest.mark.parametrize("tokens", [0, 6])
def test_a_transformer_of_fused_parts_equals_the_plain_one(interpreted: None, tokens: int) -> None:
    network, x = _dit(tokens), torch.randn(3, 3, 10, 8)
    ours = _run(network, x)
    with fused.plain():
        theirs = _run(network, x)
    assert not torch.equal(ours[0], theirs[0])  # the fused parts did run
    assert _apart(ours[0], theirs[0]) < 2e-6 and _apart(ours[1], theirs[1]) < 5e-6
    assert ours[2].keys() == theirs[2].keys()
    for name, gradient in theirs[2].items():
        assert _apart(ours[2][name], gradient) < 5e-5, name


def test_operators_on_tokens_are_what_a_compiler_takes_them_for(interpreted: None) -> None:
    x, branch = torch.randn(2, 2, 5, 24, requires_grad=True).unbind(0)
    gate, scale, shift = torch.randn(2, 72, requires_grad=True).chunk(3, 1)
    for given in ((x, branch, gate, scale, shift), (x, None, None, scale, shift), (x, branch, gate, None, None)):
        torch.library.opcheck(torch.ops.sfumato.gate_norm.default, given)
    torch.library.opcheck(torch.ops.sfumato.bias_gelu.default, (x, shift[0].detach().requires_grad_()))


@pytest.mark.skipif(not CUDA, reason="needs a GPU")
@pytest.mark.parametrize("compiled", [False, True])
def test_in_bfloat16_a_fused_transformer_is_as_near_to_float64_as_the_plain_one(compiled: bool) -> None:
    network, x = _dit().cuda(), torch.randn(4, 3, 10, 8, device="cuda")
    exact = _run(copy.deepcopy(network).double(), x.double())
    half, halved = copy.deepcopy(network).bfloat16(), x.bfloat16()
    with fused.plain():
        plain = _run(half, halved)
    if compiled:
        regional(half)
    ours = _run(half, halved)
    for mine, theirs, true in zip(ours[:2], plain[:2], exact[:2]):
        assert _apart(mine, true) < 1.5 * _apart(theirs, true)
    for name, true in exact[2].items():
        key = next(k for k in ours[2] if k.replace("_orig_mod.", "") == name)
        assert _apart(ours[2][key], true) < 1.5 * _apart(plain[2][name], true) + 2e-3, name
