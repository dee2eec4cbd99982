"""Conditioners: from what a person asks (a label, a number, a text) to what a network takes."""

from sfumato.conditioners.base import Conditioner
from sfumato.conditioners.label import Label
from sfumato.conditioners.number import Number
from sfumato.conditioners.text import Text
from sfumato.conditioners.together import Together

__all__ = ["Conditioner", "Label", "Number", "Text", "Together"]
