"""Arrays: which keys, axes and types are understood, and every mistake's sentence."""

from __future__ import annotations

import re
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from sfumato.data import Arrays
from sfumato.errors import UserError

RNG = np.random.default_rng(0)


def pixels(*shape: int) -> np.ndarray[Any, Any]:
    return RNG.integers(0, 256, shape, np.uint8)


def stored(folder: Path, **arrays: Any) -> str:
    path = folder / "data.npz"
    np.savez(path, **arrays)
    return str(path)


def refused(said: str, path: str, **settings: Any) -> None:
    with pytest.raises(UserError, match=re.escape(said)) as caught:
        Arrays(path=path, **settings)
    assert "\n" not in str(caught.value)


def test_the_layout_of_mnist(tmp_path: Path) -> None:
    x, y = pixels(60, 28, 28), RNG.integers(0, 10, 60).astype(np.uint8)
    xt, yt = pixels(10, 28, 28), np.arange(10, dtype=np.uint8)
    data = Arrays(path=stored(tmp_path, x_train=x, y_train=y, x_test=xt, y_test=yt))
    assert data.info.shape == (1, 28, 28) and data.info.kind == "image" and len(data.info.labels) == 10
    train, held = data.split("train"), data.split("held_out")
    assert np.array_equal(train.fetch(range(60)).media[:, 0], x) and np.array_equal(
        held.fetch(range(10)).media[:, 0], xt
    )
    assert np.array_equal(train.columns(range(60))["label"], y) and np.array_equal(held.columns(range(10))["label"], yt)  # type: ignore[arg-type]
    assert Arrays(path=data.path, held_out=0.5).held_out_mask().sum() == 35


@pytest.mark.parametrize("x", ["x", "images", "data", "arr_0", "X", "anything"])
@pytest.mark.parametrize("y", ["y", "labels", "targets", None])
def test_usual_names_are_found(tmp_path: Path, x: str, y: str | None) -> None:
    columns = {} if y is None else {y: np.arange(6) % 3}
    data = Arrays(path=stored(tmp_path, **{x: pixels(6, 5, 5, 3)}, **columns))
    assert data.info.shape == (3, 5, 5) and data.info.labels == (() if y is None else ("0", "1", "2"))


def test_keys_can_be_named(tmp_path: Path) -> None:
    path = stored(
        tmp_path,
        a=np.zeros((4, 7), np.float32),
        b=np.ones((4, 9), np.float32),
        c=np.arange(4),
        say=np.array(["p", "q", "r", "s"]),
    )
    data = Arrays(path=path, x="b", y="c", captions="say")
    assert data.info.shape == (1, 9) and data.columns([2]) == {"label": torch.tensor([2]), "caption": ["r"]}
    refused("none of the usual names (x, images, data, x_train, ...) is not among its arrays: a (4, 7), b (4, 9)", path)
    refused("'z' is not among its arrays", path, x="z")
    refused("has no array 'z'", path, x="a", y="z")


@pytest.mark.parametrize(
    ("shape", "dtype", "wanted", "kind"),
    [
        ((5, 8, 9), np.uint8, (1, 8, 9), "image"),
        ((5, 8, 9, 3), np.uint8, (3, 8, 9), "image"),
        ((5, 4, 8, 9), np.uint8, (4, 8, 9), "image"),
        ((5, 13, 8, 8), np.uint8, (13, 8, 8), "image"),
        ((5, 8, 8, 13), np.uint8, (13, 8, 8), "image"),
        ((5, 8, 8, 8), np.uint8, (1, 8, 8, 8), "array"),
        ((5, 8, 8, 8, 4), np.uint8, (4, 8, 8, 8), "array"),
        ((5, 100), np.float32, (1, 100), "array"),
        ((5, 2, 100), np.float64, (2, 100), "array"),
        ((5, 100, 2), np.float16, (2, 100), "array"),
        ((5, 80, 90), np.float32, (1, 80, 90), "array"),
        ((5, 3, 8, 9), np.int16, (3, 8, 9), "array"),
        ((5, 8, 9), np.bool_, (1, 8, 9), "image"),
    ],
)
def test_axes_and_types(tmp_path: Path, shape: tuple[int, ...], dtype: Any, wanted: tuple[int, ...], kind: str) -> None:
    x = (RNG.random(shape) * 100).astype(dtype)
    data = Arrays(path=stored(tmp_path, x=x))
    assert data.info.shape == wanted and data.info.kind == kind
    media = data.fetch(range(5)).media
    assert media.dtype == (torch.uint8 if kind == "image" else torch.float32)
    moved = x if x.ndim == len(wanted) + 1 else x[:, None]
    if tuple(moved.shape[1:]) != wanted:
        moved = np.moveaxis(moved, -1, 1)
    assert np.array_equal(media, moved.astype(np.float32) * (255 if dtype is np.bool_ else 1))


