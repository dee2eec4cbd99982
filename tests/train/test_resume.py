"""A run that was interrupted equals one that was not, bit for bit: weights, averages, optimizer and metrics."""

from __future__ import annotations

import json
import shutil
import signal
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from sfumato.errors import Interrupted, NoCheckpointError, UserError
from sfumato.files import write_manifest
from sfumato.train import HeldOut, Run
from sfumato.train.checkpoint import Checkpoints
from tests.train.tiny import TinyData, make_task, make_trainer

STEPS = 40
TIMES = ("seconds", "samples_per_second", "data_wait")


class StopAt:
    """A display that presses Ctrl-C after a step."""

    def __init__(self, *steps: int) -> None:
        self.samples = [16 * step for step in steps]
        self.said: list[str] = []

    def update(self, done: float, samples: int, left: Any, loss: Any, rate: Any) -> None:
        if samples in self.samples:
            signal.raise_signal(signal.SIGINT)

    def say(self, text: str) -> None:
        self.said.append(text)

    def close(self) -> None:
        pass


def settings(**more: Any) -> dict[str, Any]:
    return {"samples": 16 * STEPS, "dropout": 0.2, "evaluations": 4, **more}


def train(folder: Path, display: Any = None, **more: Any) -> Any:
    data = TinyData()
    hooks = [HeldOut(data.split("held_out"), 4, n=16, levels=4)]
    return make_trainer(folder, data=data, hooks=hooks, display=display, **settings(**more)).fit()


def final(folder: Path) -> dict[str, torch.Tensor]:
    newest = Checkpoints(folder / "checkpoints").all()[-1]
    return {f"{file.stem}:{k}": v for file in newest.glob("*.safetensors") for k, v in load_file(file).items()}


def metrics(folder: Path) -> list[dict[str, Any]]:
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [{k: v for k, v in line.items() if k not in TIMES} for line in lines]


def assert_same(ours: Path, reference: Path) -> None:
    a, b = final(ours), final(reference)
    assert a.keys() == b.keys()
    assert [k for k in a if not torch.equal(a[k], b[k])] == []
    assert metrics(ours) == metrics(reference)


