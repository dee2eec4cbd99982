"""`tones`: beeps, plucks and sweeps asked for in words, drawn by a program, in minutes on two CPU cores."""

from __future__ import annotations

from sfumato.codecs import Mel
from sfumato.conditioners import Text
from sfumato.data import Tones
from sfumato.guidance import ClassifierFree
from sfumato.nn import UNet
from sfumato.pipeline import Sampling
from sfumato.recipes.aim import aim
from sfumato.recipes.base import Recipe, recipe
from sfumato.spec import Spec
from sfumato.train import Training

_BANDS = 40


@recipe("tones")
def tones(*, minutes: float = 2.5, width: int = 48) -> Spec[Recipe]:
    """Half a second of sound asked for in words: "two high rising sweeps". Nothing to download: a program draws the
    data.

    minutes: of training. width: of the U-Net.
    """
    return Spec(
        Recipe,
        title="tones",
        data=Spec(Tones),
        codec=Spec(Mel, window=128, hop=64, bands=_BANDS, floor=-60.0),
        network=Spec(UNet, width=width, mults=(1, 2, 2), blocks=1, attention=(1, 2)),
        conditioner=Spec(Text, width=64, depth=1, heads=2, length=48, buckets=512),
        **aim(_BANDS, width),
        sampling=Sampling(steps=12, guidance=ClassifierFree(scale=2.0)),
        train=Training(
            batch=32,
            minutes=minutes,
            lr=3e-3,
            decay=0.5,
            ema=(0.05,),
            evaluations=3,
            pictures=3,
            checkpoint_minutes=2.0,
        ),
    )
