"""Parquet files of encoded pictures with captions and labels, as on the Hugging Face hub. Needs pyarrow."""

from __future__ import annotations

import io
import json
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, BinaryIO, final

import numpy as np
from numpy.typing import NDArray

from sfumato.data.base import file_digest
from sfumato.data.columns import Columns, read_captions, read_labels, read_numbers
from sfumato.data.encoded import Encoded
from sfumato.data.folder import CAPTION_KEYS, LABEL_KEYS, TEST_NAMES
from sfumato.data.pictures import BadPicture
from sfumato.errors import UserError

_IMAGE_KEYS = ("image", "img", "picture", "jpg", "png", "webp", "bytes")


@final
@dataclass(frozen=True, kw_only=True)
class Parquet(Encoded, name="parquet"):
    """One picture a row: a column of encoded bytes, or of structs with `bytes` inside.

    path: a file, several, a folder of .parquet files, or a pattern. image, caption, label: column names, found by the
    usual ones if not set; `caption` may hold lists of alternatives; label `none` leaves labels out. numbers: numeric
    columns to read. A column `split` with values such as test marks the held-out part. The encoded pictures are held in
    memory.
    """

    path: str | tuple[str, ...]
    image: str | None = None
    caption: str | None = None
    label: str | None = None
    numbers: tuple[str, ...] = ()

    @property
    def where(self) -> str:
        return ", ".join(map(str, self._files))

    def __len__(self) -> int:
        return int(self._rows.num_rows)

    def open(self, index: int) -> BinaryIO:
        raw = self._images[index].as_py()
        if isinstance(raw, dict):
            raw = raw.get("bytes")
        if not raw:
            raise BadPicture("holds no bytes")
        return io.BytesIO(raw)

    def name_of(self, index: int) -> str:
        return f"row {index}"

    def fingerprint(self) -> str:
        return file_digest(self._files)

    def own_split(self) -> NDArray[np.bool_] | None:
        if "split" not in self._rows.column_names:
            return None
        return np.asarray([v in TEST_NAMES for v in self._column("split")], np.bool_)

    @cached_property
    def table(self) -> Columns:
        """Labels, captions and numbers of all rows."""
        names = self._rows.column_names
        for asked in (self.image, self.caption, self.label if self.label != "none" else None, *self.numbers):
            if asked is not None and asked not in names:
                raise UserError(f"{self.where}: has no column '{asked}'; its columns are {', '.join(names)}")
        caption = self.caption or next((k for k in CAPTION_KEYS if k in names), None)
        label = None if self.label == "none" else self.label or next((k for k in LABEL_KEYS if k in names), None)
        captions = [read_captions(v, self.where) for v in self._column(caption)] if caption else None
        numbers = None
        if self.numbers:
            columns = [self._column(n) for n in self.numbers]
            numbers = read_numbers(list(zip(*columns)), self.numbers, self.where)
        if label is None:
            return Columns(captions=captions, numbers=numbers, number_names=self.numbers)
        values = self._column(label)
        missing = [i for i, v in enumerate(values) if v is None]
        if missing:
            raise UserError(
                f"{self.where}: row {missing[0]} has no '{label}', {len(missing)} in all; fill it, or set label=none"
            )
        labels, known = read_labels(values, f"{self.where}: {label}", names=self._class_names(label))
        return Columns(labels, known, captions, numbers, self.numbers)

    @cached_property
    def _files(self) -> list[Path]:
        return files_of(self.path, ".parquet")

    @cached_property
    def _rows(self) -> Any:
        """The table of all files (a pyarrow.Table)."""
        try:
            import pyarrow as pa
            import pyarrow.parquet as pq
        except ImportError:
            raise UserError(f"{self.where}: reading parquet needs pyarrow; pip install 'sfumato[parquet]'") from None
        tables = []
        for file in self._files:
            try:
                tables.append(pq.read_table(file))
            except (pa.ArrowInvalid, OSError) as error:
                raise UserError(f"{file}: is not a readable parquet file ({str(error).splitlines()[0]})") from None
        try:
            return pa.concat_tables(tables, promote_options="default")
        except (pa.ArrowInvalid, pa.ArrowTypeError) as error:
            raise UserError(
                f"{self.where}: the files have different columns ({str(error).splitlines()[0]}); give files of one kind"
            ) from None

    @cached_property
    def _images(self) -> Any:
        names = self._rows.column_names
        fitting = [n for n in names if _holds_bytes(self._rows.schema.field(n).type)]
        key = (
            self.image
            or next((k for k in _IMAGE_KEYS if k in fitting), None)
            or (fitting[0] if len(fitting) == 1 else None)
        )
        if key is None or key not in fitting:
            asked = f"'{key}' does not hold" if key else "no single column holds"
            remedy = f"set image={'|'.join(fitting)}" if fitting else f"its columns are {', '.join(names)}"
            raise UserError(f"{self.where}: {asked} encoded pictures; {remedy}")
        return self._rows.column(key)

    def _column(self, name: str) -> list[Any]:
        values: list[Any] = self._rows.column(name).to_pylist()
        return values

    def _class_names(self, column: str) -> Sequence[str]:
        """Class names that the `datasets` library wrote into the schema."""
        stored = (self._rows.schema.metadata or {}).get(b"huggingface")
        if stored is None:
            return ()
        try:
            names = json.loads(stored)["info"]["features"][column]["names"]
        except (ValueError, KeyError, TypeError):
            return ()
        return tuple(map(str, names)) if isinstance(names, list) else ()


def files_of(path: str | tuple[str, ...], suffix: str) -> list[Path]:
    """The files named: each a file, a folder of files with that suffix, or a pattern such as `data/train-*.parquet`."""
    found: list[Path] = []
    for text in (path,) if isinstance(path, str) else path:
        given = Path(text)
        if given.is_dir():
            listed = sorted(given.glob(f"*{suffix}"))
        elif given.is_file():
            listed = [given]
        else:
            listed = sorted(given.parent.glob(given.name)) if "*" in given.name else []
        if not listed:
            raise UserError(f"{text}: there is no such {suffix} file, or folder of them; give its path")
        found += listed
    if not found:
        raise UserError(f"path is empty; name a {suffix} file")
    return found


def _holds_bytes(kind: Any) -> bool:
    import pyarrow as pa

    if pa.types.is_struct(kind):
        return any(kind.field(i).name == "bytes" for i in range(kind.num_fields))
    return bool(pa.types.is_binary(kind) or pa.types.is_large_binary(kind))
