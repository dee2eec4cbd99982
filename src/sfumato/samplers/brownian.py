"""Noise that does not depend on the grid: one Brownian path a seed, for stochastic solvers with any number of steps."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import final

import torch
from torch import Tensor

from sfumato.core.random import keys, normal
from sfumato.errors import UserError
from sfumato.samplers.base import Noise


@final
@dataclass(frozen=True)
class BrownianNoise:
    """The increments of a Brownian motion W of every seed:  noise(t, s) = (W(t) - W(s)) / sqrt(t - s).

    Each is standard normal, those of disjoint intervals are independent, and increments over neighbouring intervals add
    up: a walk of 40 steps follows the same path as one of 20, with less error, where white noise gives another sample.
    So steps can be chosen on a picture, and a stochastic solver has a strong order that can be measured.

    W is built on demand from a dyadic tree, without storage or state: W(1) and the middle of each interval are keyed by
    (seed, node),

        W(m) = (W(a) + W(b)) / 2 + sqrt((b - a) / 4) z,   m = (a + b) / 2

    (Levy's construction). Times are rounded to multiples of 2^-depth; where that leaves nothing of a step, its noise is a
    draw of its own. A further call for the same (t, s) in one step (a corrector's) follows another path of the seed, and
    so do steps to more noise (t < s).

    The clock is the process's t: any smooth clock would do. Drawn on the CPU in float32, summed in float64. Cost: up to
    2 `depth` draws a sample and step, 2 to 40 times `SampleNoise`; as much again for every further time if tokens have
    times of their own. The tree: Li et al., "Scalable Gradients for Stochastic Differential Equations", 2020, section 4.
    """

    seeds: tuple[int, ...]
    depth: int = 24

    def __post_init__(self) -> None:
        if not 1 <= self.depth <= 50:
            raise UserError(f"a Brownian path needs a depth from 1 to 50, not {self.depth}")

    def of_step(self, number: int, x: Tensor) -> Noise:
        """The noise of step `number` for tensors like x; the path knows steps only by their times."""
        if len(x) != len(self.seeds):
            raise UserError(f"the noise of {len(self.seeds)} seeds does not fit a batch of {len(x)}")
        calls: dict[tuple[bytes, bytes], int] = {}

        def noise(t: Tensor, s: Tensor) -> Tensor:
            span = (t.numpy().tobytes(), s.numpy().tobytes())
            calls[span] = calls.get(span, 0) + 1
            return self.increment(t, s, x.shape[1:], draw=calls[span] - 1).to(x.device, x.dtype)

        return noise

    def increment(self, t: Tensor, s: Tensor, shape: tuple[int, ...], *, draw: int = 0) -> Tensor:
        """(W(t) - W(s)) / sqrt(|t - s|) on path `draw` of every seed. t, s: () or a prefix of (B, *shape). float64."""
        t, s = (v.expand(len(self.seeds), *v.shape[1:]) for v in (t, s))
        rows = [self._row(seed, a, b, shape, draw) for seed, a, b in zip(self.seeds, t, s)]
        return torch.stack(rows)

    def _row(self, seed: int, t: Tensor, s: Tensor, shape: tuple[int, ...], draw: int) -> Tensor:
        """The increment of one sample; t and s of one shape, a prefix of `shape`."""
        if t.ndim == 0:
            return self._between(seed, float(t), float(s), shape, draw)
        flat = torch.stack([t.flatten(), s.flatten()], 1)
        out = torch.empty(len(flat), *shape[t.ndim :], dtype=torch.float64)
        for pair in torch.unique(flat, dim=0):
            whole = self._between(seed, float(pair[0]), float(pair[1]), shape, draw)
            chosen = (flat == pair).all(1)
            out[chosen] = whole.reshape(out.shape)[chosen]
        return out.reshape(shape)

    def _between(self, seed: int, t: float, s: float, shape: tuple[int, ...], draw: int) -> Tensor:
        upward = t < s
        stream = f"brownian{'/up' if upward else ''}{f'/{draw}' if draw else ''}"
        cells = 1 << self.depth
        low, high = (round(v * cells) for v in sorted((t, s)))
        drawn: dict[int, Tensor] = {}

        def node(index: int) -> Tensor:
            if index not in drawn:
                drawn[index] = normal(keys(seed, stream, [index]), shape, dtype=torch.float64)[0]
            return drawn[index]

        if low == high:
            return node(-1 - low)
        return (_path(high, self.depth, node) - _path(low, self.depth, node)) / math.sqrt((high - low) / cells)


def _path(cell: int, depth: int, node: Callable[[int], Tensor]) -> Tensor:
    """W(cell / 2^depth). Nodes: 0 for W(1), 2^level + k for the middle of the k-th interval of a level."""
    start, width = 0, 1 << depth
    left, right = torch.zeros_like(node(0)), node(0)  # W at start and start + width
    if cell == width:
        return right
    for level in range(depth):
        if cell == start:
            break
        middle = (left + right) / 2 + 0.5 * 2.0 ** (-level / 2) * node((1 << level) + (start >> (depth - level)))
        width //= 2
        if cell >= start + width:
            start, left = start + width, middle
        else:
            right = middle
    return left
