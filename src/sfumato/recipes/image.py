"""`image`: a model of any pictures or arrays, chosen by one dial, the data and the device."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray

from sfumato.codecs import Codec
from sfumato.conditioners import Conditioner, Label, Number, Text, Together
from sfumato.core import DataInfo, DenoisingLoss, LogitNormalTimes, Network
from sfumato.core.random import keys, uniform
from sfumato.data import Data
from sfumato.data.audio import SECONDS
from sfumato.errors import UserError
from sfumato.nn import MLP, UNet
from sfumato.recipes.base import Recipe, recipe, slug
from sfumato.spec import Spec
from sfumato.train import Training
from sfumato.train.muon import Muon

Size = Literal["auto", "xs", "s", "m", "l"]


@dataclass(frozen=True)
class _Scale:
    """width, blocks: of the U-Net. lr: for Muon, falling with the width. positions: of a batch, on a GPU."""

    width: int
    blocks: int
    lr: float
    positions: int


_SCALES = {
    "xs": _Scale(16, 1, 2e-3, 1 << 20),
    "s": _Scale(64, 2, 1e-3, 1 << 19),
    "m": _Scale(128, 2, 5e-4, 1 << 18),
    "l": _Scale(192, 3, 3e-4, 1 << 17),
}
_CPU_POSITIONS = 1 << 16
_COARSEST = 8  # levels are added until the longest side is this or less
_MOST_LEVELS = 6
_LONGEST_PROMPT = 512
_LOOKED_AT = 4096
_WORDINGS = 4


@recipe("image")
def image(
    *, data: Spec[Data], size: Size = "auto", minutes: float | None = None, codec: Spec[Codec] | None = None
) -> Spec[Recipe]:
    """Pictures or arrays of any shape, asked by what the data has: captions, labels, numbers, or nothing.

    data: a path or a name. size: xs, s, m or l, the width and depth of the network (auto: xs on a CPU, m on a GPU).
    minutes: of training (15 on a CPU, 60 on a GPU). codec: the run or folder of an autoencoder, to train in its latent.
    """
    opened = data.build()
    info, device = opened.info, _device()
    scale = _SCALES[("xs" if device == "cpu" else "m") if size == "auto" else size]
    shape = info.shape if codec is None else codec.build(info).shape
    batch = batch_for(shape, _CPU_POSITIONS if device == "cpu" else scale.positions)
    return Spec(
        Recipe,
        title=title_of(data),
        data=data,
        network=network_for(shape, scale.width, scale.blocks, few=len(opened) < 2000),
        codec=codec,
        conditioner=conditioner_for(opened, scale.width),
        objective=DenoisingLoss(times=LogitNormalTimes()),
        train=Training(
            batch=batch,
            minutes=minutes if minutes is not None else (15.0 if device == "cpu" else 60.0),
            optimizer=Spec(Muon),
            lr=round(scale.lr * min(1.0, math.sqrt(batch / 64)), 6),
        ),
    )


def network_for(shape: tuple[int, ...], width: int, blocks: int, *, few: bool) -> Spec[Network]:
    """A U-Net whose coarsest level is 4 to 8 wide, wider below the first level; dropout where the data is small.

    For plain vectors a perceptron.
    """
    if len(shape) == 1:
        return Spec(MLP, width=8 * width, depth=2 + 2 * blocks)
    levels = min(_MOST_LEVELS, max(2, 1 + math.ceil(math.log2(max(shape[1:]) / _COARSEST))))
    levels = min(levels, 1 + max(0, int(math.log2(max(shape[1:])))))
    # Narrow networks are cheap where the field is large and need their width where it is small.
    mults = (1, *(2 if level == 1 or width > 16 else 4 for level in range(1, levels)))
    return Spec(UNet, width=width, mults=mults, blocks=blocks, dropout=0.1 if few else 0.0)


def batch_for(shape: tuple[int, ...], positions: int) -> int:
    """A power of two from 8 to 256, as large as keeps the positions of a batch within the limit."""
    most = positions / math.prod(shape[1:])
    return int(min(256 if positions > _CPU_POSITIONS else 64, max(8, 2 ** math.floor(math.log2(max(most, 1))))))


def conditioner_for(data: Data, width: int) -> Spec[Conditioner] | None:
    """Captions through `text`, else labels, and numbers beside them; None where the data has nothing to ask by."""
    info, wide = data.info, 2 * width
    parts: list[Spec[Conditioner]] = []
    if info.captions:
        parts.append(Spec(Text, width=wide, length=_prompt_length(data)))
    elif len(info.labels) > 1:
        parts.append(Spec(Label, width=wide))
    if info.numbers:
        low, high = _ranges(data, info)
        parts.append(Spec(Number, width=wide, low=low, high=high))
    return Spec(Together, first=parts[0], second=parts[1]) if len(parts) > 1 else (parts[0] if parts else None)


def title_of(data: Spec[Data]) -> str:
    """The name of the file or folder, or of the built-in set."""
    path = data.settings.get("path")
    first = path[0] if isinstance(path, tuple | list) and path else path
    return slug(Path(first).resolve().stem) if isinstance(first, str) else data.cls.kind


def _some(data: Data) -> NDArray[np.int64]:
    """Up to `_LOOKED_AT` indices from all over the set."""
    count = min(len(data), _LOOKED_AT)
    return np.arange(count) * len(data) // max(count, 1)


def _prompt_length(data: Data) -> int:
    """Room for the longest caption seen and half as much again, in bytes: a multiple of 8, at least 64."""
    chosen = _some(data)
    longest = 1
    for round_ in range(_WORDINGS):  # an item may have several captions, and a draw chooses among them
        draws = uniform(keys(round_, "captions", chosen))
        captions = data.columns(chosen, draws)["caption"]
        longest = max(longest, *(len(str(caption).encode()) for caption in captions))
    if longest > _LONGEST_PROMPT:
        raise UserError(
            f"the data has a caption of {longest} bytes and the recipe 'image' reads {_LONGEST_PROMPT}; shorten the captions"
        )
    return min(_LONGEST_PROMPT, max(64, -(-longest * 3 // 16) * 8))


def _ranges(data: Data, info: DataInfo) -> tuple[tuple[float, ...], tuple[float, ...]]:
    numbers = np.asarray(data.columns(_some(data))["number"], np.float64).reshape(-1, len(info.numbers))
    low, high = numbers.min(0), numbers.max(0)
    if info.rate and SECONDS in info.numbers:  # of a sound, which a draw may make shorter or longer than any seen here
        at = info.numbers.index(SECONDS)
        low[at], high[at] = 0, np.float32(info.shape[-1] / info.rate)
    return tuple(low.tolist()), tuple(np.where(high > low, high, low + 1).tolist())


def _device() -> str:
    if torch.cuda.is_available():
        return "cuda"
    return "mps" if torch.backends.mps.is_available() else "cpu"
