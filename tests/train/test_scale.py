"""The trainer with what keeps a long run alive: going back, snapshots of the averages, the watchdog."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from sfumato.core import Draws
from sfumato.data import Loader
from sfumato.errors import Interrupted, SfumatoError, UserError
from sfumato.train import Hook, Moment, Run, Training, read_metrics
from sfumato.train.posthoc import Snapshots, rebuild
from tests.train.test_trainer import Poisoned, parameters
from tests.train.tiny import TinyData, make_task, make_trainer

BATCH = 16
OFTEN = {"samples": BATCH * 60, "checkpoint_minutes": 1e-9, "warmup": 0.0, "decay": 0.0}


class Said:
    """A display that keeps what is said, and calls something after each step."""

    def __init__(self, after: Callable[[int], None] = lambda samples: None) -> None:
        self.said: list[str] = []
        self.after = after

    def update(self, done: float, samples: int, *_: Any) -> None:
        self.after(samples)

    def say(self, text: str) -> None:
        self.said.append(text)

    def close(self) -> None:
        pass


def lines(folder: Path) -> list[dict[str, Any]]:
    times = ("seconds", "samples_per_second", "data_wait")
    return [{k: v for k, v in line.items() if k not in times} for line in read_metrics(folder / "metrics.jsonl")]


def test_after_a_rollback_it_is_the_run_on_the_samples_behind_the_row(tmp_path: Path) -> None:
    """Batches 20 ... 39 fail; the weights equal, bit for bit, those of batches 0 ... 19 and 40 ... 79 in a plain loop."""
    shown = Said()
    trainer = make_trainer(tmp_path, task=Poisoned(tuple(range(20, 40)), "loss"), display=shown, **OFTEN)
    assert trainer.fit().steps == 60
    reference = make_task()
    optimizer = trainer.settings.optimizer.build(reference, trainer.settings)
    for first, count in ((0, 20), (40, 40)):
        with Loader(TinyData().split("train"), BATCH, 0, BATCH * first) as loader:
            for _ in range(count):
                numbers, batch = next(loader)
                optimizer.zero()
                loss = reference.loss(batch, Draws(0, int(numbers[0]), BATCH)).value
                loss.backward()
                optimizer.step(1e-3, loss.detach())
    assert torch.equal(parameters(trainer.task), parameters(reference))
    found = lines(tmp_path)
    assert [line["step"] for line in found if "loss" in line] == [*range(5, 61, 5)]
    (back,) = (line for line in found if "rollback" in line)
    assert (back["step"], back["samples"], back["rollback"], back["next_sample"]) == (20, 320, 1, 640)
    assert "going back to step-00000020 and on with sample 640: rollback 1 of 3" in "".join(shown.said)


def test_interrupted_after_a_rollback_it_is_the_same_run(tmp_path: Path) -> None:
    def go(folder: Path, stop: bool) -> torch.Tensor:
        def after(samples: int) -> None:
            if stop and samples == BATCH * 30 and trainer.meter.recovery.rollbacks:
                os.kill(os.getpid(), signal.SIGINT)

        trainer = make_trainer(
            folder, task=Poisoned(tuple(range(20, 40)), "loss"), display=Said(after), dropout=0.2, **OFTEN
        )
        if stop:
            with pytest.raises(Interrupted):
                trainer.fit()
            return go(folder, False)
        trainer.fit()
        assert trainer.meter.recovery.shift == BATCH * 20
        return parameters(trainer.task)

    assert torch.equal(go(tmp_path / "a", False), go(tmp_path / "b", True))
    assert lines(tmp_path / "a") == lines(tmp_path / "b")


def test_what_was_gone_back_on_is_not_resumed_from(tmp_path: Path) -> None:
    """Batches 20 ... 59 fail: the second time it goes back to step 19, and the checkpoint of step 20 is of another way."""
    seen: list[list[str]] = []

    def after(samples: int) -> None:
        if trainer.meter.recovery.rollbacks == 2 and samples == BATCH * 20:
            seen.append(sorted(path.name for path in (tmp_path / "checkpoints").iterdir()))

    task = Poisoned(tuple(range(20, 60)), "loss")
    trainer = make_trainer(tmp_path, task=task, display=Said(after), keep=3, **{**OFTEN, "samples": BATCH * 40})
    trainer.fit()
    assert seen == [["step-00000018", "step-00000019", "step-00000020"]]  # the last of them written anew
    info = trainer.checkpoints.read("step-00000040").info
    assert info["meter"]["recovery"]["shift"] == BATCH * 41 == trainer.meter.recovery.shift


def test_after_three_rollbacks_it_stops_with_a_diagnosis(tmp_path: Path) -> None:
    shown = Said()
    trainer = make_trainer(tmp_path, task=Poisoned(tuple(range(20, 400)), "loss"), display=shown, **OFTEN)
    words = r"training stops after 3 rollbacks: 5 steps in a row .*the loss is not \(lr 0\.001, float32\); try a lower"
    with pytest.raises(SfumatoError, match=words) as caught:
        trainer.fit()
    assert caught.value.exit_code == 1 and Run(tmp_path).state()["state"] == "failed"
    assert sum("going back to" in text for text in shown.said) == 3


def test_the_averages_are_kept_evenly_and_can_be_put_together(tmp_path: Path) -> None:
    trainer = make_trainer(tmp_path, samples=BATCH * 40, snapshots=8)
    trainer.fit()
    kept = Snapshots(tmp_path / "averages").all()
    assert [snapshot.step for snapshot in kept] == [*range(5, 41, 5)]
    ema = trainer.ema.state()
    for i, std in enumerate(trainer.settings.ema):
        for name, value in rebuild(kept, std).averages.items():
            torch.testing.assert_close(value, ema[f"{i}.{name}"], rtol=2**-10, atol=1e-5)  # of float16
    assert "averages" in Run(tmp_path).clear()


class Slow(Hook):
    times = 2

    def __call__(self, moment: Moment) -> None:
        time.sleep(1.0)


def test_the_watchdog_lets_hooks_take_their_time(tmp_path: Path) -> None:
    make_trainer(tmp_path, watchdog=0.5, hooks=[Slow()]).fit()
    assert not list(tmp_path.glob("hang-*"))


@pytest.mark.parametrize("name", ["watchdog", "snapshots"])
def test_what_can_not_be_negative(name: str) -> None:
    with pytest.raises(UserError, match=rf"train\.{name} = -1"):
        Training(**{name: -1})
