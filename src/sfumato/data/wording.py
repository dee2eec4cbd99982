"""Captions that are worded anew for every look at an item: parts left out and put in another order, or nothing said."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import final

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from sfumato.core.media import Batch, Column
from sfumato.data.base import Data, Draws, Indices, Wrapped, digest, expand
from sfumato.data.order import Buckets
from sfumato.errors import UserError


def reword(
    captions: list[str],
    draws: NDArray[np.float64],
    *,
    keep: float,
    shuffle: float,
    first: int,
    empty: float,
    fixed: tuple[str, ...] = (),
    swap: float = 0.0,
    names: Sequence[str] = (),
) -> list[str]:
    """B captions in other words, each a function of its own draw of [0, 1). See `Worded` for the settings.

    names: what a first part is swapped for.
    """

    def chance(use: str) -> list[float]:
        return [float(value) for value in expand(draws, use)]

    quiet, mixed = chance("wording/empty"), chance("wording/shuffle")
    swapped, other = chance("wording/swap"), chance("wording/other")
    split = [[part.strip() for part in text.split(",") if part.strip()] for text in captions]
    most = max((len(parts) for parts in split), default=0)
    places = [[chance(f"wording/{what}/{i}") for i in range(most)] for what in ("keep", "place")]
    made = []
    for row, parts in enumerate(split):
        if quiet[row] < empty:
            made.append("")
            continue
        stays = [part.startswith(fixed) for part in parts]
        if stays.count(False) == 1:
            stays = [True] * len(parts)
        kept = [i for i in range(len(parts)) if i < first or stays[i] or places[0][i][row] < keep]
        if swapped[row] < swap and names and 0 in kept and not stays[0] and len(kept) > stays.count(True) + 1:
            parts[0] = names[int(other[row] * len(names))]
        if mixed[row] < shuffle:
            kept = kept[:first] + sorted(kept[first:], key=lambda i: places[1][i][row])
        made.append(", ".join(parts[i] for i in kept))
    return made


@final
@dataclass(frozen=True, kw_only=True)
class Worded(Wrapped, name="worded"):
    """A set with captions of parts between commas ("red apple, fruit, food, fluent emoji"), worded anew for every look.

    data: the set. keep: share of the parts kept, each by itself; the only part of a caption always is. shuffle: share of
    looks in which the parts come in another order. first: parts at the beginning that are always kept, in their place.
    fixed: parts that begin with one of these are always kept too, and do not count for that. empty: share of looks without
    a caption, which asks for anything: beside `train.drop`, which drops every condition at once, this drops the text alone.
    swap: share of looks in which the first part is that of some other item, where it and another part are kept. A name is
    then a hint and the parts behind it are the law, also beside a name that was never seen; without it a model learns names
    by heart, and what an unseen one sets off drowns the rest.
    Which wording is a function of the run's seed and the number of the look. Held-out items keep theirs. The choice among
    several captions of an item comes before.
    """

    data: Data
    keep: float = 0.7
    shuffle: float = 0.5
    first: int = 1
    empty: float = 0.0
    fixed: tuple[str, ...] = ()
    swap: float = 0.0

    def __post_init__(self) -> None:
        for name in ("keep", "shuffle", "empty", "swap"):
            if not 0 <= getattr(self, name) <= 1:
                raise UserError(f"worded: {name} = {getattr(self, name)} must be a share, from 0 to 1")
        if self.first < 0:
            raise UserError(f"worded: first = {self.first} must be a number of parts, at least 0")
        if "" in self.fixed:
            raise UserError("worded: fixed has an empty text, and every part begins with that; leave it out")
        if not self.data.info.captions:
            raise UserError(f"worded: {self.data.where} has no captions; give data that has")

    def fetch(self, indices: Indices, draws: Draws = None) -> Batch:
        return self._worded(self.data.fetch(indices, draws), draws)

    def fetch_bucket(self, indices: Indices, draws: Draws = None) -> Batch:
        return self._worded(self.data.fetch_bucket(indices, draws), draws)

    def columns(self, indices: Indices, draws: Draws = None) -> dict[str, Column]:
        return self._columns(self.data.columns(indices, draws), draws)

    def fingerprint(self) -> str:
        return digest(
            self.data.fingerprint(), f"{self.keep} {self.shuffle} {self.first} {self.empty} {self.fixed} {self.swap}"
        )

    def item_digest(self, index: int) -> str:
        return self.data.item_digest(index)

    @cached_property
    def _names(self) -> tuple[str, ...]:
        """The different first parts of what is trained on, in alphabetical order."""
        captions = self.data.columns(np.flatnonzero(~self.data.held_out_mask()))["caption"]
        return tuple(sorted({str(text).split(",")[0].strip() for text in captions} - {""}))

    @property
    def bucketing(self) -> Buckets | None:
        return self.data.bucketing

    def _worded(self, batch: Batch, draws: Draws) -> Batch:
        return Batch(batch.media, self._columns(dict(batch.conditions), draws))

    def _columns(self, columns: dict[str, Column], draws: Draws) -> dict[str, Column]:
        captions = columns.get("caption")
        if draws is None or captions is None or isinstance(captions, Tensor):
            return columns
        how = {"keep": self.keep, "shuffle": self.shuffle, "empty": self.empty, "swap": self.swap}
        names = self._names if self.swap else ()
        said = reword(list(captions), draws, first=self.first, fixed=self.fixed, names=names, **how)
        return {**columns, "caption": said}
