"""The harness of quality for GPU minutes, at the size of a CPU: training pauses cleanly, scores are the distances."""

from __future__ import annotations

import copy
import json
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

pytest.importorskip("diffusers")
from benchmarks import quality
from benchmarks._gpu import TINY
from benchmarks._peer_networks import peer_unet
from benchmarks.quality import QUICK, RATE, WARMUP, Peer, Point, Scale

CPU = torch.device("cpu")
SMALL = Scale(minute=0.01, batch=8, samples=6, sampled=4, evaluations=2)


@pytest.fixture(scope="module")
def cifar(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Random pictures in the authors' binary version."""
    folder = tmp_path_factory.mktemp("cifar")
    generator = np.random.default_rng(0)
    for name, n in (("data_batch_1.bin", 48), ("test_batch.bin", 16)):
        records = generator.integers(0, 256, (n, 3073), dtype=np.uint8)
        records[:, 0] = np.arange(n) % 10
        records.tofile(folder / name)
    return folder


@pytest.fixture
def peer() -> Peer:
    """24 pictures: the number of each on the left half, black on the right."""
    real = torch.zeros(24, 3, 32, 32, dtype=torch.uint8)
    real[..., :16] = torch.arange(1, 25, dtype=torch.uint8)[:, None, None, None]
    return Peer(real, SMALL, CPU, seed=0, spacing="leading")


def test_compiling_teaches_nothing(peer: Peer) -> None:
    torch.manual_seed(0)
    fresh = peer_unet(TINY).state_dict()
    assert all(bool((value == fresh[name]).all()) for name, value in peer.training.network.state_dict().items())
    assert all(p.grad is None for p in peer.training.parameters)
    assert (peer.steps, peer.seconds) == (0, 0.0)


def test_an_epoch_shows_every_picture_once_flipped_or_not(peer: Peer) -> None:
    peer.at = len(peer.order)  # a new epoch
    seen = torch.cat([peer.batch() for _ in range(24 // SMALL.batch)])
    numbers = (seen.amax((1, 2, 3)) + 1) * 127.5
    assert sorted(numbers.round().int().tolist()) == list(range(1, 25))
    flipped = seen[:, 0, 0, 0] == -1
    assert 0 < int(flipped.sum()) < 24
    assert bool((seen.flip(-1)[flipped][..., 16:] == -1).all())
    assert bool((seen[~flipped][..., 16:] == -1).all())


def test_training_goes_on_where_it_paused(peer: Peer) -> None:
    peer.train(0.05)
    assert peer.seconds >= 0.05
    assert peer.steps % 5 == 0
    assert peer.training.optimizer.param_groups[0]["lr"] == pytest.approx(RATE * peer.steps / WARMUP)
    assert peer.training.ema.optimization_step == peer.steps
    before = copy.deepcopy(peer.training.network.state_dict())
    first, again = peer.sample(), peer.sample()
    assert first.shape == (SMALL.samples, 3, 32, 32)
    assert first.dtype == torch.uint8
    assert torch.equal(first, again)
    after = peer.training.network.state_dict()
    assert all(torch.equal(before[name], after[name]) for name in before)


def test_the_averaged_weights_are_sampled(peer: Peer) -> None:
    first = peer.sample()
    with torch.no_grad():
        for parameter in peer.training.parameters:
            parameter.add_(torch.randn_like(parameter))
    assert torch.equal(peer.sample(), first)
    peer.training.ema.step(peer.training.parameters)  # the first step takes over the weights
    assert not torch.equal(peer.sample(), first)


class _Means(nn.Module):
    """A judge that sees the mean of each channel."""

    def features(self, samples: Tensor) -> Tensor:
        return samples.double().mean((2, 3))


def test_scores_are_the_distances_to_the_training_set(
    cifar: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(quality.Judge, "load", lambda folder: _Means())
    train = quality.pictures(quality.open_data(str(cifar)).build().split("train"))
    low = train // 2
    about = {"images": 1, "seconds": 1.0}
    Point("peer", 1, low + 20, about).save(tmp_path)
    Point("ours", 1, low + 10, about).save(tmp_path)
    Point("ours", 2, low, about).save(tmp_path)  # the peer has no such point
    found = quality.score(tmp_path, [Path("judges/means")], str(cifar), CPU)["means"]
    gap = _Means().features(train).mean(0) - _Means().features(low).mean(0)
    spread = found["ours-2min"] - float(gap.square().sum())  # covariances are the same in all three
    for name, shift in (("peer-1min", 20), ("ours-1min", 10)):
        assert found[name] == pytest.approx(spread + float((gap - shift).square().sum()), rel=1e-9)
    assert found["test"] > 0 < found["halves"]
    row, alone = quality.rows_of(tmp_path, {"means": found})
    assert (alone.case, alone.ours, alone.peer) == ("quality.ours.2min.means", found["ours-2min"], found["test"])
    assert row.case == "quality.ours.1min.means"
    assert (row.ours, row.peer) == (found["ours-1min"], found["peer-1min"])
    assert row.settings["real"] == {"test": found["test"], "halves": found["halves"]}


@pytest.mark.slow
def test_both_sides_from_the_command_line(cifar: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for who in ("peer", "ours"):
        words = f"--data {cifar} --who {who} --minutes 0.3 0.6 --out {tmp_path} --quick --device cpu"
        monkeypatch.setattr(sys, "argv", ["quality", *words.split()])
        quality.main()
        for minutes in (0.3, 0.6):
            stem = tmp_path / f"{who}-{minutes}min"
            samples = np.load(f"{stem}.npy")
            assert samples.shape == (QUICK.samples, 3, 32, 32)
            assert samples.dtype == np.uint8
            about = json.loads(Path(f"{stem}.json").read_text())
            assert about["evaluations"] == QUICK.evaluations
            assert who == "ours" or about["seconds"] >= minutes
            assert about["images"] >= QUICK.batch
            assert Path(f"{stem}.png").is_file()
    settings = json.loads((tmp_path / "ours-0.3min.json").read_text())["settings"]
    assert settings["conditioner"] is None
    assert settings["train"]["evaluations"] == settings["train"]["pictures"] == 0
