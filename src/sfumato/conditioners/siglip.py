"""The text half of SigLIP."""

from __future__ import annotations

from typing import Any, final

from torch import Tensor

from sfumato.conditioners.frozen import Frozen
from sfumato.conditioners.pretrained import DType, Pretrained
from sfumato.core.media import DataInfo


@final
class SiglipText(Frozen, name="siglip-text"):
    """SigLIP's (or SigLIP 2's) text transformer from a folder of transformers (extra `text`). 64 tokens a window.

    It was trained on texts filled up to the full window, with the filling attended to and the last place, a filling for all
    but the longest texts, read as the meaning of the whole: so every window is filled up here too. tokens: the last layer's
    states where the text stands; vector: the pooled one, which images were compared with. The other settings are those of
    every `Frozen` and `Pretrained` one.
    Zhai et al., "Sigmoid Loss for Language Image Pre-Training", 2023; Tschannen et al., "SigLIP 2", 2025.
    """

    def __init__(
        self,
        info: DataInfo,
        *,
        path: str,
        tokenizer: str | None = None,
        online: bool = False,
        dtype: DType = "float32",
        width: int = 0,
        windows: int = 1,
        cache: str | None = None,
        batch: int = 8,
    ) -> None:
        encoder = SiglipEncoder(path, tokenizer=tokenizer, online=online, dtype=dtype)
        super().__init__(info, encoder, width=width, windows=windows, cache=cache, batch=batch)


@final
class SiglipEncoder(Pretrained):
    """See `SiglipText`."""

    loader = "SiglipTextModel"
    fill = True

    def __init__(
        self, path: str, *, tokenizer: str | None = None, online: bool = False, dtype: DType = "float32"
    ) -> None:
        super().__init__("siglip-text", path, tokenizer=tokenizer, online=online, dtype=dtype, length=0, key="")
        self.loader = "Siglip2TextModel" if self.config.model_type.startswith("siglip2") else "SiglipTextModel"
        self.width = int(self.config.hidden_size)
        self.pooled_width = int(getattr(self.config, "projection_size", None) or self.width)

    @property
    def longest(self) -> int:
        return int(self.config.max_position_embeddings)

    def output(self, model: Any, ids: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        made = model(input_ids=ids)
        return made.last_hidden_state, made.pooler_output
