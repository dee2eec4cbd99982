"""The contract of every conditioner: from what a person asks to what a network takes."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn

from sfumato.core.cond import Cond, CondShape
from sfumato.core.media import Column, DataInfo
from sfumato.registry import Registered


class Conditioner(nn.Module, Registered, ABC, family="conditioner"):
    """Turns columns of a batch (labels, captions, numbers) into a `Cond`. Built as `Conditioner(info, *, settings)`.

    `prepare` runs on the host: it checks what the user wrote, tokenises, and returns plain tensors. `forward` is the
    trained part and sees tensors only, so it compiles and runs on the device.
    """

    columns: tuple[str, ...]  # the columns of a batch that it reads

    @classmethod
    def reads(cls, settings: Mapping[str, Any]) -> tuple[str, ...]:
        """The `columns` of one with these settings, known before it is built."""
        return cls.columns

    @property
    def media(self) -> Mapping[str, DataInfo]:
        """Those of its columns that hold media, (B, *shape), and what an item of each is: people give files for them."""
        return {}

    @property
    @abstractmethod
    def shape(self) -> CondShape:
        """Widths of the `Cond` it makes."""

    @abstractmethod
    def prepare(self, conditions: Mapping[str, Column]) -> dict[str, Tensor]:
        """Check and tokenise columns of length B into tensors (B, ...). Raises UserError naming the bad value."""

    @abstractmethod
    def forward(self, prepared: Mapping[str, Tensor]) -> Cond:
        """Prepared tensors (B, ...) on the device to a condition of batch B."""

    @abstractmethod
    def null(self, n: int) -> Cond:
        """The condition that means 'anything', n times, on the device of the parameters."""
