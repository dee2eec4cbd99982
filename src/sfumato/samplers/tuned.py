"""A solver whose numbers were fitted to a model: `sfumato tune-sampler` makes it."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import final

import torch
from torch import Tensor

from sfumato.core import Process
from sfumato.errors import UserError
from sfumato.samplers.base import Plan, Solver
from sfumato.samplers.expadams import ExpAdams
from sfumato.samplers.linear import Basis, Forms, LinearSolver

ANSWERS = 5  # how many answers, the last one included, a step may combine
_SAME = 1e-9  # times that were written down and read again


@final
@dataclass(frozen=True)
class Tuned(Solver, name="tuned"):
    """x_s = a_k x + sum_j w_kj D_(k-j), with numbers of its own for every step of the walks that it was fitted to.

    times: the walks (each N + 1 times); numbers: for each of them N rows [a, w_0 ... w_4], one after the other.
    otherwise: the solver of any other walk. A step whose weights are all 0 asks the network nothing.
    After Frankel et al., "S4S: Solving for a Diffusion Model Solver", 2025; every linear multistep method is such a table.
    No order: it is right for its own steps and model. One evaluation a step. The numbers serve batches that are on one of
    the walks as a whole; where a row stands at another time, or is held still, all rows are walked by `otherwise`.
    """

    times: tuple[tuple[float, ...], ...] = ()
    numbers: tuple[tuple[float, ...], ...] = ()
    otherwise: Solver = field(default_factory=ExpAdams)

    def __post_init__(self) -> None:
        sizes = [(len(t) - 1) * (1 + ANSWERS) for t in self.times]
        if sizes != [len(row) for row in self.numbers]:
            raise UserError(
                f"a tuned solver needs {1 + ANSWERS} numbers for each step of each of its {len(sizes)} walks"
            )

    @property
    def evaluations(self) -> int:
        """Network evaluations a step; of a walk that it was fitted to, 1."""
        return self.otherwise.evaluations

    @property
    def order(self) -> int:
        return self.otherwise.order

    @property
    def stochastic(self) -> bool:
        return self.otherwise.stochastic

    def walk(self, steps: int) -> Tuned | None:
        """This solver with its walk of `steps` evaluations alone; None if it was not fitted to that many."""
        for times, numbers in zip(self.times, self.numbers):
            if sum(any(numbers[i + 1 : i + 1 + ANSWERS]) for i in range(0, len(numbers), 1 + ANSWERS)) == steps:
                return Tuned((times,), (numbers,), self.otherwise)
        return None

    def intervals(self, process: Process, steps: int) -> int:
        found = self.walk(steps)
        return self.otherwise.intervals(process, steps) if found is None else len(found.times[0]) - 1

    def plan(self, process: Process, times: Tensor, x: Tensor) -> Plan:
        for known, numbers in zip(self.times, self.numbers):
            walk = torch.tensor(known, dtype=torch.float64)
            if len(walk) == len(times) and bool(((times.flatten(1) - walk[:, None]).abs() < _SAME).all()):
                table = torch.tensor(numbers, dtype=torch.float64).reshape(-1, 1 + ANSWERS)
                return TableSolver(table).plan(process, times, x)
        return self.otherwise.plan(process, times, x)


@final
class TableSolver(LinearSolver):
    """The linear multistep method of a table (N, 1 + ANSWERS), whose rows are [a, w_0 ... w_4]."""

    evaluations = 1
    carried = ANSWERS - 1

    def __init__(self, table: Tensor) -> None:
        self.numbers = table

    @property
    def order(self) -> int:
        return 1

    def forms(self, process: Process, times: Tensor, basis: Basis) -> Forms:
        column = self.numbers.reshape(*self.numbers.shape, *[1] * (times.ndim - 1)).movedim(1, 0)
        answers = [basis.D[0], *basis.h]
        asked = (self.numbers[:, 1:] != 0).any(1).reshape(-1, *[1] * (times.ndim - 1))
        out = column[0] * basis.x
        for weight, answer in zip(column[1:], answers):
            out = out + weight * answer
        return Forms([(times[:-1], basis.x)], out, [torch.where(asked, basis.D[0], 0.0), *basis.h[:-1]])


def unrolled(solver: Solver, process: Process, times: Tensor) -> Tensor:
    """The tables (N, 1 + ANSWERS, *W) of what a deterministic one-evaluation solver does on walks (N + 1, *W).

    Read off by walking with unit vectors for answers. Raises UserError for a solver that draws noise, asks twice a step,
    needs more than ANSWERS answers, or is not defined on these times.
    """
    if solver.stochastic:
        raise UserError(f"solver={solver.kind} can't be tuned: it draws noise on the way; use exp-adams or dpmpp-2m")
    n, flat = len(times) - 1, times.flatten(1) if times.ndim > 1 else times[:, None]
    x = torch.zeros(flat.shape[1], n + 1, dtype=torch.float64)
    x[:, 0] = 1
    state, steps, _ = solver.plan(process, flat, x)
    nothing = torch.zeros_like(x)
    asked: list[int] = []
    rows = []
    for k, step in enumerate(steps):

        def f(x_t: Tensor, t: Tensor, k: int = k) -> Tensor:
            asked.append(k)
            answer = torch.zeros_like(x_t)
            answer[:, 1 + k] = 1
            return answer

        new, state = step(f, x, state, lambda t, s: nothing)
        a = new[:, :1] / x[:, :1]
        weights = (new - a * x)[:, 1 : k + 2].flip(1)
        _check_row(weights[:, ANSWERS:], a, solver)
        weights = torch.cat([weights[:, :ANSWERS], weights.new_zeros(len(x), max(0, ANSWERS - k - 1))], 1)
        rows.append(torch.cat([a, weights], 1))
        x = new
    if asked != sorted(set(asked)):
        raise UserError(
            f"solver={solver.kind} can't be tuned: it asks more than once a step; use exp-adams or dpmpp-2m"
        )
    return torch.stack(rows).movedim(1, 2).reshape(n, 1 + ANSWERS, *times.shape[1:])


def _check_row(older: Tensor, a: Tensor, solver: Solver) -> None:
    if not bool(torch.isfinite(a).all()):
        raise UserError(f"solver={solver.kind} can't be tuned on these times; use exp-adams")
    if bool((older.abs() > _SAME).any()):
        raise UserError(
            f"solver={solver.kind} can't be tuned: it combines more than {ANSWERS} answers; use fewer points"
        )


def rows_of(table: Tensor) -> tuple[float, ...]:
    """A table as plain numbers, of 10 digits."""
    return written(table.flatten())


def written(values: Tensor) -> tuple[float, ...]:
    """Numbers as they are kept in files: 10 digits."""
    return tuple(float(f"{value:.10g}") for value in values.detach().double().tolist())
