"""Data sets: built in, from the user's files, and any map-style dataset of torch."""

from __future__ import annotations

from sfumato.data.base import Data, Subset
from sfumato.data.digits import Digits
from sfumato.data.loader import Loader
from sfumato.data.order import Order

__all__ = ["Data", "Digits", "Loader", "Order", "Subset"]
