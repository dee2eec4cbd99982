"""The GPU benchmarks at the size of a CPU: what is compared is alike, the peers are what they claim, rows are whole."""

from __future__ import annotations

import json
import sys
import weakref
from pathlib import Path

import pytest
import torch
from torch import nn

pytest.importorskip("diffusers")
from benchmarks import _gpu, _ours, sample_gpu, train_gpu
from benchmarks._gpu import FULL, TINY, Counted, Kind, Plan, Work, count, measure
from benchmarks._peer_networks import PaperDiT, peer_one_image
from benchmarks.sample_gpu import Ddim
from benchmarks.train_gpu import STEPS, Chain

from sfumato.core import CondShape, DiscreteVP, Eps, HybridLoss, NetDenoiser, Network

CPU = torch.device("cpu")


def counted(kind: Kind) -> tuple[Counted, Counted]:
    return count(lambda: _ours.one_image(kind, FULL)), count(lambda: peer_one_image(kind, FULL))


# ---------------------------------------------------------------- what is compared is alike


def test_the_unets_have_the_same_parameters_and_operations() -> None:
    ours, peer = counted("unet")
    assert ours.parameters == peer.parameters == 35_746_307  # as published
    assert ours.forward == peer.forward
    assert ours.both == peer.both


def test_the_transformers_have_the_same_operations() -> None:
    ours, peer = counted("dit")
    assert abs(ours.parameters / peer.parameters - 1) < 0.005
    assert abs(ours.forward / peer.forward - 1) < 0.001
    assert abs(ours.both / peer.both - 1) < 0.001


def test_the_peer_has_the_published_size_and_cost_of_dit_xl_2() -> None:
    """675 M parameters, 118.64 billion multiplications and additions in pairs (table 4 of the paper)."""
    peer = count(lambda: peer_one_image("dit", FULL))
    assert round(peer.parameters / 1e6) == 675
    assert abs(peer.forward / 2 / 118.64e9 - 1) < 1e-3


def test_operations_are_those_of_a_product_and_its_two_gradients() -> None:
    layer = nn.Linear(3, 5)

    def build() -> tuple[nn.Module, object]:
        with torch.device("meta"):
            made, x = nn.Linear(3, 5), torch.empty(7, 3, requires_grad=True)
        return made, lambda: made(x)

    found = count(build)  # type: ignore[arg-type]
    one = 2 * 7 * 3 * 5
    assert found == Counted(sum(p.numel() for p in layer.parameters()), one, 3 * one)


def test_attention_is_counted_by_its_two_products() -> None:
    def build() -> tuple[nn.Module, object]:
        q = torch.empty(1, 2, 11, 4, device="meta", requires_grad=True)
        return nn.Identity(), lambda: nn.functional.scaled_dot_product_attention(q, q, q)

    assert count(build).forward == 2 * 2 * 2 * 11 * 11 * 4  # type: ignore[arg-type]


# ---------------------------------------------------------------- the peers are what they claim


def test_the_paper_s_dit_starts_as_zero() -> None:
    out = PaperDiT(TINY)(torch.randn(2, 4, 32, 32), torch.tensor([0, 999]), torch.tensor([0, TINY.classes]))
    assert out.shape == (2, 8, 32, 32)
    assert bool((out == 0).all())


def test_a_token_of_the_paper_s_dit_is_the_patch_where_it_lies() -> None:
    """Without attention a change of one patch changes that patch of every channel, and nothing else."""
    torch.manual_seed(0)
    network = PaperDiT(TINY)
    network.layers = nn.ModuleList()
    for parameter in network.parameters():
        nn.init.normal_(parameter)
    x, k, label = torch.randn(1, 4, 32, 32), torch.tensor([5]), torch.tensor([1])
    changed, side = x.clone(), TINY.dit_patch
    changed[:, :, side : 2 * side, 3 * side : 4 * side] += torch.randn(4, side, side)
    moved = (network(changed, k, label) != network(x, k, label))[0]
    where = torch.zeros(32, 32, dtype=torch.bool)
    where[side : 2 * side, 3 * side : 4 * side] = True
    assert bool((moved == where).all())


class _Given(Network):
    """Gives a fixed output."""

    def __init__(self, out: torch.Tensor) -> None:
        super().__init__()
        self.out, self.shape, self.cond = out, tuple(out.shape[1:]), CondShape()

    def forward(self, x: torch.Tensor, noise: torch.Tensor, cond: object = None) -> torch.Tensor:
        return self.out


