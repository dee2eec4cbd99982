"""A grid and a solver fitted to one model: the best few steps for the pictures that it makes with many.

    minimise over times and numbers   mean_B  h(|x_few - x_many|^2 / |x_many|^2),   h(e) = sqrt(e + c^2) - c

x_many is the model's own solution, x_few the walk of n evaluations from the same noise; gradients pass through the network.
h is linear in the error where samples fall on another side of a decision, so that these few do not outweigh the rest.
The walk starts as UniPC's on the logistic grid (every linear multistep solver is a table of numbers, `unrolled`), the best
on starts that were not trained on is kept, and where nothing better is found the start is what comes back.

Sabour et al., "Align Your Steps", 2024 (times for a model); Frankel et al., "S4S", 2025 (times and coefficients).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from sfumato.core import Cond, Denoiser, LogisticGrid, Process, TunedGrid
from sfumato.errors import UserError
from sfumato.samplers import ExpAdams, Solver, Tuned, sample, start
from sfumato.samplers.tuned import ANSWERS, TableSolver, rows_of, unrolled

MANY = 100  # evaluations of the solution that is aimed at
_SOFT = 0.1  # c of the loss, in relative error
_TIMES_RATE, _NUMBERS_RATE = float(__import__('os').environ.get('TR','.01')), float(__import__('os').environ.get('NR','.004'))
_CHECKS = 12  # how often the walk is tried on the held-out starts
Said = Callable[[int, int, float], None]  # (iterations done, of, relative error on held-out starts)


class Start(NamedTuple):
    """A batch of walks: the denoiser that answers, standard noise (B, *S) and what is asked for."""

    denoiser: Denoiser
    eps: Tensor
    cond: Cond | None = None


@dataclass(frozen=True)
class Tuning:
    """What was found for n evaluations. before, after: relative L2 error to the model's own solution, on held-out starts."""

    evaluations: int
    times: tuple[float, ...]
    numbers: tuple[float, ...]
    before: float
    after: float

    def solver(self, old: Solver | None = None) -> Tuned:
        """The tuned solver, with the walks of `old` kept beside this one."""
        known = _walks(old)
        known[len(self.times)] = (self.times, self.numbers)
        times, numbers = zip(*(known[n] for n in sorted(known)))
        return Tuned(times, numbers, old.otherwise if isinstance(old, Tuned) else ExpAdams())

    def grid(self, old: Solver | None = None) -> TunedGrid:
        """The grid that goes with `solver`."""
        return TunedGrid(self.solver(old).times)


def _walks(old: Solver | None) -> dict[int, tuple[tuple[float, ...], tuple[float, ...]]]:
    return {len(t): (t, v) for t, v in zip(old.times, old.numbers)} if isinstance(old, Tuned) else {}


def solution(begin: Start, many: int = MANY) -> Tensor:
    """Where the model itself takes a batch of noise, with many evaluations. (B, *S)."""
    process = begin.denoiser.process
    solver = ExpAdams()
    times = LogisticGrid()(process, solver.intervals(process, many))
    with torch.no_grad():
        return sample(begin.denoiser, solver, start(process, begin.eps, times[0]), times, begin.cond)


def relative_error(y: Tensor, x: Tensor) -> float:
    """|y - x| / |x| over a whole batch."""
    return float((y - x).double().norm() / x.double().norm())


