"""The kernel distance (MMD with a cubic kernel) between two sets of features: unbiased at any number of items."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from sfumato.errors import UserError
from sfumato.evaluate.neighbours import flat

_BLOCK = 1 << 22


@dataclass(frozen=True)
class Kid:
    """The unbiased squared MMD (it may fall below 0) and its 95% interval."""

    value: float
    interval: tuple[float, float]


def kid(real: Tensor, samples: Tensor) -> Kid:
    """Squared maximum mean discrepancy with k(a, b) = (a.b / D + 1)^3 between features (N, D) and (M, D).

        mean_{i != i'} k(x_i, x_i') + mean_{j != j'} k(y_j, y_j') - 2 mean_{ij} k(x_i, y_j)

    Binkowski et al., "Demystifying MMD GANs", 2018, eq. 4 with their cubic kernel. Over all pairs instead of random
    subsets, so it is deterministic and has the least variance. The interval is 1.96 asymptotic deviations of the
    U-statistic (Hoeffding 1948): var(a) / N + var(b) / M with a_i = 2 (mean_i' k(x_i, x_i') - mean_j k(x_i, y_j)) and
    b_j likewise.
    """
    x, y = flat(real, "real items"), flat(samples, "samples")
    n, m = len(x), len(y)
    if min(n, m) < 2:
        raise UserError(f"{n} and {m} items are too few for the kernel distance; give at least 2 of each")
    if x.shape[1] != y.shape[1]:
        raise UserError(f"features of {x.shape[1]} and {y.shape[1]} values can't be compared; use one judge for both")
    of_x = torch.cat([(k.sum(1) - _own(x[s])) / (n - 1) for s, k in _blocks(x, x)])
    of_y = torch.cat([(k.sum(1) - _own(y[s])) / (m - 1) for s, k in _blocks(y, y)])
    rows, y_to_x = [], torch.zeros(m, dtype=x.dtype, device=x.device)
    for _, k in _blocks(x, y):
        rows.append(k.mean(1))
        y_to_x += k.sum(0) / n
    x_to_y = torch.cat(rows)
    value = float(of_x.mean() + of_y.mean() - 2 * x_to_y.mean())
    variance = float(4 * (of_x - x_to_y).var() / n + 4 * (of_y - y_to_x).var() / m)
    half = 1.959963984540054 * math.sqrt(variance)
    return Kid(value, (value - half, value + half))


def _kernel(a: Tensor, b: Tensor) -> Tensor:
    return (a @ b.T / a.shape[1] + 1).pow(3)


def _own(a: Tensor) -> Tensor:
    return (a.square().mean(1) + 1).pow(3)


def _blocks(a: Tensor, b: Tensor) -> Iterator[tuple[slice, Tensor]]:
    step = max(1, _BLOCK // len(b))
    for start in range(0, len(a), step):
        here = slice(start, min(start + step, len(a)))
        yield here, _kernel(a[here], b)
