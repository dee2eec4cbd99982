"""Recomputed blocks: the same gradients bit for bit, from less memory, and nothing else that changes."""

from __future__ import annotations

import copy
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from sfumato.core import Cond, CondShape, Network
from sfumato.errors import UserError
from sfumato.nn import MLP, DiT, UNet
from sfumato.nn.recompute import blocks_of, first_blocks, recompute
from tests.train.tiny import TinyNet

COND = CondShape(vector=6, tokens=6)


def shaken(network: Network) -> Network:
    """Off the zero initialisation, so that every gradient is something."""
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for p in network.parameters():
            p.add_(0.1 * torch.randn(p.shape, generator=generator))
    return network.train()


def build(kind: str, dropout: float) -> Network:
    torch.manual_seed(0)
    if kind == "dit":
        return shaken(DiT((2, 6, 6), COND, width=16, depth=3, heads=2, dropout=dropout))
    if kind == "unet":
        return shaken(UNet((2, 6, 6), COND, width=8, mults=(1, 2), blocks=1, groups=4, dropout=dropout))
    return shaken(MLP((2, 6, 6), COND, width=16, depth=3, dropout=dropout))


def inputs() -> tuple[Tensor, Tensor, Cond]:
    generator = torch.Generator().manual_seed(2)
    x = torch.randn(3, 2, 6, 6, generator=generator)
    mask = torch.tensor([[True, True], [True, False], [False, False]])
    tokens = torch.randn(3, 2, 6, generator=generator)
    return x, torch.tensor([0.1, 0.5, 0.9]), Cond(torch.randn(3, 6, generator=generator), tokens, mask)


def gradients(network: Network) -> dict[str, Tensor]:
    torch.manual_seed(3)  # dropout
    network.zero_grad()
    network(*inputs()).square().sum().backward()
    return {name: p.grad.clone() for name, p in network.named_parameters()}


@pytest.mark.parametrize("kind", ["dit", "unet", "mlp"])
@pytest.mark.parametrize("dropout", [0.0, 0.5])
def test_gradients_are_equal_bit_for_bit(kind: str, dropout: float) -> None:
    network = build(kind, dropout)
    plain, names = gradients(network), list(network.state_dict())
    for chosen in ([0], range(len(blocks_of(network)))):
        with recompute(network, chosen) as active:
            again = gradients(network)
            assert len(active) == len(chosen) and list(network.state_dict()) == names
            assert active.capturable == (dropout == 0)
        assert all(torch.equal(again[name], plain[name]) for name in names)
    assert all("forward" not in block.__dict__ for block in blocks_of(network))
    assert all(torch.equal(g, plain[name]) for name, g in gradients(network).items())


@pytest.mark.parametrize("kind", ["dit", "unet"])
def test_less_is_kept(kind: str) -> None:
    def kept(network: Network) -> int:
        found: dict[int, int] = {}

        def pack(x: Tensor) -> Tensor:
            found[x.untyped_storage().data_ptr()] = x.untyped_storage().nbytes()
            return x

        with torch.autograd.graph.saved_tensors_hooks(pack, lambda x: x):
            network(*inputs())
        return sum(found.values())

    network = build(kind, 0.0)
    plain = kept(network)
    with recompute(network, range(len(blocks_of(network)))):
        assert kept(network) < 0.6 * plain


def test_the_second_run_happens_in_the_backward_pass_only_and_only_in_training() -> None:
    network = build("mlp", 0.0)
    calls: list[int] = []
    blocks_of(network)[0].register_forward_hook(lambda *_: calls.append(1))
    blocks_of(network)[0].first.register_forward_hook(lambda *_: calls.append(2))
    with recompute(network, [0]):
        out = network(*inputs()).sum()
        assert calls == [2, 1]
        out.backward()
        assert calls == [2, 1, 2]
        calls.clear()
        network.eval()(*inputs()).sum().backward()
        with torch.no_grad():
            network.train()(*inputs())
        assert calls == [2, 1, 2, 1]


def test_a_deep_copy_has_blocks_of_its_own() -> None:
    network = build("dit", 0.0)
    recompute(network, [0, 1, 2])
    twin = copy.deepcopy(network)
    with torch.no_grad():
        for p in network.parameters():
            p.zero_()
    fresh = build("dit", 0.0)
    assert all(torch.equal(g, gradients(fresh)[name]) for name, g in gradients(twin).items())


def test_a_share_is_the_first_blocks_rounded_up() -> None:
    network = build("dit", 0.0)
    assert [list(first_blocks(network, s)) for s in (0.0, 0.3, 1 / 3, 0.34, 1.0)] == [[], [0], [0], [0, 1], [0, 1, 2]]


def test_what_can_not_be_recomputed_is_refused() -> None:
    with pytest.raises(
        UserError, match=r"the network 'tiny-for-tests' has no list `blocks` to recompute; set train.recompute=0"
    ):
        recompute(TinyNet((1, 2), CondShape()), [0])
    recompute(TinyNet((1, 2), CondShape()), [])
    network = build("dit", 0.0)
    with pytest.raises(UserError, match="block 3 can't be recomputed: the network has 3 blocks, 0 to 2"):
        recompute(network, [3])
    with recompute(network, [0]), pytest.raises(UserError, match="block 0 has a forward of its own"):
        recompute(network, [0])


def test_weights_pass_through_a_file(tmp_path: Path) -> None:
    network = build("mlp", 0.0)
    with recompute(network, [0]):
        torch.save(network.state_dict(), tmp_path / "weights")
    plain = build("mlp", 0.0)
    plain.load_state_dict(torch.load(tmp_path / "weights"))
    assert isinstance(plain, nn.Module)
