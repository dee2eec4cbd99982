"""A picture beside every item, for models that are asked by pictures: a view of a voxel model, or a picture itself."""

from __future__ import annotations

from dataclasses import dataclass
from typing import final

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from sfumato.core.media import Batch, Column
from sfumato.data.base import Data, Draws, Indices, Wrapped, digest, expand
from sfumato.data.order import Buckets
from sfumato.errors import UserError
from sfumato.pictures import lay_on
from sfumato.solid.views import draw

PICTURE = "picture"
_KINDS = ("voxels", "image")
_WHITE = (255, 255, 255)


@final
@dataclass(frozen=True, kw_only=True)
class Pictured(Wrapped, name="pictured"):
    """A set with the column `picture`, (B, 3, H, W) uint8: what each item looks like.

    data: the set. A voxel model is drawn on white (`solid.views`) from a viewpoint that is a function of the draw; without a
    draw from the middle of the ranges. What the draw does to the model, the picture shows. A picture is its own picture, grey
    ones as RGB, transparent ones on white.
    side: pixels of a drawn picture. yaw, pitch: the range of viewpoints in degrees, as for `render.picture`. The usual yaws
    are a quarter turn wide: together with the quarter turns of `symmetries` they are all there are, each once.
    """

    data: Data
    side: int = 64
    yaw: tuple[float, float] = (-15.0, 75.0)
    pitch: tuple[float, float] = (16.0, 40.0)

    def __post_init__(self) -> None:
        kind = self.data.info.kind
        if kind not in _KINDS or self.data.info.encoded:
            what = "latents" if self.data.info.encoded else f"'{kind}'"
            raise UserError(f"pictured: shows voxel models and pictures, and {self.data.where} holds {what}")
        if not 8 <= self.side <= 512:
            raise UserError(f"pictured: side = {self.side}: must be 8 to 512 pixels")
        for name, least, most in (("yaw", -360.0, 360.0), ("pitch", 0.0, 90.0)):
            low, high = getattr(self, name)
            if not least <= low <= high <= most:
                raise UserError(f"pictured: {name} = {low:g}, {high:g}: must be a range within {least:g} ... {most:g}")

    def fetch(self, indices: Indices, draws: Draws = None) -> Batch:
        return self._shown(self.data.fetch(indices, draws), draws)

    def fetch_bucket(self, indices: Indices, draws: Draws = None) -> Batch:
        return self._shown(self.data.fetch_bucket(indices, draws), draws)

    def columns(self, indices: Indices, draws: Draws = None) -> dict[str, Column]:
        return dict(self.fetch(indices, draws).conditions)

    def fingerprint(self) -> str:
        return digest(self.data.fingerprint(), f"{self.side} {self.yaw} {self.pitch}")

    def item_digest(self, index: int) -> str:
        return self.data.item_digest(index)

    @property
    def bucketing(self) -> Buckets | None:
        return self.data.bucketing

    def _shown(self, batch: Batch, draws: Draws) -> Batch:
        drawn = self.data.info.kind == "voxels"
        pictures = self._views(batch.media, draws) if drawn else _in_colour(batch.media)
        return Batch(batch.media, {**batch.conditions, PICTURE: pictures})

    def _views(self, models: Tensor, draws: Draws) -> Tensor:
        yaws = _between(self.yaw, draws, "view/yaw", len(models))
        pitches = _between(self.pitch, draws, "view/pitch", len(models))
        made = np.empty((len(models), 3, self.side, self.side), np.uint8)
        for picture, model, yaw, pitch in zip(made, models.numpy(), yaws.tolist(), pitches.tolist()):
            picture[:] = draw(model, self.side, yaw, pitch)
        return torch.from_numpy(made)


def _between(ends: tuple[float, float], draws: Draws, use: str, n: int) -> NDArray[np.float64]:
    share = np.full(n, 0.5) if draws is None else expand(draws, use)
    return ends[0] + share * (ends[1] - ends[0])


def _in_colour(pictures: Tensor) -> Tensor:
    """(B, 1 to 4, H, W) uint8 as (B, 3, H, W): grey repeated, the last of 2 or 4 channels taken for alpha over white."""
    channels = pictures.shape[1]
    colours = pictures[:, : 1 if channels < 3 else 3].expand(-1, 3, -1, -1)
    if channels in (1, 3):
        return colours
    if channels > 4:
        raise UserError(f"pictured: shows pictures of 1 to 4 channels, not {channels}")
    rgba = torch.cat([colours, pictures[:, -1:]], 1).permute(0, 2, 3, 1).numpy()
    return torch.from_numpy(lay_on(rgba, _WHITE)).permute(0, 3, 1, 2)
