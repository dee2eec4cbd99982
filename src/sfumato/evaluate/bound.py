"""The variational bound on the negative log-likelihood, in continuous time or of a chain of T steps.

    -ln p(x) <= KL(q(x_1|x0) || N(0, sigma_1^2 I))  +  noise  -  E ln p(x | x_a)

Continuous (Kingma et al., "Variational Diffusion Models", 2021, eq. 11-15): the noise term is

    1/2 integral of SNR |x0 - E[x0 | x_t]|^2 d logsnr   from the noisy end to logsnr_max,

and x_a, at logsnr_max, decides for x by p(x | x_a) ~ q(x_a | x): no network, and next to nothing lost where x_a tells all
values of x apart. The chain (Ho et al., "Denoising Diffusion Probabilistic Models", 2020, eq. 5, 6 and 13): times i / T
(those of a log-SNR above logsnr_max left out),

    sum over i = 2 ... T of KL(q(x_(i-1) | x_i, x0) || p(x_(i-1) | x_i)),

and x_1 decides for x by a Gaussian about the network's E[x0 | x_1]. The second is the bound of ancestral sampling with T
steps and falls to the first as T grows, but for the decoder.

It bounds the density of the *stochastic* sampler, the reverse SDE. The probability-flow ODE has a density of its own; both
are the data's where the denoiser is exact (Song et al., "Maximum Likelihood Training of Score-Based Diffusion Models",
2021, theorem 3 and its remarks).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal, NamedTuple, Protocol, final, runtime_checkable

import torch
from torch import Tensor
from torch.nn import functional as F

from sfumato.core import Cond, Denoiser, Process, lift
from sfumato.core.random import Draws
from sfumato.errors import SfumatoError, UserError
from sfumato.evaluate.likelihood import Levels

Variance = Literal["small", "large", "learned"]
_DENSITY = 13.0  # nats of log-SNR
_ELEMENTS = 1 << 24  # numbers of the decoder's table that are held at a time


@runtime_checkable
class LearnedVariance(Protocol):
    """A denoiser with a learned variance: see `NetDenoiser.with_variance`."""

    def with_variance(self, x_t: Tensor, t: Tensor, cond: Cond | None = None) -> tuple[Tensor, Tensor]:
        """(E[x0 | x_t], place of the log-variance in [0, 1]), each (B, *S)."""
        ...


class BoundTerms(NamedTuple):
    """Upper bounds on -ln p of B items, nats, by term: prior, noise, reconstruction, each (B,) float64 on the CPU."""

    prior: Tensor
    noise: Tensor
    reconstruction: Tensor

    @property
    def total(self) -> Tensor:
        """(B,)."""
        return self.prior + self.noise + self.reconstruction


@final
@dataclass(frozen=True)
class VariationalBound:
    """How the bound is estimated. Cost: `times` network passes an item, one more in a chain; no backward pass.

    times: noise levels looked at for each item, one in each of as many equal parts of the log-SNR axis, with low
    discrepancy over consecutive items; unbiased for any number. steps: T of a chain; none for continuous time.
    logsnr_max: the least noise, where the decoder takes over; every value gives a bound. By default 13 nats for a density,
    which is noise of 1/665 of the data's deviation, and for 8-bit data noise of one grey level: a network that takes the
    grey levels for a continuum pays half a nat a number for every nat of log-SNR beyond it. One that has learned the grid
    of its values gains from 13.
    variance: of the chain's steps: the posterior's (`small`), that for data of deviation 1 (`large`), the two of Ho et al.
    2020, section 3.2; or `learned`, for a model that gives one.
    """

    times: int = 32
    steps: int | None = None
    logsnr_max: float | None = None
    variance: Variance = "small"

    def __post_init__(self) -> None:
        if self.times < 1:
            raise UserError(f"times = {self.times}: the bound is estimated from at least 1 noise level an item")
        if self.steps is not None and self.steps < 2:
            raise UserError(f"steps = {self.steps}: a chain needs at least 2; leave steps out for continuous time")
        if self.logsnr_max is not None and not 0 < self.logsnr_max <= 40:
            raise UserError(f"logsnr_max = {self.logsnr_max:g}: must lie in 0 ... 40; 13 suits most densities")
        if self.variance != "small" and self.steps is None:
            raise UserError(f"variance = {self.variance} is that of a chain's steps; set steps, such as 1000")

    def __call__(
        self, denoiser: Denoiser, x0: Tensor, draws: Draws, cond: Cond | None = None, values: Tensor | None = None
    ) -> BoundTerms:
        """The terms for x0 (B, *S), all of whose random numbers are those of `draws` (B items).

        values: (C, K) those that x0 can take in each channel, for data of K levels: the result is then a bound on
        the negative log of a *probability*; without, of a density of x0.
        """
        process, end = denoiser.process, self._end(values)
        with torch.no_grad():
            terms = BoundTerms(
                self._prior(process, x0),
                self._noise(denoiser, x0, draws, cond, Levels(process, end)),
                self._reconstruction(denoiser, x0, draws, cond, Levels(process, end), values),
            )
        if not bool(terms.total.isfinite().all()):
            i = int((~terms.total.isfinite()).nonzero()[0])
            raise SfumatoError(f"the bound of sample {i} is not finite: the model has diverged")
        return terms

    def _prior(self, process: Process, x0: Tensor) -> Tensor:
        """KL(N(alpha_1 x0, sigma_1^2 I) || N(0, sigma_1^2 I)) = |alpha_1 x0|^2 / (2 sigma_1^2)."""
        alpha, sigma = process.scales(torch.ones((), dtype=torch.float64))
        return 0.5 * (alpha / sigma).square() * _squares(x0)

    def _noise(self, denoiser: Denoiser, x0: Tensor, draws: Draws, cond: Cond | None, levels: Levels) -> Tensor:
        process, nodes = denoiser.process, self._nodes(levels)
        even = Levels.even(process.level(nodes).log())
        whole = even[-1] - even[0]
        looks = []
        for j in range(self.times):
            at = torch.lerp(even[0], even[-1], (draws.spread("bound times") + j) / self.times)
            eps = draws.normal(x0.shape[1:], f"bound {j}", device=x0.device).to(x0.dtype)
            i = torch.searchsorted(even, at).clamp(1, len(even) - 1)
            t = levels.time(Levels.uneven(at)) if self.steps is None else nodes[i]
            found, place = self._ask(denoiser, process.diffuse(x0, eps, t), t, cond)
            wrong = (found - x0).square()
            if self.steps is None:
                weight = whole * _density(Levels.uneven(at).exp())
                cost = weight * _sum(wrong)
            else:  # interval i is drawn with the share of the axis that it covers
                share = (even[i] - even[i - 1]) / whole
                weight = _gain(process, t, nodes[i - 1]) / share
                cost = step_kl(process, wrong, t, nodes[i - 1], place) / share
            alpha, sigma = process.scales(t)
            usual = weight * (alpha * sigma / (alpha.square() + sigma.square())).square()
            looks.append(torch.stack([cost, usual * eps[0].numel(), usual * (_squares(eps) - eps[0].numel())]))
        return _steadied(*torch.stack(looks, 1))

    def _ask(self, denoiser: Denoiser, x_t: Tensor, t: Tensor, cond: Cond | None) -> tuple[Tensor, float | Tensor]:
        """E[x0 | x_t] and where the log of a step's variance lies between the smallest and the largest."""
        if self.variance != "learned":
            return denoiser(x_t, t, cond), float(self.variance == "large")
        if not isinstance(denoiser, LearnedVariance):
            raise UserError("variance = learned: this model has no variance of its own; use small or large")
        return denoiser.with_variance(x_t, t, cond)

    def _end(self, values: Tensor | None) -> float:
        """The log-SNR at which the decoder takes over."""
        if self.logsnr_max is not None:
            return self.logsnr_max
        return _DENSITY if values is None else -2 * math.log(float(values.diff(dim=1).abs().min()))

    def _nodes(self, levels: Levels) -> Tensor:
        """Times of the noise term, rising: both ends in continuous time, i / T of a chain from the least noise on."""
        ends = levels.time(torch.stack([levels.first, levels.last]))
        if self.steps is None:
            return ends
        chain = torch.arange(1, self.steps + 1, dtype=torch.float64) / self.steps
        return torch.cat([torch.maximum(chain[:1], ends[:1]), chain[1:][chain[1:] > ends[0]]])

    def _reconstruction(
        self, denoiser: Denoiser, x0: Tensor, draws: Draws, cond: Cond | None, levels: Levels, values: Tensor | None
    ) -> Tensor:
        process, dims = denoiser.process, math.prod(x0.shape[1:])
        t = self._nodes(levels)[:1].expand(len(x0))
        alpha, sigma = process.scales(t)
        s = sigma / alpha
        eps = draws.normal(x0.shape[1:], "bound decoder", device=x0.device).to(x0.dtype)
        x_t = process.diffuse(x0, eps, t)
        mean = x_t / lift(alpha, x_t) if self.steps is None else denoiser(x_t, t, cond)
        if values is not None:
            return -decode_log_p(mean, s, x0, values)
        constant = 0.5 * dims * (2 * math.pi * s.square()).log()
        if self.steps is None:  # E |eps|^2 = d
            return constant + 0.5 * dims
        return constant + _squares(x0 - mean) / (2 * s.square())


