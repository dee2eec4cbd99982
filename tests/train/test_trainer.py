"""The loop: it learns what can be learnt, and accumulation, skipped steps, budgets and signals do what they say."""

from __future__ import annotations

import signal
import subprocess
import sys
import textwrap
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from sfumato import progress
from sfumato.core import Draws, Flow, Loss
from sfumato.core.random import keys, normal
from sfumato.data import Loader
from sfumato.errors import SfumatoError
from sfumato.evaluate.heldout import held_out_loss
from sfumato.progress import Terminal, duration
from sfumato.testing import MixtureDenoiser
from sfumato.train import DiffusionTask, Hook, Moment, Run, Task, read_metrics
from sfumato.train.trainer import _crossed
from tests.train.tiny import TinyData, make_task, make_trainer


def parameters(task: torch.nn.Module) -> torch.Tensor:
    return torch.cat([p.detach().flatten() for p in task.parameters()])


# ---------------------------------------------------------------- learning


def test_it_learns_to_the_loss_of_the_exact_denoiser(tmp_path: Path) -> None:
    """On a mixture of two Gaussians the best possible loss at each noise level is known: that of the exact E[x0 | x_t]."""
    data = TinyData(n=4096)
    task = make_task(width=64)
    task.model.codec.measure([torch.from_numpy(data.x)])
    before = held_out_loss(task.model, data.split("held_out")).loss
    trainer = make_trainer(tmp_path, data=data, task=task, samples=256 * 700, batch=256, lr=1e-2, log_every=100)
    trainer.fit()
    found = held_out_loss(trainer.ema.models[0], data.split("held_out"))

    # The exact denoiser of the whitened data, asked the same questions: the velocity's error is that of x0 over sigma.
    whitening = task.model.codec.whitening
    scale = torch.tensor([[0.3, 0.3]])
    means = whitening(torch.tensor([[[-1.0, 0.0]], [[1.0, 0.0]]]))
    exact = _exact_loss(data, task, means, scale / whitening.std)
    assert before > 1.1
    assert found.loss == pytest.approx(exact, rel=0.04)


def _exact_loss(data: TinyData, task: DiffusionTask, means: torch.Tensor, std: torch.Tensor) -> float:
    """Mean over the held-out questions of |E[x0 | x_t] - x0|^2 / sigma^2 for a mixture with one deviation per axis."""
    held = data.split("held_out")
    n, levels = 512, 8
    i = torch.arange(n)
    x0 = task.model.codec.whiten(held.fetch(i.numpy()).media)
    eps = normal(keys(0, "held-out", i.numpy()), x0.shape[1:])
    t = ((i % levels) + 0.5) / levels
    sigma = t.float()[:, None, None]
    x_t = (1 - sigma) * x0 + sigma * eps
    # Scaling each axis to deviation 1 turns it into an isotropic mixture with another noise on each axis: do it by hand.
    spread = (1 - sigma) ** 2 * std**2 + sigma**2  # (n, 1, 2)
    gap = x_t[:, None] - (1 - sigma[:, None]) * means[None]
    share = torch.softmax(-(gap.square() / (2 * spread[:, None])).sum((2, 3)), 1)[:, :, None, None]
    each = means[None] + ((1 - sigma) * std**2 / spread)[:, None] * gap
    x0_hat = (share * each).sum(1)
    # x_t and x0_hat give the velocity (x_t - x0_hat) / sigma, whose error is that of x0_hat over sigma.
    return float(((x0_hat - x0) / sigma).square().mean())


