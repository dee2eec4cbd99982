"""The diffusion task and the estimate of what a run costs."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from sfumato.codecs import Arrays
from sfumato.conditioners import Conditioner
from sfumato.core import Batch, Cond, CondShape, DataInfo, DenoisingLoss, Draws, Flow, NetDenoiser, Network, Velocity
from sfumato.errors import UserError
from sfumato.model import Model
from sfumato.train import DiffusionTask, Memory, Training, estimate
from tests.train.tiny import TinyData, make_task, make_trainer

INFO = DataInfo((1, 2), "array", labels=("a", "b"))


class Given(Conditioner):
    """The label itself as the vector, -1 for anything."""

    columns = ("label",)

    def __init__(self) -> None:
        super().__init__()
        self.unused = torch.nn.Parameter(torch.zeros(1))

    @property
    def shape(self) -> CondShape:
        return CondShape(vector=1)

    def prepare(self, conditions: Mapping[str, Any]) -> dict[str, Tensor]:
        return {"label": conditions["label"]}

    def forward(self, prepared: Mapping[str, Tensor]) -> Cond:
        return Cond(vector=prepared["label"][:, None].float())

    def null(self, n: int) -> Cond:
        return Cond(vector=torch.full((n, 1), -1.0))


class Seeing(Network):
    """Keeps what it was given."""

    def __init__(self) -> None:
        super().__init__()
        self.w = torch.nn.Parameter(torch.zeros(1))
        self.seen: list[tuple[Tensor, Tensor, Tensor]] = []

    def forward(self, x: Tensor, noise: Tensor, cond: Cond | None = None) -> Tensor:
        assert cond is not None and cond.vector is not None
        self.seen.append((x.detach(), noise.detach(), cond.vector))
        return x * self.w


def conditional(drop: float) -> tuple[DiffusionTask, Seeing]:
    network = Seeing()
    model = Model(NetDenoiser(network, Flow(), Velocity()), Arrays(INFO), Given(), INFO)
    return DiffusionTask(model, DenoisingLoss(), drop=drop), network


def labelled(n: int) -> Batch:
    return Batch(torch.randn(n, 1, 2), {"label": torch.arange(n) % 2})


@pytest.mark.parametrize("drop", [0.0, 0.1, 0.7])
def test_conditions_are_dropped_sample_by_sample(drop: float) -> None:
    task, network = conditional(drop)
    batch = labelled(4000)
    task.loss(batch, Draws(0, 0, 4000))
    vector = network.seen[0][2][:, 0]
    dropped = vector == -1
    assert float(dropped.float().mean()) == pytest.approx(drop, abs=0.02)
    assert torch.equal(vector[~dropped], batch.conditions["label"][~dropped].float())
    # A sample's fate depends on its own number, not on the batch it comes in.
    half = Batch(batch.media[1000:3000], {"label": batch.conditions["label"][1000:3000]})
    task.loss(half, Draws(0, 1000, 2000))
    for whole, part in zip(network.seen[0], network.seen[1]):
        assert torch.equal(whole[1000:3000], part)


def test_the_loss_is_that_of_the_whitened_data() -> None:
    task = make_task()
    media = torch.tensor([[[1.0, 5.0]], [[3.0, 9.0]]])
    task.model.codec.measure([media])
    draws = Draws(0, 0, 2)
    x0 = (media - 4.5) / media.std(correction=0)
    expected = task.objective(task.model.denoiser, x0, None, draws)
    torch.testing.assert_close(task.loss(Batch(media), draws).value, expected.value)


def test_the_codec_does_not_learn() -> None:
    task = make_task()
    assert not any(p.requires_grad for p in task.model.codec.parameters())


@pytest.mark.parametrize("drop", [-0.1, 1.0])
def test_a_share_that_is_none_is_refused(drop: float) -> None:
    with pytest.raises(UserError, match="drop"):
        conditional(drop)


# ---------------------------------------------------------------- estimate


def test_an_estimate_counts_what_is_there() -> None:
    task = make_task(width=64)
    parameters = sum(p.numel() for p in task.parameters())
    found = estimate(task, TinyData(), Training(batch=32, samples=3200, ema=(0.05, 0.1)), device="cpu")
    assert found.parameters == parameters
    assert found.samples == 3200
    assert found.minutes == pytest.approx(100 * found.seconds_per_step / 60)
    # Weights, gradients, two moments and two averages in float32, the codec's four numbers and the step count; the rest is
    # what autograd keeps: per sample and layer of width 64, its input or output, 1 to 4 times.
    kept = 4 * parameters * 6
    activations = found.memory_bytes - kept
    one_layer = 32 * 64 * 4
    assert 2 * one_layer < activations < 10 * one_layer


def test_activations_grow_with_the_batch_and_not_with_accumulation() -> None:
    def memory(**settings: Any) -> Memory:
        found = estimate(make_task(width=64), TinyData(), Training(samples=10**6, **settings), device="cpu").memory
        assert found is not None
        return found

    small, big, split = memory(batch=64), memory(batch=256), memory(batch=256, accumulate=4)
    assert big.activations == pytest.approx(4 * small.activations, rel=0.02)
    assert split.activations == small.activations
    assert split.total - small.total == split.gradients  # those of the parts are added to what is there


def test_of_a_budget_of_minutes_it_tells_the_samples() -> None:
    found = estimate(make_task(), TinyData(), Training(batch=16, minutes=1), device="cpu")
    assert found.minutes == 1
    assert found.samples == pytest.approx(16 * 60 / found.seconds_per_step, rel=0.01)


def test_an_estimate_leaves_no_trace(tmp_path: Path) -> None:
    task = make_task(dropout=0.2)
    before = [p.detach().clone() for p in task.parameters()]
    torch.manual_seed(3)
    expected = torch.rand(4)
    torch.manual_seed(3)
    estimate(task, TinyData(), Training(batch=16, samples=160), device="cpu")
    assert torch.equal(torch.rand(4), expected)
    assert all(torch.equal(a, b) for a, b in zip(before, task.parameters()))
    assert all(p.grad is None for p in task.parameters())
    assert list(tmp_path.iterdir()) == []


# ---------------------------------------------------------------- devices


def test_an_unknown_device_is_refused(tmp_path: Path) -> None:
    from sfumato.device import choose_device

    for name in ("cuda:99", "tpu"):
        with pytest.raises(UserError, match=rf"device={name}: .* has no such device; use auto or cpu"):
            choose_device(name)


def test_bf16_trains_close_to_fp32_with_float32_weights(tmp_path: Path) -> None:
    fp32 = make_trainer(tmp_path / "a", samples=160)
    bf16 = make_trainer(tmp_path / "b", samples=160, precision="bf16")
    assert fp32.dtype == torch.float32 and bf16.dtype == torch.bfloat16
    a, b = fp32.fit(), bf16.fit()
    assert {v.dtype for v in bf16.ema.state().values()} == {torch.float32}
    assert a.loss != b.loss
    assert b.loss == pytest.approx(a.loss, rel=0.02)
