"""CIFAR-10 in both layouts, from small files of the same form."""

from __future__ import annotations

import io
import re
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from sfumato.data import Cifar10
from sfumato.errors import UserError

RNG = np.random.default_rng(0)


def webp_file(path: Path, count: int, rows: int, columns: int) -> tuple[np.ndarray, np.ndarray]:  # type: ignore[type-arg]
    """`count` sheets of rows x columns pictures; returns pixels (N, 3, 32, 32) and labels."""
    tiles = RNG.integers(0, 256, (count, rows, columns, 32, 32, 3), np.uint8)
    sheets = {}
    for k, sheet in enumerate(tiles):
        stream = io.BytesIO()
        Image.fromarray(sheet.transpose(0, 2, 1, 3, 4).reshape(rows * 32, columns * 32, 3)).save(
            stream, "WEBP", lossless=True
        )
        sheets[f"webp_{k:03}"] = np.frombuffer(stream.getvalue(), np.uint8)
    labels = RNG.integers(0, 10, count * rows * columns).astype(np.uint8)
    np.savez(path, labels=labels, label_names=np.array(["x"] * 10), **sheets)
    return tiles.reshape(-1, 32, 32, 3).transpose(0, 3, 1, 2), labels


def test_sheets_are_cut_row_by_row(tmp_path: Path) -> None:
    parts = [webp_file(tmp_path / f"cifar10-{name}.npz", 2, 3, 4) for name in ("train-0", "train-1", "test-0")]
    data = Cifar10(path=str(tmp_path))
    assert data.info.shape == (3, 32, 32) and data.info.labels[3] == "cat" and len(data) == 72
    batch = data.fetch(range(72))
    assert np.array_equal(batch.media, np.concatenate([x for x, _ in parts]))
    assert np.array_equal(batch.conditions["label"], np.concatenate([y for _, y in parts]))  # type: ignore[arg-type]
    assert np.flatnonzero(data.held_out_mask()).tolist() == list(range(48, 72))


def test_the_binary_version(tmp_path: Path) -> None:
    records = RNG.integers(0, 256, (6, 3073), np.uint8)
    records[:, 0] = [0, 1, 2, 9, 8, 7]
    records[:2].tofile(tmp_path / "data_batch_1.bin")
    records[2:4].tofile(tmp_path / "data_batch_2.bin")
    records[4:].tofile(tmp_path / "test_batch.bin")
    data = Cifar10(path=str(tmp_path))
    batch = data.fetch(range(6))
    assert np.array_equal(batch.media.flatten(1), records[:, 1:])
    assert batch.conditions["label"].tolist() == [0, 1, 2, 9, 8, 7]  # type: ignore[union-attr]
    assert data.held_out_mask().tolist() == [False] * 4 + [True] * 2


def test_mistakes(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=re.escape("holds no cifar10-train-*.npz and no data_batch_1.bin")):
        Cifar10(path=str(tmp_path))
    (tmp_path / "data_batch_1.bin").write_bytes(bytes(3000))
    with pytest.raises(UserError, match="3000 bytes are not whole records of 3073"):
        Cifar10(path=str(tmp_path))
    np.full((1, 3073), 77, np.uint8).tofile(tmp_path / "data_batch_1.bin")
    with pytest.raises(UserError, match=r"holds the label 77, outside 0\.\.9"):
        Cifar10(path=str(tmp_path))
    webp_file(tmp_path / "cifar10-train-0.npz", 1, 2, 2)
    with np.load(tmp_path / "cifar10-train-0.npz") as file:
        arrays = dict(file)
    np.savez(tmp_path / "cifar10-train-0.npz", **{**arrays, "labels": arrays["labels"][:3]})
    with pytest.raises(UserError, match="holds 4 pictures for 3 labels"):
        Cifar10(path=str(tmp_path)).fetch([0])
    np.savez(tmp_path / "cifar10-train-0.npz", **{**arrays, "webp_000": arrays["webp_000"][:50]})
    with pytest.raises(UserError, match="a sheet can't be decoded"):
        Cifar10(path=str(tmp_path)).fetch([0])
