"""Folders: order, classes, captions, metadata, splits, the cache, and every mistake's sentence."""

from __future__ import annotations

import json
import os
import re
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from sfumato.data import Folder, Loader
from sfumato.data.broken import stand_ins
from sfumato.errors import UserError


def paint(path: Path, value: int | tuple[int, ...] = 0, size: tuple[int, int] = (8, 8), mode: str = "RGB") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    shade = value if mode != "RGB" or isinstance(value, tuple) else (value,) * 3
    Image.new(mode, size, shade).save(path)  # type: ignore[arg-type]
    return path


def numbered(folder: Path, count: int, **settings: Any) -> Path:
    """Pictures 0000.png ... of grey value = number."""
    for i in range(count):
        paint(folder / f"{i:04}.png", i % 256, **settings)
    return folder


def values(batch: Any) -> list[int]:
    return [int(v) for v in batch.media[:, 0, 0, 0]]


def refused(said: str, path: Path, **settings: Any) -> None:
    with pytest.raises(UserError, match=re.escape(said)) as caught:
        Folder(path=str(path), **settings)
    assert "\n" not in str(caught.value)


def test_items_come_in_the_order_of_their_names(tmp_path: Path) -> None:
    for name in ("b/2.png", "a/9.jpg", "a/10.png", "c.webp"):
        paint(tmp_path / name, 7)
    (tmp_path / ".hidden.png").write_bytes(b"")
    (tmp_path / "notes.md").write_text("x")
    data = Folder(path=str(tmp_path))
    assert [data.name_of(i) for i in range(len(data))] == ["a/10.png", "a/9.jpg", "b/2.png", "c.webp"]
    assert data.info.labels == ()  # one picture lies in no class
    assert data.info.shape == (3, 8, 8)


def test_classes_are_the_sorted_sub_folders(tmp_path: Path) -> None:
    for name in ("zebra", "ant", "bee"):
        paint(tmp_path / name / "1.png", len(name))
    data = Folder(path=str(tmp_path))
    assert data.info.labels == ("ant", "bee", "zebra")
    batch = data.fetch(range(3))
    assert batch.conditions["label"].tolist() == [0, 1, 2] and values(batch) == [3, 3, 5]  # type: ignore[union-attr]


def test_numbered_classes_keep_their_numbers(tmp_path: Path) -> None:
    for k in range(12):
        paint(tmp_path / str(k) / "a.png", k)
    data = Folder(path=str(tmp_path))
    assert data.info.labels == tuple(map(str, range(12)))
    batch = data.fetch(range(12))
    assert batch.conditions["label"].tolist() == values(batch)  # type: ignore[union-attr]


def test_captions_lie_beside_the_pictures(tmp_path: Path) -> None:
    numbered(tmp_path, 3)
    (tmp_path / "0000.txt").write_text("one\n\n two \n", encoding="utf-8")
    (tmp_path / "0001.txt").write_text("ein Käfer\n", encoding="utf-8")
    data = Folder(path=str(tmp_path))
    assert data.info.captions
    assert data.columns(range(3))["caption"] == ["one", "ein Käfer", ""]
    drawn = data.columns([0] * 400, np.linspace(0, 0.999, 400))["caption"]
    assert 150 < list(drawn).count("two") < 250  # type: ignore[arg-type]
    assert data.problems == ("1 of 3 pictures have no caption",)


@pytest.mark.parametrize("kind", ["jsonl", "csv"])
def test_metadata_gives_captions_labels_and_numbers(tmp_path: Path, kind: str) -> None:
    numbered(tmp_path, 3)
    rows = [
        {"file_name": f"{i:04}.png", "text": f"picture, {i}", "label": ["cat", "ant", "cat"][i], "age": i / 2}
        for i in (2, 0, 1)
    ]
    if kind == "jsonl":
        (tmp_path / "metadata.jsonl").write_text("\n".join(map(json.dumps, rows)))
    else:
        lines = [f'{r["file_name"]},"{r["text"]}",{r["label"]},{r["age"]}' for r in rows]
        (tmp_path / "metadata.csv").write_text("\n".join(["file_name,text,label,age", *lines]))
    data = Folder(path=str(tmp_path), numbers=("age",))
    taken = data.columns(range(3))
    assert taken["caption"] == ["picture, 0", "picture, 1", "picture, 2"]
    assert data.info.labels == ("ant", "cat") and taken["label"].tolist() == [1, 0, 1]  # type: ignore[union-attr]
    assert taken["number"].tolist() == [[0.0], [0.5], [1.0]] and data.info.numbers == ("age",)  # type: ignore[union-attr]


