"""Conditioners: from what a person asks (a label, a number, a text, a picture, another item) to what a network takes."""

from sfumato.conditioners.base import Conditioner
from sfumato.conditioners.clip import ClipText
from sfumato.conditioners.frozen import Frozen
from sfumato.conditioners.label import Label
from sfumato.conditioners.lm import LanguageModel
from sfumato.conditioners.minilm import MiniLM
from sfumato.conditioners.number import Number
from sfumato.conditioners.picture import Picture
from sfumato.conditioners.reference import Reference
from sfumato.conditioners.siglip import SiglipText
from sfumato.conditioners.t5 import T5
from sfumato.conditioners.text import Text
from sfumato.conditioners.together import Together

__all__ = [
    "ClipText", "Conditioner", "Frozen", "Label", "LanguageModel", "MiniLM", "Number", "Picture",
    "Reference", "SiglipText", "T5", "Text", "Together",
]  # fmt: skip
