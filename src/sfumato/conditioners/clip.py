"""The text half of CLIP."""

from __future__ import annotations

from typing import Any, final

from torch import Tensor

from sfumato.conditioners.frozen import Frozen
from sfumato.conditioners.pretrained import DType, Pretrained
from sfumato.core.media import DataInfo
from sfumato.errors import UserError


@final
class ClipText(Frozen, name="clip-text"):
    """CLIP's text transformer from a folder of transformers (extra `text`). 77 tokens a window, marks included.

    layer: the states given as tokens, counted from the end: -1, the last with its final norm (Stable Diffusion 1), -2, the
    last but one without it (Stable Diffusion XL and 3). vector: the state at the mark of the end, with the final norm, before
    the projection to images. The other settings are those of every `Frozen` and `Pretrained` one.
    Radford et al., "Learning Transferable Visual Models From Natural Language Supervision", 2021.
    """

    def __init__(
        self,
        info: DataInfo,
        *,
        path: str,
        layer: int = -1,
        tokenizer: str | None = None,
        online: bool = False,
        dtype: DType = "float32",
        width: int = 0,
        windows: int = 1,
        cache: str | None = None,
        batch: int = 8,
    ) -> None:
        encoder = ClipEncoder(path, layer=layer, tokenizer=tokenizer, online=online, dtype=dtype)
        super().__init__(info, encoder, width=width, windows=windows, cache=cache, batch=batch)


@final
class ClipEncoder(Pretrained):
    """See `ClipText`."""

    loader = "CLIPTextModel"

    def __init__(
        self,
        path: str,
        *,
        layer: int = -1,
        tokenizer: str | None = None,
        online: bool = False,
        dtype: DType = "float32",
    ) -> None:
        super().__init__("clip-text", path, tokenizer=tokenizer, online=online, dtype=dtype, length=0, key=f"{layer}")
        layers = int(self.config.num_hidden_layers)
        if not -layers <= layer <= -1:
            raise UserError(f"{self.name}: layer = {layer} must be -1, the last, to {-layers}, the first")
        self.layer = layer
        self.width = self.pooled_width = int(self.config.hidden_size)

    @property
    def longest(self) -> int:
        return int(self.config.max_position_embeddings)

    def output(self, model: Any, ids: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        made = model(input_ids=ids, attention_mask=mask.long(), output_hidden_states=self.layer != -1)
        return (made.last_hidden_state if self.layer == -1 else made.hidden_states[self.layer]), made.pooler_output