def tune(
    training: Sequence[Start],
    held_out: Sequence[Start],
    evaluations: int,
    *,
    iterations: int = 300,
    many: int = MANY,
    said: Said | None = None,
) -> Tuning:
    """Fit times and numbers for `evaluations` of the denoisers on `training`, one batch an iteration.

    All starts have one process. Cost: `iterations` walks of `evaluations` with gradients, and a solution with `many`
    evaluations for every batch. A function of its arguments. Raises UserError for fewer than 2 evaluations.
    """
    if evaluations < 2:
        raise UserError(f"nfe={evaluations}: a walk of one evaluation has nothing to tune; use 2 or more")
    process = training[0].denoiser.process
    aims, goals = ([solution(begin, many) for begin in part] for part in (training, held_out))
    walk = _Walk(process, evaluations)
    groups = [{"params": walk.times_, "lr": _TIMES_RATE}, {"params": walk.numbers_, "lr": _NUMBERS_RATE}]
    optimizer = torch.optim.Adam(groups, betas=(0.9, 0.99))
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, iterations)
    before = best = _error(walk, held_out, goals)
    kept = walk.values()
    for i in range(iterations):
        begin, aim = training[i % len(training)], aims[i % len(training)]
        error = (walk(begin) - aim).flatten(1).square().sum(1) / aim.flatten(1).square().sum(1)
        loss = ((error + _SOFT**2).sqrt() - _SOFT).mean()
        optimizer.zero_grad()
        torch.autograd.backward(loss)
        if math.isfinite(float(torch.nn.utils.clip_grad_norm_([walk.times_, walk.numbers_], 0.1))):
            optimizer.step()
        schedule.step()
        if (i + 1) % max(1, iterations // _CHECKS) == 0 or i + 1 == iterations:
            now = _error(walk, held_out, goals)
            if now < best:
                best, kept = now, walk.values()
            if said is not None:
                said(i + 1, iterations, now)
    return Tuning(evaluations, *kept, before, best)


def _error(walk: _Walk, starts: Sequence[Start], goals: Sequence[Tensor]) -> float:
    with torch.no_grad():
        made = torch.cat([walk(begin).cpu() for begin in starts])
    return relative_error(made, torch.cat([goal.cpu() for goal in goals]))


class _Walk:
    """Times and numbers as free parameters.

    times_: log of the gaps of lambda = log(alpha / sigma) between the interior times, and the first of them.
    numbers_: (N, 1 + ANSWERS), relative to what a first-order step between these times has.
    """

    def __init__(self, process: Process, evaluations: int) -> None:
        self.process = process
        solver = ExpAdams()
        times = LogisticGrid()(process, solver.intervals(process, evaluations))
        lam = process.logsnr(times)[1:-1] / 2
        self.last = float(lam[-1]) + 3.0  # no interior time nearer to the data than this
        self.times_ = torch.cat([lam[:1], lam.diff().log()]).requires_grad_(True)
        table = unrolled(solver, process, times)
        on_x, on_data = self._first_order(self.times())
        with torch.no_grad():
            x_part = torch.where(on_x > 0, table[:, 0] / on_x, 0.0)
            self.numbers_ = torch.cat([x_part[:, None], table[:, 1:] / on_data[:, None]], 1)
        self.mask = (table[:, 1:] != 0).any(1, keepdim=True).expand(-1, ANSWERS)  # a step that asks nothing stays so
        self.mask = self.mask & (torch.arange(ANSWERS) <= self._asked()[:, None])
        self.mask = torch.cat([on_x[:, None] > 0, self.mask], 1)
        self.numbers_.requires_grad_(True)

    def _asked(self) -> Tensor:
        """How many answers lie before each step."""
        return self.mask[:, 0].long().cumsum(0) - 1

    def times(self) -> Tensor:
        """(N + 1,), differentiable."""
        lam = torch.cat([self.times_[:1], self.times_[:1] + self.times_[1:].exp().cumsum(0)]).clamp(max=self.last)
        interior = self.process.time(2 * lam)
        return torch.cat([torch.ones(1, dtype=torch.float64), interior, torch.zeros(1, dtype=torch.float64)])

    def _first_order(self, times: Tensor) -> tuple[Tensor, Tensor]:
        (alpha_t, sigma_t), (alpha_s, sigma_s) = self.process.scales(times[:-1]), self.process.scales(times[1:])
        return sigma_s / sigma_t, alpha_s - alpha_t * sigma_s / sigma_t

    def table(self) -> Tensor:
        """(N, 1 + ANSWERS), differentiable."""
        on_x, on_data = self._first_order(self.times())
        scale = torch.cat([on_x[:, None], on_data[:, None].expand(-1, ANSWERS)], 1)
        return torch.where(self.mask, self.numbers_ * scale, 0.0)

    def values(self) -> tuple[tuple[float, ...], tuple[float, ...]]:
        """Times and numbers as they are now."""
        with torch.no_grad():
            return tuple(self.times().tolist()), rows_of(self.table())

    def __call__(self, begin: Start) -> Tensor:
        denoiser = begin.denoiser
        times = self.times()[:, None].expand(-1, len(begin.eps))
        x = start(self.process, begin.eps, times[0])
        state, steps, _ = TableSolver(self.table()).plan(self.process, times, x)

        def f(x_t: Tensor, t: Tensor) -> Tensor:
            if not torch.is_grad_enabled():
                return denoiser(x_t, t, begin.cond)
            answer: Tensor = checkpoint(denoiser, x_t, t, begin.cond, use_reentrant=False)
            return answer

        for step in steps:
            x, state = step(f, x, state, lambda t, s: torch.zeros_like(x))
        return x
