"""`shapes`: text to image on procedurally drawn shapes, with captions held out and a program that checks the pictures."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from sfumato.conditioners import Text
from sfumato.core import DenoisingLoss, LogitNormalTimes
from sfumato.data import Shapes
from sfumato.guidance import ClassifierFree
from sfumato.nn import UNet
from sfumato.pipeline import Sampling
from sfumato.recipes.base import Recipe, recipe
from sfumato.spec import Spec
from sfumato.train import Muon, Training

Size = Literal["xs", "s", "m"]


@dataclass(frozen=True)
class _Scale:
    """width: of the U-Net, attention: its levels with cross-attention. words, blocks: width and depth of the text encoder.
    lr: the optimizer's. count: pictures. times: mean and deviation of the logit-normal noise levels."""

    width: int
    attention: tuple[int, ...]
    words: int
    blocks: int
    batch: int
    lr: float
    count: int
    times: tuple[float, float] = (1.0, 1.5)


_SCALES = {
    "xs": _Scale(16, (2, 3), 96, 1, 32, 2e-3, 20_000),
    "s": _Scale(32, (2, 3), 96, 1, 64, 1e-3, 20_000),
    "m": _Scale(96, (1, 2, 3), 256, 3, 256, 5e-4, 100_000),
}


@recipe("shapes")
def shapes(*, minutes: float = 15.0, size: Size = "xs") -> Spec[Recipe]:
    """Coloured shapes asked for in words: "a small red circle above a large blue square". 32x32, drawn on the fly.

    minutes: of training. size: xs is made for two CPU cores; m for two minutes of a GPU, with words read at 16x16 pixels too
    and a deeper text encoder; s lies between, and is not measured yet.
    """
    scale = _SCALES[size]
    mean, std = scale.times
    return Spec(
        Recipe,
        title="shapes",
        data=Spec(Shapes, count=scale.count),
        network=Spec(UNet, width=scale.width, mults=(1, 2, 4, 4), blocks=1, attention=scale.attention),
        conditioner=Spec(Text, width=scale.words, depth=scale.blocks, heads=4, length=80),
        objective=DenoisingLoss(times=LogitNormalTimes(mean=mean, std=std)),
        sampling=Sampling(steps=20, guidance=ClassifierFree(scale=3.0)),
        train=Training(
            batch=scale.batch,
            minutes=minutes,
            optimizer=Spec(Muon),
            lr=scale.lr,
            decay=0.5,
            evaluations=6,
            pictures=6,
        ),
    )
