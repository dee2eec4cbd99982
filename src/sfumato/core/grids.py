"""Sampling grids: the times a solver visits, from noise to data.

Step k = 1 ... T of a discrete chain is t = k / T (libraries that count timesteps from 0 call it k - 1). Times are real
numbers, so nothing is rounded to a chain's steps.
"""

from __future__ import annotations

import itertools
import math
from abc import ABC, abstractmethod
from dataclasses import dataclass, field
from typing import ClassVar, final

import torch
from torch import Tensor

from sfumato.core.chains import DiscreteVP
from sfumato.core.interpolants import Shifted
from sfumato.core.process import Process
from sfumato.errors import UserError
from sfumato.registry import Registered


class Grid(Registered, ABC, family="grid"):
    """A rule for n steps."""

    from_noise: ClassVar[bool] = True  # whether the walk begins at t = 1, or only where `interior` does

    @abstractmethod
    def interior(self, process: Process, n: int) -> Tensor:
        """The first n times, falling from 1 and all above 0. (n,) float64."""

    @final
    def __call__(self, process: Process, n: int) -> Tensor:
        """n steps from t = 1 to t = 0: (n + 1,) float64 on the CPU. Raises UserError if there is no such walk."""
        if n < 1:
            raise UserError(f"sampling needs at least 1 step, not {n}; set steps= to 1 or more")
        times = torch.cat([self.interior(process, n), torch.zeros(1, dtype=torch.float64)])
        if self.from_noise:
            times[0] = 1.0  # exactly, whatever rounding the inverse of log-SNR had
        if not bool((times.diff() < 0).all()):
            raise UserError(
                f"grid={self.kind} has times that do not fall for {n} steps of the process '{process.kind}'; use fewer steps "
                "or another grid"
            )
        return times


def _ramp(n: int) -> Tensor:
    """0 ... 1 in n points; 0 alone for n = 1."""
    return torch.arange(n, dtype=torch.float64) / max(n - 1, 1)


@final
@dataclass(frozen=True)
class UniformGrid(Grid, name="uniform"):
    """Equal steps in t: t_i = 1 - i / n.

    The "trailing" steps of Lin et al., "Common Diffusion Noise Schedules and Sample Steps are Flawed", 2023, table 2.
    """

    def interior(self, process: Process, n: int) -> Tensor:
        return 1 - torch.arange(n, dtype=torch.float64) / n


@final
@dataclass(frozen=True)
class LeadingGrid(Grid, name="leading"):
    """Every (T // n)-th step of a chain of T, counted from its first: t_i = (1 + offset + (n - 1 - i) (T // n)) / T.

    DDIM's and PNDM's code and diffusers' default. It leaves out the noisiest T // n - offset - 1 steps, yet is given pure
    noise, which the network has not met at that time: pictures of medium brightness (Lin et al. 2023, section 3.3 and
    table 2). For the same pictures as others; `uniform` is right. The start is scaled to the first time's sigma.
    """

    chain: int = 1000
    offset: int = 0
    from_noise = False

    def __post_init__(self) -> None:
        if self.chain < 1 or self.offset < 0:
            raise UserError(f"leading grid needs chain >= 1 and offset >= 0, not {self.chain} and {self.offset}")

    def interior(self, process: Process, n: int) -> Tensor:
        _check_chain("leading", n, self.chain)
        steps = 1 + self.offset + self.chain // n * torch.arange(n - 1, -1, -1, dtype=torch.float64)
        if steps[0] > self.chain:
            raise UserError(
                f"leading grid with offset={self.offset} begins at step {int(steps[0])} of {self.chain}; use a smaller offset"
            )
        return steps / self.chain


@final
@dataclass(frozen=True)
class LinspaceGrid(Grid, name="linspace"):
    """Equal steps from t = 1 to the chain's first step, 1 / T, and on to 0. Lin et al. 2023, table 2.

    One step starts at t = 1 (in other libraries, at the wrong end).
    """

    chain: int = 1000

    def __post_init__(self) -> None:
        if self.chain < 1:
            raise UserError(f"linspace grid needs chain >= 1, not {self.chain}")

    def interior(self, process: Process, n: int) -> Tensor:
        _check_chain("linspace", n, self.chain)
        return 1 - _ramp(n) * (1 - 1 / self.chain)


def _check_chain(kind: str, n: int, chain: int) -> None:
    """A chain cannot be walked in more steps than it has."""
    if n > chain:
        raise UserError(f"{kind} grid has at most the chain's {chain} steps, not {n}; use fewer, or grid=uniform")


@final
@dataclass(frozen=True)
class QuadraticGrid(Grid, name="quadratic"):
    """t_i = (1 - i / n)^2: small steps near the data (Song et al., "DDIM", 2021, appendix D.2)."""

    def interior(self, process: Process, n: int) -> Tensor:
        return (1 - torch.arange(n, dtype=torch.float64) / n).square()


