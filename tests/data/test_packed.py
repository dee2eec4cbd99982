"""Packed data are the data, bit for bit, and every changed byte is noticed."""

from __future__ import annotations

import json
import multiprocessing
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from sfumato.data import Arrays, Data, Digits, Folder, Loader, Packed, Shapes, open_data, pack
from sfumato.errors import UserError
from sfumato.files import CorruptError

DRAWS = (np.arange(40) + 0.5) / 40


def same(one: Data, other: Data, indices: list[int]) -> None:
    for draws in (None, DRAWS[: len(indices)]):
        a, b = one.fetch(indices, draws), other.fetch(indices, draws)
        assert torch.equal(a.media, b.media) and a.media.dtype == b.media.dtype
        assert a.conditions.keys() == b.conditions.keys()
        for key, column in a.conditions.items():
            there = b.conditions[key]
            assert torch.equal(column, there) if isinstance(column, torch.Tensor) else list(column) == list(there)  # type: ignore[arg-type]
        assert {k: list(map(str, v)) for k, v in one.columns(indices, draws).items()} == {
            k: list(map(str, v)) for k, v in other.columns(indices, draws).items()
        }
    assert one.info == other.info and (one.held_out_mask() == other.held_out_mask()).all()


def mixed(folder: Path, count: int = 40) -> Folder:
    """Pictures of mixed sizes with captions, one without, labels and numbers."""
    folder.mkdir()
    rows = []
    for i in range(count):
        shape = (9 + i % 5, 12, 3)
        Image.fromarray(np.random.default_rng(i).integers(0, 255, shape, np.uint8)).save(folder / f"{i:03}.png")
        caption = [f"picture {i}", f"Bild Nummer {i} ü"] if i != 7 else []
        rows.append({"file_name": f"{i:03}.png", "caption": caption, "label": ["a", "b"][i % 2], "age": i / 4})
    (folder / "metadata.jsonl").write_text("\n".join(map(json.dumps, rows)))
    return Folder(path=str(folder), numbers=("age",), size=8)


@pytest.mark.parametrize("shards", [1, 3, 40, 1000])
def test_pictures_captions_labels_and_numbers(tmp_path: Path, shards: int) -> None:
    data = mixed(tmp_path / "in")
    made = pack(data, tmp_path / "out", shards=shards)
    packed = open_data(str(tmp_path / "out")).build()
    assert isinstance(packed, Packed) and len(packed) == len(data) == made.items
    assert made.shards == len(list((tmp_path / "out").glob("media-*.npy"))) <= shards
    same(data, packed, list(range(40)))
    same(data, packed, [39, 0, 0, 17, 3])


