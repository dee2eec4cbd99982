"""What an encoder makes of each item, kept on disk under a key of everything that it depends on.

An entry for another file, size, encoder or type has another key, so it can't be found, let alone returned (`core.store`).
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from functools import cached_property
from pathlib import Path
from typing import final

import torch
from torch import Tensor

from sfumato.core.media import Batch, DataInfo
from sfumato.core.store import DTYPES, Store, key_of
from sfumato.data.base import Data, Draws, Indices, Wrapped, digest
from sfumato.errors import SfumatoError, UserError

NEEDED = ("transform", "encoder")

Encode = Callable[[Batch], Tensor]


def cached(
    encode: Encode,
    data: Data,
    key_parts: Mapping[str, str],
    folder: Path | str,
    *,
    dtype: str = "float32",
    of: str = "media",
) -> Cached:
    """A data set whose media are `encode(items)`, made once for each item and kept below `folder`.

    encode: a batch of the data, fetched without draws, -> (B, *S); row i must depend on item i alone. key_parts: all that
    the values depend on besides the item, as text; `transform` (settings of crop, size, ...) and `encoder` (sha256 of its
    weights) must be among them. dtype: float32, float16 or bfloat16, of what is kept; it is a part of the key. of: `media`,
    or `caption` for an encoder of texts, whose key then is of the caption.
    """
    missing = [name for name in NEEDED if not key_parts.get(name)]
    if missing:
        raise UserError(
            f"key_parts: '{missing[0]}' is missing, and values of another one would be taken for its; give it"
        )
    if dtype not in DTYPES:
        raise UserError(f"dtype = {dtype}: latents are kept as float32, float16 or bfloat16")
    if of not in ("media", "caption") or (of == "caption" and not data.info.captions):
        raise UserError(f"of = {of}: must be media, or caption where the data have captions")
    return Cached(encode, data, dict(key_parts), Store(Path(folder)), dtype, of)


@final
class Cached(Wrapped):
    """See `cached`. made: how many items were encoded so far; found: how many came from the disk."""

    def __init__(
        self, encode: Encode, data: Data, key_parts: Mapping[str, str], store: Store, dtype: str, of: str
    ) -> None:
        self.encode, self.data, self.store, self.dtype, self.of = encode, data, store, dtype, of
        self.parts = {**key_parts, "dtype": dtype, "of": of}
        self.made = self.found = 0

    @cached_property
    def info(self) -> DataInfo:
        """That of the data, with the shape of what is encoded."""
        whole = self.data.info
        return DataInfo(tuple(self._values([0])[0].shape), "array", whole.labels, whole.captions, whole.numbers)

    def fetch(self, indices: Indices, draws: Draws = None) -> Batch:
        """The encoded items as float32; draws choose captions only."""
        asked = [int(i) for i in indices]
        media = torch.stack([value.float() for value in self._values(asked)])
        if self.data.unreadable(asked):  # the columns are those of the items that stand in
            return Batch(media, self.data.fetch(asked, draws).conditions)
        return Batch(media, self.data.columns(asked, draws))

    def fingerprint(self) -> str:
        return digest(self.data.fingerprint(), *(f"{k}={v}" for k, v in sorted(self.parts.items())))

    def key(self, index: int) -> str:
        """The key of an item."""
        if self.of == "caption":
            text = str(self.data.columns([index])["caption"][0])
            return key_of(hashlib.sha256(text.encode()).hexdigest(), self.parts)
        return key_of(self.data.item_digest(index), self.parts)

    def _values(self, indices: list[int]) -> list[Tensor]:
        keys = {index: self.key(index) for index in dict.fromkeys(indices)}
        values = {key: self.store.read(key) for key in keys.values()}
        missing = {key: index for index, key in keys.items() if values[key] is None}
        self.found += len(values) - len(missing)
        if missing:
            with torch.no_grad():
                made = self.encode(self.data.fetch(list(missing.values()))).to(DTYPES[self.dtype])
            if len(made) != len(missing):
                raise SfumatoError(f"encode gave {len(made)} values for {len(missing)} items; it must give one an item")
            replaced = self.data.unreadable(list(missing.values()))
            for (key, index), value in zip(missing.items(), made):
                if index not in replaced:  # else it is of another item, which the key knows nothing of
                    self.store.write(key, value)
                values[key] = value.detach().cpu()
            self.made += len(missing)
        return [value for index in indices if (value := values[keys[index]]) is not None]
