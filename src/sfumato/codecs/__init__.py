"""Codecs: what the tensor is."""

from sfumato.codecs.audio import Spectrogram, Waveform
from sfumato.codecs.audio_mel import Mel
from sfumato.codecs.audio_vocoder import Vocoder, Vocos
from sfumato.codecs.base import Codec, Whitening
from sfumato.codecs.folder import load_weights, open_codec, save_autoencoder
from sfumato.codecs.latent import Latent
from sfumato.codecs.pixels import Arrays, Pixels
from sfumato.codecs.points import Points
from sfumato.codecs.voxels import Voxels

__all__ = [
    "Arrays",
    "Codec",
    "Latent",
    "Mel",
    "Pixels",
    "Points",
    "Spectrogram",
    "Vocoder",
    "Vocos",
    "Voxels",
    "Waveform",
    "Whitening",
    "load_weights",
    "open_codec",
    "save_autoencoder",
]
