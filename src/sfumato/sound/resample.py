"""Another rate for a signal: band-limited interpolation by a windowed sinc, in phases."""

from __future__ import annotations

import math
from functools import lru_cache

import torch
from torch import Tensor
from torch.nn import functional as F

from sfumato.errors import UserError

_ZEROS = 24  # zero crossings of the sinc on each side
_ROLLOFF = 0.945  # of the lower half rate: where the filter is down by half
_MOST = 1 << 22  # weights of a filter


def resample(x: Tensor, old: int, new: int) -> Tensor:
    """x (..., T) at rate `old` to (..., ceil(T new / old)) at rate `new`; sample 0 stays at time 0.

        y[m] = sum_n x[n] h(n - m old / new),     h(t) = c sinc(c t) cos^2(pi c t / (2 Z)),  |c t| < Z

    with c = 0.945 min(1, new / old), so that nothing folds back, and Z = 24 zero crossings. Smith, "Digital audio
    resampling", 2002. Only the phases of the reduced fraction new / old are computed. Cost: 2 Z / c products a sample.
    """
    if old < 1 or new < 1:
        raise UserError(
            f"a rate of {min(old, new)} samples a second can't be resampled to or from; give rates of at least 1"
        )
    if old == new or x.shape[-1] == 0:
        return x
    common = math.gcd(old, new)
    up, down = new // common, old // common
    weights, width = _filter(up, down)
    length = -(-x.shape[-1] * up // down)
    flat = F.pad(x.reshape(-1, 1, x.shape[-1]).float(), (width, width + down))
    phases = F.conv1d(flat, weights.to(x.device)[:, None], stride=down)  # (B, up, steps)
    y = phases.transpose(1, 2).reshape(len(flat), -1)[:, :length]
    return y.reshape(*x.shape[:-1], length)


@lru_cache(maxsize=16)
def _filter(up: int, down: int) -> tuple[Tensor, int]:
    """Weights (up, 2 width + down) and their reach before the first sample."""
    cut = _ROLLOFF * min(1.0, up / down)
    width = math.ceil(_ZEROS / cut)
    taps = 2 * width + down
    if up * taps > _MOST:
        raise UserError(
            f"rates in the proportion {up} : {down} would need a filter of {up * taps:,} numbers; choose one with a larger "
            "common divisor, such as 8000, 16000, 22050, 24000, 44100 or 48000"
        )
    at = torch.arange(taps, dtype=torch.float64) - width
    t = cut * (at[None] - torch.arange(up, dtype=torch.float64)[:, None] * down / up)
    inside = t.abs() < _ZEROS
    hann = torch.cos(t * (math.pi / 2 / _ZEROS)).square()
    h = torch.where(inside, cut * torch.sinc(t) * hann, torch.zeros_like(t))
    return (h / h.sum(1, keepdim=True)).float(), width