def _steadied(cost: Tensor, usual: Tensor, luck: Tensor) -> Tensor:
    """The mean over the looks (times, B) of cost - b luck, for a b in [0, 1] chosen to make it vary less. (B,).

    At little noise the error of a network that knows nothing finer is the noise itself, and most of the variance of its
    square is luck: |eps|^2 - d, of mean zero. b is the share of that usual error that the two neighbouring looks show;
    their noise is independent of this look's, so the mean stays exact.
    """
    if len(cost) == 1:
        return cost[0] - luck[0]
    share = (cost / usual.clamp(min=1e-300)).clamp(0, 1)
    around = torch.cat([share[1:2], share, share[-2:-1]])
    return (cost - (around[:-2] + around[2:]) / 2 * luck).mean(0)


def _density(u: Tensor) -> Tensor:
    """1/2 SNR |d logsnr / dl| = (1 - u)(1.05 - u) / (1.05 u^2) for l = ln(u / (1.05 - u)), finite where alpha = 0."""
    soft = 1 + Levels.SOFT
    return (1 - u) * (soft - u) / (soft * u.square())


def step_kl(process: Process, wrong: Tensor, t: Tensor, s: Tensor, place: float | Tensor = 0.0) -> Tensor:
    """KL(q(x_s | x_t, x0) || p(x_s | x_t)) of a step from t to s < t (B,), nats, summed over a sample. (B,) float64.

        1/2 (SNR_s - SNR_t) wrong / r + 1/2 (ln r + 1 / r - 1),   r = (large / small)^place

    wrong: (x0 - E[x0 | x_t])^2 elementwise, (B, *S). place: where the log of p's variance lies between the posterior's,
    `small`, at 0, and `large`, at 1 (`Process.variances`); a number, or (B, *S) where it is learned.
    Kingma et al. 2021, eq. 13, for place = 0; Nichol & Dhariwal, "Improved DDPM", 2021, eq. 15.
    """
    small, large = process.variances(t, s)
    gain = _gain(process, t, s)
    log_r = place * lift((large / small).log(), wrong)
    return _sum(lift(gain, wrong) * wrong * torch.exp(-log_r) + 0.5 * (log_r + torch.expm1(-log_r)))


