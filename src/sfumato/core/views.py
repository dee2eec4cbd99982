"""What a denoiser says of the noise, the score and the velocity: the same knowledge in other words.

Each is one evaluation of the denoiser, guided or not, at t in (0, 1]; at t = 0 they divide by sigma = 0. They hold for
every process, learned network or exact denoiser: E[x0 | x_t] decides them all (Tweedie's formula). Where sigma is small
they are a small difference divided by sigma (eps) or sigma^2 (score): in float32, for |x| about 1, the score is good to
1e-7 / sigma^2.
"""

from __future__ import annotations

from torch import Tensor

from sfumato.core.cond import Cond
from sfumato.core.denoiser import Denoiser
from sfumato.core.process import lift


def score(denoiser: Denoiser, x_t: Tensor, t: Tensor, cond: Cond | None = None) -> Tensor:
    """grad log p_t(x_t) = (alpha E[x0 | x_t] - x_t) / sigma^2 = -eps / sigma. (B, *S).

    Efron, "Tweedie's Formula and Selection Bias", 2011, eq. 1.4; Vincent 2011, eq. 11.
    """
    alpha, sigma = (lift(c, x_t) for c in denoiser.process.scales(t))
    return (alpha * denoiser(x_t, t, cond) - x_t) / sigma.square()


def eps(denoiser: Denoiser, x_t: Tensor, t: Tensor, cond: Cond | None = None) -> Tensor:
    """E[eps | x_t] = (x_t - alpha E[x0 | x_t]) / sigma. (B, *S)."""
    alpha, sigma = (lift(c, x_t) for c in denoiser.process.scales(t))
    return (x_t - alpha * denoiser(x_t, t, cond)) / sigma


def velocity(denoiser: Denoiser, x_t: Tensor, t: Tensor, cond: Cond | None = None) -> Tensor:
    """dx/dt of the probability-flow ODE, = E[alpha' x0 + sigma' eps | x_t]. (B, *S).

    Equal to f x_t - g^2 score / 2 (Song et al. 2021, eq. 13) and finite where alpha = 0 and f is not (Lipman et al. 2022).
    """
    alpha, sigma = (lift(c, x_t) for c in denoiser.process.scales(t))
    alpha_slope, sigma_slope = (lift(c, x_t) for c in denoiser.process.slopes(t))
    x0 = denoiser(x_t, t, cond)
    return alpha_slope * x0 + sigma_slope / sigma * (x_t - alpha * x0)
