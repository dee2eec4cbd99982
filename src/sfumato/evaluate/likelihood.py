"""The exact log-density of a model, by its probability-flow ODE.

In the frame z = x_t / (alpha + sigma), u = sigma / (alpha + sigma), every process is z = (1 - u) x0 + u eps, and with
w = ln u as the variable its probability-flow ODE and the density along it are

    dz/dw = z - E[x0 | x_t],    d ln p(z) / dw = -(d - tr dE[x0 | x_t]/dz)

with nothing that is singular at the noisy end (w = 0 where alpha = 0) and equal steps for equal ratios of noise at the
clean one. Integrated from w_0, a noise of deviation s = sigma / alpha = e^(-logsnr_max / 2), to t = 1,

    ln p(x0) = ln N(z_1; 0, u_1^2 I) + integral of tr d(z - E[x0 | x_t])/dz dw + d ln(1 - u_0),    z_0 = (1 - u_0) x0

This is the density of what solvers draw: they start from N(0, sigma(1)^2 I) too, whatever alpha(1) is, so nothing is
assumed of the data at t = 1. It is the density of x0 + s eps at x0; for a density that is smooth over s the difference is
of order s^2.

Song et al., "Score-Based Generative Modeling through SDEs", 2021, eq. 39 (there in x_t and t); Chen et al., "Neural
Ordinary Differential Equations", 2018, theorem 1; the estimate of the trace: Hutchinson 1990, as in Grathwohl et al.,
"FFJORD", 2019, eq. 7.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from itertools import pairwise
from typing import Literal, NamedTuple, final

import torch
from torch import Tensor

from sfumato.core import Cond, Denoiser, Process, lift
from sfumato.errors import SfumatoError, UserError
from sfumato.samplers.rk45 import integrate

Parts = tuple[Tensor, Tensor]
Divergence = Literal["auto", "exact", "hutchinson"]
EXACT_UP_TO = 16  # numbers of an item: up to here `auto` takes the exact divergence


class LogDensity(NamedTuple):
    """log_p: (B, probes) float64 on the CPU, nats, of x0. evaluations: (B,) int64, of the network for each sample."""

    log_p: Tensor
    evaluations: Tensor


class Levels:
    """Noise levels of a process in w = ln u, u = sigma / (alpha + sigma), from log-SNR `logsnr_max` to t = 1."""

    SOFT = 0.05  # 1 - u at which `even` stops following log-SNR

    def __init__(self, process: Process, logsnr_max: float) -> None:
        one = torch.ones((), dtype=torch.float64)
        self.process = process
        self.first = torch.sigmoid(torch.tensor(-logsnr_max / 2, dtype=torch.float64)).log()
        self.last = process.level(one).log()
        if not self.first < self.last:
            raise UserError(
                f"logsnr_max = {logsnr_max:g}: the process '{process.kind}' has log-SNR {float(process.logsnr(one)):.3g} at "
                "its noisy end already; raise logsnr_max"
            )

    def time(self, w: Tensor) -> Tensor:
        """t of w, exactly 1 at the noisy end."""
        t = self.process.time(2 * (torch.log1p(-w.exp()) - w))
        return torch.where(w >= self.last, torch.ones_like(t), t.clamp(0, 1))

    def spread(self, n: int) -> Tensor:
        """n + 1 values of w, even in ln(u / (1 - u + 0.05)): in log-SNR but for the noisiest, where that is infinite."""
        ends = [self.even(w) for w in (self.first, self.last)]
        nodes = self.uneven(torch.lerp(ends[0], ends[1], torch.linspace(0, 1, n + 1, dtype=torch.float64)))
        nodes[0], nodes[-1] = self.first, self.last
        return nodes

    @staticmethod
    def even(w: Tensor) -> Tensor:
        """l = ln(u / (1 - u + 0.05))."""
        return w - torch.log(1 + Levels.SOFT - w.exp())

    @staticmethod
    def uneven(even: Tensor) -> Tensor:
        """w of l: u = 1.05 e^l / (1 + e^l)."""
        return math.log(1 + Levels.SOFT) + torch.nn.functional.logsigmoid(even)


@final
@dataclass(frozen=True)
class OdeLikelihood:
    """How the log-density is computed. Cost: evaluations x (1 network pass + as many backward passes as probes).

    logsnr_max: where it starts, in nats of log-SNR; 15 is noise of 1/1800 of the data's deviation, a tenth of a grey level
    of pictures or less. divergence: `exact` takes one backward pass for every number of an item, `hutchinson` one for
    every probe and is unbiased: E[v^T J v] = tr J. `auto`: exact up to 16 numbers. probe: `rademacher` (signs, the least
    variance) or `gaussian`. rtol, atol: of the adaptive solver, on z and on the log-density per dimension;
    max_evaluations: where it gives up. evaluations: instead, a fixed number of network evaluations, a multiple of 4: the
    classical Runge-Kutta method on levels even in log-SNR. draws: dequantisations of each item, for `nll`.
    """

    divergence: Divergence = "auto"
    probes: int = 1
    probe: Literal["rademacher", "gaussian"] = "rademacher"
    logsnr_max: float = 15.0
    rtol: float = 1e-4
    atol: float = 1e-4
    max_evaluations: int = 2000
    evaluations: int | None = None
    draws: int = 1

    def __post_init__(self) -> None:
        if self.probes < 1 or self.draws < 1:
            raise UserError(f"probes = {self.probes}, draws = {self.draws}: both must be at least 1")
        if not 0 < self.logsnr_max <= 40:
            raise UserError(f"logsnr_max = {self.logsnr_max:g}: must lie in 0 ... 40; 15 suits most data")
        if self.evaluations is not None and (self.evaluations < 4 or self.evaluations % 4):
            raise UserError(
                f"evaluations = {self.evaluations}: the fixed solver makes 4 a step; give a multiple of 4, such as 100"
            )

    def exact(self, dims: int) -> bool:
        """Whether the divergence of items of this many numbers is exact."""
        return self.divergence == "exact" or (self.divergence == "auto" and dims <= EXACT_UP_TO)

    def probe_shape(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        """The random numbers that a call needs for each item of a shape; (0,) where it is exact."""
        return (0,) if self.exact(math.prod(shape)) else (self.probes, *shape)

    def __call__(
        self, denoiser: Denoiser, x0: Tensor, cond: Cond | None = None, noise: Tensor | None = None
    ) -> LogDensity:
        """ln p of every x0 (B, *S); see the module. The answer for a sample does not depend on the rest of the batch.

        noise: standard normal numbers (B, probes, *S) for Hutchinson's probes, in whatever way they were drawn; not used
        by the exact divergence. Raises SfumatoError where the network is not finite or the tolerance can't be reached.
        """
        levels, dims = Levels(denoiser.process, self.logsnr_max), math.prod(x0.shape[1:])
        if not self.exact(dims) and noise is None:
            raise UserError("the Hutchinson estimate needs noise (B, probes, *S) for its probes")
        vectors = None if noise is None or self.exact(dims) else self._vectors(noise)
        slope = _slope(denoiser, cond, levels, vectors, dims)
        z = lift((1 - levels.first.exp()).expand(len(x0)), x0) * x0
        gained = x0.new_zeros(len(x0), 1 if vectors is None else vectors.shape[1])
        with torch.no_grad():
            (z, gained), evaluations = self._integrate(slope, (z, gained), levels)
        u = levels.last.exp()
        square = z.cpu().double().flatten(1).square().sum(1)
        prior = -0.5 * square / u.square() - dims * (u.log() + 0.5 * math.log(2 * math.pi))
        log_p = prior[:, None] + dims * (gained.cpu().double() + torch.log1p(-levels.first.exp()))
        if not bool(log_p.isfinite().all()):
            i = int((~log_p.isfinite()).nonzero()[0, 0])
            raise SfumatoError(f"the log-density of sample {i} is not finite: the model has diverged")
        return LogDensity(log_p, evaluations)

    def _vectors(self, noise: Tensor) -> Tensor:
        return torch.where(noise >= 0, 1.0, -1.0).to(noise) if self.probe == "rademacher" else noise

    def _integrate(self, slope: Callable[[Parts, Tensor], Parts], y: Parts, levels: Levels) -> tuple[Parts, Tensor]:
        if self.evaluations is None:
            return integrate(
                slope,
                y,
                levels.first,
                levels.last,
                rtol=self.rtol,
                atol=self.atol,
                max_evaluations=self.max_evaluations,
            )
        for w, next_w in pairwise(levels.spread(self.evaluations // 4).tolist()):
            y = _rk4_step(slope, y, w, next_w)
        return y, torch.full((len(y[0]),), self.evaluations)


def _slope(
    denoiser: Denoiser, cond: Cond | None, levels: Levels, vectors: Tensor | None, dims: int
) -> Callable[[Parts, Tensor], Parts]:
    """(z, gained), w (B,) -> dz/dw and the divergence of dz/dw over d, one column for every probe."""

    def slope(y: Parts, w: Tensor) -> Parts:
        t = levels.time(w)
        alpha, sigma = levels.process.scales(t)
        with torch.enable_grad():
            z = y[0].detach().requires_grad_(True)
            moved = z - denoiser(lift(alpha + sigma, z) * z, t, cond)
            columns = _exact(moved, z) if vectors is None else _hutchinson(moved, z, vectors)
        return moved.detach(), torch.stack(columns, 1) / dims

    return slope


def _exact(moved: Tensor, z: Tensor) -> list[Tensor]:
    """tr d moved / dz of every sample (B,), by one backward pass for every number of it."""
    rows = moved.flatten(1)
    total = z.new_zeros(len(z))
    for i in range(rows.shape[1]):
        (gradient,) = torch.autograd.grad(rows[:, i].sum(), z, retain_graph=i + 1 < rows.shape[1])
        total = total + gradient.flatten(1)[:, i]
    return [total]


def _hutchinson(moved: Tensor, z: Tensor, vectors: Tensor) -> list[Tensor]:
    """v^T (d moved / dz) v of every sample (B,), for each probe v of vectors (B, probes, *S)."""
    found = []
    probes: Iterable[Tensor] = vectors.unbind(1)
    for number, v in enumerate(probes, 1):
        (gradient,) = torch.autograd.grad(moved, z, v, retain_graph=number < vectors.shape[1])
        found.append((gradient * v).flatten(1).sum(1))
    return found


def _rk4_step(f: Callable[[Parts, Tensor], Parts], y: Parts, t: float, s: float) -> Parts:
    """The classical Runge-Kutta step of order 4 from t to s."""
    h, batch = s - t, len(y[0])

    def at(time: float) -> Tensor:
        return torch.full((batch,), time, dtype=torch.float64)

    def ahead(k: Parts, part: float) -> Parts:
        return (torch.add(y[0], k[0], alpha=part * h), torch.add(y[1], k[1], alpha=part * h))

    k1 = f(y, at(t))
    k2 = f(ahead(k1, 0.5), at(t + h / 2))
    k3 = f(ahead(k2, 0.5), at(t + h / 2))
    k4 = f(ahead(k3, 1.0), at(s))
    mean = (k1[0] + 2 * (k2[0] + k3[0]) + k4[0], k1[1] + 2 * (k2[1] + k3[1]) + k4[1])
    return ahead(mean, 1 / 6)
