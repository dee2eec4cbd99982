"""The stochastic differential equations of a process, and their plain discretisations.

    forward   dx = f x dt + g dw                                                  t from 0 to 1
    reverse   dx = (f x - (1 + eta^2) / 2 g^2 s(x, t)) dt + eta g dw              t from 1 to 0, s the score

f and g^2 are `Process.drift` and `Process.diffusion`. With the exact score the reverse equation has the forward one's
marginals for every eta: 1 is Anderson's reverse SDE, 0 the probability-flow ODE. Song et al., "Score-Based Generative
Modeling through SDEs", 2021, eq. 5, 6 and 13; eta: Karras et al. 2022, appendix B.5, and Zhang & Chen 2022, eq. 6.

The solvers here are first order and know nothing of the equation's linear part, which the other solvers integrate exactly:
they are the theory written down, and what to compare with. To get pictures use `dpmpp-2m` with eta = 1 or `sa`.
Both end with E[x0 | x_t] in the step to t = 0, where the score is infinite, and make a step that starts at alpha = 0, where
f and g are, as `ddpm` does.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise
from typing import final

import torch
from torch import Tensor

from sfumato.core import Process, lift
from sfumato.errors import UserError
from sfumato.samplers.base import NoiseSource
from sfumato.samplers.ddim import check_eta, ddim_form, kept_noise
from sfumato.samplers.linear import Basis, Forms, LinearSolver


def simulate(process: Process, x0: Tensor, times: Tensor, *, noise: NoiseSource | None = None) -> Tensor:
    """A path of the forward SDE by Euler-Maruyama: x at all `times` (N + 1,), which rise from 0. (N + 1, B, *S).

        x_s = x_t + f(t) x_t (s - t) + g(t) sqrt(s - t) z

    For seeing the equation at work: `Process.diffuse` draws x_t at once, without error. Its mean is alpha x0 and its
    deviation sigma up to an error of order 1 (tests/samplers/test_stochastic.py). noise: as in `sample`.
    Raises UserError for times that fall or leave [0, 1].
    """
    if times.ndim != 1 or bool((times[1:] < times[:-1]).any()) or not bool(((times >= 0) & (times <= 1)).all()):
        raise UserError("the forward SDE is simulated at times (N + 1,) that rise within [0, 1]: t = 0 is data")
    f, g2 = process.drift(times), process.diffusion(times)
    path = [x0]
    for number, (t, s) in enumerate(pairwise(times.tolist()), 1):
        x, h = path[-1], s - t
        z = torch.randn_like(x) if noise is None else noise.of_step(number, x)(times[number - 1], times[number])
        if h == 0:
            path.append(x)
            continue
        path.append(lift(1 + h * f[number - 1], x) * x + lift((h * g2[number - 1]).sqrt(), x) * z)
    return torch.stack(path)


@final
@dataclass(frozen=True)
class EulerMaruyama(LinearSolver, name="euler-maruyama"):
    """Euler-Maruyama of the reverse SDE, in the process's own time.

        x_s = x_t - (f x_t - (1 + eta^2) / 2 g^2 score) h + eta g sqrt(h) z,   h = t - s

    Song et al. 2021, eq. 6 and appendix D ("the general-purpose solver"). Weak order 1 (measured). One evaluation a step.
    Explicit: stable while h g^2 / sigma^2 = h (-d lambda / dt) stays below about 2, which the steps next to t = 0 break
    unless the grid is dense there (equal steps of log-SNR, with hundreds of steps): else `reverse-diffusion` or `ddpm`.
    """

    eta: float = 1.0
    order = 1
    evaluations = 1
    noises = 1

    def __post_init__(self) -> None:
        check_eta("euler-maruyama", self.eta)

    @property
    def stochastic(self) -> bool:
        return self.eta > 0

    def forms(self, process: Process, times: Tensor, basis: Basis) -> Forms:
        t, s = times[:-1], times[1:]
        (alpha, sigma), h = process.scales(t), t - s
        h_f, h_g2 = h * process.drift(t), h * process.diffusion(t)
        pull = (1 + self.eta**2) / 2 * h_g2 / sigma.square()
        out = (1 - h_f - pull) * basis.x + pull * alpha * basis.D[0] + self.eta * h_g2.sqrt() * basis.z[0]
        return Forms([(t, basis.x)], _with_ends(process, times, basis, out, self.eta))


@final
@dataclass(frozen=True)
class ReverseDiffusion(LinearSolver, name="reverse-diffusion"):
    """The reverse SDE discretised like the forward one, whose own step is x_t = a x_s + G z exactly.

        x_s = (2 - a) x_t + G^2 score + G z,   a = alpha_t / alpha_s,  G^2 = sigma_t^2 - a^2 sigma_s^2

    For VE x_t + (sigma_t^2 - sigma_s^2) score + G z, for VP (2 - sqrt(1 - beta)) x_t + beta score + sqrt(beta) z.
    Song et al. 2021, appendix E, eq. 46: their predictor. Weak order 1 (measured). One evaluation a step. Stable for any
    step: the coefficient of x lies in [0, 1].
    """

    order = 1
    evaluations = 1
    noises = 1

    def forms(self, process: Process, times: Tensor, basis: Basis) -> Forms:
        t, s = times[:-1], times[1:]
        (alpha, sigma), a = process.scales(t), process.alpha(t) / process.alpha(s)
        fresh = 1 - a.square() * kept_noise(process, t, s).square()  # G^2 / sigma_t^2
        out = (2 - a - fresh) * basis.x + fresh * alpha * basis.D[0] + sigma * fresh.clamp(min=0).sqrt() * basis.z[0]
        return Forms([(t, basis.x)], _with_ends(process, times, basis, out, 1.0))


def _with_ends(process: Process, times: Tensor, basis: Basis, out: Tensor, eta: float) -> Tensor:
    """The form `out`, but E[x0 | x_t] in the steps to t = 0 and DDIM's form in those from alpha = 0."""
    exact = ddim_form(process, times, basis.x, basis.D[0], basis.z[0], eta)
    out = torch.where(process.alpha(times[:-1]) == 0, exact, out)
    return torch.where(times[1:] == 0, basis.D[0], out)
