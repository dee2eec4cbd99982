"""Noise that does not depend on the grid: one Brownian path a seed, for stochastic solvers with any number of steps."""

from __future__ import annotations

import math
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

    W is a function of (seed, t), without storage or state: the hat functions of Levy and Ciesielski, one a level,

        W(t) = t z_0 + sum_l 2^(-l / 2 - 1) (1 - |2 frac(2^l t) - 1|) z_(l, floor(2^l t)),   l = 0 ... depth - 1

    with a normal z for every node (l, k), keyed by it. Times are rounded to multiples of 2^-depth, where the sum is exact;
    where that leaves nothing of a step, its noise is a draw of its own. A further call for the same (t, s) in one step (a
    corrector's) follows another path of the seed, and so do steps to more noise (t < s).

    The clock is the process's t: any smooth clock would do. Drawn on the CPU in float32, summed in float64. Cost: up to
    2 `depth` draws a sample and step, 2 to 40 times `SampleNoise`; as much again for every further time if tokens have
    times of their own. Li et al., "Scalable Gradients for Stochastic Differential Equations", 2020, section 4,
    has the same idea with bridges.
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
        stream = f"brownian{'/up' if t < s else ''}{f'/{draw}' if draw else ''}"
        low, high = (round(v * 2**self.depth) for v in sorted((t, s)))
        if low == high:
            return normal(keys(seed, stream, [-1 - low]), shape, dtype=torch.float64)[0]
        weights = _hats(high, self.depth)
        for node, weight in _hats(low, self.depth).items():
            weights[node] = weights.get(node, 0.0) - weight
        scale = 1 / math.sqrt((high - low) / 2**self.depth)
        nodes = [node for node, weight in weights.items() if weight]
        total, at_once = torch.zeros(shape, dtype=torch.float64), max(1, _AT_ONCE // max(1, math.prod(shape)))
        for i in range(0, len(nodes), at_once):
            some = nodes[i : i + at_once]
            z = normal(keys(seed, stream, some), shape, dtype=torch.float64)
            total += torch.tensordot(torch.tensor([scale * weights[n] for n in some], dtype=torch.float64), z, 1)
        return total


_AT_ONCE = 1 << 20  # numbers


def _hats(cell: int, depth: int) -> dict[int, float]:
    """The weights of the nodes in W(cell / 2^depth): 0 is z_0, 2^l + k is the hat over the k-th interval of level l."""
    weights = {0: cell / 2**depth}
    for level in range(depth):
        k, inside = divmod(cell, width := 1 << (depth - level))
        if inside:
            weights[(1 << level) + k] = 2.0 ** (-level / 2 - 1) * (1 - abs(2 * inside - width) / width)
    return weights