@pytest.fixture(scope="module")
def reference(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("reference") / "run"
    train(folder)
    return folder


def test_the_same_run_twice(tmp_path: Path, reference: Path) -> None:
    train(tmp_path / "run")
    assert_same(tmp_path / "run", reference)
    kinds = {k.split(":")[0] for k in final(reference)}
    assert kinds == {"weights", "ema", "optimizer"}
    lines = metrics(reference)
    assert [line["step"] for line in lines if "loss" in line] == list(range(5, 45, 5))
    assert [line["step"] for line in lines if "held_out" in line] == [10, 20, 30, 40]


@pytest.mark.parametrize("steps", [(1,), (7,), (10,), (38,), (3, 6, 21)], ids=str)
def test_interrupted_equals_uninterrupted(tmp_path: Path, reference: Path, steps: tuple[int, ...]) -> None:
    # At a step between two lines of the log, at an evaluation, before the last, and several times.
    folder = tmp_path / "run"
    for step in steps:
        with pytest.raises(Interrupted, match=f"saved at {16 * (step + 1):,} samples; run the same command"):
            # Ctrl-C arrives after the step is shown, so one more step is made.
            train(folder, StopAt(step))
        assert Run(folder).state()["state"] == "interrupted"
    result = train(folder)
    assert result.samples == 16 * STEPS
    assert Run(folder).state()["state"] == "finished"
    assert_same(folder, reference)


def test_accumulation_resumes_too(tmp_path: Path) -> None:
    train(tmp_path / "a", accumulate=4)
    with pytest.raises(Interrupted):
        train(tmp_path / "b", StopAt(13), accumulate=4)
    train(tmp_path / "b", accumulate=4)
    assert_same(tmp_path / "b", tmp_path / "a")


def test_a_killed_run_goes_on_from_an_older_checkpoint(tmp_path: Path, reference: Path) -> None:
    # Checkpoints after every step; then the newest are lost, while the metrics of their steps are there, half a line too.
    folder = tmp_path / "run"
    train(folder, checkpoint_minutes=1e-9, keep=STEPS)
    for lost in Checkpoints(folder / "checkpoints").all()[23:]:
        shutil.rmtree(lost)
    (folder / "checkpoints" / ".step-00000024.0a1b2c3d.tmp").mkdir()
    with (folder / "metrics.jsonl").open("a") as stream:
        stream.write('{"step": 41, "samp')
    train(folder)
    assert_same(folder, reference)
    assert not list((folder / "checkpoints").glob(".*"))


def test_threads_make_no_difference(tmp_path: Path, reference: Path) -> None:
    train(tmp_path / "run", threads=3)
    assert_same(tmp_path / "run", reference)


def test_a_finished_run_returns_at_once_and_a_longer_one_goes_on(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    train(folder)
    before = final(folder)
    display = StopAt()
    again = train(folder, display)
    assert again.samples == 16 * STEPS
    assert "is finished; raise its minutes= or samples=" in display.said[-1]
    assert all(torch.equal(v, before[k]) for k, v in final(folder).items())
    longer = train(folder, samples=16 * (STEPS + 10))
    assert longer.samples == 16 * (STEPS + 10)
    assert longer.steps == STEPS + 10


@pytest.mark.parametrize(
    ("changed", "words"),
    [
        ({"lr": 2e-3}, r"train\.lr: 0\.001 -> 0\.002"),
        ({"batch": 32, "clip": 0.5}, r"train\.batch: 16 -> 32; train\.clip: 1\.0 -> 0\.5"),
        ({"ema": (0.1,)}, r"train\.ema: \[0\.05, 0\.1\] -> \[0\.1\]"),
        ({"seed": 1}, r"seed: 0 -> 1"),
    ],
)
def test_other_settings_are_refused_by_name(tmp_path: Path, changed: dict[str, Any], words: str) -> None:
    folder = tmp_path / "run"
    train(folder)
    before = (folder / "metrics.jsonl").read_bytes()
    with pytest.raises(UserError, match=rf"other settings \({words}\).*--fresh.*name=.*init="):
        train(folder, **changed)
    assert (folder / "metrics.jsonl").read_bytes() == before


def test_how_often_things_are_written_may_change(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    with pytest.raises(Interrupted):
        train(folder, StopAt(5))
    free = {"log_every": 1, "evaluations": 0, "pictures": 3, "keep": 5, "checkpoint_minutes": 1.0, "threads": 2}
    assert train(folder, **free).samples == 16 * STEPS


def test_other_data_is_refused(tmp_path: Path) -> None:
    make_trainer(tmp_path, data=TinyData()).fit()
    with pytest.raises(UserError, match=r"data of the run .* has changed: 512 items .* -> 512 items .*--fresh"):
        make_trainer(tmp_path, data=TinyData(seed=1)).fit()


def test_another_network_is_refused_by_the_tensor(tmp_path: Path) -> None:
    make_trainer(tmp_path).fit()
    with pytest.raises(UserError, match=r"layers\.0\.weight' has shape \(16, 4\) and this model needs \(8, 4\)"):
        make_trainer(tmp_path, task=make_task(width=8)).fit()


def flip(file: Path) -> None:
    raw = bytearray(file.read_bytes())
    raw[-9] ^= 4
    file.write_bytes(raw)


def truncate(file: Path) -> None:
    file.write_bytes(file.read_bytes()[:-1])


FILES = ["weights.safetensors", "ema.safetensors", "optimizer.safetensors", "trainer.json", "MANIFEST.json"]


@pytest.mark.parametrize("damage", [flip, truncate, Path.unlink])
@pytest.mark.parametrize("name", FILES)
def test_a_damaged_checkpoint_is_set_aside_and_the_one_before_taken(
    tmp_path: Path, reference: Path, name: str, damage: Any
) -> None:
    folder = tmp_path / "run"
    for step in (9, 19):
        with pytest.raises(Interrupted):
            train(folder, StopAt(step))
    damage(folder / "checkpoints" / "step-00000020" / name)
    display = StopAt()
    train(folder, display)
    assert display.said[0].startswith("checkpoint step-00000020 is damaged")
    assert name in display.said[0] or name == "MANIFEST.json"
    assert display.said[1] == "going on from 160 samples"
    assert (folder / "checkpoints" / "step-00000020.corrupt").is_dir()
    assert_same(folder, reference)


def test_when_all_are_damaged_nothing_is_started_over(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    for step in (9, 19):
        with pytest.raises(Interrupted):
            train(folder, StopAt(step))
    for checkpoint in Checkpoints(folder / "checkpoints").all():
        flip(checkpoint / "weights.safetensors")
    for _ in range(2):  # it is as true the second time, when they are already set aside
        with pytest.raises(NoCheckpointError, match=r"none of its 2 checkpoints is intact .*--fresh") as caught:
            train(folder)
    assert caught.value.exit_code == 3


def test_a_pickle_among_the_files_is_refused(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    train(folder)
    (Checkpoints(folder / "checkpoints").all()[-1] / "weights.pt").write_bytes(b"")
    with pytest.raises(UserError, match="a pickle can run any code"):
        train(folder)


def test_a_newer_format_is_refused_by_name(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    train(folder)
    newest = Checkpoints(folder / "checkpoints").all()[-1]
    info = json.loads((newest / "trainer.json").read_text())
    (newest / "trainer.json").write_text(json.dumps({**info, "format": 99, "versions": {"sfumato": "9.9"}}))
    write_manifest(newest)
    with pytest.raises(UserError, match=r"has the format 99 .* written by sfumato 9\.9"):
        train(folder)


def test_a_run_that_never_saved_says_that_it_starts_from_the_beginning(tmp_path: Path) -> None:
    (tmp_path / "metrics.jsonl").write_text('{"step": 5, "samples": 80, "loss": 1.0}\n')
    display = StopAt()
    train(tmp_path, display)
    assert "stopped before its first checkpoint; starting from the beginning" in display.said[0]
    assert metrics(tmp_path)[0]["loss"] != 1.0
