"""A grid and a solver fitted to one model: the best few steps for the pictures that it makes with many.

    minimise over times and numbers   mean_B  h(|x_few - x_many|^2 / |x_many|^2),   h(e) = sqrt(e + c^2) - c

x_many is the model's own solution, x_few the walk of n evaluations from the same noise; gradients pass through the network.
h is linear in the error where samples fall on another side of a decision, so that these few do not outweigh the rest.
The walk starts as that of the default solver on the default grid (every linear multistep solver is a table of numbers,
`unrolled`), the best on starts that were not trained on is kept, and where nothing better is found that is what comes back.

Sabour et al., "Align Your Steps", 2024 (times for a model); Frankel et al., "S4S", 2025 (times and coefficients).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple, TypeVar, final

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from sfumato.core import Cond, Denoiser, Grid, LogisticGrid, Process, SampleNoise, TunedGrid
from sfumato.errors import UserError
from sfumato.guidance import PlusPlus
from sfumato.model import resting
from sfumato.pipeline import Pipeline, Plan, Sampling
from sfumato.samplers import ExpAdams, Solver, Tuned, sample, start
from sfumato.samplers.tuned import ANSWERS, rows_of, unrolled, written

MANY = 100  # evaluations of the solution that is aimed at
SOLVER: Solver = ExpAdams()  # of that solution, and where the walk starts
GRID: Grid = LogisticGrid()
_SOFT = 0.1  # c of the loss, in relative error
_TIMES_RATE, _NUMBERS_RATE = 0.03, 0.01
_CHECKS = 12  # how often the walk is tried on the held-out starts
_HELD_OUT = 3  # every third sample of a plan is held out
_GRADIENT = 4  # what an evaluation with gradients costs, in evaluations: forward, forward again, backward
_NEARER = 3.0  # how much nearer to the data, in lambda, the last interior time may move
_LEAST_GAP = 0.02  # in lambda, between two interior times
_STEP = 1e-6  # in lambda, of the difference quotients of the solver's numbers
Said = Callable[[int, int, float], None]  # (evaluations of batches done, of, relative error on held-out starts or nan)


class Start(NamedTuple):
    """A batch of walks: the denoiser that answers, standard noise (B, *S) and what is asked for."""

    denoiser: Denoiser
    eps: Tensor
    cond: Cond | None = None


@final
@dataclass(frozen=True)
class Tuning:
    """What was found for n evaluations. before, after: `relative_error` to the model's own solution, on held-out starts."""

    evaluations: int
    times: tuple[float, ...]
    numbers: tuple[float, ...]
    before: float
    after: float

    @property
    def better(self) -> bool:
        """Whether anything better than the start was found."""
        return self.after < self.before

    def solver(self, old: Solver | None = None) -> Tuned:
        """The tuned solver. With the walks of `old` beside this one, or with `old` for all other numbers of steps."""
        otherwise = old.otherwise if isinstance(old, Tuned) else old if old is not None else SOLVER
        known = self._beside(dict(zip(old.times, old.numbers)) if isinstance(old, Tuned) else {})
        return Tuned(tuple(known), tuple(known.values()), otherwise)

    def grid(self, old: Grid | None = None) -> TunedGrid:
        """The grid that goes with `solver`, likewise."""
        otherwise = old.otherwise if isinstance(old, TunedGrid) else old if old is not None else GRID
        known = self._beside(dict.fromkeys(old.times, ()) if isinstance(old, TunedGrid) else {})
        return TunedGrid(tuple(known), otherwise)

    def _beside(
        self, known: Mapping[tuple[float, ...], tuple[float, ...]]
    ) -> dict[tuple[float, ...], tuple[float, ...]]:
        kept = {times: numbers for times, numbers in known.items() if len(times) != len(self.times)}
        return dict(sorted({**kept, self.times: self.numbers}.items(), key=lambda walk: len(walk[0])))


def solution(begin: Start, many: int = MANY) -> Tensor:
    """Where the model itself takes a batch of noise, with many evaluations. (B, *S)."""
    process = begin.denoiser.process
    times = GRID(process, SOLVER.intervals(process, many))
    with torch.no_grad():
        return sample(begin.denoiser, SOLVER, start(process, begin.eps, times[0]), times, begin.cond)