@pytest.mark.parametrize("k", [1, 2, 10, 400, 800, 999])  # index 0 has another term on both sides
def test_the_peer_s_hybrid_loss_is_the_library_s(k: int) -> None:
    """v of ours is the sigmoid of the second output, v of the paper's is its place in [-1, 1]. Without L_simple."""
    generator = torch.Generator().manual_seed(k)
    x0, eps, out, second = torch.randn(4, 2, 4, 8, 8, generator=generator).unbind(0)
    at, simple = torch.tensor([k, k]), nn.functional.mse_loss(out, eps)
    theirs = Chain(CPU).loss(x0, at, eps, lambda x_t: torch.cat([out, 2 * torch.sigmoid(second) - 1], 1)) - simple
    denoiser = NetDenoiser(_Given(torch.cat([out, second], 1)), DiscreteVP("linear"), Eps(), learned_variance=True)
    ours = HybridLoss(STEPS, lambda_vlb=1 / STEPS).at(denoiser, x0, None, (at + 1).double(), eps).value - simple
    torch.testing.assert_close(theirs, ours.to(theirs), rtol=1e-3, atol=1e-6)


def test_ddim_of_the_peer_walks_to_what_its_network_knows() -> None:
    """With the exact eps of a single clean point the walk ends on it."""
    x0 = torch.rand(1, 3, 4, 4) * 2 - 1
    ddim, asked = Ddim(CPU), []
    bar = ddim.scheduler.alphas_cumprod

    def forward(x: torch.Tensor, k: torch.Tensor, return_dict: bool) -> tuple[torch.Tensor]:
        asked.append(int(k))
        return ((x - bar[k].sqrt() * x0) / (1 - bar[k]).sqrt(),)

    made = ddim(forward, torch.randn(1, 3, 4, 4), lambda: None)
    torch.testing.assert_close(made, x0, rtol=0, atol=1e-3)
    assert asked == list(range(980, -1, -20))


# ---------------------------------------------------------------- measuring


def test_a_side_is_run_as_planned_and_freed() -> None:
    runs, kept = [], []

    def make() -> Work:
        network = nn.Linear(2, 3)
        kept.append(weakref.ref(network))
        return Work(lambda: runs.append(network), 8, 100.0, network, "a note")

    figure = measure(make, CPU, Plan(rounds=2, steps=3, warmup=4))
    assert len(runs) == 1 + 4 + 2 * 3
    runs.clear()
    assert kept[0]() is None
    assert figure.parameters == 9
    assert 100 < figure.first_seconds < 101
    assert figure.low <= figure.seconds <= figure.high
    assert figure.images_per_second == 8 / figure.seconds


def run_command(module: object, monkeypatch: pytest.MonkeyPatch, *arguments: str) -> None:
    name = "train_gpu" if module is train_gpu else "sample_gpu"
    monkeypatch.setattr(sys, "argv", [name, "--device", "cpu", *arguments])
    _gpu.command(name, "", module.CASES, Path("unused"))  # type: ignore[attr-defined]


@pytest.mark.slow
def test_rows_are_whole_and_join_those_of_other_cases(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "rows.json"
    run_command(train_gpu, monkeypatch, "--only", "train.unet.b128", "--json", str(file))
    run_command(train_gpu, monkeypatch, "--only", "dit.train", "--json", str(file))
    run_command(train_gpu, monkeypatch, "--only", "dit.train", "--json", str(file))
    run_command(sample_gpu, monkeypatch, "--only", "dit.forward.b1", "dit.forward.b32", "--json", str(file))
    rows = {row["case"]: row for row in json.loads(file.read_text())}
    assert list(rows) == ["train.unet.b128", "dit.train", "dit.forward.b1", "dit.forward.b32"]
    for row in rows.values():
        keys = ["case", "ours", "peer", "ratio", "unit", "share_of_ceiling", "machine", "versions", "settings"]
        assert list(row) == keys
        assert row["ratio"] == row["ours"] / row["peer"] > 0
        settings, best = row["settings"], row["machine"]["ceiling_gflops"]
        rate = settings["ours"]["images_per_second"] * settings["gflop_per_image"][0]
        assert row["share_of_ceiling"] == pytest.approx(rate / best, rel=0.05)
        assert row["peer"] in [
            pytest.approx(p["images_per_second"] if row["unit"] == "images/s" else 1000 * p["seconds"], rel=0.01)
            for p in settings["peers"].values()
        ]
        assert settings["fastest_peer"] in settings["peers"]
        assert settings["failed"] == {}


def test_a_row_needs_its_peer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(SystemExit):
        run_command(train_gpu, monkeypatch, "--no-peer", "--json", str(tmp_path / "rows.json"))
    assert not (tmp_path / "rows.json").exists()


def test_every_case_of_the_cards_is_there() -> None:
    assert [c.name for c in train_gpu.CASES] == ["train.unet.b128", "train.unet.b512", "dit.train"]
    sampling = ["sample.unet.b256", "sample.unet.b1", "dit.forward.b1", "dit.forward.b32"]
    assert [c.name for c in sample_gpu.CASES] == sampling
    cuda = torch.device("cuda")
    for case in (*train_gpu.CASES, *sample_gpu.CASES):  # named, not made
        ways = [variant.way for variant in case.peers(cuda)]
        assert ways.count("eager") == ways.count("autotuned") == 1
        assert "compiled" in ways
