"""`digits`: text to image on 1,797 real handwritten digits, in minutes on two CPU cores."""

from __future__ import annotations

from sfumato.conditioners import Text
from sfumato.core import DenoisingLoss, KarrasGrid, LogitNormalTimes
from sfumato.data import Digits
from sfumato.guidance import ClassifierFree
from sfumato.nn import UNet
from sfumato.pipeline import Sampling
from sfumato.recipes.base import Recipe, recipe
from sfumato.samplers import DPMpp2M
from sfumato.spec import Spec
from sfumato.train import Training


@recipe("digits")
def digits(*, minutes: float = 2.2, width: int = 32) -> Spec[Recipe]:
    """Handwritten digits asked for in words: "a handwritten seven", "7". Real scans, shipped with the package.

    minutes: of training. width: of the U-Net.
    """
    return Spec(
        Recipe,
        title="digits",
        data=Spec(Digits),
        network=Spec(UNet, width=width, mults=(1, 2), blocks=1, attention=()),
        conditioner=Spec(Text, width=64, depth=1, heads=2),
        objective=DenoisingLoss(times=LogitNormalTimes()),
        sampling=Sampling(
            solver=DPMpp2M(),  # what the figures of docs/recipes.md were measured with
            grid=KarrasGrid(sigma_min=0.05, sigma_max=20.0),
            steps=10,
            guidance=ClassifierFree(scale=1.25),
        ),
        train=Training(
            batch=32,
            minutes=minutes,
            lr=3e-3,
            decay=0.5,
            ema=(0.05,),
            evaluations=4,
            pictures=4,
            checkpoint_minutes=2.0,
        ),
    )
