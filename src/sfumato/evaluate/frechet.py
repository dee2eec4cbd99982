"""The Frechet distance between Gaussians fitted to two sets of features."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from sfumato.errors import UserError
from sfumato.evaluate.neighbours import flat


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
    """The squared Frechet distance and its 95% interval."""

    value: float
    interval: tuple[float, float]


def frechet_distance(a: Moments, b: Moments) -> float:
    """The squared Frechet (2-Wasserstein) distance between two Gaussians.

        |m_a - m_b|^2 + tr C_a + tr C_b - 2 tr (C_a^1/2 C_b C_a^1/2)^1/2

    Dowson & Landau 1982; as a score of generators: Heusel et al. 2017, eq. 6. The last trace is the sum of the singular
    values of C_a^1/2 C_b^1/2, which needs no matrix root of a product and is right for singular covariances. In features
    of our own it is called `fd_<judge>` and never "FID". Falls with the number of items: compare equal numbers only.
    """
    if a.mean.shape != b.mean.shape:
        raise UserError(f"features of {len(a.mean)} and {len(b.mean)} values can't be compared; use one judge for both")
    cross = torch.linalg.svdvals(_root(a.covariance) @ _root(b.covariance)).sum()
    total = (a.mean - b.mean).square().sum() + a.covariance.trace() + b.covariance.trace() - 2 * cross
    return float(total.clamp_min(0))


def _root(covariance: Tensor) -> Tensor:
    values, vectors = torch.linalg.eigh(covariance)
    root: Tensor = (vectors * values.clamp_min(0).sqrt()) @ vectors.T
    return root


def frechet(real: Tensor, samples: Tensor, *, resamples: int = 50, seed: int = 0) -> Frechet:
    """The distance between two sets of features (N, D) and (M, D), with a 95% interval by the bootstrap.

    Both sets are drawn again with replacement `resamples` times. Resampling adds its own bias upwards, so the interval is
    the estimate plus and minus 1.96 bootstrap deviations (cut at 0), not bootstrap percentiles.
    """
    x, y = flat(real, "real items"), flat(samples, "samples")
    value = frechet_distance(Moments.of(x), Moments.of(y))
    generator = torch.Generator().manual_seed(seed)

    def again(rows: Tensor) -> Tensor:
        return rows[torch.randint(len(rows), (len(rows),), generator=generator).to(rows.device)]

    drawn = [frechet_distance(Moments.of(again(x)), Moments.of(again(y))) for _ in range(resamples)]
    half = 1.959963984540054 * float(torch.tensor(drawn, dtype=torch.float64).std()) if resamples > 1 else 0.0
    return Frechet(value, (max(0.0, value - half), value + half))
