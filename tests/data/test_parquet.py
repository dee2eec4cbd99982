"""Parquet: columns found and named, structs, lists of captions, class names, splits, mistakes."""

from __future__ import annotations

import io
import json
import re
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from sfumato.data import Parquet
from sfumato.data.broken import stand_ins
from sfumato.errors import UserError

pa = pytest.importorskip("pyarrow", reason="parquet needs pyarrow")
pq = pytest.importorskip("pyarrow.parquet", reason="parquet needs pyarrow")


def png(value: int, mode: str = "RGB") -> bytes:
    stream = io.BytesIO()
    Image.new(mode, (6, 6), (value,) * len(mode) if len(mode) > 1 else value).save(stream, "PNG")
    return stream.getvalue()


def stored(folder: Path, name: str = "a.parquet", metadata: dict[str, str] | None = None, **columns: Any) -> str:
    table = pa.table(columns)
    pq.write_table(table.replace_schema_metadata(metadata) if metadata else table, folder / name)
    return str(folder / name)


def refused(said: str, path: Any, **settings: Any) -> None:
    with pytest.raises(UserError, match=re.escape(said)):
        Parquet(path=path, **settings)


def values(data: Parquet) -> list[int]:
    return data.fetch(range(len(data))).media[:, 0, 0, 0].tolist()  # type: ignore[no-any-return]


def test_usual_columns_are_found(tmp_path: Path) -> None:
    path = stored(
        tmp_path,
        image=[png(i) for i in range(4)],
        caption=["a", "b", "c", "d"],
        label=["dog", "cat", "dog", "cat"],
        split=["train", "test", "train", "train"],
        age=[1, 2, 3, 4],
    )
    data = Parquet(path=path, numbers=("age",))
    assert values(data) == [0, 1, 2, 3] and data.info.shape == (3, 6, 6)
    taken = data.columns(range(4))
    assert taken["caption"] == ["a", "b", "c", "d"] and taken["number"].tolist() == [[1], [2], [3], [4]]  # type: ignore[union-attr]
    assert data.info.labels == ("cat", "dog") and taken["label"].tolist() == [1, 0, 1, 0]  # type: ignore[union-attr]
    assert data.held_out_mask().tolist() == [False, True, False, False]


def test_structs_lists_and_class_names_of_the_hub(tmp_path: Path) -> None:
    names = {"info": {"features": {"fine": {"names": ["ant", "bee", "cat"], "_type": "ClassLabel"}}}}
    path = stored(
        tmp_path,
        metadata={"huggingface": json.dumps(names)},
        img=[{"bytes": png(i), "path": f"{i}.png"} for i in range(2)],
        text=[["one", "uno"], ["two"]],
        fine=[2, 0],
    )
    data = Parquet(path=path, label="fine", held_out=0)
    assert values(data) == [0, 1] and data.info.labels == ("ant", "bee", "cat")
    assert data.columns([0, 1]) | {"label": None} == {"caption": ["one", "two"], "label": None}
    assert Parquet(path=path).info.labels == ()


def test_folders_and_patterns_are_joined_in_order(tmp_path: Path) -> None:
    for i in range(3):
        stored(tmp_path, f"train-{i}.parquet", image=[png(i)])
    for path in (
        str(tmp_path),
        str(tmp_path / "train-*.parquet"),
        tuple(str(tmp_path / f"train-{i}.parquet") for i in range(3)),
    ):
        assert values(Parquet(path=path)) == [0, 1, 2]


def test_bad_rows_are_replaced(tmp_path: Path) -> None:
    images = [png(i % 256) for i in range(150)]
    images[7] = b"no"
    data = Parquet(path=stored(tmp_path, image=images), held_out=0)
    other = next(stand_ins(7, np.arange(150)))
    assert data.fetch([7]).media[0, 0, 0, 0] == other != 7 and "row 7 (not a PNG" in data.problems[0]
    assert (
        Parquet(path=stored(tmp_path, image=[*images[:7], None, *images[8:]]), held_out=0)
        .problems[0]
        .endswith("row 7 (holds no bytes)")
    )


def test_mistakes(tmp_path: Path) -> None:
    refused("there is no such .parquet file", str(tmp_path / "none.parquet"))
    path = stored(tmp_path, image=[png(1)], caption=["x"], label=[None])
    refused("row 0 has no 'label'", path)
    assert Parquet(path=path, label="none").info.labels == ()
    refused("has no column 'say'; its columns are image, caption, label", path, caption="say")
    refused("'caption' does not hold encoded pictures; set image=image", path, image="caption", label="none")
    refused("no single column holds encoded pictures; its columns are text", stored(tmp_path, "c.parquet", text=["x"]))
    (tmp_path / "bad.parquet").write_bytes(b"PAR1 nothing")
    refused("is not a readable parquet file", str(tmp_path / "bad.parquet"))
    stored(tmp_path, "b.parquet", image=["text"])
    refused("different columns", (path, str(tmp_path / "b.parquet")))


def test_without_pyarrow_the_remedy_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = stored(tmp_path, image=[png(1)])
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    refused("reading parquet needs pyarrow; pip install 'sfumato[parquet]'", path)
