"""`points`: point clouds of solids, voxel models or meshes, as sets: a transformer that knows no order."""

from __future__ import annotations

from typing import Literal

from sfumato.codecs import Points as PointCodec
from sfumato.conditioners import Conditioner, Label, Text
from sfumato.core import DenoisingLoss, LogitNormalTimes
from sfumato.data import Data
from sfumato.data import Points as PointData
from sfumato.guidance import ClassifierFree
from sfumato.nn import DiT
from sfumato.pipeline import Sampling
from sfumato.recipes.base import Recipe, recipe
from sfumato.recipes.image import title_of
from sfumato.spec import Spec
from sfumato.train import Training

Size = Literal["xs", "s", "m"]
_SIZES = {
    "xs": (64, 4, 2e-3, 16),
    "s": (128, 6, 1e-3, 64),
    "m": (256, 8, 5e-4, 128),
}  # width, blocks, AdamW's rate, batch
_LONGEST = 96  # bytes of a prompt


@recipe("points")
def points(
    *, data: Spec[Data], minutes: float = 5.0, size: Size = "xs", points: int = 256, colours: bool = True
) -> Spec[Recipe]:
    """Point clouds asked for in words, or by class where there are no captions, drawn anew from the surfaces at every look.

    data: `solids`, an .npz of voxel models, or a folder of .vox files or meshes (`data.size=64` keeps more of a mesh).
    minutes: of training. size: of the network; xs is for a CPU. points: of a cloud. colours: learn them too.
    The network is a transformer over points without positions: any order of the input gives the same points in that order.
    """
    clouds: Spec[Data] = Spec(PointData, data=data, points=points, colours=colours)
    info = clouds.build().info
    width, depth, lr, batch = _SIZES[size]
    conditioner: Spec[Conditioner] | None = None
    if info.captions:
        conditioner = Spec(Text, width=width, depth=1, heads=2, length=_LONGEST, buckets=1024)
    elif len(info.labels) > 1:
        conditioner = Spec(Label, width=width)
    return Spec(
        Recipe,
        title=f"{title_of(data)}-points",
        data=clouds,
        network=Spec(DiT, width=width, depth=depth, heads=width // 32, patch=1, rotary=False, absolute=False),
        codec=Spec(PointCodec),
        conditioner=conditioner,
        objective=DenoisingLoss(times=LogitNormalTimes(mean=0.5, std=1.3)),
        sampling=Sampling(steps=25, guidance=ClassifierFree(scale=1.5)),
        train=Training(
            batch=batch,
            minutes=minutes,
            lr=lr,
            decay=0.5,
            ema=(0.05,),
            evaluations=2,
            pictures=2,
            checkpoint_minutes=5.0,
        ),
    )