@final
@dataclass(frozen=True)
class BetaGrid(Grid, name="beta"):
    """t_i = Q(1 - i / n) with the quantiles Q of Beta(a, b): small steps at both ends for a, b < 1.

    a = b = 1 is `uniform`. Lee et al., "Beta Sampling is All You Need", 2024, section 3.2 (a = b = 0.6).
    """

    a: float = 0.6
    b: float = 0.6

    def __post_init__(self) -> None:
        if not (0.1 <= self.a <= 10 and 0.1 <= self.b <= 10):
            raise UserError(f"beta grid needs a and b between 0.1 and 10, not {self.a} and {self.b}")

    def interior(self, process: Process, n: int) -> Tensor:
        return beta_quantile(1 - torch.arange(n, dtype=torch.float64) / n, self.a, self.b)


def beta_quantile(p: Tensor, a: float, b: float) -> Tensor:
    """x with I_x(a, b) = p, the quantile of Beta(a, b), 0.1 <= a, b <= 10. p: (n,) float64 in [0, 1]. To 1e-14.

    I_x(a, b) = x^a (1 - x)^b / (a B(a, b)) sum_k x^k (a + b) ... (a + b + k - 1) / ((a + 1) ... (a + k)): DLMF 8.17.8
    for x <= 1/2; beyond it 1 - I_(1-x)(b, a). Inverted by bisection in x^a, in which it is smooth at 0.
    """
    half = _beta_below(torch.tensor([0.5], dtype=torch.float64), a, b)
    low = _beta_root(torch.minimum(p, half), a, b)
    high = 1 - _beta_root(torch.minimum(1 - p, 1 - half), b, a)
    return torch.where(p <= half, low, high)


def _beta_below(x: Tensor, a: float, b: float) -> Tensor:
    """I_x(a, b) for x (n,) in [0, 1/2]: 160 terms, each near the end half of the one before it."""
    k = torch.arange(159, dtype=torch.float64)
    ratios = x[:, None] * (a + b + k) / (a + 1 + k)
    whole = math.exp(math.log(a) + math.lgamma(a) + math.lgamma(b) - math.lgamma(a + b))
    return x**a * (1 - x) ** b * (1 + ratios.cumprod(1).sum(1)) / whole


def _beta_root(p: Tensor, a: float, b: float) -> Tensor:
    """x (n,) in [0, 1/2] with I_x(a, b) = p <= I_(1/2)(a, b)."""
    low, high = torch.zeros_like(p), torch.full_like(p, 0.5**a)
    for _ in range(60):
        middle = (low + high) / 2
        beyond = _beta_below(middle ** (1 / a), a, b) > p
        low, high = torch.where(beyond, low, middle), torch.where(beyond, middle, high)
    return low ** (1 / a)


def _ends(kind: str, process: Process, low: float | None, high: float) -> tuple[float, float]:
    """sigma / alpha at the last and first time of a grid: `low`, and the noisiest the process has, at most `high`."""
    start = -0.5 * float(process.logsnr(torch.ones((), dtype=torch.float64)))
    low, high = _first_step(process) if low is None else low, min(high, math.exp(min(start, 700.0)))
    if low >= high:
        raise UserError(
            f"{kind} grid ends at sigma_min={low:.4g} and begins at sigma / alpha = {high:.4g} on the process "
            f"'{process.kind}'; set sigma_min below that"
        )
    return low, high


def _chain(process: Process) -> DiscreteVP | None:
    inner = process.process if isinstance(process, Shifted) else process
    return inner if isinstance(inner, DiscreteVP) else None


def _first_step(process: Process) -> float:
    """sigma / alpha after the first step of a discrete chain."""
    chain = _chain(process)
    if chain is None:
        raise UserError(
            f"the process '{process.kind}' has no first step to end at; set the grid's sigma_min to a number"
        )
    first = torch.tensor(1 / chain.steps, dtype=torch.float64)
    return math.exp(-0.5 * float(process.logsnr(first)))


@final
@dataclass(frozen=True)
class KarrasGrid(Grid, name="karras"):
    """Equal steps in (sigma / alpha)^(1 / rho) from `sigma_max` to `sigma_min` (Karras et al. 2022, eq. 5).

    A process that starts at more noise than `sigma_max` (Flow and Cosine start at pure noise) begins at t = 1 all the same.
    sigma_min: none for the first step of a discrete chain, the least noise that its network was trained on.
    """

    sigma_min: float | None = 0.002
    sigma_max: float = 80.0
    rho: float = 7.0

    def __post_init__(self) -> None:
        if not 0 < _or(self.sigma_min) < self.sigma_max or self.rho <= 0:
            raise UserError(f"karras grid needs 0 < sigma_min < sigma_max and rho > 0, not {self}")

    def interior(self, process: Process, n: int) -> Tensor:
        low, high = _ends("karras", process, self.sigma_min, self.sigma_max)
        root = high ** (1 / self.rho) + _ramp(n) * (low ** (1 / self.rho) - high ** (1 / self.rho))
        return process.time(-2 * self.rho * root.log())


