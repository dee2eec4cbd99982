"""Solvers that are a table of numbers.

Nearly every solver makes, in each step, a few linear combinations of tensors: x, what it carries over from the steps
before, noise, and the denoiser's answers D_1, D_2, ... of this step. The combinations' coefficients depend on the times
alone. So a solver here says only what they are, for all steps at once, as `Forms`; one class makes the steps.

A *form* is a float64 tensor (W, N, *prefix): the W coefficients, over the basis

    x, h_1 ... h_m (carried), z_1 ... z_r (noise), D_1 ... D_e (answers)

in each of N steps. Forms are added and scaled like numbers, so a method's formula is written as in its paper:
`z = basis.x / c` is x / c, `(z - basis.D[0]) / u` a slope.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import ClassVar, final

import torch
from torch import Tensor

from sfumato.core import Process
from sfumato.core.columns import by_column
from sfumato.errors import UserError
from sfumato.samplers.base import Denoise, Noise, Plan, Solver, State

Terms = tuple[tuple[int, Tensor | None], ...]  # (which tensor, its coefficient; None for exactly 1)


@final
class Basis:
    """The unit forms of a step."""

    def __init__(self, like: Tensor, carried: int, noises: int, evaluations: int) -> None:
        width = 1 + carried + noises + evaluations
        eye = torch.eye(width, dtype=torch.float64).reshape(width, width, *[1] * like.ndim)
        units = [unit.expand(width, *like.shape) for unit in eye]
        self.x: Tensor = units[0]
        self.h: list[Tensor] = units[1 : 1 + carried]
        self.z: list[Tensor] = units[1 + carried : 1 + carried + noises]
        self.D: list[Tensor] = units[1 + carried + noises :]


@dataclass(frozen=True)
class Forms:
    """What a solver does in N steps.

    ask: the times (N, *prefix) and the places (forms) at which the denoiser is asked; its answers are D_1, D_2, ...
    out: the form of x at the end of the step. carry: the forms of what is handed on as h_1 ... h_m.
    """

    ask: Sequence[tuple[Tensor, Tensor]]
    out: Tensor
    carry: Sequence[Tensor] = ()


class LinearSolver(Solver):
    """A solver given by its `forms`. carried, noises: how many tensors are carried over and drawn in a step."""

    carried: ClassVar[int] = 0
    noises: ClassVar[int] = 0

    @abstractmethod
    def forms(self, process: Process, times: Tensor, basis: Basis) -> Forms:
        """times: (N + 1, *prefix), falling. Where they stand still (t = s) whatever is said of x is not used."""

    @property
    def stochastic(self) -> bool:
        return self.noises > 0

    @final
    def table(self, process: Process, times: Tensor) -> tuple[Tensor, Tensor]:
        """All coefficients (N, E + 1 + carried, W, *prefix) and the times asked for (N, E, *prefix), float64."""
        t, s = times[:-1], times[1:]
        basis = Basis(t, self.carried, self.noises, self.evaluations)
        forms = self.forms(process, times, basis)
        out = torch.where(t == s, basis.x, forms.out)
        table = torch.stack([place for _, place in forms.ask] + [out, *forms.carry]).movedim(2, 0)
        if not bool(torch.isfinite(table).all()):
            step = int((~torch.isfinite(table)).flatten(1).any(1).nonzero()[0])
            raise UserError(
                f"solver={self.kind} is not defined on the process '{process.kind}' from t = {_shown(t[step])} to "
                f"{_shown(s[step])}; use another solver, such as unipc or dpmpp-2m, or a grid that starts below t = 1"
            )
        return table, torch.stack([time for time, _ in forms.ask], 1)

    @final
    def plan(self, process: Process, times: Tensor, x: Tensor) -> Plan:
        def both(column: Tensor) -> Tensor:  # the table and the times asked for, in one tensor
            table, asked = self.table(process, column)
            return torch.cat([table.flatten(1, 2), asked], 1)

        made = by_column(times, both)
        width = 1 + self.carried + self.noises + self.evaluations
        table = made[:, : -self.evaluations].reshape(len(made), -1, width, *times.shape[1:])
        asked = made[:, -self.evaluations :]
        steps = compile_table(table, asked, list(pairwise(times)), x, carried=self.carried, noises=self.noises)
        times_asked = [question[0] for step in steps for question in step.ask if question is not None]
        return Plan(tuple(torch.zeros_like(x) for _ in range(self.carried)), steps, times_asked)


def _shown(t: Tensor) -> str:
    return f"{float(t.flatten().max()):.4g}"


def compile_table(
    table: Tensor, asked: Tensor, spans: Sequence[tuple[Tensor, Tensor]], x: Tensor, *, carried: int, noises: int
) -> list[LinearStep]:
    """Steps for tensors like x: coefficients that are 0 throughout are left out, with what they would have needed.

    table: (N, E + 1 + carried, W, *prefix); asked: (N, E, *prefix); spans: (t, s) of every step.
    """
    n, forms, width = table.shape[:3]
    flat = table.detach().reshape(n, forms, width, -1)
    some, ones = (flat != 0).any(-1), (flat == 1).all(-1)
    scaled = some & ~ones
    lifted = table[scaled].to(x.dtype).to(x.device)
    lifted = lifted.reshape(lifted.shape + (1,) * (x.ndim - lifted.ndim + 1))
    coefficients = iter(lifted.unbind(0))
    steps: list[LinearStep] = []
    for k, (some_k, ones_k) in enumerate(zip(some.tolist(), ones.tolist())):
        made: list[Terms] = [
            tuple((w, None if one[w] else next(coefficients)) for w in range(width) if there[w])
            for there, one in zip(some_k, ones_k)
        ]
        evaluations = asked.shape[1]
        used = {w for terms in made for w, _ in terms}
        first = 1 + carried + noises
        ask = tuple((asked[k, i], made[i]) if first + i in used else None for i in range(evaluations))
        drawn = tuple(1 + carried + j in used for j in range(noises))
        steps.append(LinearStep(ask, drawn, made[evaluations], tuple(made[evaluations + 1 :]), spans[k]))
    return steps


@final
@dataclass(frozen=True, slots=True)
class LinearStep:
    """One compiled step."""

    ask: tuple[tuple[Tensor, Terms] | None, ...]  # None: this answer is not needed
    drawn: tuple[bool, ...]
    out: Terms
    carry: tuple[Terms, ...]
    span: tuple[Tensor, Tensor]

    def __call__(self, f: Denoise, x: Tensor, state: State, noise: Noise) -> tuple[Tensor, State]:
        tensors = [x, *state, *(noise(*self.span) if needed else x for needed in self.drawn)]
        for question in self.ask:
            if question is None:
                tensors.append(x)
            else:
                t, place = question
                tensors.append(f(_evaluate(place, tensors), t))
        return _evaluate(self.out, tensors), tuple([_evaluate(terms, tensors) for terms in self.carry])


def _evaluate(terms: Terms, tensors: Sequence[Tensor]) -> Tensor:
    if not terms:
        return torch.zeros_like(tensors[0])
    which, coefficient = terms[0]
    total = tensors[which] if coefficient is None else coefficient * tensors[which]
    for which, coefficient in terms[1:]:
        total = total + tensors[which] if coefficient is None else torch.addcmul(total, coefficient, tensors[which])
    return total
