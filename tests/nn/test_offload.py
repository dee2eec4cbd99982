"""Offload changes where weights lie and nothing else."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from sfumato.core.cond import Cond, CondShape
from sfumato.core.network import Network
from sfumato.errors import UserError
from sfumato.nn import MLP, DiT, UNet
from sfumato.nn.offload import Offload, offloaded
from sfumato.nn.recompute import recompute

SHAPE = CondShape(vector=4, tokens=6)
MAKE: dict[str, Any] = {
    "unet": lambda: UNet((2, 9, 7), SHAPE, width=8, mults=(1, 2), blocks=1, attention=(1,)),
    "unet-1d": lambda: UNet((2, 11), SHAPE, width=8, mults=(1, 2), blocks=1),
    "unet-3d": lambda: UNet((1, 4, 5, 6), SHAPE, width=8, mults=(1, 2), blocks=1),
    "dit": lambda: DiT((2, 8, 8), SHAPE, width=32, depth=3, heads=2),
    "one-block": lambda: DiT((2, 8, 8), SHAPE, width=32, depth=1, heads=2),
    "mlp": lambda: MLP((2, 8, 8), SHAPE, width=16, depth=4),
}
gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU")


def made(name: str) -> tuple[Network, tuple[Tensor, Tensor, Cond]]:
    torch.manual_seed(0)
    network: Network = MAKE[name]().eval()
    with torch.no_grad():
        for p in network.parameters():
            p.add_(0.1 * torch.randn_like(p))
    shape: Any = network.shape  # type: ignore[attr-defined]
    return network, (torch.randn(3, *shape), torch.rand(3), Cond(torch.randn(3, 4), torch.randn(3, 5, 6)))


@pytest.mark.parametrize("name", list(MAKE))
@torch.no_grad()
def test_it_is_the_identity(name: str) -> None:
    network, given = made(name)
    expected = network(*given)
    layouts = {k: p.stride() for k, p in network.named_parameters()}
    with offloaded(network, "cpu"):
        for _ in range(3):  # the order in which weights are brought is learned in the first pass
            torch.testing.assert_close(network(*given), expected, rtol=1e-6, atol=1e-6)
        assert {k: p.stride() for k, p in network.named_parameters()} == layouts
    assert torch.equal(network(*given), expected)
    assert not any("forward" in module.__dict__ for module in network.modules())


@torch.no_grad()
def test_without_wide_layers_it_is_the_identity_bit_for_bit() -> None:
    network, given = made("unet")
    expected = network(*given)
    with offloaded(network, "cpu"):
        assert torch.equal(network(*given), expected)
        assert torch.equal(network.perturbed()(*given), made("unet")[0].perturbed()(*given))  # type: ignore[operator]


@torch.no_grad()
def test_weights_are_read_from_the_two_places_alone() -> None:
    """With nothing brought, blocks see what is in the places: poison there is poison in the output."""
    network, given = made("dit")
    with Offload(network, "cpu") as away:
        assert torch.isfinite(network(*given)).all()
        travel = away._travel
        travel._fetch = lambda part, place: travel._holds.__setitem__(place, part)  # type: ignore[method-assign]
        for place in travel._places:
            place.fill_(0xFF)  # NaN in every type
        assert not torch.isfinite(network(*given)).any()


@torch.no_grad()
def test_one_part_is_computed_with_while_the_next_is_fetched_and_none_twice() -> None:
    network, given = made("dit")
    with Offload(network, "cpu") as away:
        travel, log = away._travel, []
        fetch, views = travel._fetch, travel.visit

        def logged(part: int, place: int) -> None:
            log.append(("fetch", part))
            fetch(part, place)

        def visited(part: int) -> Any:
            log.append(("visit", part))
            return views(part)

        travel._fetch, travel.visit = logged, visited  # type: ignore[method-assign]
        network(*given)
        log.clear()
        network(*given)
    parts = len(travel._next)
    order = [part for what, part in log if what == "visit"]
    assert order == list(range(parts)) and parts > 3
    fetched = [part for what, part in log if what == "fetch"]
    assert sorted(fetched) == order  # each once in a pass
    for i, part in enumerate(order[:-1]):  # right behind the visit of a part comes the fetch of the next
        at = log.index(("visit", part))
        assert log[at + 1] == ("fetch", order[i + 1])


def test_places_are_two_blocks_and_the_wide_layer_is_cut() -> None:
    torch.manual_seed(0)
    network = DiT((4, 16, 16), CondShape(vector=8), width=128, depth=8, heads=2)
    block = sum(p.numel() * 4 for p in network.blocks[0].parameters())
    assert network.modulation.weight.nbytes > 3 * block
    with Offload(network, "cpu") as away:
        places = sum(place.nbytes for place in away._travel._places)
        assert 2 * block <= places < 2.1 * block


def test_gradients_are_refused() -> None:
    network, given = made("dit")
    with offloaded(network, "cpu"), pytest.raises(UserError, match="these are offloaded; set offload=false"):
        network(*given)
    network(*given)[0].sum().backward()


class Whole(Network):
    """No blocks."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(2, 2)

    def forward(self, x: Tensor, noise: Tensor, cond: Cond | None = None) -> Tensor:
        out: Tensor = self.layer(x)
        return out


