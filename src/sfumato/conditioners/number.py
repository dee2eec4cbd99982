"""Numbers (a size, a duration, an age) to a vector."""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from sfumato.conditioners.base import Conditioner
from sfumato.core.cond import Cond, CondShape
from sfumato.core.media import Column, DataInfo
from sfumato.errors import UserError

_OCTAVES = 8  # the finest wave has a period of 1/128 of the range


class Number(Conditioner, name="number"):
    """K numbers a sample to one vector, and a learned vector for 'any'. Reads `number`: (B, K), or (B,) for K = 1.

        z = (value - low) / (high - low);  v = W2 SiLU(W1 [z, cos(2^k pi z), sin(2^k pi z)]), k < 8

    low, high: the range of each column, or one for all. Values outside are refused: nothing was learned there.
    Tancik et al., "Fourier Features Let Networks Learn High Frequency Functions", 2020.
    """

    columns = ("number",)

    def __init__(
        self, info: DataInfo, *, width: int = 128, low: tuple[float, ...] = (0.0,), high: tuple[float, ...] = (1.0,)
    ) -> None:
        super().__init__()
        if not info.numbers:
            raise UserError("the data has no numbers; use another conditioner, or conditioner=none")
        if width < 1:
            raise UserError(f"number: width = {width} must be at least 1")
        self.names = tuple(info.numbers)
        self.lows, self.highs = self._wide("low", low), self._wide("high", high)
        for name, a, b in zip(self.names, self.lows, self.highs):
            if not a < b:
                raise UserError(f"number: low = {a} must be below high = {b} for '{name}'")
        self.first = nn.Linear(len(self.names) * (1 + 2 * _OCTAVES), width)
        self.second = nn.Linear(width, width)
        self.anything = nn.Parameter(torch.randn(width) / math.sqrt(3))  # the spread that a Linear's output starts with

    def _wide(self, name: str, values: tuple[float, ...]) -> tuple[float, ...]:
        if len(values) not in (1, len(self.names)):
            raise UserError(
                f"number: {name} has {len(values)} values for the {len(self.names)} columns "
                f"{', '.join(self.names)}; give one, or one a column"
            )
        return tuple(values) * len(self.names) if len(values) == 1 else tuple(values)

    @property
    def shape(self) -> CondShape:
        return CondShape(vector=self.second.out_features)

    def prepare(self, conditions: Mapping[str, Column]) -> dict[str, Tensor]:
        column = conditions.get("number")
        if column is None:
            raise UserError("the number conditioner needs a 'number' for every sample")
        try:
            values = torch.as_tensor(column, dtype=torch.float64)
        except (TypeError, ValueError):
            raise UserError(f"numbers must be numbers, not {column!r}") from None
        values = values[:, None] if values.ndim == 1 else values
        if values.ndim != 2 or values.shape[1] != len(self.names):
            raise UserError(
                f"numbers of shape {tuple(values.shape)} do not fit the {len(self.names)} columns {', '.join(self.names)}"
            )
        low, high = torch.tensor(self.lows, dtype=torch.float64), torch.tensor(self.highs, dtype=torch.float64)
        outside = ~((values >= low) & (values <= high))  # also True for NaN
        if bool(outside.any()):
            row, k = (int(i) for i in outside.nonzero()[0])
            raise UserError(
                f"{self.names[k]} = {float(values[row, k]):g} is outside {self.lows[k]:g} to {self.highs[k]:g}; "
                "set low and high of the number conditioner to the range of the data"
            )
        return {"number": ((values - low) / (high - low)).float()}

    def forward(self, prepared: Mapping[str, Tensor]) -> Cond:
        z = prepared["number"]
        turns = math.pi * 2.0 ** torch.arange(_OCTAVES, dtype=z.dtype, device=z.device)
        waves = z[:, :, None] * turns
        features = torch.cat([z[:, :, None], waves.cos(), waves.sin()], -1).flatten(1)
        return Cond(vector=self.second(F.silu(self.first(features.to(self.first.weight.dtype)))))

    def null(self, n: int) -> Cond:
        return Cond(vector=self.anything.expand(n, -1))