def relative_error(y: Tensor, x: Tensor) -> float:
    """|y - x| / |x| of every sample, on average. One that falls on another side of a decision counts as one."""
    return float(((y - x).double().flatten(1).norm(dim=1) / x.double().flatten(1).norm(dim=1)).mean())


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

    All starts have one process. Weights of networks should ask for no gradients (`sfumato.model.resting`); none are given
    to them. Cost: `iterations` walks of `evaluations` with gradients, and a solution with `many` evaluations for every
    batch. Memory: the activations of one evaluation, and x and the answers of a walk. A function of its arguments.
    Raises UserError for fewer than 2 evaluations.
    """
    return tune_all(training, held_out, [evaluations], iterations=iterations, many=many, said=said)[0]


def tune_all(
    training: Sequence[Start],
    held_out: Sequence[Start],
    evaluations: Sequence[int],
    *,
    iterations: int = 300,
    many: int = MANY,
    said: Said | None = None,
) -> list[Tuning]:
    """`tune` for several numbers of evaluations, with one set of solutions."""
    for nfe in evaluations:
        check(nfe, iterations, many)
    cost = sum(_GRADIENT * iterations * nfe + (_CHECKS + 1) * nfe * len(held_out) for nfe in evaluations)
    counter = _Counter(many * (len(training) + len(held_out)) + cost, said)
    aims, goals = ([_counted(solution(b, many), counter, many) for b in part] for part in (training, held_out))
    pairs, checks = list(zip(training, aims)), list(zip(held_out, goals))
    return [_fit(pairs, checks, nfe, iterations, counter) for nfe in evaluations]


def check(evaluations: int, iterations: int = 1, many: int = MANY) -> None:
    """Raise UserError for what can't be tuned."""
    if evaluations < 2:
        raise UserError(f"nfe={evaluations}: a walk of one evaluation has nothing to tune; use 2 or more")
    if evaluations >= many:
        raise UserError(f"nfe={evaluations}: it is compared with many={many} evaluations; use fewer, or raise many=")
    if iterations < 1:
        raise UserError(f"iterations={iterations}: must be at least 1; 300 are usual")


def starts(pipeline: Pipeline, plan: Plan, batch: int = 32) -> list[Start]:
    """The batches that a plan's samples begin as, with the guidance and threshold of the plan.

    The model should be at rest (`sfumato.model.resting`) while they are used. Raises UserError for `cfg++`.
    """
    if isinstance(plan.guidance, PlusPlus):
        raise UserError("guidance=cfg++ is defined by the steps, which tuning moves; tune with guidance=cfg")
    if batch < 1:
        raise UserError(f"batch={batch}: must be at least 1")
    made = []
    with torch.no_grad():
        for first in range(0, len(plan.request.seeds), batch):
            part = plan.take(range(first, min(first + batch, len(plan.request.seeds))))
            denoiser, cond = pipeline.guided(part)
            noise = SampleNoise(part.request.seeds)
            made.append(Start(denoiser, noise.prior(pipeline.model.codec.shape, device=pipeline.model.device), cond))
    return made


def tune_pipeline(
    pipeline: Pipeline,
    plan: Plan,
    evaluations: Sequence[int],
    *,
    batch: int = 32,
    iterations: int = 300,
    many: int = MANY,
    said: Said | None = None,
) -> list[Tuning]:
    """Fit the sampling of a pipeline to what a plan asks for: every third sample is held out, the others are trained on.

    The pipeline is left as it was; `tuned_sampling` says how to sample it then. See `tune` for cost and errors.
    """
    rows = range(len(plan.request.seeds))
    if len(rows) < _HELD_OUT:
        raise UserError(f"tuning needs {_HELD_OUT} samples or more, not {len(rows)}; every third one is held out")
    with resting(pipeline.model):
        training = starts(pipeline, plan.take([i for i in rows if (i + 1) % _HELD_OUT]), batch)
        held_out = starts(pipeline, plan.take([i for i in rows if (i + 1) % _HELD_OUT == 0]), batch)
        return tune_all(training, held_out, evaluations, iterations=iterations, many=many, said=said)


