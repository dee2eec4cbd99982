"""`data=TEXT` finds the right kind."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from sfumato.data import Arrays, Cifar10, Digits, Folder, Parquet, Shapes, Tar, open_data
from sfumato.errors import UserError


def test_names_and_paths(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for folder in ("pictures/cat", "cifar", "tables", "shards"):
        (tmp_path / folder).mkdir(parents=True)
    Image.new("RGB", (4, 4)).save(tmp_path / "pictures" / "cat" / "a.png")
    (tmp_path / "cifar" / "data_batch_1.bin").touch()
    for name in ("tables/a.parquet", "shards/a.tar", "a.npz", "a.npy", "b.PARQUET"):
        (tmp_path / name).touch()
    monkeypatch.chdir(tmp_path)
    for text, kind in {
        "digits": Digits,
        "shapes": Shapes,
        "pictures": Folder,
        "cifar": Cifar10,
        "tables": Parquet,
        "shards": Tar,
        "a.npz": Arrays,
        "a.npy": Arrays,
        "b.PARQUET": Parquet,
        "shards/*.tar": Tar,
    }.items():
        spec = open_data(text)
        assert spec.cls is kind, text
        if "path" in spec.settings:
            assert spec.path in (text, (text,))


def test_what_opens_can_be_built(tmp_path: Path) -> None:
    np.savez(tmp_path / "a.npz", x=np.zeros((4, 5, 5), np.uint8))
    assert open_data(str(tmp_path / "a.npz")).build().info.shape == (1, 5, 5)
    assert open_data("shapes").override("count", 10).build().info.shape == (3, 32, 32)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("digit", "did you mean 'digits'?"),
        ("nowhere.npz", "there is no such file"),
        ("arrays", "there is no such file, folder or built-in set"),
    ],
)
def test_mistakes(text: str, said: str) -> None:
    with pytest.raises(UserError, match=re.escape(said)):
        open_data(text)


def test_other_files_and_folders_of_arrays(tmp_path: Path) -> None:
    (tmp_path / "a.txt").touch()
    with pytest.raises(UserError, match=re.escape(".npz, .npy, .parquet and .tar files are read")):
        open_data(str(tmp_path / "a.txt"))
    (tmp_path / "a.npz").touch()
    with pytest.raises(UserError, match="name one, such as"):
        open_data(str(tmp_path))


def test_a_set_made_of_another_one_is_named_by_its_settings() -> None:
    spec = open_data("{type: worded, data: {type: shapes, count: 20}, keep: 0.5}")
    assert len(spec.build()) == 20 and spec.settings["keep"] == 0.5
    with pytest.raises(UserError, match="sharp"):
        open_data("{type: shapes, sharp: 20}")