def test_the_mixture_of_this_test_is_the_library_s(tmp_path: Path) -> None:
    means = torch.tensor([[[-1.0, 0.0]], [[1.0, 0.0]]])
    x, t = torch.randn(6, 1, 2), torch.linspace(0.1, 0.9, 6, dtype=torch.float64)
    ours = MixtureDenoiser(Flow(), means, std=0.3)(x, t)
    sigma = t.float()[:, None, None]
    spread = (1 - sigma) ** 2 * 0.09 + sigma**2
    gap = x[:, None] - (1 - sigma[:, None]) * means[None]
    share = torch.softmax(-(gap.square() / (2 * spread[:, None])).sum((2, 3)), 1)[:, :, None, None]
    by_hand = (share * (means[None] + ((1 - sigma) * 0.09 / spread)[:, None] * gap)).sum(1)
    torch.testing.assert_close(ours, by_hand, rtol=1e-4, atol=1e-5)


# ---------------------------------------------------------------- accumulation


@pytest.mark.parametrize("parts", [2, 4, 16])
def test_accumulation_is_the_big_batch(tmp_path: Path, parts: int) -> None:
    whole, split = make_task().double(), make_task().double()
    make_trainer(tmp_path / "whole", task=whole, samples=160).fit()
    make_trainer(tmp_path / "split", task=split, samples=160, accumulate=parts).fit()
    torch.testing.assert_close(parameters(split), parameters(whole), rtol=1e-6, atol=1e-8)
    assert not torch.equal(parameters(whole), parameters(make_task().double()))


# ---------------------------------------------------------------- steps that are left out


class Poisoned(Task):
    """The tiny task with a loss or a gradient that is not finite at given steps of 16 samples."""

    def __init__(self, steps: tuple[int, ...], how: str) -> None:
        super().__init__()
        self.inner = make_task()
        self.model = self.inner.model
        self.steps, self.how = steps, how

    def loss(self, batch: Any, draws: Draws) -> Loss:
        loss = self.inner.loss(batch, draws)
        if draws.start // 16 not in self.steps:
            return loss
        if self.how == "loss":
            return loss._replace(value=loss.value * torch.nan)
        w = next(self.parameters())
        return loss._replace(value=loss.value + (w.flatten()[0] * 0).sqrt() * 0)  # 0 / 0 in the backward pass only


@pytest.mark.parametrize("how", ["loss", "gradient", "data"])
def test_a_step_that_is_not_finite_is_left_out(tmp_path: Path, how: str) -> None:
    """Bit for bit as if its batch had not been there."""
    bad = (3, 4, 11)
    task = Poisoned(bad, how) if how != "data" else make_task()
    numbers = np.concatenate([np.arange(16 * step, 16 * step + 16) for step in bad])
    items = tuple(TinyData().split("train").order(0)(numbers)[::16].tolist())  # one of each batch, in the first epoch
    data = TinyData(poison=items if how == "data" else ())
    trainer = make_trainer(tmp_path, task=task, data=data, samples=16 * 20, log_every=1, warmup=0.0, decay=0.0)
    trainer.fit()
    # The same optimizer on the same batches, those three not there.
    reference = make_task()
    optimizer = trainer.settings.optimizer.build(reference, trainer.settings)
    with Loader(TinyData().split("train"), 16, 0) as loader:
        for step in range(20):
            numbers, batch = next(loader)
            if step in bad:
                continue
            optimizer.zero()
            loss = reference.loss(batch, Draws(0, int(numbers[0]), 16)).value
            loss.backward()
            optimizer.step(1e-3, loss.detach())
    assert torch.equal(parameters(task), parameters(reference))
    assert all(bool(torch.isfinite(v).all()) for v in trainer.ema.state().values())
    lines = [line for line in read_metrics(trainer.run.metrics) if "loss" in line]
    assert [line["step"] for line in lines if line["loss"] is None] == [4, 5, 12]
    assert lines[-1]["skipped"] == 3
    assert [line["left_out"] for line in lines if "left_out" in line] == [[[48, 63]], [[64, 79]], [[176, 191]]]


