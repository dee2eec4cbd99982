"""The contract of a kind of media: what everybody asks who shows or writes an item and does not care what it is."""

from __future__ import annotations

import io
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, Literal

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from sfumato import media
from sfumato.core.media import DataInfo
from sfumato.errors import UserError, did_you_mean
from sfumato.registry import Registered, find


class MediaKind(Registered, ABC, family="media"):
    """One kind of media; its name is `DataInfo.kind`. Members have no settings and no state.

    dtype: of items as data sets give them and codecs decode them. codec: the one that a recipe takes where it names none.
    noun: what messages call the items. suffixes: of the files that an item can be written as.
    options: settings of `encode` with the values that each can take, the usual one first.
    script: JavaScript of the viewer in reports, once a page; "" where its HTML needs none.
    """

    dtype: ClassVar[Literal["uint8", "float32"]] = "float32"
    codec: ClassVar[str] = "arrays"
    noun: ClassVar[str] = "arrays"
    suffixes: ClassVar[tuple[str, ...]] = (".npy",)
    options: ClassVar[Mapping[str, tuple[str, ...]]] = {}
    script: ClassVar[str] = ""

    @abstractmethod
    def picture(self, item: Tensor, info: DataInfo) -> Image.Image:
        """An item (C, *S) as a picture."""

    def sheet(
        self, items: Sequence[Tensor], info: DataInfo, columns: int | None = None, captions: Sequence[str] | None = None
    ) -> Image.Image:
        """Several items on one picture."""
        return media.grid([self.picture(item, info) for item in items], columns, captions)

    def encode(
        self,
        item: Tensor,
        info: DataInfo,
        suffix: str,
        text: Mapping[str, str] | None = None,
        options: Mapping[str, str] | None = None,
    ) -> bytes:
        """An item (C, *S) as the content of a file. suffix: one of `suffixes`. text: what made it, where there is room."""
        return npy(item.numpy())

    def usual(self, info: DataInfo) -> str:
        """The suffix of files in a folder of samples."""
        return self.suffixes[0]

    def read(self, file: Path, info: DataInfo) -> Tensor | None:
        """The item of a file that `encode` made; None for a format that is not read back."""
        return torch.from_numpy(np.load(file, allow_pickle=False))

    def is_whole(self, file: Path) -> bool:
        """Whether a file is there to its end: files are renamed into place when whole; this notices a copy cut short."""
        try:
            np.load(file, mmap_mode="r", allow_pickle=False)
        except (OSError, ValueError):
            return False
        return True

    def viewer(self, items: Sequence[Tensor], info: DataInfo, captions: Sequence[str]) -> str:
        """HTML that plays or turns some items in a report, self-contained and without a network; "" for pictures alone."""
        return ""

    def check_option(self, name: str, value: str) -> str:
        """The value of an option, or a UserError that names those that there are."""
        if name not in self.options:
            raise UserError(f"{name}=: {self.noun} have no such setting; {did_you_mean(name, self.options)}")
        if value not in self.options[name]:
            raise UserError(f"{name}={value}: must be {' or '.join(self.options[name])}")
        return value


def kind_of(info: DataInfo) -> MediaKind:
    """The kind of the items that a `DataInfo` describes."""
    made: Any = find("media", info.kind)
    kind: MediaKind = made()
    return kind


def npy(array: np.ndarray[Any, Any]) -> bytes:
    """The content of an .npy file."""
    stream = io.BytesIO()
    np.save(stream, array, allow_pickle=False)
    return stream.getvalue()