def _gain(process: Process, t: Tensor, s: Tensor) -> Tensor:
    """1/2 (SNR_s - SNR_t)."""
    (alpha_t, sigma_t), (alpha_s, sigma_s) = process.scales(t), process.scales(s)
    return 0.5 * ((alpha_s / sigma_s).square() - (alpha_t / sigma_t).square())


def decode_log_p(mean: Tensor, deviation: Tensor, x0: Tensor, values: Tensor) -> Tensor:
    """ln p(x) of data of K levels, summed over each sample (B,) float64: every number by itself takes the value v_k with

        p(k) ~ exp(-(v_k - mean)^2 / (2 deviation^2)),   the p(k) of a number summing to 1

    mean, x0: (B, C, *S); deviation: (B,); values: (C, K); x0 is the nearest one. Kingma et al. 2021, eq. 8,
    where mean = x_t / alpha. Memory: 4 K bytes for each of up to 2^24 / K numbers at a time.
    """
    table = values.to(mean)
    table = table.reshape(1, table.shape[0], *[1] * (mean.ndim - 2), table.shape[1])
    rows = max(1, _ELEMENTS // (mean[0].numel() * table.shape[-1]))
    parts = []
    for m, x, s in zip(*(torch.split(v, rows) for v in (mean, x0, deviation))):
        energy = -((table - m[..., None]) / lift(s, m)[..., None]).square() / 2
        true = (table - x[..., None]).abs().argmin(-1, keepdim=True)
        picked = F.log_softmax(energy, -1).gather(-1, true)
        parts.append(_sum(picked.squeeze(-1)))
    return torch.cat(parts)


def _sum(x: Tensor) -> Tensor:
    """Sum over each sample, (B,) float64 on the CPU. Rows of a few thousand numbers lose nothing in float32."""
    return x.flatten(1).sum(1).cpu().double()


def _squares(x: Tensor) -> Tensor:
    return _sum(x.square())
