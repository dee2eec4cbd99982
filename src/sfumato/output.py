"""What a pipeline gives back: samples with what made them."""

from __future__ import annotations

import io
from dataclasses import dataclass
from typing import Any, Literal, final

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from sfumato.core import DataInfo
from sfumato.errors import UserError
from sfumato.kinds import kind_of

OutputType = Literal["pil", "np", "pt"]
_SHEET = 64  # samples shown in a notebook


@final
@dataclass(frozen=True)
class Output:
    """Samples, with what made them. Shows itself as a contact sheet in a notebook.

    media: (B, C, *S) on the CPU as the codec decodes: uint8 or float32, as their kind (`info`) says.
    images: the same as a list of PIL pictures, as an array with channels last (`np`), or as `media` (`pt`).
    seeds, prompts: one a sample; a prompt is the text, class name or numbers asked for, "" for nothing.
    settings: keyword arguments that make the same samples again: `pipeline(**output.settings)`.
    """

    media: Tensor
    images: list[Image.Image] | NDArray[Any] | Tensor
    seeds: tuple[int, ...]
    prompts: tuple[str, ...]
    settings: dict[str, Any]
    info: DataInfo

    def __len__(self) -> int:
        return len(self.media)

    @property
    def audios(self) -> NDArray[np.float32]:
        """Sounds (B, c, T), full scale = 1, at `info.rate` samples a second. Raises UserError for other media."""
        if self.info.kind != "audio":
            raise UserError(f"audios: this model makes {kind_of(self.info).noun}, not sounds; use .images or .media")
        sounds: NDArray[np.float32] = self.media.float().numpy()
        return sounds

    def grid(self, columns: int | None = None) -> Image.Image:
        """All samples on one sheet, with their prompts."""
        captions = self.prompts if any(self.prompts) else None
        return kind_of(self.info).sheet(list(self.media), self.info, columns, captions)

    def _repr_png_(self) -> bytes:
        stream = io.BytesIO()
        captions = self.prompts[:_SHEET] if any(self.prompts) else None
        kind_of(self.info).sheet(list(self.media[:_SHEET]), self.info, None, captions).save(stream, format="PNG")
        return stream.getvalue()


def images_of(made: Tensor, output_type: OutputType, info: DataInfo) -> list[Image.Image] | NDArray[Any] | Tensor:
    """Samples (B, C, *S) as they are asked for."""
    if output_type == "pil":
        kind = kind_of(info)
        return [kind.picture(item, info) for item in made]
    return made if output_type == "pt" else np.moveaxis(made.numpy(), 1, -1)
