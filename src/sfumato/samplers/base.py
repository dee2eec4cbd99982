"""Solvers walk from noise to data; `sample` drives one over a grid of times.

A solver is a frozen value: its state is passed in and handed back, and every tensor of it has the batch axis first. So
one solver serves any number of requests, rows of a batch may stand at different times, and a request can be moved from
one batch to another between two steps.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from itertools import pairwise
from typing import ClassVar

import torch
from torch import Tensor

from sfumato.core import Cond, Denoiser, Process, SampleNoise, lift
from sfumato.errors import UserError
from sfumato.registry import Registered

Denoise = Callable[[Tensor, Tensor], Tensor]  # (x_t, t) -> E[x0 | x_t], the condition already bound
State = tuple[Tensor, ...]
Noise = Callable[[], Tensor]  # standard normal of x's shape; called by stochastic solvers only
OnStep = Callable[[int, Tensor, Tensor], Tensor | None]  # (steps done, time reached, x) -> x to go on with, or None


class Solver(Registered, ABC, family="solver"):
    """One step from time t to s < t. Hyper-parameters only."""

    order: ClassVar[int]  # global order of the error in the step size; tested
    evaluations: ClassVar[int]  # network evaluations a step

    @abstractmethod
    def init(self, process: Process, x: Tensor, t: Tensor) -> State:
        """The state before the first step from x (B, *S) at t."""

    @abstractmethod
    def step(
        self, f: Denoise, process: Process, x: Tensor, t: Tensor, s: Tensor, state: State, noise: Noise
    ) -> tuple[Tensor, State]:
        """x (B, *S) at t to x at s; t and s are float64 of one shape, a prefix of x's shape."""


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
    noise: SampleNoise | None = None,
    on_step: OnStep | None = None,
) -> Tensor:
    """Walk x (B, *S) from times[0] to times[-1].

    times: (N + 1,) for all, or (N + 1, *prefix of x's shape) with a time for every sample or token. Falling; an element
    whose time does not change in a step is left exactly as it is, so a part held at t = 0 is a condition on the rest.
    noise: the seeds of stochastic solvers' noise; without it, torch's global generator.
    """
    per_sample = times if times.ndim > 1 else times[:, None].expand(-1, len(x))
    if per_sample.shape[1:] != x.shape[: per_sample.ndim - 1]:
        raise UserError(f"times of shape {tuple(times.shape)} do not fit a batch of shape {tuple(x.shape)}")
    if bool((per_sample[1:] > per_sample[:-1]).any()):
        raise UserError("times must not rise: t = 1 is noise and t = 0 is data")
    process = denoiser.process

    def f(x_t: Tensor, t: Tensor) -> Tensor:
        return denoiser(x_t, t, cond)

    state = solver.init(process, x, per_sample[0])
    for number, (t, s) in enumerate(pairwise(per_sample), 1):
        new, state = solver.step(f, process, x, t, s, state, _noise_of(noise, number, x))
        held = t == s
        x = torch.where(lift(held, x).bool(), x, new) if bool(held.any()) else new
        if on_step is not None:
            replaced = on_step(number, s, x)
            x = x if replaced is None else replaced
    return x


def _noise_of(noise: SampleNoise | None, number: int, x: Tensor) -> Noise:
    if noise is None:
        return lambda: torch.randn_like(x)
    return lambda: noise.step(number, x.shape[1:], device=x.device).to(x.dtype)


def combine(x: Tensor, a: Tensor, y: Tensor, b: Tensor) -> Tensor:
    """a x + b y for coefficients a, b of a shape that is a prefix of x's."""
    return torch.addcmul(lift(a, x) * x, lift(b, x), y)
