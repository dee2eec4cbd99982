"""`shapes`: text to image on procedurally drawn shapes, with captions held out and a program that checks the pictures."""

from __future__ import annotations

from typing import Literal

from sfumato.conditioners import Text
from sfumato.core import DenoisingLoss, LogitNormalTimes
from sfumato.data import Shapes
from sfumato.guidance import ClassifierFree
from sfumato.nn import UNet
from sfumato.pipeline import Sampling
from sfumato.recipes.base import Recipe, recipe
from sfumato.spec import Spec
from sfumato.train import Training

Size = Literal["xs", "s", "m"]

# width of the U-Net, samples a step, AdamW's rate
_SIZES: dict[str, tuple[int, int, float]] = {"xs": (16, 32, 2e-3), "s": (32, 64, 1e-3), "m": (64, 128, 8e-4)}


@recipe("shapes")
def shapes(*, minutes: float = 15.0, size: Size = "xs") -> Spec[Recipe]:
    """Coloured shapes asked for in words: "a small red circle above a large blue square". 32x32, drawn on the fly.

    minutes: of training. size: xs is made for two CPU cores; s and m are wider and not measured yet.
    """
    width, batch, lr = _SIZES[size]
    return Spec(
        Recipe,
        title="shapes",
        data=Spec(Shapes),
        network=Spec(UNet, width=width, mults=(1, 2, 4, 4), blocks=1, attention=(2, 3)),
        conditioner=Spec(Text, width=96, depth=1, heads=4, length=80),
        objective=DenoisingLoss(times=LogitNormalTimes()),
        sampling=Sampling(steps=20, guidance=ClassifierFree(scale=3.0)),
        train=Training(batch=batch, minutes=minutes, lr=lr, decay=0.5, evaluations=6, pictures=6),
    )
