"""DDIM inversion: the noise from which a deterministic walk comes to given data."""

from __future__ import annotations

from itertools import pairwise

import torch
from torch import Tensor

from sfumato.core import Cond, Denoiser, Process, lift
from sfumato.errors import SfumatoError, UserError
from sfumato.samplers.base import check_walk
from sfumato.samplers.ddim import DDIM, kept_noise


@torch.no_grad()
def invert(
    denoiser: Denoiser,
    x0: Tensor,
    times: Tensor,
    cond: Cond | None = None,
    *,
    iterations: int = 1,
    tolerance: float | None = None,
) -> Tensor:
    """x (B, *S) at times[0] from which `sample(denoiser, DDIM(), x, times, cond)` comes to x0 (B, *S) at times[-1].

    times: the falling grid of the walk, (N + 1,) or (N + 1, *prefix); it is walked backwards. In a step DDIM has

        x_s = k x_t + (alpha_s - alpha_t k) D(x_t, t),   k = sigma_s / sigma_t

    with D = E[x0 | x_t], and x_t is wanted: it is a fixed point of

        x_t = (x_s - (alpha_s - alpha_t k) D(x_t, t)) / k                                 where there is much noise
        x_t = alpha_t / alpha_s (x_s - sigma_s eps) + sigma_t eps,   eps = (x_t - alpha_t D(x_t, t)) / sigma_t    elsewhere

    iterated from x_s. Of the two that one is iterated which contracts more for white data.
    iterations: 1 is the usual approximation, which asks for D(x_s, t) instead (Song et al. 2021 (DDIM), section 4.3 and
    Dhariwal & Nichol 2021, appendix F): error of order 1 in the step size, one evaluation a step. More iterate the fixed
    point (Pan et al., "Effective Real Image Editing with Accelerated Iterative Diffusion Inversion", 2023): 5 to 20 reach
    the rounding where the steps are small enough that it contracts.
    tolerance: stop a step where no element changes by more than this share of the deviation of x_t, and raise SfumatoError
    where that is not reached after `iterations`: then use more steps. Waits for the device once an iteration.
    Raises UserError for times, conditions or settings that do not fit.
    """
    if iterations < 1 or (tolerance is not None and tolerance <= 0):
        raise UserError(f"inversion needs iterations >= 1 and tolerance > 0 or None, not {iterations} and {tolerance}")
    per_sample = check_walk(DDIM(), x0, times, cond)
    if bool(((per_sample[1:] == 0) & (per_sample[:-1] > 0) & (denoiser.process.alpha(per_sample[:-1]) == 0)).any()):
        raise UserError(
            "one step from pure noise to data gives the same data for all noise; invert with 2 steps or more"
        )
    x = x0
    for s, t in pairwise(per_sample.flip(0)):
        x = _back(denoiser, x, t, s, cond, iterations, tolerance)
    return x


def _back(
    denoiser: Denoiser, x_s: Tensor, t: Tensor, s: Tensor, cond: Cond | None, iterations: int, tolerance: float | None
) -> Tensor:
    """x at t > s from x at s; unchanged where t = s."""
    on_x, on_s, on_data = (lift(c, x_s) for c in _coefficients(denoiser.process, t, s))
    held = lift(t == s, x_s).bool()
    alpha, sigma = denoiser.process.scales(t)
    spread = lift((alpha.square() + sigma.square()).sqrt(), x_s)
    x, change = x_s, torch.full_like(x_s, torch.inf)
    for _ in range(iterations):
        new = torch.where(held, x_s, on_x * x + on_s * x_s + on_data * denoiser(x, t, cond))
        change, x = (new - x).abs() / spread, new
        if tolerance is not None and bool((change <= tolerance).all()):
            return x
    if tolerance is not None:
        raise SfumatoError(
            f"the inversion from t = {float(s.max()):.4g} to {float(t.max()):.4g} changes by {float(change.max()):.2g} after "
            f"{iterations} iterations; take more steps, or more iterations, or tolerance=None for what there is"
        )
    return x


def _coefficients(process: Process, t: Tensor, s: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Of x_t, x_s and D(x_t, t) in the iterated map."""
    (alpha_t, sigma_t), alpha_s = process.scales(t), process.alpha(s)
    k = kept_noise(process, t, s)
    data = (alpha_s - alpha_t * k) / k
    other = (1 - alpha_t * k / alpha_s).clamp(0, 1)  # of sigma_t eps
    by_data = (
        data * alpha_t < other * sigma_t.square()
    )  # each over alpha^2 + sigma^2: the slope of the map for white data
    zero = torch.zeros_like(t)
    on_x = torch.where(by_data, zero, other)
    on_s = torch.where(by_data, 1 / k, alpha_t / alpha_s)
    on_data = torch.where(by_data, -data, -other * alpha_t)
    return on_x, on_s, on_data