def test_after_five_in_a_row_it_stops_with_a_diagnosis(tmp_path: Path) -> None:
    trainer = make_trainer(tmp_path, task=Poisoned(tuple(range(20, 60)), "loss"), samples=16 * 60)  # no checkpoint yet
    with pytest.raises(
        SfumatoError, match=r"5 steps in a row .*the loss is not \(lr 0\.001, float32\); try a lower"
    ) as caught:
        trainer.fit()
    assert caught.value.exit_code == 1
    assert Run(tmp_path).state()["state"] == "failed"


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        ("weights", r"the weights of 'model\.denoiser\.network\.layers\.3\.bias' are already not finite"),
        ("layer", r"begins in the output of the layer 'model\.denoiser\.network\.layers\.1'"),
        ("data", "the data of this batch is not finite"),
    ],
)
def test_the_diagnosis_names_where_it_begins(tmp_path: Path, spoil: str, words: str) -> None:
    task, data = make_task(), TinyData()
    if spoil == "weights":
        with torch.no_grad():
            task.model.denoiser.network.layers[3].bias[0] = torch.inf
    elif spoil == "layer":
        task.model.denoiser.network.layers[1].register_forward_hook(lambda m, i, o: o / 0)
    else:
        data.x[:] = float("nan")
    with pytest.raises(SfumatoError, match=words):
        make_trainer(tmp_path, task=task, data=data, samples=16 * 60).fit()


def test_four_in_a_row_are_forgiven(tmp_path: Path) -> None:
    task = Poisoned((3, 4, 5, 6, 8, 9, 10, 11), "loss")
    assert make_trainer(tmp_path, task=task, samples=16 * 40).fit().steps == 40


# ---------------------------------------------------------------- hooks and time


class Noted(Hook):
    def __init__(self, times: int | None, seconds: float = 0.0) -> None:
        self.times, self.seconds = times, seconds
        self.moments: list[Moment] = []

    def __call__(self, moment: Moment) -> Mapping[str, Any]:
        self.moments.append(moment)
        torch.rand(3)  # a hook may use the generators
        time.sleep(self.seconds)
        return {"noted": 1.0}


