"""Reading every item of a data set once, to know what is wrong with it before a run does."""

from __future__ import annotations

import hashlib
from collections import Counter, defaultdict
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from typing import Any, final

import numpy as np
from torch import Tensor

from sfumato.data.audio import Sounds
from sfumato.data.base import Data
from sfumato.data.encoded import Encoded
from sfumato.data.packed import Packed
from sfumato.files import CorruptError
from sfumato.pictures import BadPicture, read_header

_BATCH = 64


@final
@dataclass(frozen=True)
class Report:
    """What a pass over all items has found.

    unreadable: name and reason by index. duplicates: groups of indices whose media are the same, all of them in one part.
    leaks: such groups with items in the training and the held-out part. sizes: how many pictures have a size, (height,
    width) before scaling. labels: items of every class. without_caption: items with no caption where others have one.
    changed: what a packed folder's manifest says is not as it was written. remarks: what is doubtful, and in which items.
    """

    items: int
    held_out: int
    unreadable: dict[int, str]
    duplicates: list[list[int]]
    leaks: list[list[int]]
    sizes: dict[str, int] = field(default_factory=dict)
    labels: dict[str, int] = field(default_factory=dict)
    without_caption: int = 0
    changed: str = ""
    remarks: dict[str, list[str]] = field(default_factory=dict)

    @property
    def good(self) -> bool:
        """Whether nothing is unreadable or changed, and no held-out item is in the training part."""
        return not (self.unreadable or self.leaks or self.changed)

    def to_dict(self) -> dict[str, Any]:
        return {"good": self.good, **asdict(self)}


def check(data: Data, tell: Callable[[int], None] = lambda done: None) -> Report:
    """Read all items as training would without draws, and compare them by hash.

    data: for sets that replace unreadable items, made with `broken=1`, so that all of them are found. tell: called with the
    number of items read so far. Memory: some 200 bytes an item.
    """
    groups: dict[bytes, list[int]] = defaultdict(list)
    labels: Counter[int] = Counter()
    sizes: Counter[str] = Counter()
    remarks: dict[str, list[str]] = defaultdict(list)
    without = 0
    for start in range(0, len(data), _BATCH):
        indices = list(range(start, min(start + _BATCH, len(data))))
        batch = data.fetch(indices)
        bad = data.unreadable(indices)
        labelled, captions = batch.conditions.get("label"), batch.conditions.get("caption")
        for row, index in enumerate(indices):
            if index in bad:
                continue
            raw = batch.media[row].contiguous().numpy().tobytes()
            groups[hashlib.blake2b(raw, digest_size=16).digest()].append(index)
            if isinstance(labelled, Tensor):
                labels[int(labelled[row])] += 1
            without += captions is not None and not captions[row]
            sizes.update(_size(data, index))
            for said in data.remarks(index):
                remarks[said].append(name_of(data, index))
        tell(indices[-1] + 1)
    held = data.held_out_mask()
    twice = [group for group in groups.values() if len(group) > 1]
    mixed = [bool(held[group].any() and not held[group].all()) for group in twice]
    return Report(
        items=len(data),
        held_out=int(np.count_nonzero(held)),
        unreadable=data.unreadable(),
        duplicates=[group for group, leak in zip(twice, mixed) if not leak],
        leaks=[group for group, leak in zip(twice, mixed) if leak],
        sizes=dict(sizes.most_common()),
        labels={name: labels[k] for k, name in enumerate(data.info.labels)},
        without_caption=without,
        changed=_changed(data),
        remarks=dict(sorted(remarks.items())),
    )


def name_of(data: Data, index: int) -> str:
    """What messages call an item."""
    return data.name_of(index) if isinstance(data, Encoded | Sounds) else f"item {index}"


def _size(data: Data, index: int) -> list[str]:
    """The size of an encoded picture before scaling, if it has one."""
    if not isinstance(data, Encoded):
        return []
    try:
        with data.open(index) as stream:
            header = read_header(stream)
    except BadPicture:
        return []
    return [f"{header.height} x {header.width}"]


def _changed(data: Data) -> str:
    if not isinstance(data, Packed):
        return ""
    try:
        data.verify()
    except CorruptError as error:
        return str(error)
    return ""
