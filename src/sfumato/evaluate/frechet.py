"""The Frechet distance between Gaussians fitted to two sets of features."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from sfumato.errors import UserError
from sfumato.evaluate.neighbours import flat

RESAMPLES = 50
_MOST_RESAMPLED = 256  # features up to which 50 resamples take seconds
_Z = 1.959963984540054


@dataclass(frozen=True)
class Moments:
    """mean (D,) and unbiased covariance (D, D), float64, of `n` items."""

    mean: Tensor
    covariance: Tensor
    n: int

    @staticmethod
    def of(items: Tensor) -> Moments:
        """Moments of items or features (N, ...)."""
        rows = flat(items)
        if len(rows) < 2:
            raise UserError("the covariance of 1 item is not defined; give at least 2")
        mean = rows.mean(0)
        centred = rows - mean
        return Moments(mean, centred.T @ centred / (len(rows) - 1), len(rows))


@dataclass(frozen=True)
class Frechet:
    """The squared Frechet distance and its 95% interval. method: how the interval was found."""

    value: float
    interval: tuple[float, float]
    method: str = "none"


def frechet_distance(a: Moments, b: Moments) -> float:
    """The squared Frechet (2-Wasserstein) distance between two Gaussians.

        |m_a - m_b|^2 + tr C_a + tr C_b - 2 tr (C_a^1/2 C_b C_a^1/2)^1/2

    Dowson & Landau 1982; as a score of generators: Heusel et al. 2017, eq. 6. The last trace is the sum of the singular
    values of C_a^1/2 C_b^1/2, which needs no matrix root of a product and is right for singular covariances. In features
    of our own it is called `fd_<judge>` and never "FID". Falls with the number of items: compare equal numbers only.
    """
    _check(a, b)
    return _distance(a, b, torch.linalg.svdvals(_root(a.covariance) @ _root(b.covariance)))


def _check(a: Moments, b: Moments) -> None:
    if a.mean.shape != b.mean.shape:
        raise UserError(f"features of {len(a.mean)} and {len(b.mean)} values can't be compared; use one judge for both")


def _distance(a: Moments, b: Moments, singular: Tensor) -> float:
    total = (a.mean - b.mean).square().sum() + a.covariance.trace() + b.covariance.trace() - 2 * singular.sum()
    return float(total.clamp_min(0))


def _root(covariance: Tensor) -> Tensor:
    values, vectors = torch.linalg.eigh(covariance)
    root: Tensor = (vectors * values.clamp_min(0).sqrt()) @ vectors.T
    return root


def frechet(real: Tensor, samples: Tensor, *, resamples: int | None = None, seed: int = 0) -> Frechet:
    """The distance between two sets of features (N, D) and (M, D), with a 95% interval over both sets.

    resamples: how often both are drawn again with replacement. Resampling adds its own bias upwards, so the interval is
    the estimate plus and minus 1.96 bootstrap deviations (cut at 0), not bootstrap percentiles. 0 is no interval. None is
    50 up to 256 features; above, where that takes minutes, the deviation is that of the linear part of the distance
    (`linear_deviation`), for one decomposition in all.
    """
    x, y = flat(real, "real items"), flat(samples, "samples")
    of_x, of_y = Moments.of(x), Moments.of(y)
    if resamples is None and x.shape[1] > _MOST_RESAMPLED:
        value, deviation = linear_deviation(x, y, of_x, of_y)
        return Frechet(value, (max(0.0, value - _Z * deviation), value + _Z * deviation), "delta method")
    value, resamples = frechet_distance(of_x, of_y), RESAMPLES if resamples is None else resamples
    generator = torch.Generator().manual_seed(seed)

    def again(rows: Tensor) -> Tensor:
        return rows[torch.randint(len(rows), (len(rows),), generator=generator).to(rows.device)]

    drawn = [frechet_distance(Moments.of(again(x)), Moments.of(again(y))) for _ in range(resamples)]
    half = _Z * float(torch.tensor(drawn, dtype=torch.float64).std()) if resamples > 1 else 0.0
    method = f"bootstrap, {resamples} resamples" if resamples > 1 else "none"
    return Frechet(value, (max(0.0, value - half), value + half), method)


def linear_deviation(x: Tensor, y: Tensor, of_x: Moments, of_y: Moments) -> tuple[float, float]:
    """The distance between the moments of rows (N, D) and (M, D) float64, and its standard deviation by the delta method.

        var = var_i f(x_i) / N + var_j g(y_j) / M,      f(x) = 2 (m_x - m_y).(x - m_x) + (x - m_x)' (1 - T) (x - m_x)

    with T = C_x^-1/2 (C_x^1/2 C_y C_x^1/2)^1/2 C_x^-1/2, the map that carries the one Gaussian to the other, and g likewise
    with the map back: derivatives of the distance by mean and covariance, as in Rippl, Munk & Sturm, "Limit laws of the
    empirical Wasserstein distance: Gaussian distributions", 2016, theorem 2.1. With C_x^1/2 C_y^1/2 = U S V' the maps are
    C_y^1/2 V S^-1 V' C_y^1/2 and C_x^1/2 U S^-1 U' C_x^1/2, so no covariance is inverted; directions without spread are left
    out. It needs more items than features to mean much, and says little of distances that are all sampling noise, where
    the linear part vanishes. Cost: three decompositions of D x D.
    """
    _check(of_x, of_y)
    root_x, root_y = _root(of_x.covariance), _root(of_y.covariance)
    u, s, vh = torch.linalg.svd(root_x @ root_y)
    least = s[0] * len(s) * torch.finfo(s.dtype).eps
    inverse = torch.where(s > least, 1 / s.clamp_min(torch.finfo(s.dtype).tiny), 0)
    from_x = root_y @ (vh.T * inverse) @ vh @ root_y
    from_y = root_x @ (u * inverse) @ u.T @ root_x
    shift = of_x.mean - of_y.mean
    variance = _spread(x, of_x, shift, from_x) / len(x) + _spread(y, of_y, -shift, from_y) / len(y)
    return _distance(of_x, of_y, s), math.sqrt(variance)


def _spread(rows: Tensor, moments: Moments, shift: Tensor, carry: Tensor) -> float:
    """The variance over the rows of what each adds to the distance, to first order."""
    centred = rows - moments.mean
    bent = centred.square().sum(1) - (centred @ carry * centred).sum(1)
    return float((2 * centred @ shift + bent).var())
