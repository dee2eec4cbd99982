"""Trackers: what they are told, going on in the same run, no key and no network, and errors that end nothing."""

from __future__ import annotations

import json
import sqlite3
import sys
import types
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from sfumato.errors import UserError
from sfumato.train import trackers
from sfumato.train.trackers import TRACKERS, Guarded, has_key, kept_id, make_trackers

PICTURE = Image.fromarray(np.zeros((4, 6, 3), np.uint8))


class FakeRun:
    url = None

    def __init__(self, asked: dict[str, Any]) -> None:
        self.asked, self.calls = asked, []

    def log(self, content: dict[str, Any], step: int | None = None) -> None:
        self.calls.append((content, step))

    def define_metric(self, name: str, step_metric: str | None = None) -> None:
        self.calls.append(("axis", name, step_metric))

    def finish(self) -> None:
        self.calls.append("finish")


class FakeService(types.ModuleType):
    """Has the functions that wandb and trackio have in common, and writes down what it is asked."""

    def __init__(self, name: str) -> None:
        super().__init__(name)
        self.runs: list[FakeRun] = []
        self.Image = lambda picture: ("picture", picture.size)
        self.Settings = lambda **words: words
        self.finish = lambda: self.runs[-1].finish()

    def init(self, **asked: Any) -> FakeRun:
        print("chatter")
        self.runs.append(FakeRun(asked))
        return self.runs[-1]