def test_layout_and_kind_can_be_set(tmp_path: Path) -> None:
    path = stored(tmp_path, x=pixels(4, 5, 6, 7))
    refused("can't tell which axis of an item (5, 6, 7) holds the channels; set layout=first, last or none", path)
    assert Arrays(path=path, layout="first").info.shape == (5, 6, 7)
    assert Arrays(path=path, layout="last").info.shape == (7, 5, 6)
    assert Arrays(path=path, layout="none").info.shape == (1, 5, 6, 7)
    as_array = Arrays(path=path, layout="first", read_as="array")
    assert as_array.info.kind == "array" and as_array.fetch([0]).media.max() > 1
    refused("read_as = image needs uint8", stored(tmp_path, x=np.zeros((3, 4, 4))), read_as="image")


def test_npy_files_stay_on_disk(tmp_path: Path) -> None:
    x = RNG.normal(size=(6, 3, 50)).astype(np.float32)
    np.save(tmp_path / "x.npy", x)
    data = Arrays(path=str(tmp_path / "x.npy"))
    assert isinstance(data.media.base, np.memmap) or isinstance(data.media, np.memmap)
    assert np.array_equal(data.fetch([4, 1]).media, x[[4, 1]])


def test_several_files_are_joined(tmp_path: Path) -> None:
    paths = []
    for i in range(3):
        np.savez(tmp_path / f"{i}.npz", x=np.full((4, 6, 6), i, np.uint8), y=np.full(4, i))
        paths.append(str(tmp_path / f"{i}.npz"))
    data = Arrays(path=tuple(paths))
    batch = data.fetch(range(12))
    assert batch.media[:, 0, 0, 0].tolist() == batch.conditions["label"].tolist() == [0] * 4 + [1] * 4 + [2] * 4  # type: ignore[union-attr]
    np.savez(tmp_path / "2.npz", x=np.full((4, 6, 6), 2, np.uint8))
    refused("only 2 of 3 parts have labels", tuple(paths))  # type: ignore[arg-type]


def test_files_of_other_sizes_need_a_size(tmp_path: Path) -> None:
    np.savez(tmp_path / "a.npz", x=np.full((2, 6, 6, 3), 10, np.uint8))
    np.savez(tmp_path / "b.npz", x=np.full((2, 9, 12, 3), 20, np.uint8))
    paths = (str(tmp_path / "a.npz"), str(tmp_path / "b.npz"))
    refused("items have different shapes", paths)  # type: ignore[arg-type]
    refused("set size=PIXELS", paths)  # type: ignore[arg-type]
    data = Arrays(path=paths, size=8)
    assert data.info.shape == (3, 8, 8) and data.fetch(range(4)).media[:, 0, 3, 3].tolist() == [10, 10, 20, 20]


def test_flips_follow_the_draw(tmp_path: Path) -> None:
    data = Arrays(path=stored(tmp_path, x=np.arange(8, dtype=np.uint8).reshape(1, 2, 4)), flip=True)
    media = data.fetch([0] * 1000, (np.arange(1000) + 0.5) / 1000).media[:, 0]
    flipped = (media == torch.tensor([[3, 2, 1, 0], [7, 6, 5, 4]])).all((1, 2))
    plain = (media == torch.tensor([[0, 1, 2, 3], [4, 5, 6, 7]])).all((1, 2))
    assert (flipped ^ plain).all() and 450 < flipped.sum() < 550
    assert data.fetch([0]).media.flatten().tolist() == list(range(8))
    assert np.array_equal(data.media[0, 0], [[0, 1, 2, 3], [4, 5, 6, 7]])  # the set itself is left as it is
    refused("flip = True", stored(tmp_path, x=np.zeros((3, 9))), flip=True)


