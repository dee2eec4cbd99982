"""Pictures in the rows of a table: which column holds what. Parquet files and Hugging Face data sets are such tables."""

from __future__ import annotations

import io
from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, BinaryIO

from sfumato.data.columns import Columns, read_captions, read_labels, read_numbers
from sfumato.data.encoded import Encoded
from sfumato.data.folder import CAPTION_KEYS, LABEL_KEYS
from sfumato.errors import UserError
from sfumato.pictures import BadPicture

_IMAGE_KEYS = ("image", "img", "picture", "jpg", "png", "webp", "bytes")


@dataclass(frozen=True, kw_only=True)
class Rows(Encoded):
    """One picture a row: a column of encoded bytes, or of structs with `bytes` inside.

    image, caption, label: column names, found by the usual ones if not set; `caption` may hold lists of alternatives;
    label `none` leaves labels out. numbers: numeric columns to read.
    """

    image: str | None = None
    caption: str | None = None
    label: str | None = None
    numbers: tuple[str, ...] = ()

    @property
    @abstractmethod
    def names(self) -> list[str]:
        """All columns."""

    @abstractmethod
    def column(self, name: str) -> list[Any]:
        """The values of a column."""

    @abstractmethod
    def holds_pictures(self, name: str) -> bool:
        """Whether a column is of encoded pictures, by its type."""

    @abstractmethod
    def picture(self, index: int) -> Any:
        """The cell of `image_key` in a row: bytes, or a mapping with `bytes`."""

    def class_names(self, name: str) -> Sequence[str]:
        """Names of the classes of a label column, if the table knows them."""
        return ()

    def open(self, index: int) -> BinaryIO:
        raw = self.picture(index)
        if isinstance(raw, dict):
            raw = raw.get("bytes")
        if not raw:
            raise BadPicture("holds no bytes")
        return io.BytesIO(raw)

    def name_of(self, index: int) -> str:
        return f"row {index}"

    @cached_property
    def image_key(self) -> str:
        """The column of the pictures."""
        fitting = [n for n in self.names if self.holds_pictures(n)]
        usual = next((k for k in _IMAGE_KEYS if k in fitting), None)
        key = self.image or usual or (fitting[0] if len(fitting) == 1 else None)
        if key is None or key not in fitting:
            asked = f"'{key}' does not hold" if key else "no single column holds"
            remedy = f"set image={'|'.join(fitting)}" if fitting else f"its columns are {', '.join(self.names)}"
            raise UserError(f"{self.where}: {asked} encoded pictures; {remedy}")
        return key

    @cached_property
    def table(self) -> Columns:
        """Labels, captions and numbers of all rows."""
        names = self.names
        for asked in (self.image, self.caption, self.label if self.label != "none" else None, *self.numbers):
            if asked is not None and asked not in names:
                raise UserError(f"{self.where}: has no column '{asked}'; its columns are {', '.join(names)}")
        caption = self.caption or next((k for k in CAPTION_KEYS if k in names), None)
        label = None if self.label == "none" else self.label or next((k for k in LABEL_KEYS if k in names), None)
        captions = [read_captions(v, self.where) for v in self.column(caption)] if caption else None
        numbers = None
        if self.numbers:
            columns = [self.column(n) for n in self.numbers]
            numbers = read_numbers(list(zip(*columns)), self.numbers, self.where)
        if label is None:
            return Columns(captions=captions, numbers=numbers, number_names=self.numbers)
        values = self.column(label)
        missing = [i for i, v in enumerate(values) if v is None]
        if missing:
            raise UserError(
                f"{self.where}: row {missing[0]} has no '{label}', {len(missing)} in all; fill it, or set label=none"
            )
        labels, known = read_labels(values, f"{self.where}: {label}", names=self.class_names(label))
        return Columns(labels, known, captions, numbers, self.numbers)