def test_csv_labels_that_are_whole_numbers_are_taken_as_they_are(tmp_path: Path) -> None:
    numbered(tmp_path, 3)
    (tmp_path / "metadata.csv").write_text("file_name,label\n0000.png,2\n0001.png,0\n0002.png,2\n")
    data = Folder(path=str(tmp_path))
    assert data.columns(range(3))["label"].tolist() == [2, 0, 2] and data.info.labels == ("0", "1", "2")  # type: ignore[union-attr]


def test_train_and_test_folders_are_the_split(tmp_path: Path) -> None:
    for part in ("train", "test"):
        for name in ("cat", "dog"):
            for i in range(3):
                paint(tmp_path / part / name / f"{i}.png", i)
    data = Folder(path=str(tmp_path))
    assert data.info.labels == ("cat", "dog")
    held = data.split("held_out")
    assert {data.name_of(int(i)).split("/")[0] for i in held.indices} == {"test"} and len(held) == 6
    assert len(Folder(path=str(tmp_path), held_out=0.25).split("held_out")) == 3


def test_mixed_sizes_become_one(tmp_path: Path) -> None:
    for i, size in enumerate([(100, 60), (33, 47), (300, 50), (64, 64)]):
        paint(tmp_path / f"{i}.png", i, size)
    assert Folder(path=str(tmp_path)).info.shape == (3, 48, 48)  # median shorter side 55, down to a multiple of 8
    assert Folder(path=str(tmp_path), size=32).info.shape == (3, 32, 32)
    assert Folder(path=str(tmp_path), size=(20, 30)).fetch([0]).media.shape == (1, 3, 20, 30)


