"""Functions of a walk's times, computed walk by walk: vectorised functions round differently in batches of another size."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

_APART = 16  # walks that are computed one by one


def by_column(times: Tensor, f: Callable[[Tensor], Tensor]) -> Tensor:
    """f of times (N, *prefix), each different column by itself, so that a sample's numbers don't depend on its batch.

    f maps (N, U) to (..., U); the result is (..., *prefix). Equal columns are computed once. Beyond 16 different ones all
    are computed together, equal to the last bit but one.
    """
    flat = times.flatten(1)
    if flat.shape[1] == 1 or bool((flat == flat[:, :1]).all()):
        made = f(flat[:, :1])
        return made.expand(*made.shape[:-1], flat.shape[1]).reshape(*made.shape[:-1], *times.shape[1:])
    columns, which = torch.unique(flat, dim=1, return_inverse=True)
    parts = columns.split(1, 1) if columns.shape[1] <= _APART else [columns]
    joined = torch.cat([f(part) for part in parts], -1)[..., which]
    return joined.reshape(*joined.shape[:-1], *times.shape[1:])
