"""A training whose checkpoints are written while it goes on equals one that waits for them."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from sfumato.errors import Interrupted
from sfumato.files import DiskFullError, UnwritableError
from sfumato.modelfolder import AVERAGES
from sfumato.tensorfile import StoredTensors
from sfumato.train import HeldOut, Hook, Moment, Training, read_metrics
from sfumato.train.checkpoint import Checkpoints
from tests.chaos.lives import digests, forks, live
from tests.train.tiny import TinyData, make_trainer

OFTEN = {"checkpoint_minutes": 1e-9, "keep": 99, "samples": 16 * 40}


class Beside(Hook):
    """Belongs to a checkpoint and writes down what it was shown of it: sha256 by step."""

    times, behind = None, True

    def __call__(self, moment: Moment) -> None:
        digest = hashlib.sha256()
        for _, p in sorted(moment.model.named_parameters()):
            digest.update(p.detach().numpy().tobytes())
        with (moment.run.folder / "beside.jsonl").open("a") as stream:
            stream.write(json.dumps([moment.step, digest.hexdigest()]) + "\n")


def with_beside(folder: Path, **asked: Any) -> Any:
    return make_trainer(folder, hooks=[Beside()], **asked)


def averages(folder: Path) -> dict[int, str]:
    """sha256 of the first average of each checkpoint, by step."""
    found = {}
    for path in Checkpoints(folder / "checkpoints").all():
        stored, digest = StoredTensors(path, AVERAGES), hashlib.sha256()
        for name in sorted(name for name in stored if name.startswith("0.")):
            digest.update(stored[name].numpy().tobytes())
        found[int(path.name[5:])] = digest.hexdigest()
    return found


def beside(folder: Path) -> dict[int, str]:
    return dict(json.loads(line) for line in (folder / "beside.jsonl").read_text().splitlines())


@pytest.fixture(
    scope="module",
    params=["1 process", pytest.param("fsdp", marks=forks)],
)
def how(request: pytest.FixtureRequest) -> dict[str, Any]:
    return {} if request.param == "1 process" else {"processes": 2, "parallel": request.param}


def train(folder: Path, how: dict[str, Any], **asked: Any) -> None:
    if how:
        assert live(folder, {**asked, **how}, make=with_beside).code == 0, (folder / "said-0.txt").read_text()
    else:
        with_beside(folder, **asked).fit()


def test_it_equals_one_that_waits_and_the_model_is_made_of_the_checkpoint(tmp_path: Path, how: dict[str, Any]) -> None:
    asked = {**OFTEN, "samples": 16 * 16}
    train(tmp_path / "later", how, **asked, save_async=True)
    made, want = beside(tmp_path / "later"), averages(tmp_path / "later")
    assert made == want and max(made) == 16
    assert len(made) > 1  # at least one was written behind the training's back
    if not how:  # of several processes `tests.chaos` compares whole runs
        train(tmp_path / "now", how, **{**asked, "checkpoint_minutes": 1e9})
        assert digests(tmp_path / "later") == digests(tmp_path / "now")
        assert beside(tmp_path / "now") == averages(tmp_path / "now") == {16: made[16]}


def written(trainer: Any) -> None:
    """Let the thread end, so that a busy machine makes as many saves as an idle one."""
    job = trainer.keeper.saver._job
    if job is not None and job.thread is not None:
        job.thread.join()


def failing(trainer: Any, saves: Iterator[bool]) -> None:
    """Make writing fail for want of space in the saves that say so."""
    real = trainer.checkpoints.write

    def write(*arguments: Any) -> Any:
        if next(saves, False):
            raise DiskFullError("the disk: no space left")
        return real(*arguments)

    trainer.checkpoints.write = write


def test_a_failure_is_said_and_counted_at_the_next_step_and_the_training_goes_on(tmp_path: Path) -> None:
    said: list[str] = []

    class Display:
        def update(self, *_: Any) -> None:
            written(trainer)

        def say(self, text: str) -> None:
            said.append(text)

        def close(self) -> None: ...

    trainer = make_trainer(tmp_path, display=Display(), **OFTEN, save_async=True)
    failing(trainer, iter([False, True, False, False]))
    trainer.fit()
    assert [text for text in said if "space" in text] == [
        "warning: the disk: no space left; training goes on and will try again"
    ]
    counts = [line["saves_failed"] for line in read_metrics(tmp_path / "metrics.jsonl") if "saves_failed" in line]
    assert set(counts) == {1}
    assert Checkpoints(tmp_path / "checkpoints").all()[-1].name == "step-00000040"


def test_when_the_last_one_fails_the_run_fails(tmp_path: Path) -> None:
    trainer = make_trainer(tmp_path, samples=16 * 10, checkpoint_minutes=1e9, save_async=True)
    failing(trainer, iter([True]))
    with pytest.raises(DiskFullError):
        trainer.fit()


@pytest.mark.parametrize("later", [False, True])
def test_a_disk_that_is_away_for_good_fails_the_run_at_its_end(tmp_path: Path, later: bool) -> None:
    trainer = make_trainer(tmp_path, **OFTEN, save_async=later)

    def write(*_: Any) -> Any:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    trainer.checkpoints.write = write  # type: ignore[method-assign]
    with pytest.raises(UnwritableError, match=r"a checkpoint could not be written: .*Input/output error"):
        trainer.fit()
    assert trainer.pace.step == 40 and trainer.keeper.failed > 1
    assert not list((tmp_path / "checkpoints").iterdir())


def test_a_mistake_of_ours_in_the_thread_ends_the_run(tmp_path: Path) -> None:
    trainer = make_trainer(tmp_path, **OFTEN, save_async=True)
    trainer.checkpoints.write = lambda *_: 1 / 0  # type: ignore[method-assign, assignment]
    with pytest.raises(ZeroDivisionError):
        trainer.fit()
    assert trainer.pace.step < 40


def test_a_request_to_stop_while_one_is_written_loses_nothing(tmp_path: Path) -> None:
    class Stop:
        def update(self, done: float, samples: int, *_: Any) -> None:
            if samples == 16 * 20:
                signal.raise_signal(signal.SIGTERM)

        def say(self, text: str) -> None: ...

        def close(self) -> None: ...

    with pytest.raises(Interrupted):
        make_trainer(tmp_path / "a", display=Stop(), **OFTEN, save_async=True).fit()
    assert Checkpoints(tmp_path / "a" / "checkpoints").all()[-1].name == "step-00000021"
    make_trainer(tmp_path / "a", **OFTEN, save_async=True).fit()
    make_trainer(tmp_path / "b", **{**OFTEN, "checkpoint_minutes": 1e9}).fit()
    assert digests(tmp_path / "a") == digests(tmp_path / "b")


def test_the_best_by_held_out_loss_is_kept(tmp_path: Path) -> None:
    data = TinyData()
    hooks = [HeldOut(data.split("held_out"), 8, n=16, levels=4)]
    asked = {"checkpoint_minutes": 1e-9, "keep": 1, "keep_best": True, "lr": 0.3, "decay": 0.0, "samples": 16 * 40}
    make_trainer(tmp_path, data=data, hooks=hooks, **asked).fit()  # a rate at which it goes up and down
    losses = {line["step"]: line["held_out"] for line in read_metrics(tmp_path / "metrics.jsonl") if "held_out" in line}
    best = min(losses, key=lambda step: losses[step])
    kept = {int(path.name[5:]): path for path in Checkpoints(tmp_path / "checkpoints").all()}
    assert set(kept) == {best, 40}
    assert json.loads((kept[best] / "trainer.json").read_text())["score"] == losses[best]


def test_settings_say_what_they_refuse() -> None:
    with pytest.raises(Exception, match=r"train\.keep_every = -1: can't be negative"):
        Training(samples=1, keep_every=-1)
    assert torch.cuda.is_available() or Training(samples=1).save_async is None


@forks
def test_a_run_goes_on_with_slices_and_without(tmp_path: Path) -> None:
    asked = {"decay": 0.0, "warmup": 0.0, "checkpoint_minutes": 1e9, "keep": 9}
    ways: list[dict[str, Any]] = [
        {"processes": 2, "parallel": "fsdp"},
        {},
        {"processes": 2, "parallel": "ddp"},
        {"processes": 3, "parallel": "fsdp"},
    ]
    for i, way in enumerate(ways, 1):
        life = live(tmp_path / "many", {**asked, **way, "batch": 12, "samples": 12 * 3 * i})
        assert life.code == 0, (tmp_path / "many" / "said-0.txt").read_text()
    make_trainer(tmp_path / "one", **asked, batch=12, samples=12 * 12).fit()  # type: ignore[arg-type]
    many, one = (Checkpoints(tmp_path / name / "checkpoints").all() for name in ("many", "one"))
    assert [len(list(path.glob("weights*"))) for path in many] == [2, 1, 2, 3]
    for group in ("weights", "ema", "optimizer"):
        ours, theirs = StoredTensors(many[-1], group), StoredTensors(one[-1], group)
        assert ours.keys() == theirs.keys()
        for name, tensor in theirs.items():
            assert (ours[name] - tensor).norm() <= 1e-5 * (tensor.norm() + 1e-12), name