def test_random_crop_and_flip_follow_the_draw(tmp_path: Path) -> None:
    ramp = np.broadcast_to(np.arange(24, dtype=np.uint8) * 10, (8, 24))
    Image.fromarray(ramp.copy()).save(tmp_path / "a.png")
    data = Folder(path=str(tmp_path), size=8, crop="random", flip=True)
    draws = (np.arange(3000) + 0.5) / 3000
    rows = data.fetch([0] * 3000, draws).media[:, 0, 0].numpy()
    assert torch.equal(data.fetch([0] * 5, draws[70:75]).media[:, 0, 0], torch.from_numpy(rows[70:75]))
    steps = np.diff(rows.astype(int), axis=1)
    assert ((steps == 10).all(1) | (steps == -10).all(1)).all()
    assert 0.46 < (steps[:, 0] < 0).mean() < 0.54
    counts = np.bincount(rows.min(1) // 10, minlength=17)
    assert len(counts) == 17 and ((counts - 3000 / 17) ** 2 / (3000 / 17)).sum() < 40  # every place alike
    assert data.fetch([0]).media[0, 0, 0].tolist() == ramp[0, 8:16].tolist()


def test_pictures_are_decoded_once(tmp_path: Path) -> None:
    data = Folder(path=str(numbered(tmp_path, 20)))
    first = data.fetch(range(20)).media
    for file in tmp_path.iterdir():
        file.unlink()
    assert torch.equal(data.fetch(range(20)).media, first)


def test_without_a_cache_every_fetch_decodes(tmp_path: Path) -> None:
    data = Folder(path=str(numbered(tmp_path, 4)), cache=0)
    assert values(data.fetch([2, 2, 0])) == [2, 2, 0]
    paint(tmp_path / "0002.png", 99)
    assert values(data.fetch([2, 0])) == [99, 0]


def test_the_stream_is_the_same_for_any_thread_count(tmp_path: Path) -> None:
    numbered(tmp_path, 60, size=(12, 9))
    streams = []
    for threads in (1, 4):
        with Loader(
            Folder(path=str(tmp_path), crop="random", flip=True, size=8).split("train"), 16, seed=1, threads=threads
        ) as loader:
            streams.append(torch.cat([next(loader)[1].media for _ in range(12)]))
    assert torch.equal(*streams)


def test_a_bad_picture_is_replaced_by_a_function_of_its_index_and_named(tmp_path: Path) -> None:
    numbered(tmp_path, 200)
    whole = (tmp_path / "0050.png").read_bytes()
    (tmp_path / "0050.png").write_bytes(whole[:40])
    first = next(stand_ins(50, np.arange(200)))
    (tmp_path / f"{first:04}.png").write_bytes(b"not a picture")
    second = next(i for i in stand_ins(50, np.arange(200)) if i not in (50, first))
    (tmp_path / "0050.txt").write_text("fifty")
    (tmp_path / f"{second:04}.txt").write_text("the other")
    for order in ([50, 52, 53], [53, first, 50], [50]):
        data = Folder(path=str(tmp_path), held_out=0, size=8)
        got = dict(zip(order, zip(values(batch := data.fetch(order)), batch.conditions["caption"])))
        assert got[50] == (second, "the other") and got.get(53, (53, "")) == (53, "")
        assert "2 of 200 pictures can't be read" in data.problems[0]
        assert "0050.png (" in data.problems[0] and f"{first:04}.png (not a PNG" in data.problems[0]
        assert set(data.unreadable()) == {50, first} and set(data.unreadable([50, 53])) == {50}


def test_the_replacement_is_of_the_same_part(tmp_path: Path) -> None:
    numbered(tmp_path, 200)
    mask = Folder(path=str(tmp_path)).held_out_mask()
    for held in (False, True):
        bad = int(np.flatnonzero(mask == held)[3])
        kept = (tmp_path / f"{bad:04}.png").read_bytes()
        (tmp_path / f"{bad:04}.png").write_bytes(b"")
        data = Folder(path=str(tmp_path))
        got = values(data.fetch([bad]))[0]
        assert mask[got] == held and got == next(i for i in stand_ins(bad, np.flatnonzero(mask == held)) if i != bad)
        part = data.split("held_out" if held else "train")
        assert list(part.unreadable()) == [3] and part.unreadable([2]) == {} and 3 in part.unreadable([2, 3])
        (tmp_path / f"{bad:04}.png").write_bytes(kept)


def test_more_than_one_percent_bad_stops_with_the_list(tmp_path: Path) -> None:
    numbered(tmp_path, 200)
    for i in (3, 7, 100):
        (tmp_path / f"{i:04}.png").write_bytes(b"no")
    refused("3 of 200 items can't be read, more than 1%: 0003.png (not a PNG", tmp_path)
    refused("0100.png", tmp_path)


@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
def test_a_picture_bomb_is_named_with_its_size(tmp_path: Path) -> None:
    numbered(tmp_path, 2)
    header = bytearray((tmp_path / "0000.png").read_bytes())
    header[16:24] = (50_000).to_bytes(4, "big") * 2
    header[29:33] = zlib.crc32(header[12:29]).to_bytes(4, "big")
    (tmp_path / "bomb.png").write_bytes(header)
    refused("bomb.png (", tmp_path)
    refused("over the limit of 64 million pixels", tmp_path)


def test_missing_and_empty_folders(tmp_path: Path) -> None:
    refused("there is no such folder", tmp_path / "nowhere")
    refused("holds no pictures", tmp_path)
    (tmp_path / "a.tiff").write_bytes(b"")
    refused("1 .tiff files are not read", tmp_path)
    paint(tmp_path / "a.png")
    refused("is not a folder", tmp_path / "a.png")
    assert Folder(path=str(tmp_path)).problems == ("1 .tiff files are not read; convert them to PNG, JPEG or WebP",)


def test_mixed_channel_counts_are_named_or_converted(tmp_path: Path) -> None:
    paint(tmp_path / "a.png", 9, mode="L")
    paint(tmp_path / "b.png", 9)
    refused("1 pictures have 1 channel (a.png) and 1 have 3 (b.png); set channels=3", tmp_path)
    assert Folder(path=str(tmp_path), channels=3).fetch([0, 1]).media.unique().tolist() == [9]
    assert Folder(path=str(tmp_path), channels=1).info.shape == (1, 8, 8)


def test_alpha_settings(tmp_path: Path) -> None:
    paint(tmp_path / "a.png", (10, 20, 30, 0), mode="RGBA")
    paint(tmp_path / "b.png", (10, 20, 30))
    assert Folder(path=str(tmp_path)).fetch([0]).media[0, :, 0, 0].tolist() == [255, 255, 255]
    assert Folder(path=str(tmp_path), alpha="#010203").fetch([0]).media[0, :, 0, 0].tolist() == [1, 2, 3]
    kept = Folder(path=str(tmp_path), alpha="keep")
    assert kept.info.shape[0] == 4 and kept.fetch([0, 1]).media[:, 3, 0, 0].tolist() == [0, 255]
    refused("alpha = 'keep' needs a channel for it; set channels=4", tmp_path, alpha="keep", channels=3)


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"size": 0}, "size = 0"),
        ({"size": (1, 2, 3)}, "size = (1, 2, 3)"),
        ({"channels": 5}, "channels = 5"),
        ({"alpha": "vhite"}, "alpha = 'vhite'"),
        ({"held_out": 1.5}, "held_out = 1.5"),
        ({"cache": -1}, "cache = -1"),
        ({"numbers": ("age",)}, "needs a metadata.jsonl"),
    ],
)
def test_impossible_settings(tmp_path: Path, settings: dict[str, Any], said: str) -> None:
    paint(tmp_path / "a.png")
    refused(said, tmp_path, **settings)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ('{"file_name": "b.png"}', "metadata.jsonl:1: there is no picture 'b.png'"),
        ('{"file_name": "a.png"}\n{"file_name": "a.png"}', "metadata.jsonl:2: 'a.png' has a row already"),
        ('{"file_name": "../a.png"}', "metadata.jsonl:1: file_name '../a.png' points outside"),
        ('{"file_name": "/etc/a.png"}', "points outside"),
        ('{"text": "x"}', "metadata.jsonl:1: has no file_name"),
        ("[1]", "metadata.jsonl:1: is not a JSON object"),
        ("{", "not readable"),
        ('{"file_name": "a.png", "text": 5}', "the caption 5 is not text"),
        ('{"file_name": "a.png", "label": 1.5}', "the label of item 0 is 1.5"),
        ('{"file_name": "a.png", "label": -1}', "the label of item 0 is -1, outside"),
    ],
)
def test_mistakes_in_metadata(tmp_path: Path, text: str, said: str) -> None:
    paint(tmp_path / "a.png")
    (tmp_path / "metadata.jsonl").write_text(text)
    refused(said, tmp_path)


