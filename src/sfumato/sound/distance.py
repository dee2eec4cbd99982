"""How far the spectra of one sound are from those of another, over several resolutions."""

from __future__ import annotations

from collections.abc import Sequence
from typing import final

from torch import Tensor, nn

from sfumato.sound.stft import Frames

_FLOOR = 1e-4  # -80 dB


@final
class SpectralDistance(nn.Module):
    """The distance of sounds x' (N, c, T) from those they should be, x (N, c, T), over several resolutions: (N,).

        mean over windows of   |S - S'| / |S|  +  mean |ln S - ln S'|,     S = max(|STFT|, 1e-4)

    Norms and means over channels, frequencies and frames; hop = window / 4. 0 for equal sounds, finite at silence, and
    blind to phases. Yamamoto, Song & Kim, "Parallel WaveGAN", 2020, arXiv 1910.11480, eqs. 4 (spectral convergence), 5 and 6.
    """

    def __init__(self, windows: Sequence[int]) -> None:
        super().__init__()
        self.frames = nn.ModuleList(Frames(window, window // 4) for window in windows)

    def forward(self, real: Tensor, made: Tensor) -> Tensor:
        total = real.new_zeros(len(real))
        for frames in self.frames:
            a, b = (frames(x).abs().clamp_min(_FLOOR).flatten(1) for x in (real, made))
            total = total + (a - b).norm(dim=1) / a.norm(dim=1) + (a.log() - b.log()).abs().mean(1)
        return total / len(self.frames)
