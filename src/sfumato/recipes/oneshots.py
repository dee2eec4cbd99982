"""`sounds`: a model of any sounds, chosen by the data and one dial; `oneshots`: of drum hits and single notes."""

from __future__ import annotations

import math
from typing import Literal

from sfumato.codecs import Codec, Mel
from sfumato.conditioners import Reference
from sfumato.core import DataInfo
from sfumato.data import Clips, Data, Referenced
from sfumato.device import choose_device
from sfumato.errors import UserError
from sfumato.guidance import ClassifierFree
from sfumato.nn import UNet
from sfumato.pipeline import Sampling
from sfumato.recipes.aim import aim
from sfumato.recipes.base import Recipe, recipe
from sfumato.recipes.image import batch_for, conditioner_for, title_of
from sfumato.recipes.speech import vocos
from sfumato.spec import Spec, parameters
from sfumato.train import Training

Size = Literal["auto", "xs", "s", "m"]

# width of the U-Net, AdamW's rate, positions of a batch
_SCALES = {"xs": (48, 2e-3, 1 << 12), "s": (64, 1.5e-3, 1 << 14), "m": (128, 6e-4, 1 << 15)}
_WINDOW = 0.04  # seconds, about
_LEAST = 32  # frames at the coarsest level


@recipe("sounds")
def sounds(
    *,
    data: Spec[Data],
    minutes: float | None = None,
    size: Size = "auto",
    vocoder: str | None = None,
    codec: Spec[Codec] | None = None,
    condition: Literal["auto", "reference"] = "auto",
) -> Spec[Recipe]:
    """Sounds of any rate, mono or stereo, asked by what the data has: captions, labels, and their own length.

    data: a folder of WAV, FLAC, OGG or MP3 files, or an .npz of clips. minutes: of training (15 on a CPU, 10 on a GPU).
    size: xs, s or m, the width of the network (auto: xs on a CPU, s on a GPU). vocoder: folder of a trained vocoder for the
    recipe's mel bands; none: Griffin-Lim. codec: `codec=RUN` of a trained autoencoder, or any other in place of mel bands.
    condition: reference asks by a clip of the same class.
    """
    referenced = condition == "reference"
    if not referenced and "timing" in parameters(data.cls) and "timing" not in data.settings:
        data = data.with_(timing=True)
    opened = data.build()
    if opened.info.kind != "audio":
        raise UserError(f"recipe 'sounds' is for sounds, and this is '{data.cls.kind}'; use recipe 'image'")
    title = title_of(data)
    if referenced:
        data = Spec(Referenced, data=data)
    device = choose_device("auto").type
    chosen = size if size != "auto" else ("xs" if device == "cpu" else "s")
    width, lr, positions = _SCALES[chosen]
    made = codec or mel_for(opened.info, vocoder)
    shape = made.build(opened.info).shape
    levels = max(2, min(4, 1 + int(math.log2(max(2, shape[-1] / _LEAST)))))
    few = len(opened) < 2000
    return Spec(
        Recipe,
        title=title,
        data=data,
        codec=made,
        network=Spec(
            UNet, width=width, mults=(1, *(2,) * (levels - 1)), blocks=1, dropout=0.1 if few else 0.0, absolute=True
        ),
        conditioner=Spec(Reference, width=2 * width) if referenced else conditioner_for(opened, width),
        **aim(shape[0], width),
        sampling=Sampling(steps=20, guidance=ClassifierFree(scale=2.0)),
        train=Training(
            batch=batch_for(shape, positions),
            minutes=minutes if minutes is not None else (15.0 if device == "cpu" else 10.0),
            lr=lr,
            decay=0.5,
            evaluations=4,
            pictures=4,
        ),
    )


@recipe("oneshots")
def oneshots(
    *, data: Spec[Data], minutes: float | None = None, size: Size = "auto", vocoder: str | None = None
) -> Spec[Recipe]:
    """Drum hits and single notes asked by family and length: `label=snare seconds=0.3`. Two seconds at the data's rate.

    data: an .npz of clips with a column `families`. minutes, size, vocoder: as for `sounds`.
    """
    if data.cls is not Clips:
        raise UserError("recipe 'oneshots' is for an .npz file of clips with a column `families`; give data=FILE.npz")
    usual = {"label": "families", "level": "peak", "speed": 0.1, "seconds": 2.0}
    data = data.with_(**{k: v for k, v in usual.items() if k not in data.settings})
    return sounds(data=data, minutes=minutes, size=size, vocoder=vocoder).with_(title="oneshots")


def mel_for(info: DataInfo, vocoder: str | None) -> Spec[Codec]:
    """Mel bands for a rate: windows of about 40 ms, a quarter of that from one to the next; 64 bands, 80 from 12 kHz on."""
    window = 2 ** round(math.log2(max(info.rate, 2) * _WINDOW))
    bands = 64 if info.rate < 12_000 else 80
    spec: Spec[Codec] = Spec(Mel, window=window, hop=window // 4, bands=bands)
    return spec if vocoder is None else spec.with_(vocoder=vocos(), weights=vocoder)