def test_numbers_are_read(tmp_path: Path) -> None:
    x = np.zeros((3, 9), np.float32)
    data = Arrays(path=stored(tmp_path, x=x, numbers=np.array([[1, 2], [3, 4], [5, 6.5]])))
    assert data.info.numbers == ("number0", "number1") and data.columns([2])["number"].tolist() == [[5, 6.5]]  # type: ignore[union-attr]
    assert Arrays(path=stored(tmp_path, x=x, age=np.arange(3)), numbers="age").info.numbers == ("number0",)
    refused("'number0' of item 1 is nan", stored(tmp_path, x=x, numbers=np.array([0, np.nan, 1])))


def test_label_names(tmp_path: Path) -> None:
    data = Arrays(path=stored(tmp_path, x=pixels(3, 4, 4), y=np.array([1, 0, 1]), label_names=np.array(["no", "yes"])))
    assert data.info.labels == ("no", "yes")
    data = Arrays(path=stored(tmp_path, x=pixels(3, 4, 4), y=np.array(["b", "a", "b"])))
    assert data.info.labels == ("a", "b") and data.columns(range(3))["label"].tolist() == [1, 0, 1]  # type: ignore[union-attr]


@pytest.mark.parametrize(
    ("y", "settings", "said"),
    [
        ([0, -1, 2], {}, "the label of item 1 is -1, outside 0..2"),
        ([0, 1, 5], {"classes": 3}, "the label of item 2 is 5, outside 0..2"),
        ([0, 1.5, 2], {}, "the label of item 1 is 1.5; labels must be whole numbers 0..K-1"),
        ([0, np.nan, 2], {}, "the label of item 1 is nan"),
        ([0, 1, 10**9], {}, "the largest label is 1000000000"),
        ([0, 1], {}, "'y' has 2 entries for 3 items"),
        (["a", "b", "c"], {"classes": 2}, "has 3 different labels, but classes = 2"),
        ([[0, 1], [1, 0], [0, 1]], {}, "labels have shape (3, 2)"),
        ([1j, 2, 3], {}, "labels of type complex128"),
    ],
)
def test_mistakes_in_labels(tmp_path: Path, y: Any, settings: dict[str, Any], said: str) -> None:
    refused(said, stored(tmp_path, x=pixels(3, 4, 4), y=np.asarray(y)), **settings)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_values_that_are_no_numbers_are_named(tmp_path: Path, value: float) -> None:
    x = np.zeros((3000, 2, 5), np.float32)
    x[2345, 1, 3] = value
    refused("[x]: item 2345 holds NaN or infinite values", stored(tmp_path, x=x))


def test_pickles_are_refused(tmp_path: Path) -> None:
    ragged = np.array([np.zeros(3), np.zeros(4)], dtype=object)
    np.savez(tmp_path / "a.npz", x=ragged)
    np.save(tmp_path / "b.npy", ragged)
    for name in ("a.npz", "b.npy"):
        refused("holds Python objects (a pickle), which can run code", str(tmp_path / name))
    (tmp_path / "c.npy").write_bytes(b"\x80\x04K\x01.")
    with pytest.raises(UserError):
        Arrays(path=str(tmp_path / "c.npy"))


@pytest.mark.parametrize(
    ("x", "said"),
    [
        (np.zeros((3, 0, 4)), "has shape (3, 0, 4)"),
        (np.zeros(5), "has shape (5,)"),
        (np.zeros((0, 4, 4), np.uint8), "has shape (0, 4, 4)"),
        (np.zeros((2, 3), complex), "has type complex128"),
        (np.zeros((2, 3), "U4"), "has type <U4"),
    ],
)
def test_unusable_arrays(tmp_path: Path, x: Any, said: str) -> None:
    refused(said, stored(tmp_path, x=x))


def test_unreadable_files(tmp_path: Path) -> None:
    refused("there is no such file", str(tmp_path / "none.npz"))
    refused("path is empty", ())  # type: ignore[arg-type]
    path = Path(stored(tmp_path, x=pixels(5, 9, 9)))
    path.write_bytes(path.read_bytes()[:200])
    refused("is not a readable .npz or .npy file", str(path))
    path.write_bytes(b"")
    refused("is not a readable .npz or .npy file", str(path))


def test_archives_that_unpack_to_far_more_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sfumato.data.arrays._MOST_UNPACKED", 1 << 20)
    path = tmp_path / "bomb.npz"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("x.npy", bytes(8 << 20))
    refused("over 100 times its size", str(path))


def test_size_is_for_images(tmp_path: Path) -> None:
    refused("size = 8: is for images", stored(tmp_path, x=np.zeros((3, 9))), size=8)
    refused("size = 0", stored(tmp_path, x=pixels(3, 9, 9)), size=0)
