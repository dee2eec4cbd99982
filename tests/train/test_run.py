"""The run folder: what is cleared, locked, compared; a full disk and a read-only folder."""

from __future__ import annotations

import errno
import json
import os
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import torch

from sfumato import files
from sfumato.errors import UserError
from sfumato.files import DiskFullError, verify_manifest
from sfumato.recipes import load_recipe
from sfumato.train import MetricsLog, Run, read_metrics
from sfumato.train.checkpoint import Checkpoints, load_weights, weights
from tests.train.tiny import make_trainer


class Said:
    def __init__(self) -> None:
        self.said: list[str] = []

    def update(self, *_: Any) -> None:
        pass

    def say(self, text: str) -> None:
        self.said.append(text)

    def close(self) -> None:
        pass


def test_fresh_deletes_what_a_run_writes_and_nothing_else(tmp_path: Path) -> None:
    make_trainer(tmp_path).fit()
    (tmp_path / "notes.txt").write_text("mine")
    (tmp_path / "checkpoints" / "step-00000001.corrupt").mkdir()
    removed = Run(tmp_path).clear()
    assert {"checkpoints", "metrics.jsonl", "env.json", "state.json", "LATEST"} <= set(removed)
    assert sorted(p.name for p in tmp_path.iterdir()) == [".lock", "notes.txt"]
    assert make_trainer(tmp_path).fit().steps == 40


def test_fresh_does_not_follow_links(tmp_path: Path) -> None:
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / "kept").write_text("")
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "model").symlink_to(tmp_path / "elsewhere")
    assert Run(tmp_path / "run").clear() == ["model"]
    assert (tmp_path / "elsewhere" / "kept").exists()


def test_two_processes_may_not_train_in_one_folder(tmp_path: Path) -> None:
    with Run(tmp_path).lock():
        assert Run(tmp_path).is_locked()
        with pytest.raises(UserError, match="is being trained by another process"):
            make_trainer(tmp_path).fit()
        with pytest.raises(UserError, match="is being trained by another process"):
            Run(tmp_path).clear()
    assert not Run(tmp_path).is_locked()
    make_trainer(tmp_path).fit()


def test_only_the_last_checkpoints_are_kept(tmp_path: Path) -> None:
    make_trainer(tmp_path, checkpoint_minutes=1e-9, keep=3).fit()
    found = Checkpoints(tmp_path / "checkpoints").all()
    assert [c.name for c in found] == ["step-00000038", "step-00000039", "step-00000040"]
    assert (tmp_path / "LATEST").read_text() == "step-00000040\n"
    for checkpoint in found:
        verify_manifest(checkpoint)


def test_shared_weights_are_stored_once_and_come_back() -> None:
    def tied() -> torch.nn.Module:
        model = torch.nn.ModuleDict({"a": torch.nn.Linear(3, 3), "b": torch.nn.Linear(3, 3)})
        model["b"].weight = model["a"].weight
        return model

    one, two = tied(), tied()
    stored = {k: v.clone() for k, v in weights(one).items()}
    assert stored.keys() == {"a.weight", "a.bias", "b.bias"}
    load_weights(two, stored, "here")
    assert torch.equal(two["b"].weight, one["a"].weight)
    with pytest.raises(UserError, match=r"here has no tensor 'b\.bias'"):
        load_weights(two, {k: v for k, v in stored.items() if k != "b.bias"}, "here")
    with pytest.raises(UserError, match="here has the tensor 'c', for which this model has no place"):
        load_weights(two, {**stored, "c": torch.zeros(1)}, "here")


# ---------------------------------------------------------------- disk


def full_after(monkeypatch: pytest.MonkeyPatch, allowed: int, until: int | None = None) -> None:
    """Let `allowed` calls of fsync through, then refuse for want of space, until call number `until`."""
    calls = [0]
    real = os.fsync

    def fsync(handle: int) -> None:
        calls[0] += 1
        if calls[0] > allowed and (until is None or calls[0] <= until):
            raise OSError(errno.ENOSPC, "No space left on device")
        real(handle)

    monkeypatch.setattr(files.os, "fsync", fsync)


