"""Any map-style dataset of torch (Python API)."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cached_property
from typing import Any, Protocol, final

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from sfumato.core.media import Batch, Column, DataInfo
from sfumato.data.base import BROKEN_SHARE, Data, Draws, Indices, choose_split, digest, expand
from sfumato.data.broken import Ledger, listed, stand_ins
from sfumato.data.columns import read_captions
from sfumato.errors import UserError

_Item = tuple[Tensor, int | None, tuple[str, ...] | None]  # media, label, captions

_X = ("x", "image", "images", "pixel_values", "img", "data", "audio")
_Y = ("label", "labels", "y", "target", "class")
_CAPTIONS = ("caption", "captions", "text", "prompt")


class MapStyle(Protocol):
    """What `torch.utils.data.Dataset` subclasses of the map style have."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int, /) -> Any: ...


@final
class TorchData(Data):
    """Items of a dataset: media alone, (media, label), (media, caption), or a mapping with the usual names.

    Media: a PIL image or uint8 (C, H, W) make an image; any other tensor or array (C, *S) a float32 array; uint8 numpy
    arrays may have their channels last. The dataset does its own resizing and augmentation. labels: class names; by
    default the dataset's `classes`, or 0..K-1 with K from its `targets`. held_out: share of the items that training
    does not see. An item for which the dataset raises OSError (as Pillow does for a broken file) is replaced by another
    (`broken.stand_ins`); broken: share of the items seen for which it may.
    """

    def __init__(
        self,
        dataset: MapStyle,
        *,
        labels: tuple[str, ...] = (),
        held_out: float = 0.05,
        broken: float = BROKEN_SHARE,
    ) -> None:
        self.dataset = dataset
        if len(dataset) == 0:
            raise UserError("the dataset is empty; give one with items")
        self._mask = choose_split(len(dataset), held_out, None)
        self._broken, self._ledger = broken, Ledger()
        self._names = labels or tuple(map(str, getattr(dataset, "classes", ())))
        _ = self.info

    @cached_property
    def info(self) -> DataInfo:
        """Read from item 0."""
        media, label, captions = self._readable(0)
        names = self._names
        if label is not None and not names:
            targets = np.asarray(getattr(self.dataset, "targets", ()))
            if targets.size == 0:
                raise UserError(
                    "the dataset has labels, but neither 'classes' nor 'targets'; give TorchData(dataset, labels=NAMES)"
                )
            names = tuple(map(str, range(int(targets.max()) + 1)))
        kind = "image" if media.dtype == torch.uint8 and media.ndim == 3 else "array"
        return DataInfo(tuple(media.shape), kind, names if label is not None else (), captions is not None)

    def __len__(self) -> int:
        return len(self.dataset)

    def fetch(self, indices: Indices, draws: Draws = None) -> Batch:
        items = [self._readable(int(i)) for i in indices]
        for index, (media, label, _) in zip(indices, items):
            if tuple(media.shape) != self.info.shape:
                raise UserError(
                    f"item {index} has shape {tuple(media.shape)}, item 0 has {self.info.shape}; resize in the dataset"
                )
            if label is not None and not 0 <= label < len(self.info.labels):
                raise UserError(f"the label of item {index} is {label}, outside 0..{len(self.info.labels) - 1}")
        media = torch.stack([m for m, _, _ in items])
        conditions: dict[str, Column] = {}
        if self.info.labels:
            conditions["label"] = torch.tensor([y for _, y, _ in items], dtype=torch.int64)
        if self.info.captions:
            where = expand(draws, "caption").tolist() if draws is not None else [0.0] * len(items)
            conditions["caption"] = [c[int(u * len(c))] if c else "" for (_, _, c), u in zip(items, where)]
        return Batch(media if self.info.kind == "image" else media.float(), conditions)

    @property
    def broken_share(self) -> float:
        return self._broken

    def unreadable(self, indices: Indices | None = None) -> dict[int, str]:
        return self._ledger.among(None if indices is None else np.asarray(indices, np.int64))

    @property
    def problems(self) -> tuple[str, ...]:
        bad = self._ledger.among()
        return (f"{len(bad)} of {len(self)} items can't be read, others stand in: {listed(bad)}",) if bad else ()

    def held_out_mask(self) -> NDArray[np.bool_]:
        return self._mask

    def fingerprint(self) -> str:
        sample = np.unique(np.linspace(0, len(self) - 1, 16).astype(np.int64))
        return digest(str(len(self)), *(self._readable(int(i))[0].numpy().tobytes() for i in sample))

    def _readable(self, index: int) -> _Item:
        """The item, or the first stand-in that can be read."""
        found = self._tried(index)
        if found is not None:
            return found
        for other in stand_ins(index, np.flatnonzero(self._mask == self._mask[index])):
            found = self._tried(other)
            if found is not None:
                return found
        raise UserError(f"no item of the dataset can be read: {listed(self._ledger.among())}")

    def _tried(self, index: int) -> _Item | None:
        if index in self._ledger:
            return None
        try:
            return self._item(index)
        except OSError as error:
            said = str(error).splitlines()[0] if str(error) else type(error).__name__
            self._ledger.mark(index, f"item {index} ({said})")
            return None

    def _item(self, index: int) -> _Item:
        item = self.dataset[index]
        if isinstance(item, Mapping):
            x = next((item[k] for k in _X if k in item), None)
            label = next((item[k] for k in _Y if k in item), None)
            caption = next((item[k] for k in _CAPTIONS if k in item), None)
        else:
            x, *others = item if isinstance(item, tuple | list) else (item,)
            caption = next((o for o in others if isinstance(o, str | list | tuple)), None)
            label = next((o for o in others if not isinstance(o, str | list | tuple)), None)
        if x is None:
            raise UserError(f"item {index} of the dataset has no media; name it one of {', '.join(_X)}")
        captions = None if caption is None else read_captions(caption, f"item {index}")
        return _tensor(x, index), None if label is None else int(label), captions


def _tensor(x: Any, index: int) -> Tensor:
    """Media of one item as (C, *S)."""
    if isinstance(x, Image.Image):
        pixels = np.array(x)
        x = pixels[None] if pixels.ndim == 2 else pixels.transpose(2, 0, 1)
    elif isinstance(x, np.ndarray) and x.dtype == np.uint8 and x.ndim in (2, 3):
        x = x[None] if x.ndim == 2 else x.transpose(2, 0, 1) if x.shape[-1] <= 4 < x.shape[0] else x
    if isinstance(x, np.ndarray):
        x = torch.from_numpy(np.ascontiguousarray(x))
    if not isinstance(x, Tensor) or x.ndim < 2:
        shown = f"shape {tuple(x.shape)}" if isinstance(x, Tensor) else f"type {type(x).__name__}"
        raise UserError(f"item {index} of the dataset has {shown}; media are images or tensors (C, *S)")
    if x.is_floating_point() and not bool(torch.isfinite(x).all()):
        raise UserError(f"item {index} of the dataset holds NaN or infinite values; remove or repair it")
    return x
