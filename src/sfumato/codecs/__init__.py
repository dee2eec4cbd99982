"""Codecs: what the tensor is."""

from sfumato.codecs.base import Codec, Whitening
from sfumato.codecs.pixels import Arrays, Pixels

__all__ = ["Arrays", "Codec", "Pixels", "Whitening"]
