"""Predictor-corrector sampling: any solver, with Langevin steps at each level that it reaches."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal, final

import torch
from torch import Tensor

from sfumato.core import Process, lift
from sfumato.core.columns import by_column
from sfumato.errors import UserError
from sfumato.samplers.base import Denoise, Noise, Plan, Solver, State, Step
from sfumato.samplers.linear import LinearSolver
from sfumato.samplers.sde import ReverseDiffusion


def check_memoryless(name: str, solver: Solver, state: State = ()) -> None:
    """Raise UserError for a solver that carries something from step to step: it would not know that x was changed."""
    if state or (isinstance(solver, LinearSolver) and solver.carried):
        raise UserError(
            f"{name} changes x between the steps of its solver, and solver={solver.kind} remembers former steps; "
            "use one that does not, such as ddim, heun or reverse-diffusion"
        )


@final
@dataclass(frozen=True)
class PredictorCorrector(Solver, name="pc"):
    """After each step of `predictor`, `corrector_steps` of Langevin dynamics at the level reached, s > 0.

        x <- x + eps score(x, s) + sqrt(2 eps) z,   eps = 2 a (snr |z| / |score|)^2

    Song et al., "Score-Based Generative Modeling through SDEs", 2021, algorithms 2-5: a = alpha_i of their VP chain,
    (alpha_s / alpha_next)^2 with the grid's next time, and 1 for VE; snr = 0.16 for both.

    size: `norms`: as above, with the norms of each sample (of each time, if tokens have their own) where the paper's code
    has means over the batch: a sample does not depend on its neighbours. |score| is near 0 now and then if a sample has
    few elements (below about 20), and the step is then far too large; `sigma`: |z| / |score| = sigma, what it is for
    noise, for such data.

    Cost: predictor's evaluations + corrector_steps a step. The corrector's own error is a variance too large by about
    snr^2, which the next predictor steps shrink. No wait for the device.
    """

    predictor: Solver = field(default_factory=ReverseDiffusion)
    corrector_steps: int = 1
    snr: float = 0.16
    size: Literal["norms", "sigma"] = "norms"

    def __post_init__(self) -> None:
        if self.corrector_steps < 0 or self.snr <= 0:
            raise UserError(f"pc needs corrector_steps >= 0 and snr > 0, not {self.corrector_steps} and {self.snr}")
        check_memoryless("pc", self.predictor)

    @property
    def order(self) -> int:
        return self.predictor.order

    @property
    def evaluations(self) -> int:
        """Network evaluations a step."""
        return self.predictor.evaluations + self.corrector_steps

    @property
    def stochastic(self) -> bool:
        return self.predictor.stochastic or self.corrector_steps > 0

    def plan(self, process: Process, times: Tensor, x: Tensor) -> Plan:
        plain = self.predictor.plan(process, times, x)
        check_memoryless("pc", self.predictor, plain.state)
        t, s = times[:-1], times[1:]
        numbers = by_column(times, lambda columns: self._numbers(process, columns))
        moves = ((t > s) & (s > 0)).flatten(1).any(1).tolist()
        axes = tuple(range(times.ndim - 1, x.ndim)) if self.size == "norms" else None
        levels = s.unbind(0)  # the tensors that are asked with
        steps = [
            _Corrected(step, (t[k], levels[k]), self.corrector_steps, tuple(lift(c, x) for c in numbers[:, k]), axes)
            if moves[k]
            else step
            for k, step in enumerate(plain.steps)
        ]
        return Plan((), steps, [*plain.asked, *(level for level, moved in zip(levels, moves) if moved)])

    def _numbers(self, process: Process, times: Tensor) -> Tensor:
        """(3, N, *prefix): alpha_s / sigma_s^2, 1 / sigma_s^2, and eps without the norms."""
        t, s, after = times[:-1], times[1:], torch.cat([times[2:], times[-1:]])
        moves, (alpha, sigma) = (t > s) & (s > 0), process.scales(s)
        size = 2 * self.snr**2 * (alpha / process.alpha(after)).square()
        size = torch.where(moves, size if self.size == "norms" else size * sigma.square(), 0.0)
        precision = 1 / torch.where(moves, sigma, 1.0).square()  # where nothing moves the score is finite and not used
        return torch.stack([alpha * precision, precision, size])


@final
@dataclass(frozen=True, slots=True)
class _Corrected:
    """A compiled step. numbers: of the data and of -x in the score, and eps without the norms."""

    predict: Step
    span: tuple[Tensor, Tensor]
    repeats: int
    numbers: tuple[Tensor, ...]
    by_norms: tuple[int, ...] | None

    def __call__(self, f: Denoise, x: Tensor, state: State, noise: Noise) -> tuple[Tensor, State]:
        x, state = self.predict(f, x, state, noise)
        on_data, on_x, size = self.numbers
        for _ in range(self.repeats):
            score = on_data * f(x, self.span[1]) - on_x * x
            z = noise(*self.span)
            eps = size if self.by_norms is None else size * _ratio(z, score, self.by_norms)
            x = torch.addcmul(torch.addcmul(x, eps, score), (2 * eps).sqrt(), z)
        return x, state


def _ratio(z: Tensor, score: Tensor, axes: tuple[int, ...]) -> Tensor:
    """|z|^2 / |score|^2 over the axes, and 0 where the score is 0: there no step is small enough."""
    if not axes:  # a time for every element
        above, below = z.square(), score.square()
    else:
        above, below = (v.square().sum(axes, keepdim=True) for v in (z, score))
    return torch.where(below > 0, above / below, torch.zeros_like(below))
