"""A command line in this process, and runs to use it on."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from sfumato import cli
from tests.cli.tiny import TRAIN


class Said:
    """What a command printed and returned."""

    def __init__(self, code: int, out: str, err: str) -> None:
        self.code, self.out, self.err = code, out, err


@pytest.fixture
def do(capsys: pytest.CaptureFixture[str]):  # type: ignore[no-untyped-def]
    """Run a command line in this process."""

    def call(*words: str | Path) -> Said:
        capsys.readouterr()
        code = cli.run([str(word) for word in words])
        return Said(code, *capsys.readouterr())

    return call


@pytest.fixture(scope="session")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with `runs/digits`, trained on 64 samples, and `runs/labels`, asked by label."""
    folder = tmp_path_factory.mktemp("cli")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        assert cli.run([*TRAIN, "samples=64"]) == 0
        labels = ["conditioner=label", "conditioner.width=16", "network.width=8", "batch=16", "samples=32"]
        quick = ["train.pictures=0", "train.evaluations=0", "steps=2"]
        assert cli.run(["train", "image", "data=digits", "name=labels", *labels, *quick]) == 0
    return folder


@pytest.fixture
def here(trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of it to work in."""
    shutil.copytree(trained / "runs", tmp_path / "runs")
    monkeypatch.chdir(tmp_path)
    return tmp_path