@final
@dataclass(frozen=True)
class LogSNRGrid(Grid, name="logsnr"):
    """Equal steps in log-SNR between the same ends (Lu et al., "DPM-Solver", 2022, section 3.4).

    k-diffusion's and diffusers' "exponential" grid, on any process.
    """

    sigma_min: float | None = 0.002
    sigma_max: float = 80.0

    def __post_init__(self) -> None:
        if not 0 < _or(self.sigma_min) < self.sigma_max:
            raise UserError(f"logsnr grid needs 0 < sigma_min < sigma_max, not {self}")

    def interior(self, process: Process, n: int) -> Tensor:
        low, high = (math.log(v) for v in _ends("logsnr", process, self.sigma_min, self.sigma_max))
        return process.time(-2 * (high + _ramp(n) * (low - high)))


def _or(sigma_min: float | None) -> float:
    """A number that passes the check of a range for one that is not known yet."""
    return 1e-300 if sigma_min is None else sigma_min


@final
@dataclass(frozen=True)
class LogisticGrid(Grid, name="logistic"):
    """Even quantiles of a logistic distribution of lambda = log(alpha / sigma): dense where data is decided on.

        lambda_i = center + scale logit(q_i),   q_i even, from that of t = 1 to 1 - leap / n (of what t = 1 leaves) at most

    Equal steps of the straight-line process are center = 0, scale = 1, leap = 1. By default center and scale follow the
    number of steps n: center = -0.3 - 7 / n, scale = min(2.1 - 1.1 / n, 1.5 + 8 / n). Few steps all go to the noise
    levels where the large shapes of data of unit deviation are decided, and the last one is a leap, as long as `leap` of
    them in q; many reach down to `sigma_min` (sigma / alpha; by default 0.002, or the first step of a discrete chain).
    The rule was chosen with the solver `exp-adams`, on Gaussian mixtures and on a network of CIFAR-10 together
    (docs/decisions/0012-the-walk-between.md).
    """

    center: float | None = None
    scale: float | None = None
    sigma_min: float | None = None
    leap: float = 1.8

    def __post_init__(self) -> None:
        if (self.scale is not None and self.scale <= 0) or (self.sigma_min is not None and self.sigma_min <= 0):
            raise UserError(f"logistic grid needs scale > 0 and sigma_min > 0, not {self}")
        if not 0 < self.leap < 2:
            raise UserError(f"logistic grid needs a leap between 0 and 2, not {self.leap}")

    def interior(self, process: Process, n: int) -> Tensor:
        center = -0.3 - 7 / n if self.center is None else self.center
        scale = min(2.1 - 1.1 / n, 1.5 + 8 / n) if self.scale is None else self.scale
        low = self.sigma_min or (_first_step(process) if _chain(process) else 0.002)
        low, _ = _ends("logistic", process, low, math.inf)
        first = process.logsnr(torch.ones((), dtype=torch.float64)) / 2
        last = torch.full_like(first, -math.log(low))
        start, stop = (torch.sigmoid((end - center) / scale) for end in (first, last))
        stop = torch.minimum(stop, start + (1 - start) * max(n - self.leap, 0.5) / n)
        return process.time(2 * (center + scale * torch.logit(torch.lerp(start, stop, _ramp(n)))))


@final
@dataclass(frozen=True)
class TunedGrid(Grid, name="tuned"):
    """Times that were fitted to a model, for the numbers of steps that it was done for; `otherwise` for any other.

    times: walks of N + 1 times from 1 to 0. Made by `sfumato tune-sampler`, with the solver of the same name.
    """

    times: tuple[tuple[float, ...], ...] = ()
    otherwise: Grid = field(default_factory=LogisticGrid)

    def __post_init__(self) -> None:
        for walk in self.times:
            if len(walk) < 2 or walk[0] != 1 or walk[-1] != 0 or any(s >= t for t, s in itertools.pairwise(walk)):
                raise UserError(f"tuned grid needs times that fall from 1 to 0, not {walk}")

    def interior(self, process: Process, n: int) -> Tensor:
        for walk in self.times:
            if len(walk) == n + 1:
                return torch.tensor(walk[:-1], dtype=torch.float64)
        return self.otherwise.interior(process, n)
