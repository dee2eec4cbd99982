"""How near a reconstruction is to its picture: PSNR and SSIM, one number a picture."""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional as F

from sfumato.errors import UserError

_SIDE, _DEVIATION = 11, 1.5  # of the Gaussian window
_K1, _K2 = 0.01, 0.03
_PEAK = 255.0


def psnr(made: Tensor, real: Tensor, peak: float = _PEAK) -> Tensor:
    """10 log10(peak^2 / mean (made - real)^2) in dB, over each item (B, ...): (B,) float64. Infinite for equal items."""
    error = (made.double() - real.double()).square().flatten(1).mean(1)
    return 10 * torch.log10(peak**2 / error)


def ssim(made: Tensor, real: Tensor, peak: float = _PEAK) -> Tensor:
    """The structural similarity of pictures (B, C, H, W), the mean over channels and windows: (B,) float64, at most 1.

        SSIM = (2 m_x m_y + c1) (2 s_xy + c2) / ((m_x^2 + m_y^2 + c1) (s_x^2 + s_y^2 + c2)),   c = (0.01 L)^2, (0.03 L)^2

    Means and covariances under a Gaussian window of 11 x 11 and deviation 1.5, only where the window lies within the picture.
    Wang et al., "Image Quality Assessment: From Error Visibility to Structural Similarity", 2004, eq. 13 and section III.C.
    """
    if made.ndim != 4 or made.shape != real.shape or min(made.shape[2:]) < _SIDE:
        raise UserError(
            f"ssim compares pictures (B, C, H, W) of one size of at least {_SIDE} a side, not {tuple(made.shape)} and "
            f"{tuple(real.shape)}"
        )
    x, y = made.double(), real.double()
    moments = _blurred(torch.cat([x, y, x * x, y * y, x * y]))
    mean_x, mean_y, xx, yy, xy = moments.chunk(5)
    c1, c2 = (_K1 * peak) ** 2, (_K2 * peak) ** 2
    cross, own_x, own_y = xy - mean_x * mean_y, xx - mean_x**2, yy - mean_y**2
    above = (2 * mean_x * mean_y + c1) * (2 * cross + c2)
    below = (mean_x**2 + mean_y**2 + c1) * (own_x + own_y + c2)
    return (above / below).flatten(1).mean(1)


def _blurred(x: Tensor) -> Tensor:
    offsets = torch.arange(_SIDE, dtype=x.dtype, device=x.device) - _SIDE // 2
    weights = torch.exp(-offsets.square() / (2 * _DEVIATION**2))
    weights = weights / weights.sum()
    channels = x.shape[1]
    rows = F.conv2d(x, weights.view(1, 1, -1, 1).expand(channels, 1, -1, 1), groups=channels)
    return F.conv2d(rows, weights.view(1, 1, 1, -1).expand(channels, 1, 1, -1), groups=channels)


def decibels(error: float) -> float:
    """-10 log10 of a mean squared error relative to the variance: the signal-to-noise ratio of fields without a peak."""
    return -10 * math.log10(error) if error > 0 else math.inf
