"""The short-time Fourier transform with one frame every `hop` samples, its inverse, and phases for magnitudes."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from sfumato.errors import UserError


class Frames(nn.Module):
    """Windowed spectra of T samples in ceil(T / hop) frames, and back.

        S[f, k] = (2 / sum w) sum_n w[n] x[k hop - p + n] exp(-2 pi i f n / N),    p = (N - hop) / 2

    Frame k is centred on sample k hop + hop / 2, x is 0 outside, w is the periodic Hann window of N = `window`
    samples. The factor makes the magnitude of a steady sine its amplitude. The inverse is overlap-add weighted by w and
    divided by the sum of w^2 (Griffin & Lim, "Signal estimation from modified short-time Fourier transform", 1984, eq.
    6): exact for spectra of a signal, the nearest signal for others.
    """

    hann: Tensor

    def __init__(self, window: int, hop: int) -> None:
        super().__init__()
        if hop < 1 or window < 2 * hop or (window - hop) % 2:
            raise UserError(
                f"window = {window}, hop = {hop}: a window is at least two hops long, and both are even or both odd"
            )
        self.window, self.hop, self.pad = window, hop, (window - hop) // 2
        self.register_buffer("hann", torch.hann_window(window), persistent=False)

    @property
    def bins(self) -> int:
        """Frequencies from 0 to half the rate."""
        return self.window // 2 + 1

    def count(self, samples: int) -> int:
        """Frames of a signal."""
        return -(-samples // self.hop)

    def forward(self, x: Tensor) -> Tensor:
        """x (..., T) to complex S (..., bins, frames)."""
        flat = x.reshape(-1, x.shape[-1]).float()
        more = self.count(x.shape[-1]) * self.hop - x.shape[-1]
        flat = F.pad(flat, (self.pad, self.pad + more))
        found = torch.stft(
            flat, self.window, self.hop, window=self.hann, center=False, return_complex=True, onesided=True
        )
        return (found * self._scale).reshape(*x.shape[:-1], self.bins, -1)

    def inverse(self, spectrum: Tensor, samples: int | None = None) -> Tensor:
        """Complex S (..., bins, frames) to x (..., samples), by default frames x hop."""
        frames = spectrum.shape[-1]
        flat = spectrum.reshape(-1, self.bins, frames)
        parts = torch.fft.irfft(flat, self.window, dim=1) / self._scale * self.hann[:, None]
        whole = self._added(parts)
        weight = self._added((self.hann.square())[None, :, None].expand(1, -1, frames))
        x = (whole / weight.clamp_min(1e-8)).reshape(*spectrum.shape[:-2], -1)
        return x if samples is None else x[..., :samples]

    def _added(self, parts: Tensor) -> Tensor:
        """(B, window, frames) added where they overlap: (B, frames hop)."""
        length = (parts.shape[-1] - 1) * self.hop + self.window
        whole = F.fold(parts, (1, length), (1, self.window), stride=(1, self.hop))[:, 0, 0]
        return whole[:, self.pad : length - self.pad]

    @property
    def _scale(self) -> float:
        return 4.0 / self.window  # the periodic Hann window sums to half its length


def griffin_lim(frames: Frames, magnitude: Tensor, samples: int | None = None, *, iterations: int = 32) -> Tensor:
    """A signal (..., samples) whose spectrum has about these magnitudes (..., bins, frames).

        c_n = P(|S| exp(i angle t_{n-1})),   t_n = c_n + alpha (c_n - c_{n-1}),   alpha = 0.99

    with P the projection onto spectra of signals (inverse and forward transform). Perraudin, Balazs & Sondergaard, "A
    fast Griffin-Lim algorithm", 2013, algorithm 2. It starts from phases of steady tones, so that it is a function of
    its arguments; the iteration amplifies rounding, so that between batch shapes waveforms differ where magnitudes
    agree. Cost: two transforms an iteration.
    """
    bins, count = magnitude.shape[-2:]
    turns = torch.arange(bins, device=magnitude.device)[:, None] * torch.arange(count, device=magnitude.device)
    steady = (turns * frames.hop % frames.window).float() * (2 * math.pi / frames.window)
    before = magnitude * torch.exp(1j * steady)
    guess = before
    for number in range(iterations):
        spectrum = torch.polar(magnitude, guess.angle()) if number else before
        projected = frames(frames.inverse(spectrum))
        guess = projected + 0.99 * (projected - before) if number else projected
        before = projected
    return frames.inverse(torch.polar(magnitude, guess.angle()), samples)
