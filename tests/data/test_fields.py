"""A folder of arrays of different sizes."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from sfumato.data import Fields, Folder, open_data
from sfumato.data.broken import stand_ins
from sfumato.errors import UserError


def saved(folder: Path, arrays: dict[str, Any]) -> str:
    for name, array in arrays.items():
        file = folder / name
        file.parent.mkdir(parents=True, exist_ok=True)
        np.save(file, np.asarray(array))
    return str(folder)


def test_items_are_cut_in_the_middle_or_filled_up_with_zeros(tmp_path: Path) -> None:
    path = saved(tmp_path, {f"{n}.npy": np.arange(1, n + 1, dtype=np.int16) for n in (5, 6, 8, 9)})
    data = Fields(path=path, size=6, held_out=0)
    assert data.info.shape == (1, 6) and data.info.kind == "array"
    media = data.fetch(range(4)).media[:, 0]
    assert media.tolist() == [[1, 2, 3, 4, 5, 0], [1, 2, 3, 4, 5, 6], [2, 3, 4, 5, 6, 7], [3, 4, 5, 6, 7, 8]]
    assert Fields(path=path, multiple=4).info.shape == (1, 4)


def test_a_random_crop_takes_every_place(tmp_path: Path) -> None:
    data = Fields(path=saved(tmp_path, {"a.npy": np.arange(20.0)}), size=4, crop="random")
    draws = (np.arange(3400) + 0.5) / 3400
    first = data.fetch([0] * 3400, draws).media[:, 0, 0]
    counts = np.bincount(first.long().numpy(), minlength=17)
    assert len(counts) == 17 and ((counts - 200) ** 2 / 200).sum() < 45  # chi-square with 16 degrees of freedom
    assert data.fetch([0]).media[0, 0, 0] == 8


def test_channels_classes_captions_and_the_split(tmp_path: Path) -> None:
    arrays = {f"{part}/{k}/{i}.npy": np.full((2, 30 + i), 10 * i + (part == "test")) for part in ("train", "test")
              for k in ("dog", "cat") for i in range(3)}  # fmt: skip
    path = saved(tmp_path, arrays)
    (tmp_path / "train/cat/1.txt").write_text("a cat purrs\na purr")
    spec = open_data(path)
    data = spec.build()
    assert spec.cls is Fields and data.info.labels == ("cat", "dog") and data.info.shape == (2, 24)
    assert len(data.split("held_out")) == 6 and data.split("held_out").fetch([0]).media[0, 0, 0] == 1
    train = data.split("train").fetch(range(6))
    assert train.conditions["caption"] == ["", "a cat purrs", "", "", "", ""]
    assert train.conditions["label"].tolist() == [0, 0, 0, 1, 1, 1]  # type: ignore[union-attr]


def test_what_can_not_be_read_is_replaced(tmp_path: Path) -> None:
    path = saved(tmp_path, {f"{i:03}.npy": np.full(9, float(i)) for i in range(300)})
    (tmp_path / "005.npy").write_bytes(b"no array")
    data = Fields(path=path, held_out=0)
    np.save(tmp_path / "006.npy", np.full(9, np.nan))
    (tmp_path / "007.npy").unlink()
    bad = [5, 6, 7]
    want = [next(i for i in stand_ins(b, np.arange(300)) if i not in bad) for b in bad]
    assert data.fetch(bad).media[:, 0, 0].tolist() == want
    assert list(data.unreadable()) == bad
    assert "006.npy (holds NaN or infinite values)" in data.problems[0] and "No such file" in data.unreadable()[7]
    for i in range(10):
        (tmp_path / f"{i:03}.npy").write_bytes(b"no array")
    with pytest.raises(UserError, match="10 of 300 items can't be read, more than 1%"):
        Fields(path=path)


@pytest.mark.parametrize(
    ("arrays", "settings", "said"),
    [
        ({"a.npy": np.zeros((2, 50)), "b.npy": np.zeros((3, 50))}, {}, "a.npy is (2, 50) and b.npy is (3, 50)"),
        ({"a.npy": np.zeros(9), "b.npy": np.zeros(9)}, {"size": (3, 4)}, "size = (3, 4): must be one number or length"),
        ({"a.npy": np.zeros(9)}, {"buckets": 2, "size": (3,)}, "takes one size=NUMBER"),
        ({"a.npy": np.zeros(9)}, {"broken": 2}, "broken = 2"),
        ({"a.npy": np.asarray(["x"])}, {}, "no item can be read: a.npy (is <U1 of shape (1,), not real numbers)"),
        ({}, {}, "there is no such folder of .npy files"),
    ],
)
def test_mistakes(tmp_path: Path, arrays: dict[str, Any], settings: dict[str, Any], said: str) -> None:
    with pytest.raises(UserError, match=re.escape(said)):
        Fields(path=saved(tmp_path, arrays), **settings)


def test_folders_of_arrays_and_of_pictures_are_told_apart(tmp_path: Path) -> None:
    saved(tmp_path, {"x/1.npy": np.zeros(5), "y/1.npy": np.zeros(5)})
    assert open_data(str(tmp_path)).cls is Fields
    (tmp_path / "x" / "1.png").touch()
    assert open_data(str(tmp_path)).cls is Folder


def test_the_digest_of_an_item_is_of_its_file_and_its_shape(tmp_path: Path) -> None:
    path = saved(tmp_path, {"a.npy": np.zeros(9), "b.npy": np.ones(9)})
    data = Fields(path=path)
    assert data.item_digest(0) == Fields(path=path).item_digest(0) != data.item_digest(1)
    assert Fields(path=path, size=8).item_digest(0) != data.item_digest(0)
    assert torch.equal(data.fetch([1]).media, torch.ones(1, 1, 9))
