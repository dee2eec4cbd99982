"""Mel bands: triangles of equal width on the mel scale, integrated exactly over the bins of a spectrum."""

from __future__ import annotations

import torch
from torch import Tensor

from sfumato.errors import UserError


def hertz_to_mel(hertz: Tensor) -> Tensor:
    """m = 2595 log10(1 + f / 700) (O'Shaughnessy, "Speech communication", 1987; the formula of HTK)."""
    return 2595.0 * torch.log10(1.0 + hertz / 700.0)


def mel_to_hertz(mel: Tensor) -> Tensor:
    """The inverse of `hertz_to_mel`."""
    return 700.0 * (10.0 ** (mel / 2595.0) - 1.0)


def mel_points(bands: int, low: float, high: float) -> Tensor:
    """The corners of `bands` triangles in hertz, (bands + 2,) float64, equally far apart in mels."""
    if bands < 1 or not 0 <= low < high:
        raise UserError(f"bands = {bands} from {low:g} to {high:g} Hz: at least 1 band, between rising frequencies")
    ends = hertz_to_mel(torch.tensor([low, high], dtype=torch.float64))
    share = torch.linspace(0, 1, bands + 2, dtype=torch.float64)
    return mel_to_hertz(ends[0] + share * (ends[1] - ends[0]))


def mel_bank(bins: int, bands: int, rate: int, low: float = 0.0, high: float | None = None) -> Tensor:
    """Weights (bands, bins) float64: the mean of each triangle of height 1 over the width of each bin.

        B[k, f] = 1 / d  int_{(f - 1/2) d}^{(f + 1/2) d}  tri_k(v) dv,        d = rate / (2 (bins - 1))

    Because it is an integral and not a sample at the bin's centre, no band is empty, however narrow; the columns of
    bins that lie whole between the first and the last peak sum to 1; and a row sums to the area of its triangle in
    bins.
    """
    points = mel_points(bands, low, rate / 2 if high is None else high)
    step = rate / 2 / (bins - 1)
    edges = (torch.arange(bins + 1, dtype=torch.float64) - 0.5) * step
    left, peak, right = points[:-2, None], points[1:-1, None], points[2:, None]
    # the integral of the triangle up to v, by pieces
    rising = (edges.clamp(left, peak) - left).square() / (2 * (peak - left))
    falling = (right - edges.clamp(peak, right)).square() / (2 * (right - peak))
    whole = rising + (right - peak) / 2 - falling
    return whole.diff(dim=1) / step


def from_mel(bank: Tensor, mel: Tensor, iterations: int = 40) -> Tensor:
    """Magnitudes (..., bins, frames), not negative, with `bank @ magnitudes` near mel (..., bands, frames).

        s <- s (B' m) / (B' B s)

    Multiplicative updates of non-negative least squares (Lee & Seung, "Algorithms for non-negative matrix
    factorization", 2001, theorem 1) from the band's value spread over its bins.
    """
    back = bank.T
    start = back @ (mel / bank.sum(1, keepdim=True))
    found = (start / bank.sum(0)[:, None].clamp_min(1e-6)).clamp_min(1e-10)
    above = back @ mel
    square = back @ bank
    for _ in range(iterations):
        found = found * above / (square @ found).clamp_min(1e-12)
    return found
