"""Tar shards: WebDataset keys, and archives that try something."""

from __future__ import annotations

import io
import json
import re
import tarfile
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from sfumato.data import Tar
from sfumato.errors import UserError

LINKS = (tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.CHRTYPE, tarfile.FIFOTYPE)


def png(value: int) -> bytes:
    stream = io.BytesIO()
    Image.new("RGB", (6, 6), (value,) * 3).save(stream, "PNG")
    return stream.getvalue()


def shard(path: Path, members: list[tuple[str, Any]]) -> str:
    """Members are (name, bytes); the type of a link or device in place of the bytes makes one."""
    with tarfile.open(path, "w") as archive:
        for name, content in members:
            member = tarfile.TarInfo(name)
            if name == "a.png" and content in LINKS:
                member.type, member.linkname = content, "/etc/passwd"
                archive.addfile(member)
            else:
                member.size = len(content)
                archive.addfile(member, io.BytesIO(content))
    return str(path)


def refused(said: str, path: Any, **settings: Any) -> None:
    with pytest.raises(UserError, match=re.escape(said)):
        Tar(path=path, **settings)


def test_keys_join_pictures_captions_and_labels(tmp_path: Path) -> None:
    path = shard(
        tmp_path / "a.tar",
        [
            ("./x/0001.png", png(1)),
            ("./x/0001.txt", b"one\nuno"),
            ("./x/0001.cls", b"3"),
            ("0002.cls", b"0"),
            ("0002.seg.png", b"another picture"),
            ("0002.PNG", png(2)),
            ("readme.md", b"-"),
            ("0003.txt", b"a caption without a picture"),
        ],
    )
    data = Tar(path=path, held_out=0)
    batch = data.fetch([0, 1])
    assert batch.media[:, 0, 0, 0].tolist() == [1, 2] and len(data) == 2
    assert batch.conditions["caption"] == ["one", ""] and batch.conditions["label"].tolist() == [3, 0]  # type: ignore[union-attr]
    assert data.info.labels == ("0", "1", "2", "3") and data.name_of(0) == "a.tar/x/0001"


def test_json_gives_captions_labels_and_numbers(tmp_path: Path) -> None:
    row = {"caption": ["one", "uno"], "label": "cat", "age": 2.5}
    path = shard(tmp_path / "a.tar", [("k.png", png(9)), ("k.json", json.dumps(row).encode())])
    data = Tar(path=path, numbers=("age",))
    assert data.columns([0])["caption"] == ["one"] and data.info.labels == ("cat",)
    assert data.columns([0])["number"].tolist() == [[2.5]]  # type: ignore[union-attr]


def test_shards_are_joined_in_the_order_of_their_names(tmp_path: Path) -> None:
    for i in (2, 0, 1):
        shard(tmp_path / f"s-{i}.tar", [("k.png", png(i)), ("l.png", png(10 + i))])
    for path in (str(tmp_path), str(tmp_path / "s-*.tar")):
        assert Tar(path=path).fetch(range(6)).media[:, 0, 0, 0].tolist() == [0, 10, 1, 11, 2, 12]


@pytest.mark.parametrize(
    ("members", "said"),
    [
        ([("/etc/a.png", png(1))], "the member '/etc/a.png' points outside the archive"),
        ([("../a.png", png(1))], "the member '../a.png' points outside the archive"),
        ([("a/../../b.png", png(1))], "points outside the archive"),
        ([("..\\a.png", png(1))], "points outside the archive"),
        ([("a.png", tarfile.SYMTYPE)], "the member 'a.png' is a link or device"),
        ([("a.png", tarfile.LNKTYPE)], "is a link or device"),
        ([("a.png", tarfile.CHRTYPE)], "is a link or device"),
        ([("a.png", tarfile.FIFOTYPE)], "is a link or device"),
        ([("a.png", png(1)), ("a.png", png(2))], "holds 'a.png' twice"),
        ([("a.png", png(1)), ("a.jpg", png(2))], "'a' has 2 pictures (.png, .jpg)"),
        ([("a.png", png(1)), ("a.json", b"[]")], "its .json is not an object"),
        ([("a.png", png(1)), ("a.json", b"{")], "its .json can't be read"),
        ([("a.png", png(1)), ("a.txt", b"\xff\xfe")], "its .txt is not UTF-8 text"),
        ([("a.png", png(1)), ("a.txt", bytes(1 << 21))], "over 1 MiB"),
        ([("a.png", png(1)), ("b.png", png(1)), ("b.cls", b"0")], "a.tar/a: has no 'label', 1 samples in all"),
        ([("a.png", png(1)), ("a.cls", b"-2")], "the label of item 0 is -2"),
        ([("a.txt", b"x")], "holds no pictures"),
    ],
)
def test_hostile_and_broken_shards(tmp_path: Path, members: list[tuple[str, Any]], said: str) -> None:
    refused(said, shard(tmp_path / "a.tar", members))


def test_files_that_are_no_plain_tar(tmp_path: Path) -> None:
    path = Path(shard(tmp_path / "a.tar", [("a.png", png(1)), ("b.png", png(2))]))
    whole = path.read_bytes()
    for damaged in (whole[:560], whole[:1200], whole[:1024] + b"x" * 512 + whole[1536:]):
        path.write_bytes(damaged)
        refused("is not a readable tar file", str(path))
    with tarfile.open(path, "w:gz") as archive:
        archive.add(__file__, "x.png")
    refused("unpack .tar.gz first", str(path))
    refused("there is no such .tar file", str(tmp_path / "none.tar"))


def test_nothing_is_written(tmp_path: Path) -> None:
    path = shard(tmp_path / "a.tar", [("sub/a.png", png(5))])
    Tar(path=path).fetch([0])
    assert [f.name for f in tmp_path.iterdir()] == ["a.tar"]
