"""Files and folders on disk: atomic, checked, and clear about what went wrong."""

from __future__ import annotations

import errno
import json
import os
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from sfumato import files
from sfumato.errors import UserError
from sfumato.files import (
    MANIFEST,
    CorruptError,
    DiskFullError,
    make_folder,
    remove_leftovers,
    replacing_folder,
    verify_manifest,
    write_atomic,
    write_manifest,
)


def make(folder: Path) -> Path:
    with replacing_folder(folder) as inside:
        (inside / "a.json").write_text("{}")
        (inside / "deep").mkdir()
        save_file({"w": torch.arange(64.0)}, inside / "deep" / "w.safetensors")
    return folder


def test_a_file_is_replaced_as_a_whole(tmp_path: Path) -> None:
    write_atomic(tmp_path / "x", "old")
    write_atomic(tmp_path / "x", b"new")
    assert (tmp_path / "x").read_bytes() == b"new"
    assert [p.name for p in tmp_path.iterdir()] == ["x"]


def test_a_published_folder_verifies_and_replaces_the_old_one(tmp_path: Path) -> None:
    folder = make(tmp_path / "model")
    (folder / "stale").write_text("from before")
    make(folder)
    verify_manifest(folder)
    assert sorted(p.name for p in folder.iterdir()) == [MANIFEST, "a.json", "deep"]
    assert [p.name for p in tmp_path.iterdir()] == ["model"]
    listed = json.loads((folder / MANIFEST).read_text())["files"]
    assert listed["a.json"] == {
        "size": 2,
        "sha256": "44136fa355b3678a1146ad16f7e8649e94fb4fc21fe77e8310c060f61caaff8a",
    }


def test_an_error_while_filling_leaves_the_old_folder_and_nothing_else(tmp_path: Path) -> None:
    folder = make(tmp_path / "model")
    with pytest.raises(ZeroDivisionError), replacing_folder(folder) as inside:
        (inside / "half").write_text("x")
        _ = 1 / 0
    verify_manifest(folder)
    assert [p.name for p in tmp_path.iterdir()] == ["model"]


def flip(file: Path) -> None:
    raw = bytearray(file.read_bytes())
    raw[len(raw) // 2] ^= 1
    file.write_bytes(raw)


def truncate(file: Path) -> None:
    file.write_bytes(file.read_bytes()[:-1])


def empty(file: Path) -> None:
    file.write_bytes(b"")


@pytest.mark.parametrize("name", ["a.json", "deep/w.safetensors", MANIFEST])
@pytest.mark.parametrize("damage", [flip, truncate, empty, Path.unlink])
def test_every_damage_is_found_and_named(tmp_path: Path, name: str, damage) -> None:
    folder = make(tmp_path / "model")
    damage(folder / name)
    with pytest.raises(CorruptError) as caught:
        verify_manifest(folder)
    # A damaged manifest may accuse the file whose entry it holds.
    assert caught.value.file == folder / name or name == MANIFEST
    assert str(folder) in str(caught.value)


def test_some_files_can_be_checked_without_the_others(tmp_path: Path) -> None:
    folder = make(tmp_path / "model")
    flip(folder / "deep" / "w.safetensors")
    verify_manifest(folder, ["a.json"])
    with pytest.raises(CorruptError, match=r"w\.safetensors"):
        verify_manifest(folder)
    with pytest.raises(CorruptError, match=r"does not list b\.json"):
        verify_manifest(folder, ["b.json"])


@pytest.mark.parametrize("name", ["../outside", "/etc/passwd"])
def test_a_manifest_may_not_point_outside(tmp_path: Path, name: str) -> None:
    folder = make(tmp_path / "model")
    (folder / MANIFEST).write_text(json.dumps({"files": {name: {"size": 0, "sha256": ""}}}))
    with pytest.raises(CorruptError, match="not a manifest"):
        verify_manifest(folder)


@pytest.mark.parametrize("name", ["w.pt", "w.BIN", "w.ckpt", "w.pkl"])
def test_pickles_are_refused(tmp_path: Path, name: str) -> None:
    folder = make(tmp_path / "model")
    (folder / name).write_bytes(b"")
    write_manifest(folder)
    with pytest.raises(UserError, match=r"pickle .* convert it to \.safetensors"):
        verify_manifest(folder)


@pytest.mark.parametrize(
    ("number", "kind", "words"),
    [
        (errno.ENOSPC, DiskFullError, "no space left"),
        (errno.EDQUOT, DiskFullError, "no space left"),
        (errno.EROFS, UserError, "Read-only"),
        (errno.EACCES, UserError, "choose another folder"),
    ],
)
def test_the_systems_refusals_are_sentences(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int, kind: type[Exception], words: str
) -> None:
    def refuse(handle: int) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(files.os, "fsync", refuse)
    with pytest.raises(kind, match=words):
        write_atomic(tmp_path / "x", "content")
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(kind, match=words):
        make(tmp_path / "model")
    assert list(tmp_path.iterdir()) == []


def test_a_file_in_the_place_of_a_folder(tmp_path: Path) -> None:
    (tmp_path / "runs").write_text("")
    with pytest.raises(UserError, match="something else is in its place"):
        make_folder(tmp_path / "runs" / "demo")
    with pytest.raises(UserError, match="something else is in its place"):
        make_folder(tmp_path / "runs")


def test_leftovers_of_a_killed_process_are_removed(tmp_path: Path) -> None:
    (tmp_path / ".step-1.0a1b2c3d.tmp").mkdir()
    (tmp_path / ".model.0a1b2c3d.old").mkdir()
    (tmp_path / ".x.0a1b2c3d.tmp").write_text("")
    (tmp_path / "step-1").mkdir()
    (tmp_path / "model").mkdir()
    (tmp_path / ".moved.0a1b2c3d.old").mkdir()  # killed between the two renames
    remove_leftovers(tmp_path)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["model", "moved", "step-1"]
