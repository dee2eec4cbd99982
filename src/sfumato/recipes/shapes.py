"""`shapes`: text to image on procedurally drawn shapes, with captions held out and a program that checks the pictures."""

from __future__ import annotations

from typing import Literal

from sfumato.conditioners import Text
from sfumato.core import DenoisingLoss, LogitNormalTimes
from sfumato.data import Shapes
from sfumato.guidance import ClassifierFree
from sfumato.nn import DiT
from sfumato.pipeline import Sampling
from sfumato.recipes.base import Recipe, recipe
from sfumato.spec import Spec
from sfumato.train import Training

Size = Literal["xs", "s", "m"]

# width, depth, heads of the transformer and AdamW's rate
_SIZES: dict[str, tuple[int, int, int, float]] = {
    "xs": (128, 6, 4, 2e-3),
    "s": (192, 8, 6, 1e-3),
    "m": (384, 12, 6, 4e-4),
}


@recipe("shapes")
def shapes(*, minutes: float = 15.0, size: Size = "xs") -> Spec[Recipe]:
    """Coloured shapes asked for in words: "a small red circle above a large blue square". 32x32, drawn on the fly.

    minutes: of training. size: xs learns most in a quarter of an hour on two CPU cores; s and m are for a GPU.
    """
    width, depth, heads, lr = _SIZES[size]
    return Spec(
        Recipe,
        title="shapes",
        data=Spec(Shapes),
        network=Spec(DiT, width=width, depth=depth, heads=heads, patch=4),
        conditioner=Spec(Text, width=128, depth=2, heads=4, length=80),
        objective=DenoisingLoss(times=LogitNormalTimes()),
        sampling=Sampling(steps=20, guidance=ClassifierFree(scale=3.0)),
        train=Training(batch=64, minutes=minutes, lr=lr, decay=0.4, evaluations=6, pictures=6),
    )