def test_what_can_not_be_offloaded_is_said() -> None:
    with pytest.raises(UserError, match="the network 'Whole' has no list `blocks`"):
        Offload(Whole(), "cpu")
    network, _ = made("dit")
    with offloaded(network, "cpu"), pytest.raises(UserError, match="compiled, recomputed or offloaded already"):
        Offload(network, "cpu")
    with recompute(network, [0]), pytest.raises(UserError, match="compiled, recomputed or offloaded already"):
        Offload(network, "cpu")


def test_weights_that_are_no_plain_tensors_are_refused() -> None:
    pytest.importorskip("torchao")
    from sfumato.nn.lowbit import lowbit

    network = DiT((2, 8, 8), CondShape(), width=32, depth=1, heads=2)
    lowbit(network, "int8")
    with pytest.raises(UserError, match="low-bit weights, which can't be offloaded"):
        Offload(network, "cpu")


@torch.no_grad()
def test_after_an_error_inside_everything_is_in_its_place() -> None:
    network, given = made("dit")
    expected, state = network(*given), {k: v.clone() for k, v in network.state_dict().items()}
    with pytest.raises(UserError, match="the network was built for"), offloaded(network, "cpu"):
        network(given[0][:, :1], *given[1:])
    with pytest.raises(RuntimeError), offloaded(network, "cpu"):
        network.blocks[1](torch.zeros(1, 2, 3), torch.zeros(1, 18), None)
    assert all(torch.equal(v, state[k]) for k, v in network.state_dict().items())
    assert torch.equal(network(*given), expected)


@torch.no_grad()
def test_a_deep_copy_is_a_plain_network() -> None:
    network, given = made("dit")
    expected = network(*given)
    with offloaded(network, "cpu") as _:
        plain = copy.deepcopy(network)
    assert torch.equal(plain(*given), expected)
    plain.double()
    assert plain(given[0].double(), *given[1:]).dtype == torch.float64


@torch.no_grad()
def test_the_state_is_that_of_the_network() -> None:
    network, _ = made("unet")
    before = {k: v.clone() for k, v in network.state_dict().items()}
    with offloaded(network, "cpu"):
        inside = network.state_dict()
        assert inside.keys() == before.keys() and all(torch.equal(inside[k], before[k]) for k in before)


# ---------------------------------------------------------------- on a GPU


@gpu
@pytest.mark.parametrize("name", list(MAKE))
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@torch.no_grad()
def test_it_is_the_identity_on_a_gpu(name: str, dtype: torch.dtype) -> None:
    network, (x, noise, cond) = made(name)
    network.to("cuda", dtype)
    given = (x.to("cuda", dtype), noise.cuda(), cond.to("cuda", dtype))
    expected = network(*given)
    near = 1e-5 if dtype == torch.float32 else 3e-2
    with offloaded(network, "cuda"):
        assert {p.device.type for block in network.blocks for p in block.parameters()} == {"cpu"}
        assert all(p.is_pinned() for block in network.blocks for p in block.parameters())
        assert next(network.parameters()).is_cuda
        for _ in range(20):  # without a wait in between: the host is far ahead
            torch.testing.assert_close(network(*given), expected, rtol=near, atol=near)
    assert {p.device.type for p in network.parameters()} == {"cuda"}
    torch.testing.assert_close(network(*given), expected, rtol=near, atol=near)


@gpu
@torch.no_grad()
def test_memory_on_a_gpu_is_two_blocks() -> None:
    torch.manual_seed(0)
    network = DiT((4, 16, 16), CondShape(vector=8), width=512, depth=16, heads=8).eval().cuda()
    for p in network.parameters():
        p.add_(0.02 * torch.randn_like(p))
    given = (torch.randn(1, 4, 16, 16).cuda(), torch.rand(1).cuda(), Cond(torch.randn(1, 8).cuda()))
    expected = network(*given)
    weights = sum(p.nbytes for p in network.parameters())
    block = sum(p.nbytes for p in network.blocks[0].parameters())
    full = torch.cuda.memory_allocated()
    with offloaded(network, "cuda"):
        assert full - torch.cuda.memory_allocated() > weights - 3 * block
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        for _ in range(5):
            found = network(*given)
        assert torch.cuda.max_memory_allocated() - before < block  # activations alone
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)
