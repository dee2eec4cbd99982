"""Sounds: short-time spectra, mel bands, resampling, and files. Knows nothing of models."""

from sfumato.sound.distance import SpectralDistance
from sfumato.sound.mel import from_mel, mel_bank, mel_points
from sfumato.sound.resample import resample
from sfumato.sound.stft import Frames, griffin_lim
from sfumato.sound.wav import read_wav, write_wav

__all__ = [
    "Frames",
    "SpectralDistance",
    "from_mel",
    "griffin_lim",
    "mel_bank",
    "mel_points",
    "read_wav",
    "resample",
    "write_wav",
]