def test_a_full_disk_is_a_warning_and_the_next_save_works(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shown = Said()
    trainer = make_trainer(tmp_path, checkpoint_minutes=1e-9, display=shown)
    full_after(monkeypatch, 40, 60)
    result = trainer.fit()
    assert result.steps == 40
    warnings = [text for text in shown.said if "no space left" in text]
    assert warnings and all("training goes on and will try again" in text for text in warnings)
    found = Checkpoints(tmp_path / "checkpoints").all()
    assert found[-1].name == "step-00000040"
    for checkpoint in found:
        verify_manifest(checkpoint)
    assert not list((tmp_path / "checkpoints").glob(".*"))


def test_when_the_last_save_fails_the_run_fails(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    trainer = make_trainer(tmp_path, checkpoint_minutes=1e9)
    real = trainer.checkpoints.begin

    def begin(*arguments: Any) -> Path:
        full_after(monkeypatch, 0)
        return real(*arguments)

    monkeypatch.setattr(trainer.checkpoints, "begin", begin)
    with pytest.raises(DiskFullError, match="no space left on the disk; free some") as caught:
        trainer.fit()
    assert caught.value.exit_code == 1
    assert Checkpoints(tmp_path / "checkpoints").all() == []


def test_too_little_space_is_seen_before_writing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda path: shutil._ntuple_diskusage(10**9, 10**9, 1000))
    with pytest.raises(DiskFullError, match=r"a checkpoint needs 0\.4 MB and 0\.0 MB are free"):
        Checkpoints(tmp_path / "c").save(1, {"weights": {"w": torch.zeros(100_000)}}, {})
    assert list((tmp_path / "c").iterdir()) == []


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    folder = tmp_path / "disk"
    folder.mkdir()
    mounted = shutil.which("mount") and os.geteuid() == 0
    if (
        not mounted
        or subprocess.run(
            ["mount", "-t", "tmpfs", "-o", "size=160k", "tmpfs", str(folder)], check=False, capture_output=True
        ).returncode
    ):
        pytest.skip("mounting a small file system needs root")
    yield folder
    subprocess.run(["umount", str(folder)], check=True)


def test_a_disk_that_is_really_full(small_disk: Path) -> None:
    filler = small_disk / "filler"

    class Filling(Said):
        def update(self, *_: Any) -> None:
            if trainer.pace.step == 3:
                with filler.open("wb") as stream, suppress(OSError):
                    stream.write(bytes(10**6))
            if trainer.pace.step == 8:
                filler.unlink()

    shown = Filling()
    trainer = make_trainer(small_disk / "run", checkpoint_minutes=1e-9, display=shown, samples=16 * 12)
    assert trainer.fit().steps == 12
    assert any("free" in text and "training goes on" in text for text in shown.said)
    assert Checkpoints(small_disk / "run" / "checkpoints").all()[-1].name == "step-00000012"
    lines = [line["step"] for line in read_metrics(small_disk / "run" / "metrics.jsonl") if "loss" in line]
    assert lines == [5, 10, 12]  # the line of step 5 was kept until there was space


def test_a_folder_that_can_not_be_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="something else is in its place"):
        make_trainer(tmp_path / "file" / "run").fit()

    def refuse(*_: Any, **__: Any) -> None:
        raise OSError(errno.EROFS, "Read-only file system")

    monkeypatch.setattr(Path, "mkdir", refuse)
    with pytest.raises(UserError, match=r"can't be written \(Read-only file system\); choose another folder"):
        make_trainer(tmp_path / "run").fit()


# ---------------------------------------------------------------- metrics.jsonl


def test_metrics_are_cut_back_to_a_step(tmp_path: Path) -> None:
    log = MetricsLog(tmp_path / "metrics.jsonl")
    for step in range(1, 6):
        log.append({"step": step, "loss": step / 3, "text": "é"})
    with log.file.open("ab") as stream:
        stream.write(b'{"step": 6, "lo')
    log.truncate(3)
    assert [line["step"] for line in read_metrics(log.file)] == [1, 2, 3]
    assert read_metrics(log.file)[0] == {"step": 1, "loss": 1 / 3, "text": "é"}


def test_what_is_not_finite_is_null(tmp_path: Path) -> None:
    log = MetricsLog(tmp_path / "metrics.jsonl")
    log.append({"loss": float("nan"), "levels": [1.0, float("inf"), None]})
    assert json.loads(log.file.read_text()) == {"loss": None, "levels": [1.0, None, None]}


def test_a_missing_file_has_no_lines(tmp_path: Path) -> None:
    assert read_metrics(tmp_path / "none.jsonl") == []


def test_tensorboard_gets_the_same_numbers(tmp_path: Path) -> None:
    pytest.importorskip("tensorboard", reason="the extra 'track' is not installed")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    make_trainer(tmp_path, trackers=("tensorboard",)).fit()
    events = EventAccumulator(str(tmp_path / "tensorboard"))
    events.Reload()
    lines = [line for line in read_metrics(tmp_path / "metrics.jsonl") if "loss" in line]
    assert [(e.step, pytest.approx(e.value)) for e in events.Scalars("loss")] == [
        (line["samples"], line["loss"]) for line in lines
    ]


def test_a_setting_that_is_younger_than_the_run_must_have_its_default(tmp_path: Path) -> None:
    recipe = load_recipe("digits", {})
    run, settings = Run(tmp_path, recipe), dict(recipe.leaves())
    of_then = {k: v for k, v in settings.items() if k not in ("train.fp8", "train.optimizer.type", "network.groups")}
    run.compare({"settings": of_then}, settings)
    changed = dict(load_recipe("digits", {"train.optimizer": "adamw8", "network.groups": "4"}).leaves())
    words = r"network\.groups: null -> 4; train\.optimizer\.type: \"adamw\" -> \"adamw8\""
    with pytest.raises(UserError, match=rf"other settings \({words}\)"):
        run.compare({"settings": of_then}, changed)
    with pytest.raises(UserError, match=r"\(train\.fp8: false -> true\)"):  # without a recipe
        Run(tmp_path).compare({"settings": {"seed": 0}}, {"seed": 0, "train.fp8": True, "train.lr": 1e-3})
