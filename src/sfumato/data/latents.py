"""Items as the latents that an encoder makes of them, for writing to disk: `sfumato data encode`."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import final

import torch
from torch import Tensor

from sfumato.core.media import Batch, DataInfo
from sfumato.data.base import Data, Draws, Indices, Wrapped, digest
from sfumato.data.cache import cached
from sfumato.errors import UserError


@final
class Latents(Wrapped):
    """A data set with the same items and columns, each item's media encoded. `info.encoded` is `sha256`.

    encode: media (B, ...) to latents (B, ...), row i of item i alone; sha256: of the encoder's weights, which with the
    transform of the data is all that a latent depends on. cache: a folder that keeps them by content (`data.cache`): items
    that were encoded before, in any set, are read instead. The data's random crops and flips are left out.
    """

    def __init__(
        self, data: Data, encode: Callable[[Tensor], Tensor], sha256: str, cache: str | Path | None = None
    ) -> None:
        if data.info.encoded:
            raise UserError(f"{data.where}: holds latents already; give the data that they were made of")
        if data.bucketing is not None:
            raise UserError(f"{data.where}: a set with buckets can't be encoded; leave out buckets=")
        self.data, self.sha256 = data, sha256
        self._encode = encode
        self._kept = None
        if cache is not None:  # what is made of a file is told by `item_digest`; the shape and kind by the transform
            parts = {"transform": f"{data.info.kind} {data.info.shape}", "encoder": sha256}
            self._kept = cached(lambda batch: encode(batch.media), data, parts, cache, dtype="float32")

    @property
    def info(self) -> DataInfo:
        return replace(self.data.info, encoded=self.sha256)

    def fetch(self, indices: Indices, draws: Draws = None) -> Batch:
        """The latents as float32; draws choose captions only."""
        if self._kept is not None:
            return self._kept.fetch(indices, draws)
        batch = self.data.fetch(indices)
        with torch.no_grad():
            made = self._encode(batch.media).float().cpu()
        return Batch(made, batch.conditions if draws is None else self.data.columns(indices, draws))

    def fingerprint(self) -> str:
        return digest(self.data.fingerprint(), self.sha256)

    @property
    def table(self) -> object:
        """Columns of the data, where it has a table of them: all captions of an item are packed then."""
        return getattr(self.data, "table", None)