@pytest.mark.parametrize("times", [1, 3, 4, 40, 100])
def test_hooks_are_called_evenly_and_at_the_end(tmp_path: Path, times: int) -> None:
    hook = Noted(times)
    make_trainer(tmp_path, hooks=[hook], samples=16 * 40).fit()
    assert [m.step for m in hook.moments] == sorted({-(-40 * k // times) for k in range(1, times + 1)})
    assert [m.last for m in hook.moments] == [False] * (len(hook.moments) - 1) + [True]


def test_crossings_do_not_suffer_from_rounding() -> None:
    for n in (3, 7, 10, 30, 49):
        assert sum(_crossed(k / n, (k + 1) / n, n) for k in range(n)) == n


def test_a_hook_changes_nothing_of_the_training(tmp_path: Path) -> None:
    plain, hooked = (
        make_trainer(tmp_path / "a", dropout=0.3),
        make_trainer(tmp_path / "b", dropout=0.3, hooks=[Noted(10)]),
    )
    plain.fit()
    hooked.fit()
    assert torch.equal(parameters(plain.task), parameters(hooked.task))


def test_training_leaves_torchs_generator_alone(tmp_path: Path) -> None:
    trainer = make_trainer(tmp_path, dropout=0.3)
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    trainer.fit()
    assert torch.equal(torch.rand(3), expected)


def test_a_hook_with_every_checkpoint(tmp_path: Path) -> None:
    hook = Noted(None)
    make_trainer(tmp_path, hooks=[hook], samples=16 * 6, checkpoint_minutes=1e-9).fit()
    assert [m.step for m in hook.moments] == [1, 2, 3, 4, 5, 6]


@pytest.mark.parametrize("slow", [0.0, 0.1])
def test_minutes_are_kept_hooks_and_saving_included(tmp_path: Path, slow: float) -> None:
    """3 s of training; a hook of 0.1 s, wanted 20 times, gets 5% of it and its place at the end."""
    hook = Noted(20, slow)
    trainer = make_trainer(tmp_path, hooks=[hook], minutes=0.05)
    begun = time.monotonic()
    result = trainer.fit()
    assert time.monotonic() - begun == pytest.approx(3.0, rel=0.25)  # within 5% where nobody else uses the machine
    assert result.seconds == pytest.approx(3.0, rel=0.25)
    assert hook.moments[-1].last
    assert len(hook.moments) == 20 if not slow else 2 <= len(hook.moments) <= 4
    assert trainer.pace.progress == 1.0


# ---------------------------------------------------------------- stopping

SCRIPT = """
import os, signal, sys, threading
sys.path.insert(0, {root!r})
from pathlib import Path
from sfumato.errors import SfumatoError
from sfumato.train import Terminal
from tests.train.tiny import make_trainer

class Stopping(Terminal):
    def update(self, done, samples, *rest):
        if samples == 16 * 30:
            for _ in range({times}):
                os.kill(os.getpid(), signal.{signal})

try:
    make_trainer(Path({folder!r}), display=Stopping(), samples=16 * 1000, {more}).fit()
except SfumatoError as error:
    print(error)
    sys.exit(error.exit_code)
"""


def script(folder: Path, name: str, times: int = 1, more: str = "") -> subprocess.CompletedProcess[str]:
    root = str(Path(__file__).parents[2])
    text = textwrap.dedent(SCRIPT).format(root=root, folder=str(folder), times=times, signal=name, more=more)
    return subprocess.run([sys.executable, "-c", text], capture_output=True, text=True, timeout=120, check=False)


@pytest.mark.parametrize("name", ["SIGINT", "SIGTERM"])
def test_a_signal_saves_and_says_how_to_go_on(tmp_path: Path, name: str) -> None:
    done = script(tmp_path, name)
    assert done.returncode == 75, done.stderr
    assert done.stdout == "saved at 496 samples; run the same command to go on\n"
    assert "finishing this step and saving; once more to quit at once" in done.stderr
    assert [c.name for c in Run(tmp_path).checkpoints().all()] == ["step-00000031"]
    assert Run(tmp_path).state()["state"] == "interrupted"


def test_a_second_signal_quits_at_once(tmp_path: Path) -> None:
    done = script(tmp_path, "SIGINT", times=2)
    assert done.returncode == -signal.SIGINT
    assert "KeyboardInterrupt" in done.stderr
    assert Run(tmp_path).checkpoints().all() == []
    assert Run(tmp_path).state()["state"] == "stopped"


def test_a_killed_run_reads_as_stopped_and_can_be_taken_up(tmp_path: Path) -> None:
    done = script(tmp_path, "SIGKILL", more="checkpoint_minutes=1e-9")
    assert done.returncode == -signal.SIGKILL
    assert Run(tmp_path).state()["state"] == "stopped"
    assert make_trainer(tmp_path, samples=16 * 40).fit().samples == 16 * 40


# ---------------------------------------------------------------- display


def test_plain_lines_when_not_a_terminal(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    clock = [100.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: clock[0])
    shown = Terminal()
    for second in range(45):
        clock[0] = 100.0 + second
        shown.update(second / 45, 64 * second, 45.0 - second, 0.5, 64.0)
    shown.say("[not markup]")
    shown.close()
    lines = capsys.readouterr().err.splitlines()
    assert lines[-1] == "[not markup]"
    assert lines[0] == "  2%  64 samples, loss 0.5000, 64 samples/s, 44 s left"
    assert len(lines) == 6  # after 1, 11, 21, 31 and 41 seconds


@pytest.mark.parametrize(
    ("seconds", "text"), [(0.4, "0 s"), (42, "42 s"), (185, "3 min 05 s"), (7800, "2 h 10 min"), (-1, "0 s")]
)
def test_durations(seconds: float, text: str) -> None:
    assert duration(seconds) == text
