"""`check` finds exactly what was put wrong, and the commands say it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from sfumato import cli
from sfumato.data import Arrays, Digits, Folder, Packed, check, pack


def painted(folder: Path, count: int) -> Path:
    for part, first in (("train", 0), ("test", 1000)):
        for i in range(count):
            file = folder / part / "ab"[i % 2] / f"{i:03}.png"
            file.parent.mkdir(parents=True, exist_ok=True)
            pixels = np.random.default_rng(first + i).integers(0, 255, (8, 8 + (i % 2), 3), np.uint8)
            Image.fromarray(pixels).save(file)
    return folder


def names(data: Folder, groups: list[list[int]]) -> list[list[str]]:
    return [[data.name_of(i) for i in group] for group in groups]


def test_unreadable_ones_duplicates_and_leaks(tmp_path: Path) -> None:
    folder = painted(tmp_path, 20)
    copy = (folder / "train/a/000.png").read_bytes()
    (folder / "train/a/002.png").write_bytes(copy)
    (folder / "train/b/003.png").write_bytes((folder / "test/b/005.png").read_bytes())
    with Image.open(folder / "test/a/000.png") as image:
        image.save(folder / "test/a/004.png", compress_level=0)  # other bytes, the same picture
    (folder / "train/a/006.png").write_bytes(copy[:150])
    (folder / "test/a/008.png").write_bytes(b"no picture")
    (folder / "train/a/000.txt").write_text("the only caption")
    data = Folder(path=str(folder), broken=1, size=8)
    report = check(data)
    assert report.items == 40 and report.held_out == 20 and not report.good
    assert {data.name_of(i) for i in report.unreadable} == {"train/a/006.png", "test/a/008.png"}
    assert names(data, report.duplicates) == [
        ["test/a/000.png", "test/a/004.png"],
        ["train/a/000.png", "train/a/002.png"],
    ]
    assert names(data, report.leaks) == [["test/b/005.png", "train/b/003.png"]]
    assert report.labels == {"a": 18, "b": 20} and report.without_caption == 37
    assert report.sizes == {"8 x 9": 20, "8 x 8": 18}


def test_clean_data_of_all_kinds_are_good(tmp_path: Path) -> None:
    np.save(tmp_path / "x.npy", np.random.default_rng(0).normal(size=(90, 7)).astype("float32"))
    seen: list[int] = []
    assert check(Arrays(path=str(tmp_path / "x.npy")), seen.append).good and seen == [64, 90]
    report = check(Digits())
    assert report.good and report.labels["3"] == 183 and sum(report.labels.values()) == 1797


def test_a_changed_shard_is_found(tmp_path: Path) -> None:
    pack(Digits(), tmp_path / "out")
    file = tmp_path / "out" / "media-00000.npy"
    raw = bytearray(file.read_bytes())
    raw[5000] ^= 4
    file.write_bytes(raw)
    report = check(Packed(path=str(tmp_path / "out")))
    assert not report.good and "media-00000.npy: has changed since it was written" in report.changed


def run(capsys: pytest.CaptureFixture[str], *words: Any) -> tuple[int, str, str]:
    code = cli.run([str(w) for w in words])
    said = capsys.readouterr()
    return code, said.out, said.err


def test_the_command_lists_the_first_twenty(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = painted(tmp_path, 30)
    assert run(capsys, "data", "check", folder, "size=8")[0] == 0
    for i in range(25):
        (folder / "train" / "ab"[i % 2] / f"{i:03}.png").write_bytes(b"no")
    (folder / "train/b/029.png").write_bytes((folder / "test/b/029.png").read_bytes())
    code, out, _ = run(capsys, "data", "check", folder, "size=8")
    lines = out.splitlines()
    assert code == 1 and lines[0].startswith(f"{folder}: 60 items, 30 held out; read in ")
    assert "unreadable: 25" in lines and "  and 5 more" in lines
    assert sum(line.endswith("(not a PNG, JPEG, WebP, GIF or BMP picture)") for line in lines) == 20
    assert "  test/b/029.png = train/b/029.png" in lines and "2 classes: from 17 items (a) to 18 (b)" in lines
    code, out, _ = run(capsys, "data", "check", folder, "size=8", "--json")
    found = json.loads(out)
    assert code == 1 and found["good"] is False and len(found["unreadable"]) == 25 and len(found["leaks"]) == 1


def test_check_of_nothing_readable_is_one_sentence(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "a.png").write_bytes(b"no")
    code, _, err = run(capsys, "data", "check", tmp_path)
    assert code == 2 and "no picture can be read: a.png (not a PNG" in err and err.count("\n") == 1
    assert run(capsys, "data", "check", "digits", "size=9")[0] == 2


def test_pack_and_train_on_it(tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: Any) -> None:
    monkeypatch.chdir(tmp_path)
    painted(tmp_path / "in", 10)
    code, out, _ = run(capsys, "data", "pack", "in", "size=8", "shards=2", "-o", "out")
    assert code == 0 and out.startswith("out: 20 items in 2 shards, ") and "next: sfumato train image data=out" in out
    code, out, _ = run(capsys, "data", "preview", "out", "--json")
    assert json.loads(out)["items"] == 20 and json.loads(out)["labels"] == ["a", "b"]
    assert run(capsys, "data", "pack", "in", "size=8", "-o", "out")[0] == 2
    code, out, _ = run(capsys, "data", "pack", "digits", "-o", "out", "--fresh", "--json")
    assert code == 0 and json.loads(out)["items"] == 1797
    code, _, err = run(capsys, "data", "pack", "digits", "dtype=int4", "-o", "new")
    assert code == 2 and "dtype=int4: images are packed as uint8" in err and not (tmp_path / "new").exists()
