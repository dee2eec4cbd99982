"""What multistep methods share: which former points can be used, and the weights of interpolation through them.

Points are compared by a variable v that rises along the walk: lambda = log(alpha / sigma), or -u. A former point counts
while it is finite and lies strictly before the next one. So the order rises from 1 at the start, for each element by its
own times: one that has been held still, or has begun at alpha = 0 where lambda is not finite, starts again at order 1.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import Tensor

from sfumato.core import Process


def half_logsnr(process: Process, times: Tensor) -> Tensor:
    """lambda = log(alpha / sigma), of the shape of times; infinite at a clean and at a purely noisy end."""
    return process.logsnr(times) / 2


def former(values: Tensor, depth: int) -> list[Tensor]:
    """values (N + 1, *P) at the times of a walk -> [v_k, v_(k-1), ..., v_(k-depth)] for its N steps; nan before the start."""
    steps = values[:-1]
    nothing = torch.full_like(steps[:1], torch.nan)
    padded = torch.cat([nothing.expand(depth, *steps.shape[1:]), steps])
    return [padded[depth - j : depth - j + len(steps)] for j in range(depth + 1)]


def usable(points: Sequence[Tensor]) -> Tensor:
    """How many of the points [v_k, v_(k-1), ...] can be used, the first included. (N, *P) int64, at least 1."""
    count = torch.ones_like(points[0], dtype=torch.int64)
    good = torch.isfinite(points[0])
    for later, earlier in pairwise(points):
        good = good & torch.isfinite(earlier) & (earlier < later)
        count = count + good
    return count


def interpolation_weights(nodes: Sequence[Tensor], moments: Sequence[Tensor]) -> list[Tensor]:
    """b_i = integral of the i-th Lagrange polynomial through the nodes, given the integrals of 1, w, w^2, ...

    So sum_i b_i f(w_i) is the integral of the polynomial that takes the values f(w_i), exactly.
    """
    weights = []
    for i, own in enumerate(nodes):
        polynomial = [torch.ones_like(own)]  # coefficients from the constant term up
        for j, other in enumerate(nodes):
            if j != i:
                scale = 1 / (own - other)
                up = [torch.zeros_like(own), *polynomial]
                polynomial = [
                    scale * (up[k] - (other * polynomial[k] if k < len(polynomial) else 0)) for k in range(len(up))
                ]
        weights.append(torch.stack([c * m for c, m in zip(polynomial, moments)]).sum(0))
    return weights


def choose(order: Tensor, by_order: Sequence[Sequence[Tensor]]) -> list[Tensor]:
    """Where order = p, the weights by_order[p - 1], filled up with zeros."""
    most = max(len(weights) for weights in by_order)
    zero = torch.zeros_like(by_order[0][0])
    chosen = [zero] * most
    for p, weights in enumerate(by_order, 1):
        filled = [*weights, *[zero] * (most - len(weights))]
        chosen = [torch.where(order == p, w, c) for w, c in zip(filled, chosen)]
    return chosen


def exponential_moments(h: Tensor, count: int) -> list[Tensor]:
    """integral over w in [0, 1] of e^(-h w) w^k, for k < count: k! P(k + 1, h) / h^(k + 1), P the incomplete gamma.

    Accurate to rounding for every h > 0: nothing cancels.
    """
    factorial, moments = 1.0, []
    for k in range(count):
        factorial *= max(k, 1)
        moments.append(factorial * torch.special.gammainc(torch.full_like(h, k + 1.0), h) / h ** (k + 1))
    return moments


def weighted(weights: Sequence[Tensor], forms: Sequence[Tensor]) -> Tensor:
    """The form sum_i w_i f_i."""
    total = weights[0] * forms[0]
    for weight, form in zip(weights[1:], forms[1:]):
        total = total + weight * form
    return total
