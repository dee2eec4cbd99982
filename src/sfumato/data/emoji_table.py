"""The table behind `Emoji`: pictures with their names, keywords and designs, from three kinds of file."""

from __future__ import annotations

import io
import json
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from sfumato.data.folder import TEST_NAMES
from sfumato.errors import UserError

_METADATA = "metadata.jsonl"
_NEEDED = ("name", "style")


@dataclass(frozen=True)
class Row:
    """One picture. raw: its encoded bytes. style: its design. tone: skin tone, "" for none. test: held out by its source."""

    raw: bytes
    name: str
    style: str
    tone: str = ""
    keywords: tuple[str, ...] = ()
    group: str = ""
    test: bool = False


def read_table(path: Path) -> list[Row]:
    """Rows of a .parquet file, of a folder that holds one, of a folder with metadata.jsonl, or of `write_table`'s .npz.

    Columns: `image` (bytes, or a struct with `bytes`; in metadata.jsonl `file_name`), `name`, `style`, and where there are
    such `skin_tone`, `keywords` (a list), `group` and `split`, whose values such as test mark what is held out.
    """
    if path.is_dir():
        found = sorted(path.glob("*.parquet"))
        if (path / _METADATA).is_file():
            return _from_folder(path)
        if len(found) != 1:
            raise UserError(f"{path}: must hold one .parquet file or {_METADATA}, and holds {len(found)} parquet files")
        path = found[0]
    if not path.is_file():
        raise UserError(f"{path}: there is no such file or folder; give emoji pictures as .parquet, or a folder")
    if path.suffix == ".npz":
        return _from_npz(path)
    if path.suffix == ".parquet":
        return _from_parquet(path)
    raise UserError(f"{path}: emoji are read from .parquet, from .npz, or from a folder with {_METADATA}")


def write_table(rows: Sequence[Row], path: Path) -> None:
    """Write rows as one .npz, read without pyarrow: `image` (bytes one after the other), `ends`, `table` (JSON)."""
    table = [{k: v for k, v in asdict(row).items() if k != "raw"} for row in rows]
    np.savez(
        path,
        image=np.frombuffer(b"".join(row.raw for row in rows), np.uint8),
        ends=np.cumsum([len(row.raw) for row in rows], dtype=np.int64),
        table=np.frombuffer(json.dumps(table, ensure_ascii=False).encode(), np.uint8),
    )


def _from_npz(path: Path) -> list[Row]:
    try:
        with np.load(path, allow_pickle=False) as kept:
            raw, ends = kept["image"].tobytes(), kept["ends"].tolist()
            table = json.loads(kept["table"].tobytes())
    except (OSError, ValueError, KeyError) as error:
        raise UserError(
            f"{path}: is not a table of emoji that sfumato wrote ({error}); give the parquet file"
        ) from None
    starts = [0, *ends[:-1]]
    return [Row(raw[a:b], **{**row, "keywords": tuple(row["keywords"])}) for a, b, row in zip(starts, ends, table)]


def _from_parquet(path: Path) -> list[Row]:
    try:
        import pyarrow as pa
        import pyarrow.parquet as pq
    except ImportError:
        raise UserError(f"{path}: reading parquet needs pyarrow; pip install 'sfumato[parquet]'") from None
    try:
        table = pq.read_table(path)
    except (pa.ArrowInvalid, OSError) as error:
        raise UserError(f"{path}: is not a readable parquet file ({str(error).splitlines()[0]})") from None
    _check(table.column_names, ("image", *_NEEDED), path)
    return [_row(cells, cells["image"], path, i) for i, cells in enumerate(table.to_pylist())]


def _from_folder(path: Path) -> list[Row]:
    rows = []
    lines = io.StringIO((path / _METADATA).read_text(encoding="utf-8"))
    for i, line in enumerate(filter(str.strip, lines)):
        try:
            cells = json.loads(line)
            raw = (path / cells["file_name"]).read_bytes()
        except (ValueError, KeyError, TypeError, OSError) as error:
            raise UserError(f"{path / _METADATA}: line {i + 1} can't be read ({error})") from None
        _check(cells, _NEEDED, path / _METADATA)
        rows.append(_row(cells, raw, path / _METADATA, i))
    return rows


def _check(names: Iterable[str], needed: Sequence[str], path: Path) -> None:
    there = list(names)
    for name in needed:
        if name not in there:
            raise UserError(f"{path}: has no column '{name}', which emoji need; its columns are {', '.join(there)}")


def _row(cells: dict[str, Any], image: Any, path: Path, i: int) -> Row:
    raw = image.get("bytes") if isinstance(image, dict) else image
    name, style = cells["name"], cells["style"]
    if not raw or not isinstance(name, str) or not isinstance(style, str) or not name or not style:
        raise UserError(f"{path}: row {i} has no picture, name or style; every emoji needs all three")
    return Row(
        bytes(raw),
        name,
        style,
        cells.get("skin_tone") or "",
        tuple(cells.get("keywords") or ()),
        cells.get("group") or "",
        cells.get("split") in TEST_NAMES,
    )
