"""Shards behind an address are read as local ones are; a connection that fails does not change the data."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tests.data.test_tar import png, shard

from sfumato.data import Parquet, Tar, open_data
from sfumato.data.broken import stand_ins
from sfumato.errors import SfumatoError, UserError

fsspec = pytest.importorskip("fsspec", reason="fsspec is not installed (the extra `data`)")


@pytest.fixture
def memory(tmp_path: Path) -> Any:
    """Three shards on this disk, and the same in fsspec's memory."""
    system = fsspec.filesystem("memory")
    system.store.clear()
    for i in range(3):
        members = [(f"{k}.{kind}", raw) for k in range(50) for kind, raw in (
            ("png", png(50 * i + k)), ("txt", f"picture {50 * i + k}".encode()), ("cls", str(k % 3).encode()))]  # fmt: skip
        path = shard(tmp_path / f"s-{i}.tar", members)
        system.pipe_file(f"/box/s-{i}.tar", Path(path).read_bytes())
    yield system
    system.store.clear()


@pytest.mark.parametrize("path", ["memory://box", "memory://box/s-*.tar", "memory://box/s-1.tar"])
def test_shards_in_memory_are_those_on_disk(memory: Any, tmp_path: Path, path: str) -> None:
    spec = open_data(path)
    assert spec.cls is Tar
    there, here = spec.build(), Tar(path=str(tmp_path if "1" not in path else tmp_path / "s-1.tar"))
    assert len(there) == len(here) == (50 if "1" in path else 150)
    a, b = there.fetch(range(len(here))), here.fetch(range(len(here)))
    assert torch.equal(a.media, b.media) and a.conditions["caption"] == b.conditions["caption"]
    assert torch.equal(a.conditions["label"], b.conditions["label"])  # type: ignore[arg-type]
    assert there.fingerprint() == open_data(path).build().fingerprint()


def test_file_addresses_and_several_paths(memory: Any, tmp_path: Path) -> None:
    data = Tar(path=(f"file://{tmp_path}/s-0.tar", "memory://box/s-2.tar"))
    assert data.fetch([0, 50]).media[:, 0, 0, 0].tolist() == [0, 100]


def test_the_fingerprint_sees_both_ends_and_the_size(memory: Any) -> None:
    first = Tar(path="memory://box").fingerprint()
    raw = memory.cat_file("/box/s-1.tar")
    memory.pipe_file("/box/s-1.tar", raw + bytes(512))
    assert Tar(path="memory://box").fingerprint() != first


def test_a_shard_that_vanishes_is_replaced_and_a_broken_one_refused(memory: Any) -> None:
    data = Tar(path="memory://box", held_out=0, broken=0.5, cache=0)
    memory.rm("/box/s-0.tar")
    gone = set(range(50))
    want = next(i for i in stand_ins(7, np.arange(150)) if i not in gone)
    assert data.fetch([7]).media[0, 0, 0, 0] == want and "s-0.tar/7 (is gone)" in data.unreadable()[7]
    memory.pipe_file("/box/s-0.tar", b"x" * 2000)
    with pytest.raises(UserError, match=r"memory:///?box/s-0.tar: is not a readable tar file"):
        Tar(path="memory://box")


def test_a_connection_is_tried_again_and_then_the_run_stops(memory: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    data = Tar(path="memory://box", held_out=0, cache=0)
    monkeypatch.setattr("sfumato.data.places._WAIT", 0.0)
    whole, calls = type(memory).cat_file, [0]

    def torn(self: Any, path: str, start: int | None = None, end: int | None = None) -> bytes:
        calls[0] += 1
        if calls[0] % 3:
            raise ConnectionError("reset by peer")
        return whole(self, path, start=start, end=end)

    monkeypatch.setattr(type(memory), "cat_file", torn)
    assert data.fetch([9]).media[0, 0, 0, 0] == 9 and calls[0] == 3

    def dead(self: Any, path: str, start: int | None = None, end: int | None = None) -> bytes:
        raise ConnectionError("reset by peer")

    monkeypatch.setattr(type(memory), "cat_file", dead)
    with pytest.raises(SfumatoError, match=r"s-0.tar: can't be read after 3 tries \(ConnectionError: reset by peer\)"):
        data.fetch([9])
    assert data.unreadable() == {}


def test_parquet_behind_an_address(memory: Any, tmp_path: Path) -> None:
    pa = pytest.importorskip("pyarrow", reason="pyarrow is not installed (the extra `parquet`)")
    import pyarrow.parquet as pq

    pq.write_table(pa.table({"image": [png(i) for i in range(9)], "label": list(range(9))}), tmp_path / "a.parquet")
    memory.pipe_file("/rows/a.parquet", (tmp_path / "a.parquet").read_bytes())
    spec = open_data("memory://rows/a.parquet")
    assert spec.cls is Parquet
    assert spec.build().fetch([3, 8]).media[:, 0, 0, 0].tolist() == [3, 8]


@pytest.mark.parametrize(
    ("path", "said"),
    [
        ("memory://nowhere/*.tar", "there is no such .tar file"),
        ("memory://nowhere/a.tar", "there is no such .tar file"),
        ("nosuch://a/b.tar", "nosuch://a/b.tar: is not an address that fsspec knows"),
    ],
)
def test_addresses_that_lead_nowhere(memory: Any, path: str, said: str) -> None:
    with pytest.raises(UserError, match=said.replace("*", r"\*")) as caught:
        open_data(path).build()
    assert "\n" not in str(caught.value)


def test_missing_packages_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "s3fs", None)
    with pytest.raises(UserError, match=r"s3://box/a.tar: reading it needs one more package \(Install s3fs"):
        open_data("s3://box/a.tar").build()
    monkeypatch.setitem(sys.modules, "fsspec.core", None)
    with pytest.raises(UserError, match=r"reading it needs fsspec; pip install 'sfumato\[data\]'"):
        open_data("memory://box").build()
