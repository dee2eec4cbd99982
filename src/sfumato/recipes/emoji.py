"""`emoji`: text to image at 64 x 64, on emoji of several designs; what the model that ships was trained with."""

from __future__ import annotations

from typing import Literal

from sfumato.conditioners import Text
from sfumato.core import DenoisingLoss, LogitNormalTimes
from sfumato.data import Data, Emoji
from sfumato.errors import UserError
from sfumato.guidance import ClassifierFree
from sfumato.nn import DiT
from sfumato.pipeline import Sampling
from sfumato.recipes.base import Recipe, recipe
from sfumato.spec import Spec
from sfumato.train import Training
from sfumato.train.muon import Muon

Size = Literal["xs", "s", "m"]

# width and depth of the transformer; width, depth and rows of the text encoder; samples a step
_SIZES: dict[str, tuple[int, int, int, int, int, int]] = {
    "xs": (64, 2, 32, 1, 512, 16),
    "s": (128, 4, 64, 2, 4096, 64),
    "m": (256, 7, 128, 3, 8192, 256),
}
_HEAD = 64  # channels of an attention head, at most
_LONGEST = 96  # bytes of a prompt
_SWAP = 0.5  # of the names: what a design looks like must not hang on them


@recipe("emoji")
def emoji(*, data: Spec[Data], minutes: float = 6.0, size: Size = "m") -> Spec[Recipe]:
    """Emoji asked for in words: "red apple, fluent emoji", "a waving hand, dark skin tone, noto emoji". 64 x 64 pixels.

    data: a .parquet file, .npz file or folder of emoji (see `sfumato show data emoji`). minutes: of training, made for one
    GPU. size: m is the model that ships, 11.7 million parameters; s and xs are to try things out on a CPU.
    """
    width, depth, text, layers, rows, batch = _SIZES[size]
    data = emoji_data(data)
    return Spec(
        Recipe,
        title="emoji",
        data=data if "swap" in data.settings else data.override("swap", _SWAP),
        network=Spec(DiT, width=width, depth=depth, heads=max(2, width // _HEAD), patch=4, dropout=0.2),
        conditioner=Spec(Text, width=text, depth=layers, heads=4, length=_LONGEST, buckets=rows),
        objective=DenoisingLoss(times=LogitNormalTimes(mean=1.2, std=1.5)),  # designs are decided far up in the noise
        sampling=Sampling(steps=20, guidance=ClassifierFree(scale=2.5)),
        train=Training(
            batch=batch,
            minutes=minutes,
            optimizer=Spec(Muon),
            lr=1e-3,
            decay=0.5,
            ema=(0.05, 0.1),
            drop=0.15,
            evaluations=4,
            pictures=2,
            checkpoint_minutes=10.0,
            threads=2,
        ),
    )


def emoji_data(data: Spec[Data]) -> Spec[Data]:
    """The emoji that lie where `data=` says, whatever kind of table was found there."""
    if data.cls is Emoji:
        return data
    path = data.settings.get("path")
    if not isinstance(path, str):
        raise UserError(f"recipe 'emoji': data={data.cls.kind} is no table of emoji; give a .parquet file or a folder")
    return Spec(Emoji, path=path)