def tuned_sampling(sampling: Sampling, found: Sequence[Tuning]) -> Sampling:
    """A model's sampling with what was found, where that is better: other numbers of steps are sampled as before."""
    for tuning in found:
        if tuning.better:
            solver, grid = tuning.solver(sampling.solver), tuning.grid(sampling.grid)
            sampling = replace(sampling, solver=solver, grid=grid)
    return sampling


def _fit(
    training: Sequence[tuple[Start, Tensor]],
    held_out: Sequence[tuple[Start, Tensor]],
    evaluations: int,
    iterations: int,
    counter: _Counter,
) -> Tuning:
    walk = _Walk(training[0][0].denoiser.process, evaluations)
    groups = [{"params": [walk.times_], "lr": _TIMES_RATE}, {"params": [walk.numbers_], "lr": _NUMBERS_RATE}]
    optimizer = torch.optim.Adam(groups, betas=(0.9, 0.99))
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, iterations)
    before = best = _error(walk, held_out, counter)
    kept = walk.values()
    for i in range(iterations):
        begin, aim = training[i % len(training)]
        error = (walk(begin) - aim).flatten(1).square().sum(1) / aim.flatten(1).square().sum(1)
        loss = ((error + _SOFT**2).sqrt() - _SOFT).mean()
        optimizer.zero_grad()
        torch.autograd.backward(loss, inputs=walk.parameters)
        if math.isfinite(float(torch.nn.utils.clip_grad_norm_(walk.parameters, 0.1))):
            optimizer.step()
            walk.hold()
        schedule.step()
        counter.add(_GRADIENT * evaluations)
        if (i + 1) % max(1, iterations // _CHECKS) == 0 or i + 1 == iterations:
            now = _error(walk, held_out, counter)
            if now < best:
                best, kept = now, walk.values()
    return Tuning(evaluations, *kept, before, best)


def _error(walk: _Walk, held_out: Sequence[tuple[Start, Tensor]], counter: _Counter) -> float:
    with torch.no_grad():
        made = torch.cat([_counted(walk(begin).cpu(), counter, walk.evaluations) for begin, _ in held_out])
    counter.error = relative_error(made, torch.cat([goal.cpu() for _, goal in held_out]))
    return counter.error


@final
class _Counter:
    """How much of the work is done."""

    def __init__(self, total: int, said: Said | None) -> None:
        self.done, self.total, self.said, self.error = 0, total, said, math.nan

    def add(self, evaluations: int) -> None:
        self.done += evaluations
        if self.said is not None:
            self.said(min(self.done, self.total), self.total, self.error)


T = TypeVar("T")


def _counted(value: T, counter: _Counter, evaluations: int) -> T:
    counter.add(evaluations)
    return value


@final
class _Walk:
    """Times and numbers as free parameters.

    times_: the first interior time as lambda = log(alpha / sigma), then the log of the gaps between the interior ones.
    numbers_: (N, 1 + ANSWERS), what is added to the numbers that SOLVER has at these times, in units of those of a
    first-order step. So a time takes the numbers along when it moves: without, half of the way is not found.
    """

    def __init__(self, process: Process, evaluations: int) -> None:
        self.process, self.evaluations = process, evaluations
        times = GRID(process, SOLVER.intervals(process, evaluations))
        lam = process.logsnr(times)[1:-1] / 2
        first, last = float(process.logsnr(times[0]) / 2), float(lam[-1])
        self.range = (max(first, float(lam[0]) - _NEARER) + _LEAST_GAP, last + _NEARER)
        self.times_ = torch.cat([lam[:1], lam.diff().log()]).requires_grad_(True)
        self.numbers_ = torch.zeros(len(times) - 1, 1 + ANSWERS, dtype=torch.float64, requires_grad=True)
        asks: list[bool] = (unrolled(SOLVER, process, times)[:, 1:] != 0).any(1).tolist()
        self.asks = asks  # a step that asks nothing stays so
        there = [[asks[k] and k >= j and asks[k - j] for j in range(ANSWERS)] for k in range(len(asks))]
        on_x, _ = self._first_order(times)
        self.free = torch.cat([on_x[:, None] > 0, torch.tensor(there)], 1)

    @property
    def parameters(self) -> list[Tensor]:
        return [self.times_, self.numbers_]

    def hold(self) -> None:
        """Keep the interior times in order and in their range."""
        low, high = self.range
        least = _LEAST_GAP * (len(self.times_) - 1)
        with torch.no_grad():
            self.times_[0].clamp_(low, high - least)
            more = (self.times_[1:].exp() - _LEAST_GAP).clamp(min=0)
            room = high - least - self.times_[0]
            self.times_[1:] = (_LEAST_GAP + more * (room / more.sum()).clamp(max=1).nan_to_num(1.0)).log()

    def lam(self) -> Tensor:
        """lambda at the interior times, (N - 1,)."""
        return torch.cat([self.times_[:1], self.times_[:1] + self.times_[1:].exp().cumsum(0)])

    def times(self) -> Tensor:
        """(N + 1,), differentiable."""
        lam = self.lam()
        interior = self._interior(lam.detach())
        # by the slope of lambda, so that it does not matter how the process finds its times
        interior = interior - (lam - lam.detach()) * 2 / self.process.logsnr_slope(interior)
        return torch.cat([torch.ones(1, dtype=torch.float64), interior, torch.zeros(1, dtype=torch.float64)])

    def _interior(self, lam: Tensor) -> Tensor:
        with torch.no_grad():
            return self.process.time(2 * lam)

    def _first_order(self, times: Tensor) -> tuple[Tensor, Tensor]:
        (alpha_t, sigma_t), (alpha_s, sigma_s) = self.process.scales(times[:-1]), self.process.scales(times[1:])
        return sigma_s / sigma_t, alpha_s - alpha_t * sigma_s / sigma_t

    def _solver(self) -> Tensor:
        """The numbers that SOLVER has at these times, (N, 1 + ANSWERS); in the times by difference quotients."""
        lam = self.lam()
        here = lam.detach()
        if not torch.is_grad_enabled():
            moved = here[:, None]
        else:
            moved = here[:, None] + _STEP * torch.eye(len(here), 1 + len(here), dtype=torch.float64)
        ends = torch.ones(1, moved.shape[1], dtype=torch.float64)
        with torch.no_grad():
            tables = unrolled(SOLVER, self.process, torch.cat([ends, self._interior(moved), 0 * ends]))
            here_table = tables[..., -1]
            slopes = (tables[..., :-1] - here_table[..., None]) / _STEP
        return here_table + slopes @ (lam - here) if torch.is_grad_enabled() else here_table

    def table(self) -> Tensor:
        """(N, 1 + ANSWERS), differentiable."""
        on_x, on_data = self._first_order(self.times())
        scale = torch.cat([on_x[:, None], on_data[:, None].expand(-1, ANSWERS)], 1)
        return self._solver() + torch.where(self.free, self.numbers_ * scale, 0.0)

    def values(self) -> tuple[tuple[float, ...], tuple[float, ...]]:
        """Times and numbers as they are now."""
        with torch.no_grad():
            return written(self.times()), rows_of(self.table())

    def __call__(self, begin: Start) -> Tensor:
        """The walk of `Tuned` with gradients. Numbers that are 0 or 1 are no exception here, unlike in compiled steps."""
        times, table = self.times(), self.table()
        x = start(self.process, begin.eps, times[0])
        numbers = table.to(x.dtype).to(x.device)
        answers: list[Tensor | None] = []
        for k, asks in enumerate(self.asks):
            answers = [_asked(begin, x, times[k].expand(len(x))) if asks else None, *answers[: ANSWERS - 1]]
            x = numbers[k, 0] * x
            for j, answer in enumerate(answers):
                if answer is not None and asks:
                    x = x + numbers[k, 1 + j] * answer
        return x


def _asked(begin: Start, x: Tensor, t: Tensor) -> Tensor:
    if not torch.is_grad_enabled():
        return begin.denoiser(x, t, begin.cond)
    answer: Tensor = checkpoint(
        begin.denoiser, x, t, begin.cond, use_reentrant=False, preserve_rng_state=False
    )  # what it remembers is one evaluation, not all of the walk
    return answer
