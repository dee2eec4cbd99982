"""Data sets that are one array in memory: a batch is one indexing operation."""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from sfumato.core.media import Batch, Column, DataInfo
from sfumato.data.base import Data, Draws, Indices, expand
from sfumato.data.columns import Columns
from sfumato.kinds import kind_of


@dataclass(frozen=True, kw_only=True)
class InMemory(Data):
    """A data set with `media` (N, C, *S) and `table`, its columns. uint8 media are images, all others float32 arrays."""

    @property
    @abstractmethod
    def media(self) -> NDArray[Any]:
        """All items, channels first. uint8 for images; arrays of any real type become float32 batch by batch."""

    @property
    @abstractmethod
    def table(self) -> Columns:
        """Labels, captions and numbers of all items."""

    @property
    def mirrored(self) -> bool:
        """Whether a draw may flip an item left to right."""
        return False

    @cached_property
    def info(self) -> DataInfo:
        """Shape, classes and so on."""
        return self.table.info(tuple(self.media.shape[1:]), "image" if self.media.dtype == np.uint8 else "array")

    def __len__(self) -> int:
        return len(self.media)

    def fetch(self, indices: Indices, draws: Draws = None) -> Batch:
        media = self.media[np.asarray(indices, np.int64)]
        if kind_of(self.info).dtype == "float32":
            media = media.astype(np.float32, copy=False)
        if draws is not None and self.mirrored:
            flipped = expand(draws, "flip") < 0.5
            media[flipped] = media[flipped][..., ::-1]
        return Batch(torch.from_numpy(np.ascontiguousarray(media)), self.columns(indices, draws))

    def columns(self, indices: Indices, draws: Draws = None) -> dict[str, Column]:
        return self.table.take(indices, draws)
