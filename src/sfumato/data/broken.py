"""Items that can't be read: which other item stands in, how they are counted, and when there are too many."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, final

import numpy as np
from numpy.typing import NDArray

from sfumato.core.random import keys
from sfumato.errors import UserError

SURE = 10_000  # items seen before a share of them says something: 0.5% of them are 50, and hardly ever 100
_DRAWN = 64
_NAMED = 10


@final
class Ledger:
    """The unreadable items of a set, with name and reason, in the order they were met. Safe for several threads."""

    def __init__(self) -> None:
        self._found: dict[int, str] = {}
        self._lock = threading.Lock()

    def __contains__(self, index: int) -> bool:
        return index in self._found

    def __len__(self) -> int:
        return len(self._found)

    def mark(self, index: int, said: str) -> None:
        """Note that an item can't be read."""
        with self._lock:
            self._found.setdefault(index, said)

    def among(self, indices: NDArray[np.int64] | None = None) -> dict[int, str]:
        """The unreadable ones of some items, or of all, by rising index."""
        if not self._found:
            return {}
        with self._lock:
            known = dict(self._found)
        if indices is None:
            return dict(sorted(known.items()))
        return {i: known[i] for i in sorted(set(indices.tolist())) if i in known}


def stand_ins(index: int, part: NDArray[np.int64]) -> Iterator[int]:
    """The items to try in place of an unreadable one: functions of (its index, attempt) alone.

    part: indices of the items that may stand in. Attempt a < 64 is one drawn by a hash of (index, a), so that a run of
    broken items has many stand-ins; after that come those behind the last one, in turn, until all have been tried.
    """
    n = len(part)
    for attempt in range(_DRAWN):
        yield int(part[int(keys(attempt, "stand in", [index])[0]) % n])
    first = int(keys(_DRAWN, "stand in", [index])[0]) % n
    for place in range(first, first + n):
        yield int(part[place % n])


def too_many(broken: int, seen: int, size: int, share: float) -> bool:
    """Whether more than `share` of the items seen is broken; the first `min(size, 10,000)` count as seen from the start.

    So a small set is judged as a whole, and a large one not by bad luck in its first batches.
    """
    return broken > share * max(seen, min(size, SURE))


def listed(broken: Mapping[int, str]) -> str:
    """The first ten, and how many more there are."""
    more = [f"and {len(broken) - _NAMED} more"] if len(broken) > _NAMED else []
    return ", ".join([*list(broken.values())[:_NAMED], *more])


def refuse(where: str, broken: Mapping[int, str], seen: int, share: float) -> UserError:
    """What to say when there are too many."""
    return UserError(
        f"{where}: {len(broken):,} of {seen:,} items can't be read, more than {100 * share:g}%: {listed(broken)}; "
        "repair or remove them (`sfumato data check` lists all), or allow more with broken=SHARE"
    )


@final
@dataclass
class Replaced:
    """What was replaced in the stream of a run so far. samples: how many. items: index -> name and reason."""

    samples: int = 0
    items: dict[int, str] = field(default_factory=dict)

    def state(self) -> dict[str, Any]:
        """As JSON, for a checkpoint."""
        return {"samples": self.samples, "items": {str(i): said for i, said in sorted(self.items.items())}}

    @classmethod
    def of(cls, state: Mapping[str, Any] | None) -> Replaced:
        """From `state`."""
        if state is None:
            return cls()
        return cls(int(state["samples"]), {int(i): str(said) for i, said in state["items"].items()})

    def add(self, indices: NDArray[np.int64], found: Mapping[int, str]) -> None:
        """Count a batch: its indices, and which of these were replaced."""
        if found:
            self.samples += int(np.isin(indices, list(found)).sum())
            self.items.update(found)
