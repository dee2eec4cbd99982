"""Data sets of the Hugging Face hub, or saved by its library `datasets` in a folder. Needs that library (extra `hf`)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, final

import numpy as np
from numpy.typing import NDArray

from sfumato.data.base import digest
from sfumato.data.folder import TEST_NAMES
from sfumato.data.rows import Rows
from sfumato.errors import UserError

_SAVED = ("dataset_dict.json", "state.json")
_SAMPLED = 64


@final
@dataclass(frozen=True, kw_only=True)
class HuggingFace(Rows, name="hf"):
    """One picture a row of a data set of the library `datasets`; its parts called test or validation are held out.

    path: a name on the hub (`hf:NAME` as data=), fetched once and kept by the library, or a folder written by
    `save_to_disk`. config: which of its configurations. parts: the parts to read, by default all. image, caption, label,
    numbers: columns, as for parquet. Rows stay on disk, memory-mapped.
    """

    path: str
    config: str | None = None
    parts: tuple[str, ...] = ()

    @property
    def where(self) -> str:
        return self.path

    def __len__(self) -> int:
        return len(self._rows)

    def fingerprint(self) -> str:
        """Names, sizes and types of the parts, and up to 64 rows, evenly spaced."""
        step = max(1, -(-len(self) // _SAMPLED))
        cells = [repr(self.picture(i)).encode() for i in range(0, len(self), step)]
        shown = [f"{name} {len(part)} {sorted(part.features)}" for name, part in self._parts.items()]
        return digest(*shown, *cells)

    @property
    def names(self) -> list[str]:
        return list(self._rows.column_names)

    def column(self, name: str) -> list[Any]:
        values: list[Any] = self._rows.with_format(None)[name][:]
        return values

    def holds_pictures(self, name: str) -> bool:
        kind = self._rows.features[name]
        return type(kind).__name__ == "Image" or getattr(kind, "dtype", "") in ("binary", "large_binary")

    def picture(self, index: int) -> Any:
        """The encoded bytes; a picture that the table names by its path is read from there."""
        cell = self._pictures[index][self.image_key]
        if isinstance(cell, dict) and not cell.get("bytes") and cell.get("path"):
            path = Path(cell["path"])
            return path.read_bytes() if path.is_file() else None
        return cell

    def class_names(self, name: str) -> Sequence[str]:
        return tuple(map(str, getattr(self._rows.features[name], "names", None) or ()))

    def own_split(self) -> NDArray[np.bool_] | None:
        held = [np.full(len(part), name in TEST_NAMES) for name, part in self._parts.items()]
        return np.concatenate(held) if len(held) > 1 else None

    @cached_property
    def _parts(self) -> dict[str, Any]:
        """The parts by name, each a `datasets.Dataset`."""
        found = self._loaded()
        parts = dict(found) if hasattr(found, "keys") else {"train": found}
        for name in self.parts:
            if name not in parts:
                raise UserError(f"{self.path}: has no part '{name}'; its parts are {', '.join(parts)}")
        return {name: part for name, part in parts.items() if name in (self.parts or parts)}

    def _loaded(self) -> Any:
        try:
            import datasets
        except ImportError:
            raise UserError(f"hf:{self.path}: reading it needs datasets; pip install 'sfumato[hf]'") from None
        try:
            if is_saved(Path(self.path)):
                return datasets.load_from_disk(self.path)
            return datasets.load_dataset(self.path, self.config)
        except Exception as error:  # the library raises errors of many kinds
            said = f"{type(error).__name__}: {error}".splitlines()[0].rstrip(".")
            raise UserError(
                f"hf:{self.path}: can't be loaded ({said}); check the name, config= and the network"
            ) from None

    @cached_property
    def _rows(self) -> Any:
        """All parts in one table, pictures encoded as they are."""
        loaded = self._parts.values()  # says so if the library is missing
        import datasets

        parts = [self._plain(part) for part in loaded]
        try:
            return datasets.concatenate_datasets(parts)
        except ValueError as error:
            raise UserError(
                f"{self.path}: its parts have different columns ({error}); choose some with parts="
            ) from None

    @staticmethod
    def _plain(part: Any) -> Any:
        import datasets

        for name, kind in part.features.items():
            if isinstance(kind, datasets.Image):
                part = part.cast_column(name, datasets.Image(decode=False))
        return part

    @cached_property
    def _pictures(self) -> Any:
        return self._rows.select_columns([self.image_key])


def is_saved(folder: Path) -> bool:
    """Whether a folder was written by `save_to_disk`."""
    return any((folder / name).is_file() for name in _SAVED)