@pytest.mark.parametrize("data", [Digits(), Shapes(count=300)])
def test_built_in_sets_and_their_streams(tmp_path: Path, data: Data) -> None:
    pack(data, tmp_path / "out", shards=4)
    packed = Packed(path=str(tmp_path / "out"))
    same(data, packed, list(range(0, len(data), len(data) // 30)))
    with Loader(data.split("train"), 32, 5) as one, Loader(packed.split("train"), 32, 5, threads=2) as other:
        for _ in range(20):
            (n, a), (m, b) = next(one), next(other)
            assert (n == m).all() and torch.equal(a.media, b.media)
            assert list(a.conditions["caption"]) == list(b.conditions["caption"])  # type: ignore[arg-type]


def test_arrays_of_any_rank(tmp_path: Path) -> None:
    x = np.random.default_rng(0).normal(size=(50, 2, 4, 5, 6)).astype("float32")
    np.savez(tmp_path / "x.npz", x=x, y=np.arange(50) % 3)
    data = Arrays(path=str(tmp_path / "x.npz"), layout="first")
    pack(data, tmp_path / "full", shards=2)
    same(data, Packed(path=str(tmp_path / "full")), list(range(30)))
    pack(data, tmp_path / "half", dtype="float16")
    half = Packed(path=str(tmp_path / "half"))
    assert torch.equal(half.fetch(range(50)).media, torch.from_numpy(x.astype("float16").astype("float32")))
    assert (tmp_path / "half" / "media-00000.npy").stat().st_size == 128 + x.size * 2


def test_flips_follow_the_draw(tmp_path: Path) -> None:
    data = mixed(tmp_path / "in")
    pack(data, tmp_path / "out")
    packed, flipping = (
        Packed(path=str(tmp_path / "out"), flip=True),
        Folder(path=str(tmp_path / "in"), numbers=("age",), size=8, flip=True),
    )
    assert torch.equal(packed.fetch(range(40), DRAWS).media, flipping.fetch(range(40), DRAWS).media)
    assert not torch.equal(packed.fetch(range(40), DRAWS).media, packed.fetch(range(40)).media)
    assert len(Packed(path=str(tmp_path / "out"), held_out=0.25).split("held_out")) == 10


def test_fetching_changes_nothing_on_disk_and_shards_are_mapped(tmp_path: Path) -> None:
    pack(Digits(), tmp_path / "out")
    packed = Packed(path=str(tmp_path / "out"), flip=True)
    packed.fetch(range(100), (np.arange(100) + 0.5) / 100).media.fill_(7)
    packed.verify()
    assert all(isinstance(shard.base, np.memmap) for shard in packed._media)
    with pytest.raises(IndexError):
        packed.fetch([len(packed)])


def _sum(path: str) -> int:
    return int(Packed(path=path).fetch(range(1797)).media.sum())


def test_several_processes_read_one_folder(tmp_path: Path) -> None:
    pack(Digits(), tmp_path / "out", shards=2)
    with multiprocessing.get_context("spawn").Pool(2) as pool:
        sums = pool.map(_sum, [str(tmp_path / "out")] * 2)
    assert sums == [int(Digits().fetch(range(1797)).media.sum())] * 2


def test_unreadable_items_are_left_out_and_counted(tmp_path: Path) -> None:
    data = mixed(tmp_path / "in", 120)
    file = tmp_path / "in" / "031.png"
    file.write_bytes(file.read_bytes()[:100])
    fresh = Folder(path=data.path, numbers=("age",), size=8)
    made = pack(fresh, tmp_path / "out", shards=2)
    assert made.items == 119 and list(made.left_out) == [31] and made.left_out[31].startswith("031.png (")
    packed = Packed(path=str(tmp_path / "out"))
    rest = [i for i in range(120) if i != 31]
    assert torch.equal(packed.fetch(range(119)).media, fresh.fetch(rest).media)
    assert packed.columns(range(119))["caption"] == fresh.columns(rest)["caption"]
    assert (packed.held_out_mask() == fresh.held_out_mask()[rest]).all()
    assert packed.problems == (f"1 items of {data.path} could not be read and were left out",)
    file = tmp_path / "in" / "032.png"
    file.write_bytes(file.read_bytes()[:100])
    with pytest.raises(UserError, match="2 of 120 items can't be read, more than 1%"):
        pack(Folder(path=data.path, size=8), tmp_path / "other")
    assert not (tmp_path / "other").exists() and len(list(tmp_path.iterdir())) == 2


def test_every_changed_byte_is_noticed(tmp_path: Path) -> None:
    pack(Digits(), tmp_path / "out", shards=2)
    first = Packed(path=str(tmp_path / "out"))
    for file in sorted((tmp_path / "out").iterdir()):
        whole = bytearray(file.read_bytes())
        changed = bytearray(whole)
        changed[len(whole) // 2] ^= 1
        file.write_bytes(changed)
        if file.suffix == ".npy":
            with pytest.raises(CorruptError, match=file.name):
                Packed(path=str(tmp_path / "out")).verify()
        elif file.name != "MANIFEST.json":
            with pytest.raises(UserError, match=f"{file.name}: has changed"):
                Packed(path=str(tmp_path / "out"))
        file.write_bytes(whole[:-1])
        with pytest.raises((UserError, CorruptError), match="pack the data again"):
            Packed(path=str(tmp_path / "out"))
        file.write_bytes(whole)
    assert Packed(path=str(tmp_path / "out")).fingerprint() == first.fingerprint()
    pack(Digits(), tmp_path / "again", shards=2)
    assert Packed(path=str(tmp_path / "again")).fingerprint() == first.fingerprint()
    pack(Digits(), tmp_path / "other", shards=1)
    assert Packed(path=str(tmp_path / "other")).fingerprint() != first.fingerprint()


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"dtype": "float32"}, "dtype=float32: images are packed as uint8"),
        ({"shards": 0}, "shards=0: must be at least 1"),
    ],
)
def test_impossible_settings(tmp_path: Path, settings: dict[str, Any], said: str) -> None:
    with pytest.raises(UserError, match=said):
        pack(Digits(), tmp_path / "out", **settings)
    assert not list(tmp_path.iterdir())


def test_what_is_there_is_not_overwritten_unless_asked(tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("years of work")
    for fresh in (False, True):
        with pytest.raises(UserError, match="is there already; give a new name"):
            pack(Digits(), tmp_path / "mine", fresh=fresh)
    pack(Digits(), tmp_path / "out")
    with pytest.raises(UserError, match="--fresh replaces them"):
        pack(Shapes(count=9), tmp_path / "out")
    pack(Shapes(count=9), tmp_path / "out", fresh=True)
    assert len(Packed(path=str(tmp_path / "out"))) == 9


def test_numbers_too_large_for_float16(tmp_path: Path) -> None:
    np.save(tmp_path / "x.npy", np.full((4, 5), 1e5, np.float32))
    with pytest.raises(UserError, match="holds numbers up to 65,504"):
        pack(Arrays(path=str(tmp_path / "x.npy")), tmp_path / "out", dtype="float16")
    with pytest.raises(UserError, match="flip = True: is for images"):
        pack(Arrays(path=str(tmp_path / "x.npy")), tmp_path / "out")
        Packed(path=str(tmp_path / "out"), flip=True)