@pytest.fixture(autouse=True)
def _alone(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """No settings, keys or home folder of whoever runs the tests."""
    for name in (
        "WANDB_API_KEY",
        "WANDB_MODE",
        "WANDB_PROJECT",
        "WANDB_BASE_URL",
        "TRACKIO_PROJECT",
        "TRACKIO_SPACE_ID",
    ):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("NETRC", str(tmp_path / "no-netrc"))


def fake(monkeypatch: pytest.MonkeyPatch, name: str) -> FakeService:
    module = FakeService(name)
    monkeypatch.setitem(sys.modules, name, module)
    return module


def test_wandb_is_told_everything_and_asks_nobody(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    wandb, said = fake(monkeypatch, "wandb"), []
    run = tmp_path / "digits"
    (tracker,) = make_trackers(("wandb",), run, config={"train.lr": 1e-3, "data.path": Path("x")}, say=said.append)
    tracker.log({"loss": 0.5, "lr": 1e-3}, 64)
    tracker.image("pictures", PICTURE, 64)
    tracker.close()
    asked = wandb.runs[0].asked
    assert (asked["project"], asked["name"], asked["mode"], asked["resume"]) == (
        "sfumato",
        "digits",
        "offline",
        "allow",
    )
    assert asked["config"] == {"train.lr": 1e-3, "data.path": "x"}
    assert asked["dir"] == str(run) and asked["id"] == kept_id(run)
    assert wandb.runs[0].calls == [
        ("axis", "samples", None),
        ("axis", "*", "samples"),
        ({"loss": 0.5, "lr": 1e-3, "samples": 64}, None),
        ({"pictures": ("picture", (6, 4)), "samples": 64}, None),
        "finish",
    ]
    assert said == [f"wandb has no key here and writes to {run / 'wandb'}; `wandb sync` sends that when there is one"]
    assert capsys.readouterr().out == ""  # standard output is for the command's own result


def test_trackio_is_told_the_same(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    trackio = fake(monkeypatch, "trackio")
    (tracker,) = make_trackers(("trackio",), tmp_path / "digits", config={"seed": 0})
    tracker.log({"loss": 0.5}, 64)
    tracker.image("pictures", PICTURE, 128)
    tracker.close()
    asked = trackio.runs[0].asked
    assert asked["name"] == f"digits-{kept_id(tmp_path / 'digits')}" and asked["config"] == {"seed": 0}
    assert not asked["auto_log_gpu"] and not asked["auto_log_cpu"] and not asked["embed"]
    assert trackio.runs[0].calls == [({"loss": 0.5}, 64), ({"pictures": ("picture", (6, 4))}, 128), "finish"]


@pytest.mark.parametrize("name", ["wandb", "trackio"])
def test_going_on_is_the_same_run_and_starting_over_another(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, name: str
) -> None:
    service = fake(monkeypatch, name)
    for _ in range(2):
        make_trackers((name,), tmp_path)
    (tmp_path / "trackers.json").unlink()
    make_trackers((name,), tmp_path)
    first, second, third = ((run.asked.get("id"), run.asked["name"]) for run in service.runs)
    assert first == second != third


def test_a_damaged_id_is_made_anew(tmp_path: Path) -> None:
    (tmp_path / "trackers.json").write_text('{"id": ')
    made = kept_id(tmp_path)
    assert json.loads((tmp_path / "trackers.json").read_text()) == {"id": made} and kept_id(tmp_path) == made


@pytest.mark.parametrize("how", ["variable", "netrc", "other host", "none", "broken"])
def test_a_key_is_looked_for_where_wandb_looks(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, how: str) -> None:
    file = tmp_path / "netrc"
    monkeypatch.setenv("NETRC", str(file))
    if how == "variable":
        monkeypatch.setenv("WANDB_API_KEY", "not a real one")
    elif how == "broken":
        file.write_text("machine")
    elif how != "none":
        host = {"netrc": "api.wandb.ai", "other host": "example.org"}[how]
        file.write_text(f"machine {host} login user password none\n")
        file.chmod(0o600)
    assert has_key() == (how in ("variable", "netrc"))


@pytest.mark.parametrize(("key", "asked", "mode"), [("x", None, None), (None, "online", None), (None, None, "offline")])
def test_the_mode_is_the_users_where_there_is_one(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, key: str | None, asked: str | None, mode: str | None
) -> None:
    wandb = fake(monkeypatch, "wandb")
    for name, value in (("WANDB_API_KEY", key), ("WANDB_MODE", asked)):
        if value is not None:
            monkeypatch.setenv(name, value)
    make_trackers(("wandb",), tmp_path)
    assert wandb.runs[0].asked["mode"] == mode


@pytest.mark.parametrize(
    ("name", "module"), [("wandb", "wandb"), ("trackio", "trackio"), ("tensorboard", "tensorboard")]
)
def test_a_missing_package_is_one_sentence(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, name: str, module: str
) -> None:
    monkeypatch.setitem(sys.modules, module, None)
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard.writer", None)
    with pytest.raises(UserError, match=rf'^train\.trackers={name} needs .*; pip install "sfumato\[track\]"$'):
        make_trackers((name,), tmp_path)


class Failing:
    def __init__(self) -> None:
        self.calls, self.broken = [], True

    def log(self, metrics: Any, samples: int) -> None:
        self.calls.append(samples)
        if self.broken:
            raise ConnectionError("no route\nto host")

    def image(self, name: str, picture: Any, samples: int) -> None:
        self.log({}, samples)

    def close(self) -> None:
        self.calls.append("close")
        raise RuntimeError


def test_errors_are_said_once_and_end_nothing() -> None:
    said: list[str] = []
    inner = Failing()
    tracker = Guarded(inner, "wandb", said.append)
    for samples in range(3):
        tracker.log({}, samples)
    inner.broken = False
    tracker.log({}, 3)
    inner.broken = True
    for samples in range(4, 20):
        tracker.image("x", PICTURE, samples)
    tracker.close()
    assert said == [
        "warning: the tracker wandb failed (ConnectionError: no route to host); training goes on, and metrics.jsonl has "
        "everything"
    ]
    assert inner.calls == [*range(9), "close"]  # after five in a row it is left alone until the end


def test_one_that_does_not_start_is_left_out(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    wandb, said = fake(monkeypatch, "wandb"), []
    fake(monkeypatch, "trackio")
    monkeypatch.setattr(wandb, "init", lambda **_: (_ for _ in ()).throw(TimeoutError("90 s")))
    assert len(make_trackers(("wandb", "trackio"), tmp_path, say=said.append)) == 1
    assert said == [
        "warning: the tracker wandb failed (TimeoutError: 90 s); training goes on, and metrics.jsonl has everything"
    ]


def test_every_name_has_a_tracker() -> None:
    assert set(TRACKERS) == set(trackers._KINDS)


# ---------------------------------------------------------------- the real ones, where they are installed


def test_tensorboard_drops_what_is_made_again(tmp_path: Path) -> None:
    pytest.importorskip("tensorboard", reason="the extra 'track' is not installed")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    for start, value in ((0, 1.0), (20, 2.0)):
        (tracker,) = make_trackers(("tensorboard",), tmp_path, start)
        for samples in range(start, 40, 10):
            tracker.log({"loss": value}, samples)
        tracker.image("pictures", PICTURE, 30)
        tracker.close()
    events = EventAccumulator(str(tmp_path / "tensorboard"))
    events.Reload()
    assert [(e.step, e.value) for e in events.Scalars("loss")] == [(0, 1.0), (10, 1.0), (20, 2.0), (30, 2.0)]
    assert len(events.Images("pictures")) == 1


def test_real_trackio_goes_on_in_one_run(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("TRACKIO_DIR", str(tmp_path / "trackio"))
    monkeypatch.setenv("HF_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    pytest.importorskip("trackio", reason="the extra 'track' is not installed")
    said: list[str] = []
    for part in range(2):
        (tracker,) = make_trackers(("trackio",), tmp_path / "digits", 10 * part, config={"seed": 3}, say=said.append)
        for samples in range(10 * part, 10 * part + 10, 5):
            tracker.log({"loss": 1.0 / (1 + samples)}, samples)
        tracker.image("pictures", PICTURE, 10 * part + 5)
        tracker.close()
    assert said == []
    (file,) = (tmp_path / "trackio").glob("sfumato*.db")
    with sqlite3.connect(file) as base:
        rows = base.execute("select run_name, step, metrics from metrics order by step, id").fetchall()
    assert {row[0] for row in rows} == {f"digits-{kept_id(tmp_path / 'digits')}"}
    found = [(step, json.loads(metrics)) for _, step, metrics in rows]
    losses = [(step, metrics["loss"]) for step, metrics in found if "loss" in metrics]
    assert losses == [(s, pytest.approx(1 / (1 + s))) for s in (0, 5, 10, 15)]
    assert [step for step, metrics in found if "pictures" in metrics] == [5, 15]


def test_real_wandb_writes_offline(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    pytest.importorskip("wandb", reason="the extra 'track' is not installed")
    said: list[str] = []
    run = tmp_path / "digits"
    for start in (0, 10):
        (tracker,) = make_trackers(("wandb",), run, start, config={"seed": 3}, say=said.append)
        tracker.log({"loss": 0.5}, start + 5)
        tracker.image("pictures", PICTURE, start + 5)
        tracker.close()
    assert len(said) == 2 and all("has no key here" in text for text in said)
    written = list((run / "wandb").glob(f"offline-run-*-{kept_id(run)}/run-{kept_id(run)}.wandb"))
    assert written and all(file.stat().st_size > 0 for file in written)
