"""Labels, captions and numbers of all items of a data set, checked once."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from sfumato.core.media import Column, DataInfo
from sfumato.data.base import Draws, Indices, expand
from sfumato.errors import UserError

MOST_CLASSES = 100_000


@dataclass(frozen=True)
class Columns:
    """labels (N,) int64 with class names; captions N tuples of alternatives, the first canonical; numbers (N, K)."""

    labels: NDArray[np.int64] | None = None
    names: tuple[str, ...] = ()
    captions: Sequence[tuple[str, ...]] | None = None
    numbers: NDArray[np.float32] | None = None
    number_names: tuple[str, ...] = ()

    def info(self, shape: tuple[int, ...], kind: str) -> DataInfo:
        """The description of a set with these columns."""
        return DataInfo(shape, kind, self.names, self.captions is not None, self.number_names)

    def take(self, indices: Indices, draws: Draws = None) -> dict[str, Column]:
        """The columns of some items; a draw chooses among the captions of its item."""
        index = np.asarray(indices, np.int64)
        taken: dict[str, Column] = {}
        if self.labels is not None:
            taken["label"] = torch.from_numpy(self.labels[index])
        if self.captions is not None:
            options = [self.captions[i] for i in index.tolist()]
            if draws is None:
                taken["caption"] = [o[0] if o else "" for o in options]
            else:
                where = expand(draws, "caption").tolist()
                taken["caption"] = [o[int(u * len(o))] if o else "" for o, u in zip(options, where)]
        if self.numbers is not None:
            taken["number"] = torch.from_numpy(self.numbers[index])
        return taken


def read_labels(
    values: Sequence[Any] | NDArray[Any], where: str, *, classes: int | None = None, names: Sequence[str] = ()
) -> tuple[NDArray[np.int64], tuple[str, ...]]:
    """Labels as written in a file -> (int64 labels, class names).

    Whole numbers are taken as they are and must lie in 0 ... K-1, with K = `classes`, the number of `names`, or the
    largest label plus 1. Text is numbered in the order of its sorted distinct values, whole numbers by value.
    """
    raw = np.asarray(values)
    if raw.ndim == 2 and raw.shape[1] == 1:
        raw = raw[:, 0]
    if raw.ndim != 1:
        raise UserError(f"{where}: labels have shape {raw.shape}; they must be one number or name per item")
    if raw.dtype.kind in "US":
        return _named([str(v) for v in raw.tolist()], where, classes)
    if raw.dtype.kind == "f":
        wrong = np.flatnonzero(~np.isfinite(raw) | (raw != np.round(raw)))
        if len(wrong):
            raise UserError(
                f"{where}: the label of item {wrong[0]} is {raw[wrong[0]]}; labels must be whole numbers 0..K-1"
            )
    elif raw.dtype.kind not in "iub":
        raise UserError(f"{where}: labels of type {raw.dtype} are not read; store whole numbers 0..K-1 or names")
    labels = raw.astype(np.int64)
    known = classes or len(names) or None
    top = known if known is not None else int(labels.max(initial=0)) + 1
    wrong = np.flatnonzero((labels < 0) | (labels >= top))
    if len(wrong):
        i = int(wrong[0])
        raise UserError(
            f"{where}: the label of item {i} is {labels[i]}, outside 0..{top - 1}; number the classes from 0"
        )
    if top > MOST_CLASSES:
        raise UserError(
            f"{where}: the largest label is {top - 1}, over {MOST_CLASSES:,} classes; number the classes from 0"
        )
    return labels, tuple(names) if names else tuple(str(k) for k in range(top))


def _named(values: list[str], where: str, classes: int | None) -> tuple[NDArray[np.int64], tuple[str, ...]]:
    distinct = set(values)
    whole = all(v.isascii() and v.isdigit() for v in distinct)
    names = sorted(distinct, key=lambda v: (int(v), v)) if whole else sorted(distinct)
    if classes is not None and len(names) > classes:
        raise UserError(
            f"{where}: has {len(names)} different labels, but classes = {classes}; set classes={len(names)}"
        )
    number = {name: k for k, name in enumerate(names)}
    return np.asarray([number[v] for v in values], np.int64), tuple(names)


def read_numbers(rows: Sequence[Sequence[Any]], names: Sequence[str], where: str) -> NDArray[np.float32]:
    """Numeric columns (N, K); every value must be a finite number."""
    made = np.empty((len(rows), len(names)), np.float32)
    for i, row in enumerate(rows):
        for k, value in enumerate(row):
            try:
                number = float(value)
            except (TypeError, ValueError):
                number = math.nan
            if not math.isfinite(number):
                raise UserError(f"{where}: '{names[k]}' of item {i} is {value!r}; it must be a finite number")
            made[i, k] = number
    return made


def read_captions(value: Any, where: str) -> tuple[str, ...]:
    """One caption, or a list of alternatives; empty ones are dropped."""
    if value is None:
        return ()
    listed = value if isinstance(value, list | tuple) else [value]
    if not all(isinstance(v, str) for v in listed):
        raise UserError(f"{where}: the caption {value!r} is not text")
    return tuple(v.strip() for v in listed if v.strip())
