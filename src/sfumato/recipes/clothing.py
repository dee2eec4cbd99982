"""`clothing`: photographs of 128 x 128 asked for in words, in the latent of an autoencoder."""

from __future__ import annotations

from sfumato.codecs import Codec, Latent
from sfumato.core import DenoisingLoss, LogitNormalTimes
from sfumato.data import Data
from sfumato.errors import UserError
from sfumato.guidance import ClassifierFree
from sfumato.nn import UNet
from sfumato.pipeline import Sampling
from sfumato.recipes.base import Recipe, recipe
from sfumato.recipes.image import conditioner_for, title_of
from sfumato.spec import Spec
from sfumato.train import Training


@recipe("clothing")
def clothing(
    *, data: Spec[Data], codec: Spec[Codec] | None = None, minutes: float = 15.0, width: int = 128
) -> Spec[Recipe]:
    """Photographs such as those of clothes, in a latent: train the autoencoder first, with `sfumato train ae data=...`.

    data: pictures with captions or labels to ask by, the same as the autoencoder's, or their latents (`sfumato data encode`),
    which saves encoding them in every step. codec: the run of the autoencoder. minutes: of training, made for a GPU.
    width: of the U-Net.
    """
    if codec is None or codec.cls is not Latent:
        raise UserError(
            f"recipe 'clothing' works in a latent: run `sfumato train ae data=... name={title_of(data)}-ae` first and set "
            f"codec=runs/{title_of(data)}-ae"
        )
    opened = data.build()
    levels = 3 if min(codec.build(opened.info).shape[1:]) >= 16 else 2
    return Spec(
        Recipe,
        title=title_of(data),
        data=data,
        network=Spec(
            UNet, width=width, mults=(1, 2, 2)[:levels], blocks=2, attention=tuple(range(1, levels)), dropout=0.1
        ),
        codec=codec,
        conditioner=conditioner_for(opened, width),
        objective=DenoisingLoss(times=LogitNormalTimes()),
        sampling=Sampling(steps=20, guidance=ClassifierFree(scale=2.0)),
        train=Training(
            batch=128, minutes=minutes, lr=5e-4, decay=0.5, evaluations=4, pictures=4, checkpoint_minutes=10.0
        ),
    )
