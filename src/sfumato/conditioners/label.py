"""A class label to a vector."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from sfumato.conditioners.base import Conditioner
from sfumato.core.cond import Cond, CondShape
from sfumato.core.media import Column, DataInfo
from sfumato.errors import UserError, did_you_mean


class Label(Conditioner, name="label"):
    """One learned vector a class and one for 'any class'. Reads `label`: (B,) whole numbers, or B class names.

    width: of the vectors.
    """

    columns = ("label",)

    def __init__(self, info: DataInfo, *, width: int = 128) -> None:
        super().__init__()
        if not info.labels:
            raise UserError("the data has no labels; use another conditioner, or conditioner=none")
        if width < 1:
            raise UserError(f"label: width = {width} must be at least 1")
        self.labels = tuple(info.labels)
        self.index = {name: i for i, name in enumerate(self.labels)}
        self.table = nn.Embedding(len(self.labels) + 1, width)  # the last row is 'any class'

    @property
    def shape(self) -> CondShape:
        return CondShape(vector=self.table.embedding_dim)

    def prepare(self, conditions: Mapping[str, Column]) -> dict[str, Tensor]:
        column = conditions.get("label")
        if column is None:
            raise UserError("the label conditioner needs a 'label' for every sample")
        if isinstance(column, Tensor):
            if column.is_floating_point() or column.is_complex() or column.ndim != 1:
                raise UserError(
                    f"labels are whole numbers, shape (B,), not {column.dtype} of shape {tuple(column.shape)}"
                )
            column = column.tolist()
        elif isinstance(column, str):
            raise UserError(f"labels come as one a sample, not as the single text '{column}'; write ['{column}']")
        return {"label": torch.tensor([self._number(value) for value in _items(column)], dtype=torch.int64)}

    def _number(self, value: Any) -> int:
        if isinstance(value, str):
            if value in self.index:
                return self.index[value]
            if not value.lstrip("-").isdecimal():
                raise UserError(f"there is no class '{value}'; {did_you_mean(value, self.labels)}")
        elif isinstance(value, bool) or not hasattr(value, "__index__"):
            raise UserError(f"label {value!r} is not a whole number or a class name")
        number, last = int(value), len(self.labels) - 1
        if not 0 <= number <= last:
            raise UserError(f"label {number} is outside 0 to {last}: the data has {last + 1} classes")
        return number

    def forward(self, prepared: Mapping[str, Tensor]) -> Cond:
        return Cond(vector=self.table(prepared["label"]))

    def null(self, n: int) -> Cond:
        return Cond(vector=self.table.weight[-1].expand(n, -1))


def _items(column: Any) -> Sequence[Any]:
    try:
        return list(column)
    except TypeError:
        raise UserError(f"labels come as one a sample, not as {column!r}; write [{column!r}]") from None
