"""Parquet files of encoded pictures with captions and labels, as on the Hugging Face hub. Needs pyarrow."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, final

import numpy as np
from numpy.typing import NDArray

from sfumato.data.folder import TEST_NAMES
from sfumato.data.places import Local, Place, find_places, fingerprint_of
from sfumato.data.rows import Rows
from sfumato.errors import UserError


@final
@dataclass(frozen=True, kw_only=True)
class Parquet(Rows, name="parquet"):
    """One picture a row: a column of encoded bytes, or of structs with `bytes` inside.

    path: a file, several, a folder of .parquet files, or a pattern; or addresses that fsspec reads (s3://bucket/folder).
    image, caption, label: column names, found by the usual ones if not set; `caption` may hold lists of alternatives;
    label `none` leaves labels out. numbers: numeric columns to read. A column `split` with values such as test marks the
    held-out part. The encoded pictures are held in memory.
    """

    path: str | tuple[str, ...]

    @property
    def where(self) -> str:
        return ", ".join(map(str, self._files))

    def __len__(self) -> int:
        return int(self._rows.num_rows)

    def fingerprint(self) -> str:
        return fingerprint_of(self._files)

    @property
    def names(self) -> list[str]:
        return list(self._rows.column_names)

    def column(self, name: str) -> list[Any]:
        values: list[Any] = self._rows.column(name).to_pylist()
        return values

    def picture(self, index: int) -> Any:
        return self._images[index].as_py()

    def holds_pictures(self, name: str) -> bool:
        import pyarrow as pa

        kind = self._rows.schema.field(name).type
        if pa.types.is_struct(kind):
            return any(kind.field(i).name == "bytes" for i in range(kind.num_fields))
        return bool(pa.types.is_binary(kind) or pa.types.is_large_binary(kind))

    def class_names(self, name: str) -> Sequence[str]:
        """Class names that the `datasets` library wrote into the schema."""
        stored = (self._rows.schema.metadata or {}).get(b"huggingface")
        if stored is None:
            return ()
        try:
            names = json.loads(stored)["info"]["features"][name]["names"]
        except (ValueError, KeyError, TypeError):
            return ()
        return tuple(map(str, names)) if isinstance(names, list) else ()

    def own_split(self) -> NDArray[np.bool_] | None:
        if "split" not in self.names:
            return None
        return np.asarray([v in TEST_NAMES for v in self.column("split")], np.bool_)

    @cached_property
    def _files(self) -> list[Place]:
        return find_places(self.path, ".parquet")

    @cached_property
    def _images(self) -> Any:
        return self._rows.column(self.image_key)

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
                if isinstance(file, Local):
                    tables.append(pq.read_table(file.path))
                else:
                    with file.open() as stream:
                        tables.append(pq.read_table(stream))
            except (pa.ArrowInvalid, OSError) as error:
                raise UserError(f"{file}: is not a readable parquet file ({str(error).splitlines()[0]})") from None
        try:
            return pa.concat_tables(tables, promote_options="default")
        except (pa.ArrowInvalid, pa.ArrowTypeError) as error:
            raise UserError(
                f"{self.where}: the files have different columns ({str(error).splitlines()[0]}); give files of one kind"
            ) from None
