"""`cifar10`: pictures of 32 x 32 on one GPU, for a few minutes."""

from __future__ import annotations

from sfumato.conditioners import Label
from sfumato.core import DenoisingLoss, LogitNormalTimes
from sfumato.data import Data
from sfumato.errors import UserError
from sfumato.nn import UNet
from sfumato.recipes.base import Recipe, recipe
from sfumato.recipes.image import title_of
from sfumato.spec import Spec
from sfumato.train import Training
from sfumato.train.muon import Muon


@recipe("cifar10")
def cifar10(*, data: Spec[Data], minutes: float = 4.0, width: int = 128, labels: bool = False) -> Spec[Recipe]:
    """Pictures of 32 x 32, such as CIFAR-10, on a GPU: flow matching with a U-Net, a rate that falls from the middle on.

    data: `data=PATH` of CIFAR-10, or any pictures of that size. minutes: of training; recording the step is not counted.
    width: of the U-Net. labels: ask by class. Dropout of 0.1 gains from four minutes of an H200 on; for one, leave it out
    (`network.dropout=0`).
    """
    info = data.build().info
    if info.kind != "image" or info.shape[1:] != (32, 32):
        raise UserError(
            f"recipe 'cifar10' is for pictures of 32 x 32, not {info.kind} data of {info.shape}; use recipe 'image'"
        )
    if labels and len(info.labels) < 2:
        raise UserError("labels=true: the data has no labels; leave labels unset")
    return Spec(
        Recipe,
        title=title_of(data),
        data=data,
        network=Spec(UNet, width=width, mults=(1, 2, 2), blocks=2, attention=(1, 2), dropout=0.1),
        conditioner=Spec(Label, width=2 * width) if labels else None,
        objective=DenoisingLoss(times=LogitNormalTimes()),
        train=Training(
            batch=256,
            minutes=minutes,
            optimizer=Spec(Muon),
            lr=5e-4,
            warmup=0.05,
            decay=0.5,
            ema=(0.05, 0.1),
            evaluations=4,
            pictures=4,
            checkpoint_minutes=10.0,
        ),
    )
