"""What is different on a GPU: bf16, steps that are left out by a flag, nothing that waits for the device."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch

from sfumato.core import Draws, Loss, philox, random
from sfumato.train import Run, Silent, Task, Trainer, Training, read_metrics
from tests.train.tiny import TinyData, make_task

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU")


class Broken(Task):
    """The tiny task with a loss that is not finite in the third and fourth step."""

    def __init__(self, steps: tuple[int, ...]) -> None:
        super().__init__()
        self.inner = make_task()
        self.model, self.steps = self.inner.model, steps

    def loss(self, batch: object, draws: Draws) -> Loss:
        loss = self.inner.loss(batch, draws)  # type: ignore[arg-type]
        return loss._replace(value=loss.value * math.nan) if draws.start // 64 in self.steps else loss


def train(folder: Path, device: str, steps: tuple[int, ...] = (), precision: str = "fp32") -> Trainer:
    settings = Training(batch=64, samples=64 * 50, log_every=10, precision=precision, lr=1e-2)  # type: ignore[arg-type]
    trainer = Trainer(Broken(steps), TinyData(), settings, run=Run(folder), device=device, display=Silent())
    trainer.fit()
    return trainer


def flat(trainer: Trainer) -> torch.Tensor:
    return torch.cat([p.detach().flatten().cpu() for p in trainer.task.parameters()])


@pytest.mark.parametrize("steps", [(), (2, 3)])
def test_it_trains_as_on_the_cpu(tmp_path: Path, steps: tuple[int, ...], monkeypatch: pytest.MonkeyPatch) -> None:
    # A GPU makes its own noise for training; the CPU is given the same here.
    monkeypatch.setattr(random, "normal", lambda keys, shape: philox.normal(torch.from_numpy(keys.view("i8")), shape))
    gpu, cpu = train(tmp_path / "gpu", "cuda", steps), train(tmp_path / "cpu", "cpu", steps)
    torch.testing.assert_close(flat(gpu), flat(cpu), rtol=1e-3, atol=1e-4)
    assert gpu.optimizer.state()["count"].item() == 50 - len(steps)
    skipped = [line.get("skipped", 0) for line in read_metrics(gpu.run.metrics) if "loss" in line]
    assert skipped[-1] == len(steps)


def test_auto_takes_bf16_where_it_is(tmp_path: Path) -> None:
    trainer = train(tmp_path, "auto", precision="auto")
    assert trainer.device.type == "cuda"
    assert (trainer.dtype == torch.bfloat16) == torch.cuda.is_bf16_supported(including_emulation=False)
    assert bool(torch.isfinite(flat(trainer)).all())


def test_a_resumed_run_goes_on(tmp_path: Path) -> None:
    first = train(tmp_path, "cuda")
    again = train(tmp_path, "cuda")
    assert torch.equal(flat(first), flat(again))
