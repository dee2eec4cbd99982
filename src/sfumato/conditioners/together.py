"""Two conditioners side by side."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from sfumato.conditioners.base import Conditioner
from sfumato.core.cond import Cond, CondShape
from sfumato.core.media import Column, DataInfo
from sfumato.errors import UserError
from sfumato.spec import Spec


class Together(Conditioner, name="together"):
    """Both conditions at once: vectors side by side, tokens one after the other (of one width), one `concat` at most.

    For three, let `second` be another `together`.
    """

    def __init__(self, info: DataInfo, *, first: Spec[Conditioner], second: Spec[Conditioner]) -> None:
        super().__init__()
        self.first, self.second = first.build(info), second.build(info)
        self.columns = tuple(dict.fromkeys((*self.first.columns, *self.second.columns)))
        a, b = self.first.shape, self.second.shape
        if a.tokens and b.tokens and a.tokens != b.tokens:
            raise UserError(
                f"together: tokens of widths {a.tokens} and {b.tokens} can't be joined; give both one width"
            )
        if a.concat and b.concat:
            raise UserError("together: only one part may join the input's channels")

    @classmethod
    def reads(cls, settings: Mapping[str, Any]) -> tuple[str, ...]:
        parts: tuple[Spec[Conditioner], Spec[Conditioner]] = (settings["first"], settings["second"])
        return tuple(dict.fromkeys(column for part in parts for column in part.cls.reads(part.settings)))

    @property
    def media(self) -> Mapping[str, DataInfo]:
        return {**self.first.media, **self.second.media}

    @property
    def shape(self) -> CondShape:
        a, b = self.first.shape, self.second.shape
        return CondShape(a.vector + b.vector, max(a.tokens, b.tokens), a.concat + b.concat)

    def prepare(self, conditions: Mapping[str, Column]) -> dict[str, Tensor]:
        named = (("first.", self.first), ("second.", self.second))
        return {name + k: v for name, part in named for k, v in part.prepare(conditions).items()}

    def forward(self, prepared: Mapping[str, Tensor]) -> Cond:
        named = (("first.", self.first), ("second.", self.second))
        return _join(
            *(part({k.removeprefix(n): v for k, v in prepared.items() if k.startswith(n)}) for n, part in named)
        )

    def null(self, n: int) -> Cond:
        return _join(self.first.null(n), self.second.null(n))


def _join(a: Cond, b: Cond) -> Cond:
    vectors = [c.vector for c in (a, b) if c.vector is not None]
    lists = [c.pad(c.tokens.shape[1]) for c in (a, b) if c.tokens is not None]  # pad() makes a mask where there is none
    return Cond(
        vector=torch.cat(vectors, 1) if vectors else None,
        tokens=torch.cat([c.tokens for c in lists if c.tokens is not None], 1) if lists else None,
        mask=torch.cat([c.mask for c in lists if c.mask is not None], 1) if lists else None,
        concat=a.concat if a.concat is not None else b.concat,
    )