def test_a_picture_without_a_label_is_named(tmp_path: Path) -> None:
    numbered(tmp_path, 2)
    (tmp_path / "metadata.jsonl").write_text('{"file_name": "0000.png", "label": "x"}')
    refused("'0001.png' has no 'label', 1 in all", tmp_path)


def test_numbers_must_be_finite(tmp_path: Path) -> None:
    paint(tmp_path / "a.png")
    (tmp_path / "metadata.csv").write_text("file_name,age\na.png,old\n")
    refused("'age' of item 0 is 'old'", tmp_path, numbers=("age",))
    (tmp_path / "metadata.jsonl").write_text("")
    refused("both metadata.jsonl and metadata.csv", tmp_path)


def test_captions_that_are_no_text(tmp_path: Path) -> None:
    paint(tmp_path / "a.png")
    (tmp_path / "a.txt").write_bytes(b"\xff\xfe\x00")
    refused("a.txt: is not UTF-8 text", tmp_path)


def test_loops_of_links_end(tmp_path: Path) -> None:
    numbered(tmp_path / "real", 2)
    (tmp_path / "real" / "loop").symlink_to(tmp_path)
    (tmp_path / "again").symlink_to(tmp_path / "real")
    assert len(Folder(path=str(tmp_path))) == 2


def test_the_fingerprint_follows_the_content(tmp_path: Path) -> None:
    numbered(tmp_path, 5)
    first = Folder(path=str(tmp_path)).fingerprint()
    os.utime(tmp_path / "0000.png", (1, 1))
    assert Folder(path=str(tmp_path)).fingerprint() == first
    paint(tmp_path / "0003.png", 77)
    assert Folder(path=str(tmp_path)).fingerprint() != first
