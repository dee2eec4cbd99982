"""The cache gives back what was put in, and never what was made from something else."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from sfumato.core.media import Batch
from sfumato.data import Digits, Folder, Packed, Shapes, cached, pack
from sfumato.data.cache import DTYPES, Store, key_of
from sfumato.errors import SfumatoError, UserError

PARTS = {"transform": "size=8", "encoder": "a" * 64}


class Halving:
    """An encoder that counts what it is given."""

    def __init__(self, factor: float = 0.5) -> None:
        self.factor, self.seen = factor, 0

    def __call__(self, batch: Batch) -> Tensor:
        self.seen += len(batch)
        return batch.media[:, :, ::2, ::2].float() * self.factor


def painted(folder: Path, count: int = 120) -> Folder:
    folder.mkdir(exist_ok=True)
    for i in range(count):
        pixels = np.random.default_rng(i).integers(0, 255, (24, 24, 3), np.uint8)
        Image.fromarray(pixels).save(folder / f"{i:03}.png")
        (folder / f"{i:03}.txt").write_text(f"picture {i}\nBild {i}")
    return Folder(path=str(folder), size=8)


def test_each_item_is_encoded_once(tmp_path: Path) -> None:
    data, encode = painted(tmp_path / "in"), Halving()
    made = cached(encode, data, PARTS, tmp_path / "cache")
    want = Halving()(data.fetch(range(20)))
    assert torch.equal(made.fetch(range(20)).media, want) and made.info.shape == (3, 4, 4)
    assert encode.seen == 20
    assert torch.equal(made.fetch([3, 3, 19]).media, want[[3, 3, 19]]) and encode.seen == 20
    again = cached(encode, painted(tmp_path / "in"), PARTS, tmp_path / "cache")
    batch = again.fetch([7, 30], np.asarray([0.1, 0.9]))
    assert torch.equal(batch.media[0], want[7]) and encode.seen == 21 and (again.found, again.made) == (1, 1)
    assert batch.conditions["caption"] == data.columns([7, 30], np.asarray([0.1, 0.9]))["caption"]
    assert again.info.captions and (again.held_out_mask() == data.held_out_mask()).all()


@pytest.mark.parametrize(
    "change", ["file", "size", "transform", "encoder", "dtype", "another part", "encoder of texts"]
)
def test_a_change_of_any_part_is_another_entry(tmp_path: Path, change: str) -> None:
    folder, store = tmp_path / "in", tmp_path / "cache"
    stale = cached(Halving(), painted(folder), PARTS, store)
    before, key = stale.fetch([5, 6]).media, stale.key(5)
    data, parts, how = painted(folder), dict(PARTS), {}
    if change == "file":
        Image.new("RGB", (24, 24), (1, 2, 3)).save(folder / "005.png")
    elif change == "size":
        data = Folder(path=str(folder), size=16)
    elif change in parts:
        parts[change] += "b"
    elif change == "dtype":
        how = {"dtype": "float16"}
    elif change == "encoder of texts":
        how = {"of": "caption"}
    else:
        parts["commit"] = "1"
    encode = Halving(0.25)
    now = cached(encode, data, parts, store, **how)  # type: ignore[arg-type]
    assert now.key(5) != key
    if change not in ("file", "size"):
        assert now.fingerprint() != stale.fingerprint()
    after = now.fetch([5, 6]).media
    expected = Halving(0.25)(data.fetch([5, 6])).to(DTYPES[how.get("dtype", "float32")]).float()
    assert torch.equal(after[0], expected[0]) and not torch.equal(after[0], before[0])
    assert torch.equal(Store(store).read(key), before[0])  # type: ignore[arg-type]  # the old one lies there still
    assert encode.seen == (1 if change == "file" else 2)
    assert torch.equal(after[1], before[1] if change == "file" else expected[1])


def test_keys_are_of_all_parts_and_their_borders() -> None:
    keys = {key_of(i, {a: b}) for i, a, b in (("x", "a", "b"), ("xa", "", "b"), ("x", "ab", ""), ("x", "b", "a"))}
    assert len(keys) == 4 and all(len(key) == 64 for key in keys)
    assert key_of("x", {"a": "1", "b": "2"}) == key_of("x", {"b": "2", "a": "1"})


@pytest.mark.parametrize("dtype", list(DTYPES))
@pytest.mark.parametrize("shape", [(), (0,), (3,), (4, 8, 8)])
def test_tensors_come_back_bit_for_bit(tmp_path: Path, dtype: str, shape: tuple[int, ...]) -> None:
    value = torch.randn(shape, dtype=torch.float64).to(DTYPES[dtype])
    store = Store(tmp_path)
    assert store.read("ab" * 32) is None
    store.write("ab" * 32, value)
    back = store.read("ab" * 32)
    assert back is not None and back.dtype == value.dtype and back.shape == value.shape
    assert back.reshape(-1).view(torch.uint8).tolist() == value.reshape(-1).view(torch.uint8).tolist()
    assert [f.name for f in tmp_path.rglob("*") if f.is_file()] == ["ab" * 32 + ".tensor"]


def test_a_damaged_entry_is_made_again(tmp_path: Path) -> None:
    data, encode = Digits(), Halving()
    made = cached(encode, data, PARTS, tmp_path)
    want = made.fetch([4]).media
    file = made.store.file(made.key(4))
    whole = file.read_bytes()
    for place in range(0, len(whole), 7):
        changed = bytearray(whole)
        changed[place] ^= 1
        file.write_bytes(changed)
        assert made.store.read(made.key(4)) is None
    for length in (0, 5, 40, len(whole) - 1):
        file.write_bytes(whole[:length])
        seen = encode.seen
        assert torch.equal(made.fetch([4]).media, want) and encode.seen == seen + 1
        assert file.read_bytes() == whole
    other = made.store.file(made.key(5))
    other.parent.mkdir(exist_ok=True)
    other.write_bytes(whole)  # a whole entry under the name of another
    assert made.store.read(made.key(5)) is None


def test_what_stands_in_for_an_unreadable_item_is_not_kept(tmp_path: Path) -> None:
    data = painted(tmp_path / "in")
    file = tmp_path / "in" / "005.png"
    file.write_bytes(file.read_bytes()[:200])
    made = cached(Halving(), data, PARTS, tmp_path / "cache")
    batch = made.fetch([4, 5])
    stand_in = data.fetch([5])
    assert torch.equal(batch.media[1], Halving()(stand_in)[0]) and list(made.unreadable()) == [5]
    assert batch.conditions["caption"] == ["picture 4", *stand_in.conditions["caption"]]
    assert not made.store.file(made.key(5)).exists() and made.store.file(made.key(4)).exists()


def test_texts_are_keyed_by_the_text(tmp_path: Path) -> None:
    seen: list[str] = []

    def encode(batch: Batch) -> Tensor:
        texts = [str(t) for t in batch.conditions["caption"]]
        seen.extend(texts)
        return torch.tensor([[float(b) for b in hashlib.sha256(t.encode()).digest()] for t in texts])

    made = cached(encode, Digits(), PARTS, tmp_path, of="caption")
    media = made.fetch(range(300)).media
    assert len(seen) == len(set(seen)) == 10 and media.shape == (300, 32)
    labels = Digits().columns(range(300))["label"]
    for k in range(10):
        assert len(media[labels == k].unique(dim=0)) == 1  # type: ignore[index]


def test_a_cache_can_be_packed(tmp_path: Path) -> None:
    made = cached(Halving(), Shapes(count=50), PARTS, tmp_path / "cache", dtype="float16")
    pack(made, tmp_path / "packed", dtype="float16")
    packed = Packed(path=str(tmp_path / "packed"))
    assert torch.equal(packed.fetch(range(50)).media, made.fetch(range(50)).media) and packed.info == made.info


@pytest.mark.parametrize(
    ("parts", "settings", "said"),
    [
        ({"transform": "x"}, {}, "'encoder' is missing"),
        ({"transform": "", "encoder": "x"}, {}, "'transform' is missing"),
        (PARTS, {"dtype": "int8"}, "dtype = int8"),
        (PARTS, {"of": "label"}, "of = label"),
    ],
)
def test_what_is_refused(tmp_path: Path, parts: dict[str, str], settings: dict[str, Any], said: str) -> None:
    with pytest.raises(UserError, match=said):
        cached(Halving(), Digits(), parts, tmp_path, **settings)


def test_an_encoder_that_loses_items_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(SfumatoError, match="encode gave 1 values for 2 items"):
        cached(lambda batch: batch.media[:1].float(), Digits(), PARTS, tmp_path).fetch([0, 1])
