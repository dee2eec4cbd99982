"""The contact sheet shows the items, and the summary counts them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from sfumato.data import Arrays, Digits, Folder, Shapes, TorchData, preview, summary
from sfumato.data.preview import sample_indices
from sfumato.errors import UserError


def test_small_pictures_are_enlarged_by_whole_pixels() -> None:
    sheet = np.asarray(preview(Digits(), n=1))
    digit = Digits().fetch(sample_indices(Digits(), 1)).media[0, 0].numpy()
    assert np.array_equal(sheet[2:98, 2:98, 0], digit.repeat(12, 0).repeat(12, 1))  # 8 x 12 = 96 pixels, 2 of margin


def test_the_sheet_depends_on_the_seed_alone() -> None:
    data = Shapes(count=50)
    assert preview(data, 6) == preview(data, 6) and preview(data, 6) != preview(data, 6, seed=1)
    assert sample_indices(data, 100) == list(range(50))
    with pytest.raises(UserError, match="n = 0"):
        preview(data, 0)


def test_the_summary_counts(tmp_path: Path) -> None:
    np.savez(tmp_path / "a.npz", x=np.arange(40, dtype=np.float32).reshape(10, 4), y=np.array([0, 1] * 5))
    said = summary(Arrays(path=str(tmp_path / "a.npz")))
    assert said.splitlines() == [
        "10 items of 4 (float32 arrays)",
        "split: 9 to train on, 1 held out",
        "values: 0 to 39, mean 19.5, deviation 11.69 (of 10 items)",
        "2 classes: 0 5, 1 5",
    ]


def test_the_summary_names_captions_and_problems(tmp_path: Path) -> None:
    for i in range(3):
        Image.new("RGB", (4, 4)).save(tmp_path / f"{i}.png")
    (tmp_path / "0.txt").write_text("a black square")
    said = summary(Folder(path=str(tmp_path), held_out=0))
    assert '"a black square"' in said and "problem: 2 of 3 pictures have no caption" in said


def test_sounds_volumes_and_torch_datasets_are_shown() -> None:
    for shape in ((2, 500), (1, 4, 5, 6), (7, 4, 5)):
        data = TorchData([torch.randn(shape) for _ in range(3)])
        assert preview(data).width > 80
        assert "3 items of" in summary(data.split("train")) or "2 items of" in summary(data.split("train"))
