"""Another item beside every item, of the same class or speaker: for models that are asked by a reference."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any, final

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from sfumato.core.media import Batch, Column
from sfumato.data.base import Data, Draws, Indices, Wrapped, digest, expand
from sfumato.data.order import Buckets
from sfumato.errors import UserError

REFERENCE = "reference"


@final
@dataclass(frozen=True, kw_only=True)
class Referenced(Wrapped, name="referenced"):
    """A set with the column `reference`, media of the set's own kind: another item that is alike in one respect.

    data: the set. by: what the two have in common: `label`, `caption` (the first wording), or another column that the set has
    (`speakers`). The reference is chosen by the draw among all others like it of the same part, training or held out; without
    a draw it is the next one. An item that has no like is its own reference.
    """

    data: Data
    by: str = "label"

    def __post_init__(self) -> None:
        _ = self._place

    @property
    def judged(self) -> tuple[str, ...]:
        """Other columns that samples are judged by, of the inner set."""
        return tuple(getattr(self.data, "judged", ()))

    def column(self, name: str) -> NDArray[Any]:
        """A column (N,) of the inner set. Raises UserError where it has no such columns."""
        found = getattr(self.data, "column", None)
        if found is None:
            raise UserError(f"{self.where}: has no column '{name}'; it has labels or captions at most")
        return np.asarray(found(name))

    def fetch(self, indices: Indices, draws: Draws = None) -> Batch:
        return self._beside(self.data.fetch(indices, draws), indices, draws)

    def fetch_bucket(self, indices: Indices, draws: Draws = None) -> Batch:
        return self._beside(self.data.fetch_bucket(indices, draws), indices, draws)

    def columns(self, indices: Indices, draws: Draws = None) -> dict[str, Column]:
        return {**self.data.columns(indices, draws), REFERENCE: self._references(indices, draws)}

    def fingerprint(self) -> str:
        return digest(self.data.fingerprint(), self.by)

    def item_digest(self, index: int) -> str:
        return self.data.item_digest(index)

    @property
    def bucketing(self) -> Buckets | None:
        return self.data.bucketing

    def others(self, indices: Indices, draws: Draws = None) -> NDArray[np.int64]:
        """(B,) the references of items, by index."""
        index = np.asarray(indices, np.int64)
        order, first, size, place = self._place
        group = first[index], size[index]
        step = np.ones(len(index)) if draws is None else 1 + np.floor(expand(draws, REFERENCE) * (group[1] - 1))
        return order[group[0] + (place[index] - group[0] + step.astype(np.int64)) % group[1]]

    def _beside(self, batch: Batch, indices: Indices, draws: Draws) -> Batch:
        return Batch(batch.media, {**batch.conditions, REFERENCE: self._references(indices, draws)})

    def _references(self, indices: Indices, draws: Draws) -> Tensor:
        looks = None if draws is None else expand(draws, "reference/look")
        return self.data.fetch(self.others(indices, draws), looks).media

    @cached_property
    def _place(self) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]]:
        """Items sorted by what they have in common and their part (N,); and for each item the first place of its group in
        this order, the size of the group, and its own place."""
        _, group = np.unique(self._common(), return_inverse=True)
        group = group.reshape(-1) * 2 + self.data.held_out_mask()
        order = np.argsort(group, kind="stable")
        place = np.empty(len(order), np.int64)
        place[order] = np.arange(len(order))
        _, first, index, size = np.unique(group[order], return_index=True, return_inverse=True, return_counts=True)
        return order, first[index.reshape(-1)][place], size[index.reshape(-1)][place], place

    def _common(self) -> NDArray[Any]:
        if self.by not in ("label", "caption"):
            return self.column(self.by)
        columns = self.data.columns(np.arange(len(self.data)))
        if self.by not in columns:
            raise UserError(f"referenced: by = {self.by}: {self.where} has no {self.by}s; name a column that it has")
        return np.asarray(columns[self.by])
