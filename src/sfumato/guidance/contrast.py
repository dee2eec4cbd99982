"""What classifier-free guidance and its kin share: two denoisers, and a rule for going from one past the other."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import final

import torch
from torch import Tensor

from sfumato.core import Cond, Denoiser, Process, lift
from sfumato.errors import UserError
from sfumato.guidance.base import Given, Guidance, Wrapped, lift_mask, spread, tile


@final
@dataclass(frozen=True)
class Branches:
    """Two estimates of x0 at x_t (B, *S), and how far to go: from `other` (weight 0) through `asked` (weight 1) and on.

    weights: float64 on the CPU, of t's shape. acts: where a weight is neither 0 nor 1, as a mask that broadcasts against
    x; None for everywhere. Elsewhere the answer is one of the two, whatever the rule says, and sums must leave it out.
    """

    process: Process
    x_t: Tensor
    t: Tensor
    asked: Tensor
    other: Tensor
    weights: Tensor
    acts: Tensor | None

    def where_acts(self, x: Tensor) -> Tensor:
        """x, with zeros where nothing is guided."""
        return x if self.acts is None else torch.where(self.acts, x, torch.zeros_like(x))


class Contrast(Guidance, ABC):
    """A guidance between two denoisers; by default along the straight line through both."""

    @property
    def interval(self) -> tuple[float, float] | None:
        """Guide only where low <= log-SNR <= high."""
        return None

    def weights(self, scale: Tensor, process: Process, t: Tensor, times: Tensor | None) -> Tensor:
        """How far to go, of t's shape, for a scale of t's shape."""
        if self.interval is None:
            return scale
        logsnr = process.logsnr(t)
        return torch.where((logsnr >= self.interval[0]) & (logsnr <= self.interval[1]), scale, 1.0)

    def combine(self, at: Branches) -> Tensor:
        """The guided estimate (B, *S) where `at.acts`."""
        return torch.lerp(at.other, at.asked, lift(at.weights, at.asked))


class NullContrast(Contrast, ABC):
    """Between what was asked and "anything", in one pass over both."""

    @final
    def around(self, denoiser: Denoiser, given: Given) -> Denoiser:
        return self.outermost(_NullPair(denoiser, self, self.scales(given), given.times, self.null(given)), given)

    def outermost(self, pair: Denoiser, given: Given) -> Denoiser:
        """A last layer around the pair."""
        return pair


@dataclass(frozen=True)
class Pair(Wrapped, ABC):
    """The denoiser of a `Contrast`. One pass where every weight is 1 or every weight is 0."""

    rule: Contrast
    scale: Tensor
    times: Tensor | None

    @abstractmethod
    def other(self, x_t: Tensor, t: Tensor, cond: Cond | None) -> Tensor:
        """What is gone away from."""

    @abstractmethod
    def both(self, x_t: Tensor, t: Tensor, cond: Cond | None) -> tuple[Tensor, Tensor]:
        """(asked, other)."""

    @final
    def __call__(self, x_t: Tensor, t: Tensor, cond: Cond | None = None) -> Tensor:
        weights = self.rule.weights(spread(self.scale, t), self.process, t, self.times)
        weights = torch.where(t > 0, weights, 1.0)  # at t = 0 x_t is x0 already
        whole, none = weights == 1, weights == 0
        if bool(whole.all()):
            return self.inner(x_t, t, cond)
        if bool(none.all()):
            return self.other(x_t, t, cond)
        asked, other = self.both(x_t, t, cond)
        mixed = bool((whole | none).any())
        acts = lift_mask(~(whole | none), x_t) if mixed else None
        guided = self.rule.combine(Branches(self.process, x_t, t, asked, other, weights, acts))
        if acts is None:
            return guided
        # a sample at weight 1 or 0 gets exactly what it would get alone
        return torch.where(acts, guided, torch.where(lift_mask(whole, x_t), asked, other))


@final
@dataclass(frozen=True)
class _NullPair(Pair):
    null: Cond

    def other(self, x_t: Tensor, t: Tensor, cond: Cond | None) -> Tensor:
        return self.inner(x_t, t, self._null(len(x_t)))

    def both(self, x_t: Tensor, t: Tensor, cond: Cond | None) -> tuple[Tensor, Tensor]:
        if cond is None:
            raise UserError("a guided denoiser was called without a condition; give it cond=")
        conds = Cond.cat([cond, self._null(len(x_t))])
        asked, other = self.inner(torch.cat([x_t, x_t]), torch.cat([t, t]), conds).chunk(2)
        return asked, other

    def _null(self, rows: int) -> Cond:
        return self.null.map(lambda part: tile(part, rows))


def dot(a: Tensor, b: Tensor) -> Tensor:
    """The inner product of every sample, (B, 1, ...), in float32 or wider."""
    wide = torch.promote_types(a.dtype, torch.float32)
    return (a.to(wide) * b.to(wide)).sum(tuple(range(1, a.ndim)), keepdim=True)


def quotient(a: Tensor, b: Tensor, instead: float) -> Tensor:
    """a / b for b >= 0, and `instead` where b is 0."""
    return torch.where(b > 0, a / b, instead)
