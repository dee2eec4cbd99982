"""Guidance: denoisers made of denoisers. Thresholds, which keep their estimates in range, are here too."""

from sfumato.guidance.apg import Projected
from sfumato.guidance.auto import Autoguidance, Bound
from sfumato.guidance.base import Given, Guidance, Wrapped, check_scale, innermost
from sfumato.guidance.cfg import ClassifierFree
from sfumato.guidance.cfg_zero import ZeroStar
from sfumato.guidance.cfgpp import PlusPlus
from sfumato.guidance.chain import Chain
from sfumato.guidance.gradient import Classifier, Energy
from sfumato.guidance.pag import PerturbedAttention
from sfumato.guidance.threshold import Bounds, Dynamic, Static, Threshold

__all__ = [
    "Autoguidance",
    "Bound",
    "Bounds",
    "Chain",
    "Classifier",
    "ClassifierFree",
    "Dynamic",
    "Energy",
    "Given",
    "Guidance",
    "PerturbedAttention",
    "PlusPlus",
    "Projected",
    "Static",
    "Threshold",
    "Wrapped",
    "ZeroStar",
    "check_scale",
    "innermost",
]
