"""`solids`: text to voxel models from nothing, on solids that a program makes and reads back; what the demo trains."""

from __future__ import annotations

from typing import Literal

from sfumato.codecs import Voxels
from sfumato.conditioners import Conditioner, Picture, Text
from sfumato.core import X0, DenoisingLoss, LogisticGrid, LogitNormalTimes
from sfumato.data import Data, Pictured, Solids
from sfumato.guidance import ClassifierFree
from sfumato.nn import UNet
from sfumato.pipeline import Sampling
from sfumato.recipes.base import Recipe, recipe
from sfumato.spec import Spec
from sfumato.train import Training

_SAMPLES = {"words": 15_000, "picture": 40_000}


@recipe("solids")
def solids(
    *,
    minutes: float | None = None,
    width: int = 32,
    pairs: float = 0.0,
    condition: Literal["words", "picture"] = "words",
) -> Spec[Recipe]:
    """Solids of 16^3 voxels asked for in words: "a large red ball", with pairs above 0 "a small red ball on a blue box".

    minutes: of training; none for 15,000 samples (under 3 minutes on two cores, 4 on one), by a picture for 40,000. width: of
    the U-Net. pairs: share of models with two solids. condition: words, or a picture of the solid from any side.
    """
    data: Spec[Data] = Spec(Solids, pairs=pairs)
    asked: Spec[Conditioner] = Spec(Text, width=64, depth=1, heads=2, buckets=1024)
    if condition == "picture":
        data, asked = Spec(Pictured, data=data), Spec(Picture, size=32, width=64, depth=1, heads=2)
    return Spec(
        Recipe,
        title="solids" if condition == "words" else "solids-picture",
        data=data,
        network=Spec(UNet, width=width, mults=(1, 2), blocks=1, attention=(), middle_attention=True),
        codec=Spec(Voxels, fold=2),
        conditioner=asked,
        parameterization=X0(),  # what is learned is nearly binary, and simpler than the noise beside it
        objective=DenoisingLoss(times=LogitNormalTimes(mean=1.7, std=1.5)),
        sampling=Sampling(grid=LogisticGrid(center=-2.0, scale=1.8), steps=12, guidance=ClassifierFree(scale=1.5)),
        train=Training(
            batch=16,
            minutes=minutes,
            samples=_SAMPLES[condition] if minutes is None else None,
            lr=3e-3,
            decay=0.5,
            ema=(0.05,),
            evaluations=1,
            pictures=2,
            checkpoint_minutes=2.0,
        ),
    )
