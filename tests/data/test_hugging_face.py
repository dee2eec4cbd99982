"""Data sets of the library `datasets`, built here and read from a folder."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tests.data.test_tar import png

from sfumato.data import HuggingFace, open_data
from sfumato.data.broken import stand_ins
from sfumato.errors import UserError


def test_the_missing_package_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "datasets", None)
    spec = open_data("hf:someone/flowers")
    assert spec.cls is HuggingFace and spec.path == "someone/flowers"
    with pytest.raises(UserError, match=r"hf:someone/flowers: reading it needs datasets; pip install 'sfumato\[hf\]'"):
        spec.build()


@pytest.fixture
def datasets() -> Any:
    return pytest.importorskip("datasets", reason="datasets is not installed (the extra `hf`)")


def rows(datasets: Any, first: int, count: int) -> Any:
    features = datasets.Features(
        {
            "picture": datasets.Image(),
            "label": datasets.ClassLabel(names=["cat", "dog", "eel"]),
            "text": datasets.Value("string"),
            "age": datasets.Value("float32"),
        }
    )
    numbers = range(first, first + count)
    return datasets.Dataset.from_dict(
        {
            "picture": [{"bytes": png(i), "path": None} for i in numbers],
            "label": [i % 3 for i in numbers],
            "text": [f"number {i}" for i in numbers],
            "age": [i / 2 for i in numbers],
        },
        features=features,
    )


def test_a_saved_dataset(datasets: Any, tmp_path: Path) -> None:
    rows(datasets, 0, 40).shuffle(seed=0).save_to_disk(tmp_path / "saved")
    spec = open_data(str(tmp_path / "saved"))
    assert spec.cls is HuggingFace
    data = spec.override("numbers", "age").build()
    batch = data.fetch(range(40))
    values = batch.media[:, 0, 0, 0]
    assert sorted(values.tolist()) == list(range(40)) != values.tolist() and data.info.labels == ("cat", "dog", "eel")
    assert torch.equal(batch.conditions["label"], values.long() % 3)  # type: ignore[arg-type]
    assert batch.conditions["caption"] == [f"number {i}" for i in values.tolist()]
    assert torch.equal(batch.conditions["number"][:, 0], values / 2)  # type: ignore[arg-type]
    assert int(data.held_out_mask().sum()) == 2 and data.fingerprint() == spec.build().fingerprint()


def test_parts_called_test_are_held_out(datasets: Any, tmp_path: Path) -> None:
    parts = datasets.DatasetDict({"train": rows(datasets, 0, 9), "test": rows(datasets, 50, 4)})
    parts.save_to_disk(tmp_path / "saved")
    data = open_data(str(tmp_path / "saved")).build()
    held = data.split("held_out")
    assert held.fetch(range(4)).media[:, 0, 0, 0].tolist() == [50, 51, 52, 53] and len(data) == 13
    assert len(open_data(str(tmp_path / "saved")).override("parts", "train").build()) == 9
    with pytest.raises(UserError, match="has no part 'dev'; its parts are train, test"):
        HuggingFace(path=str(tmp_path / "saved"), parts=("dev",))


def test_a_name_is_loaded_by_the_library(datasets: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    def load(name: str, config: str | None) -> Any:
        asked.append((name, config))
        return datasets.DatasetDict({"train": rows(datasets, 0, 9)})

    monkeypatch.setattr(datasets, "load_dataset", load)
    data = open_data("hf:someone/flowers").override("config", "small").build()
    assert asked == [("someone/flowers", "small")] and data.fetch([5]).media[0, 0, 0, 0] == 5

    def fail(name: str, config: str | None) -> Any:
        raise FileNotFoundError("no such thing\non the hub")

    monkeypatch.setattr(datasets, "load_dataset", fail)
    with pytest.raises(UserError, match=r"hf:someone/flowers: can't be loaded \(FileNotFoundError: no such thing\)"):
        open_data("hf:someone/flowers").build()


def test_broken_rows_and_columns(datasets: Any, tmp_path: Path) -> None:
    images = [png(i) if i != 7 else b"no" for i in range(150)]
    datasets.Dataset.from_dict({"jpg": images, "n": list(range(150))}).save_to_disk(tmp_path / "saved")
    data = HuggingFace(path=str(tmp_path / "saved"), held_out=0)
    other = next(i for i in stand_ins(7, np.arange(150)) if i != 7)
    assert data.fetch([7]).media[0, 0, 0, 0] == other and data.unreadable()[7].startswith("row 7 (not a PNG")
    with pytest.raises(UserError, match="'n' does not hold encoded pictures; set image=jpg"):
        HuggingFace(path=str(tmp_path / "saved"), image="n")
    with pytest.raises(UserError, match="has no column 'word'; its columns are jpg, n"):
        HuggingFace(path=str(tmp_path / "saved"), caption="word")
