"""Parameterizations: what the network's output means.

    E[x0 | x_t] = c_skip x_t + c_out F(c_in x_t; c_noise)

and the output F is regressed on  k_x0 x0 + k_eps eps, the one F that makes the right-hand side equal x0. All coefficients
are finite at both ends of time for every pair that `NetDenoiser` admits, so nothing needs a small epsilon.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import ClassVar, NamedTuple, final

import torch
from torch import Tensor

from sfumato.errors import UserError
from sfumato.registry import Registered


class Coeffs(NamedTuple):
    """Six numbers a time, each of the shape of t."""

    c_in: Tensor
    c_skip: Tensor
    c_out: Tensor
    c_noise: Tensor  # u = sigma / (alpha + sigma) in [0, 1], what the network is told of the noise
    k_x0: Tensor
    k_eps: Tensor


class Parameterization(Registered, ABC, family="parameterization"):
    """A frozen rule from (alpha, sigma) to `Coeffs`."""

    divides_by_alpha: ClassVar[bool] = False  # then it is undefined where alpha = 0

    @abstractmethod
    def coeffs(self, alpha: Tensor, sigma: Tensor) -> Coeffs:
        """Coefficients at the given scales, of their shape."""


def _unit_input(alpha: Tensor, sigma: Tensor) -> Tensor:
    return (alpha * alpha + sigma * sigma).rsqrt()  # data has unit deviation, so this input has too


def _level(alpha: Tensor, sigma: Tensor) -> Tensor:
    return sigma / (alpha + sigma)


@final
@dataclass(frozen=True)
class X0(Parameterization, name="x0"):
    """F = x0, the clean data."""

    def coeffs(self, alpha: Tensor, sigma: Tensor) -> Coeffs:
        zero, one = torch.zeros_like(alpha), torch.ones_like(alpha)
        return Coeffs(_unit_input(alpha, sigma), zero, one, _level(alpha, sigma), one, zero)


@final
@dataclass(frozen=True)
class Eps(Parameterization, name="eps"):
    """F = eps, the noise (Ho et al. 2020). x0 = (x_t - sigma eps) / alpha, so alpha may not reach 0.

    The score network of NCSNv2, s = F / sigma (Song & Ermon, "Improved Techniques", 2020, technique 3), is this one up to
    the sign of F: score = -eps / sigma. There is no other parameterization for the score.
    """

    divides_by_alpha = True

    def coeffs(self, alpha: Tensor, sigma: Tensor) -> Coeffs:
        zero, one = torch.zeros_like(alpha), torch.ones_like(alpha)
        return Coeffs(_unit_input(alpha, sigma), 1 / alpha, -sigma / alpha, _level(alpha, sigma), zero, one)


@final
@dataclass(frozen=True)
class V(Parameterization, name="v"):
    """F = alpha eps - sigma x0 (Salimans & Ho, "Progressive Distillation", 2022, appendix D)."""

    def coeffs(self, alpha: Tensor, sigma: Tensor) -> Coeffs:
        total = alpha * alpha + sigma * sigma
        return Coeffs(total.rsqrt(), alpha / total, -sigma / total, _level(alpha, sigma), -sigma, alpha)


@final
@dataclass(frozen=True)
class Velocity(Parameterization, name="velocity"):
    """F = eps - x0, the velocity of straight lines (Lipman et al. 2022)."""

    def coeffs(self, alpha: Tensor, sigma: Tensor) -> Coeffs:
        one, both = torch.ones_like(alpha), alpha + sigma
        return Coeffs(_unit_input(alpha, sigma), 1 / both, -sigma / both, _level(alpha, sigma), -one, one)


@final
@dataclass(frozen=True)
class Karras(Parameterization, name="karras"):
    """The preconditioning of EDM, for any alpha: input, output and target all have unit deviation at every time.

    Karras et al. 2022, table 1 and appendix B.6, in x / alpha. `sigma_data` is the deviation of the codec's output, 1 here.
    """

    sigma_data: float = 1.0

    def __post_init__(self) -> None:
        if self.sigma_data <= 0:
            raise UserError(f"karras needs sigma_data > 0, not {self.sigma_data}")

    def coeffs(self, alpha: Tensor, sigma: Tensor) -> Coeffs:
        d = self.sigma_data
        total = sigma * sigma + (alpha * d).square()
        root = total.rsqrt()
        return Coeffs(
            root, alpha * d * d / total, sigma * d * root, _level(alpha, sigma), sigma * root / d, -alpha * d * root
        )
