"""Guidance: denoisers made of denoisers."""

from sfumato.guidance.cfg import ClassifierFree, Guidance, check_scale

__all__ = ["ClassifierFree", "Guidance", "check_scale"]
