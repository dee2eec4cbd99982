"""Solvers walk from noise to data; `sample` drives one over a grid of times.

A solver is a frozen value. From the process and the times it works out, before the walk begins, one function for every
step: all coefficients are then on x's device and nothing is computed from a schedule, or waited for, between two
evaluations of the network. A step's state is passed in and handed back, and every tensor of it has the batch axis first.
So one solver serves any number of requests, rows of a batch may stand at different times, and a request can be moved from
one batch to another between two steps.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from typing import ClassVar, NamedTuple, Protocol, final

import torch
from torch import Tensor

from sfumato.core import Cond, Denoiser, NetDenoiser, Process, lift
from sfumato.core.denoiser import SelfConditioned, self_conditioned
from sfumato.errors import SfumatoError, UserError
from sfumato.registry import Registered

Denoise = Callable[[Tensor, Tensor], Tensor]  # (x_t, t) -> E[x0 | x_t], the condition already bound
State = tuple[Tensor, ...]
Noise = Callable[
    [Tensor, Tensor], Tensor
]  # (t, s) -> standard normal of x's shape for the part of the walk from t to s
OnStep = Callable[[int, Tensor, Tensor], Tensor | None]  # (steps done, time reached, x) -> x to go on with, or None
Step = Callable[[Denoise, Tensor, State, Noise], tuple[Tensor, State]]  # (f, x, state, noise) -> (x, state)


class Plan(NamedTuple):
    """A walk that is ready to go: the state before it, a function for every step of it, and the times it will ask for."""

    state: State
    steps: Sequence[Step]
    asked: Sequence[Tensor] = ()  # the very tensors that the steps will ask the denoiser with, as far as known


class NoiseSource(Protocol):
    """Where stochastic solvers get their noise: `SampleNoise` (one seed a sample) or `BrownianNoise`."""

    def of_step(self, number: int, x: Tensor) -> Noise:
        """The noise of step `number` >= 1, of the shape, type and device of x; every call of it is a new draw."""
        ...


class Solver(Registered, ABC, family="solver"):
    """How a step from t to s < t is made. Hyper-parameters only."""

    fewest: ClassVar[int] = 1  # steps without which it can't work

    @property
    @abstractmethod
    def evaluations(self) -> int:
        """Network evaluations a step."""

    @property
    @abstractmethod
    def order(self) -> int:
        """Global order of the error in the step size, once started; the weak order of a stochastic solver. Tested."""

    @property
    def stochastic(self) -> bool:
        """Whether it draws noise on the way."""
        return False

    def intervals(self, process: Process, steps: int) -> int:
        """How many steps of the grid to walk when a user asks for `steps`: more where one of them costs nothing."""
        return steps

    @abstractmethod
    def plan(self, process: Process, times: Tensor, x: Tensor) -> Plan:
        """The walk from x (B, *S) over times (N + 1, *prefix of x's shape), falling."""


class StepSolver(Solver):
    """A solver written as one step, with whatever it likes inside: the easy way to try something new."""

    @abstractmethod
    def init(self, process: Process, x: Tensor, t: Tensor) -> State:
        """The state before the first step from x (B, *S) at t."""

    @abstractmethod
    def step(
        self, f: Denoise, process: Process, x: Tensor, t: Tensor, s: Tensor, state: State, noise: Noise
    ) -> tuple[Tensor, State]:
        """x (B, *S) at t to x at s; t and s are float64 of one shape, a prefix of x's shape."""

    @final
    def plan(self, process: Process, times: Tensor, x: Tensor) -> Plan:
        steps = [partial(self._held, process, t, s, bool((t == s).any())) for t, s in pairwise(times)]
        return Plan(self.init(process, x, times[0]), steps)

    def _held(
        self, process: Process, t: Tensor, s: Tensor, held: bool, f: Denoise, x: Tensor, state: State, noise: Noise
    ) -> tuple[Tensor, State]:
        new, state = self.step(f, process, x, t, s, state, noise)
        return (torch.where(lift(t == s, x).bool(), x, new) if held else new), state


@final
@dataclass(frozen=True)
class Asked:
    """A denoiser with the condition that it is asked: the `Denoise` that `sample` gives to steps."""

    denoiser: Denoiser
    cond: Cond | None
    ready: Callable[[Tensor, Tensor, Cond | None], Tensor]

    @staticmethod
    def of(denoiser: Denoiser, cond: Cond | None, times: Sequence[Tensor], x: Tensor) -> Asked:
        """Ready to be asked at `times` for tensors like x."""
        return Asked(denoiser, cond, denoiser.prepared(times, x) if isinstance(denoiser, NetDenoiser) else denoiser)

    def __call__(self, x_t: Tensor, t: Tensor) -> Tensor:
        return self.ready(x_t, t, self.cond)

    def with_variance(self, x_t: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
        """See `NetDenoiser.with_variance`. Raises UserError for a denoiser that has none, a guided one among them."""
        method = getattr(self.denoiser, "with_variance", None)
        if method is None:
            raise UserError(
                "this solver needs the variance that a model of objective=hybrid has learned, and guidance or another "
                "denoiser gives the mean alone; use solver=ddpm, or guidance_scale=1"
            )
        x0, v = method(x_t, t, self.cond)
        return x0, v


@final
@dataclass(frozen=True)
class Recalling(Solver):
    """A solver whose denoiser is told its last estimate of x0 (B, *S), which is a part of the state and zero at first."""

    solver: Solver
    denoiser: SelfConditioned

    @property
    def evaluations(self) -> int:
        return self.solver.evaluations

    @property
    def order(self) -> int:
        return self.solver.order

    @property
    def stochastic(self) -> bool:
        return self.solver.stochastic

    def plan(self, process: Process, times: Tensor, x: Tensor) -> Plan:
        inner = self.solver.plan(process, times, x)
        return Plan(
            (torch.zeros_like(x), *inner.state), [partial(self._step, step) for step in inner.steps], inner.asked
        )

    def _step(self, step: Step, f: Denoise, x: Tensor, state: State, noise: Noise) -> tuple[Tensor, State]:
        estimate, *rest = state

        def told(x_t: Tensor, t: Tensor) -> Tensor:
            nonlocal estimate
            self.denoiser.estimate = estimate
            estimate = f(x_t, t)
            return estimate

        x, after = step(told, x, tuple(rest), noise)
        return x, (estimate, *after)


def start(process: Process, eps: Tensor, t: Tensor) -> Tensor:
    """x at the noisy end: sigma(t) eps, for data of zero mean. eps: (B, *S), t: () or a prefix of eps's shape."""
    return lift(process.sigma(t), eps) * eps


def sample(
    denoiser: Denoiser,
    solver: Solver,
    x: Tensor,
    times: Tensor,
    cond: Cond | None = None,
    *,
    noise: NoiseSource | None = None,
    on_step: OnStep | None = None,
) -> Tensor:
    """Walk x (B, *S) from times[0] to times[-1].

    times: (N + 1,) for all, or (N + 1, *prefix of x's shape) with a time for every sample or token. Falling; an element
    whose time does not change in a step is left exactly as it is, so a part held at t = 0 is a condition on the rest.
    noise: the seeds of stochastic solvers' noise; without it, torch's global generator.
    Raises UserError for times, a condition or a solver that do not fit, SfumatoError naming step, time and sample where
    the walk stops being finite. Between steps nothing waits for the device; the check comes after the last one.
    """
    per_sample = check_walk(solver, x, times, cond)
    recalled = self_conditioned(denoiser)
    solver = solver if recalled is None else Recalling(solver, recalled)
    source: NoiseSource = _GlobalNoise() if noise is None else noise
    state, steps, asked = solver.plan(denoiser.process, per_sample, x)
    f = Asked.of(denoiser, cond, asked, x)
    sums = []
    for number, step in enumerate(steps, 1):
        x, state = step(f, x, state, source.of_step(number, x))
        sums.append(x.detach().reshape(len(x), -1).sum(1))
        if on_step is not None:
            replaced = on_step(number, per_sample[number], x)
            x = x if replaced is None else replaced
    _check_finite(sums, per_sample)
    return x


def check_walk(solver: Solver, x: Tensor, times: Tensor, cond: Cond | None) -> Tensor:
    """The times of every sample (N + 1, B, ...), if solver, batch, times and condition go together. Raises UserError."""
    per_sample = times if times.ndim > 1 else times[:, None].expand(-1, len(x))
    if per_sample.shape[1:] != x.shape[: per_sample.ndim - 1]:
        raise UserError(f"times of shape {tuple(times.shape)} do not fit a batch of shape {tuple(x.shape)}")
    if not bool(((per_sample >= 0) & (per_sample <= 1)).all()):
        raise UserError("times must lie in [0, 1]: t = 1 is noise and t = 0 is data")
    if bool((per_sample[1:] > per_sample[:-1]).any()):
        raise UserError("times must not rise: t = 1 is noise and t = 0 is data")
    if len(per_sample) - 1 < solver.fewest:
        raise UserError(
            f"solver={solver.kind} needs at least {solver.fewest} steps, not {len(per_sample) - 1}; raise steps="
        )
    if cond is not None and len(cond) not in (0, len(x)):
        raise UserError(
            f"a condition of {len(cond)} samples does not fit a batch of {len(x)}; give one for each sample"
        )
    return per_sample


def _check_finite(sums: Sequence[Tensor], times: Tensor) -> None:
    """One look at the device for the whole walk: what is not finite once stays so."""
    if not sums:
        return
    bad = ~torch.isfinite(torch.stack(list(sums))).cpu()
    if not bool(bad.any()):
        return
    step = int(bad.any(1).nonzero()[0])
    rows = bad[step].nonzero()[:, 0].tolist()
    t = times[step, rows[0]].flatten().max()
    which = f"sample {rows[0]}" + (f" and {len(rows) - 1} more" if len(rows) > 1 else "")
    raise SfumatoError(
        f"the network's output is not finite at step {step + 1} of {len(sums)} (t = {float(t):.4g}) for {which}: "
        "the model has diverged, or its half precision overflows; try dtype=fp32"
    )


class _GlobalNoise:
    """White noise of torch's global generator."""

    def of_step(self, number: int, x: Tensor) -> Noise:
        return lambda t, s: torch.randn_like(x)


def combine(x: Tensor, a: Tensor, y: Tensor, b: Tensor) -> Tensor:
    """a x + b y for coefficients a, b of a shape that is a prefix of x's."""
    return torch.addcmul(lift(a, x) * x, lift(b, x), y)
