"""The peer for tests of parity: diffusers' schedulers driven by our denoiser, in double precision or as they are.

A scheduler keeps x in one of three frames: x (`vp`), x / alpha (`ve`), or the straight line's (`flow`). Its noise level is
sigma / alpha in the first two, sigma in the third. Timestep k counts a chain's steps from 0: t = (k + 1) / T.
"""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from torch import Tensor

from sfumato.core import Denoiser, DiscreteVP, Process
from sfumato.samplers import Noise, Solver, sample
from sfumato.testing import MixtureDenoiser

Frame = Literal["vp", "ve", "flow"]

STEPS = 20
SHAPE = (4, 2, 3, 3)
CHAIN = DiscreteVP("scaled_linear", beta_start=0.00085, beta_end=0.012)
SETTINGS: dict[str, Any] = {"beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012}


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


MEANS = normal(3, 2, 3, 3, seed=1)


def mixture(process: Process, means: Tensor = MEANS) -> MixtureDenoiser:
    """Three Gaussians of pictures (2, 3, 3) whose answers are no linear function of x."""
    return MixtureDenoiser(process, means, 0.3)


@dataclass
class Given:
    """The same noise for both: one tensor a step, whatever else is drawn."""

    draws: Sequence[Tensor]

    def of_step(self, number: int, x: Tensor) -> Noise:
        return lambda t, s: self.draws[number - 1].to(x)


class _Double:
    """torch or numpy whose float32 is float64."""

    def __init__(self, module: Any) -> None:
        self._module, self.float32 = module, module.float64

    def __getattr__(self, name: str) -> Any:
        return getattr(self._module, name)


@contextlib.contextmanager
def double(cls: type) -> Iterator[None]:
    """Run a scheduler's own file in float64: its tables, sigmas and casts are float32 otherwise."""
    module, default = sys.modules[cls.__module__], torch.get_default_dtype()
    before = {name: getattr(module, name) for name in ("torch", "np") if hasattr(module, name)}
    try:
        for name, value in before.items():
            setattr(module, name, _Double(value))
        torch.set_default_dtype(torch.float64)
        yield
    finally:
        torch.set_default_dtype(default)
        for name, value in before.items():
            setattr(module, name, value)


@contextlib.contextmanager
def noise_of(cls: type, draw: Callable[[], Tensor]) -> Iterator[None]:
    """Replace the scheduler's source of noise."""
    module = sys.modules[cls.__module__]
    before = getattr(module, "randn_tensor", None)
    try:
        if before is not None:
            module.randn_tensor = lambda shape, **_: draw()  # type: ignore[attr-defined]
        yield
    finally:
        if before is not None:
            module.randn_tensor = before  # type: ignore[attr-defined]


def level(scheduler: Any, t: Tensor) -> Tensor:
    """The noise level at which the network is to be asked now. float64, 0-d."""
    if not hasattr(scheduler, "sigmas"):
        kept = scheduler.alphas_cumprod[int(t)].double()
        return ((1 - kept) / kept).sqrt()
    if scheduler.step_index is None:
        scheduler._init_step_index(t)
    k = scheduler.step_index
    if hasattr(scheduler, "sigmas_interpol") and not scheduler.state_in_first_order:
        return scheduler.sigmas_interpol[k].double()
    return scheduler.sigmas[k].double()


def time_of(process: Process, sigma: Tensor, frame: Frame) -> Tensor:
    """Times of the peer's noise levels."""
    sigma = sigma.double()
    return sigma if frame == "flow" else torch.where(sigma > 0, process.time(-2 * sigma.log()), 0.0)


def visited(scheduler: Any, process: Process, frame: Frame) -> Tensor:
    """The grid that the scheduler has set up, each time once."""
    if not hasattr(scheduler, "sigmas"):
        steps = (scheduler.timesteps.double() + 1) / len(scheduler.alphas_cumprod)
        return torch.cat([steps, torch.zeros(1, dtype=torch.float64)])
    sigma = scheduler.sigmas.double()
    return time_of(process, sigma[torch.cat([torch.ones(1, dtype=torch.bool), sigma.diff() != 0])], frame)


@dataclass
class Walk:
    """Where a scheduler went: x after every call of `step`, in the peer's frame."""

    scheduler: Any
    places: list[Tensor] = field(default_factory=list)

    @property
    def end(self) -> Tensor:
        return self.places[-1].double()


def walk(
    scheduler: Any,
    denoiser: Denoiser,
    x: Tensor,
    frame: Frame = "vp",
    draws: Sequence[Tensor] = (),
    before: Callable[[Any, int], None] = lambda scheduler, k: None,
    answer: Callable[[Tensor, Tensor, Tensor], Tensor] | None = None,
    **settings: Any,
) -> Walk:
    """Drive the scheduler from x with the network output it expects: eps, or the velocity in the frame `flow`.

    before: called before step k. answer(x, D, time): another network output.
    """
    process, made, calls = denoiser.process, Walk(scheduler), [0]
    with noise_of(type(scheduler), lambda: draws[min(calls[0], len(draws) - 1)].to(x)):
        for k, t in enumerate(scheduler.timesteps):
            calls[0] = k
            before(scheduler, k)
            if hasattr(scheduler, "scale_model_input"):  # its answer is not needed; some warn without the call
                scheduler.scale_model_input(x, t)
            sigma = level(scheduler, t)
            time = time_of(process, sigma[None], frame)
            alpha, deviation = (c.to(x) for c in process.scales(time))
            D = denoiser(x * alpha if frame == "ve" else x, time.expand(len(x)))
            if answer is not None:
                output = answer(x, D, time)
            elif frame == "vp":
                output = (x - alpha * D) / deviation
            else:
                output = (x - D) / sigma.to(x)
            x = scheduler.step(output, t, x, **settings).prev_sample
            made.places.append(x)
    return made


def gap(a: Tensor, b: Tensor) -> float:
    """Largest difference over the largest value."""
    return ((a.double() - b.double()).abs().max() / b.double().abs().max()).item()


def make(name: str, **settings: Any) -> Any:
    """A scheduler of the peer."""
    import diffusers

    return getattr(diffusers, name)(**settings)


@dataclass(frozen=True)
class Case:
    """A scheduler with its settings, and our solver for the same walk."""

    scheduler: str
    settings: dict[str, Any]
    solver: Solver
    frame: Frame = "vp"
    process: Process = CHAIN
    stochastic: bool = False
    in_step: dict[str, Any] = field(default_factory=dict)
    steps: int = STEPS

    def __repr__(self) -> str:
        shown = {k: v for k, v in {**self.settings, **self.in_step}.items() if k not in (*SETTINGS, "clip_sample")}
        return f"{self.scheduler.removesuffix('Scheduler')}({', '.join(f'{k}={v}' for k, v in shown.items())})"

    def gap(self, dtype: torch.dtype) -> float:
        """Largest relative difference of the results, the peer computing in dtype."""
        theirs, ours = self.ends(dtype)
        return gap(theirs, ours)

    def ends(self, dtype: torch.dtype, before: Callable[[Any, int], None] = lambda s, k: None) -> tuple[Tensor, Tensor]:
        scheduler = make(self.scheduler, **self.settings)
        scheduler.set_timesteps(self.steps)
        times = visited(scheduler, self.process, self.frame)
        draws = [normal(*SHAPE, seed=100 + k) for k in range(self.steps)] if self.stochastic else []
        first, last = (self.process.alpha(t) if self.frame == "ve" else 1.0 for t in (times[0], times[-1]))
        x, denoiser = normal(*SHAPE), mixture(self.process)
        theirs = walk(scheduler, denoiser, (x / first).to(dtype), self.frame, draws, before, **self.in_step).end
        ours = sample(denoiser, self.solver, x, times, noise=Given(draws) if draws else None)
        return theirs, ours / last


def chain(name: str, solver: Solver, frame: Frame = "vp", *, stochastic: bool = False, **settings: Any) -> Case:
    return Case(f"{name}Scheduler", {**SETTINGS, **settings}, solver, frame, stochastic=stochastic)
