"""sfumato: train, sample and evaluate diffusion models from scratch, on your own data.

`import sfumato` is quick: it does not load torch until a name that needs it is used.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from sfumato.pipeline import Pipeline as Pipeline
    from sfumato.recipes import Recipe as Recipe
    from sfumato.recipes import recipe as recipe
    from sfumato.train import Trainer as Trainer

__version__ = "0.1.0"

_LAZY = {
    "Pipeline": "sfumato.pipeline",
    "Trainer": "sfumato.train",
    "Recipe": "sfumato.recipes",
    "recipe": "sfumato.recipes",
}
__all__ = ["__version__", *_LAZY]


def __getattr__(name: str) -> Any:
    if name in _LAZY:
        return getattr(importlib.import_module(_LAZY[name]), name)
    raise AttributeError(f"module 'sfumato' has no attribute '{name}'")


def __dir__() -> list[str]:
    return sorted(__all__)
