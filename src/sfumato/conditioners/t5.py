"""The encoder of T5."""

from __future__ import annotations

from typing import Any, final

from torch import Tensor

from sfumato.conditioners.frozen import Frozen
from sfumato.conditioners.pretrained import DType, Pretrained
from sfumato.core.media import DataInfo

_LONGEST = 512  # what it was trained on; its positions are relative and have no end


@final
class T5(Frozen, name="t5"):
    """T5's or mT5's encoder from a folder of transformers (extra `text`).

    length: tokens of a window, the mark of the end included. tokens: the last layer's states; vector: their mean.
    float16 overflows in T5's larger sizes; use bfloat16. The other settings are those of every `Frozen` and `Pretrained` one.
    Raffel et al., "Exploring the Limits of Transfer Learning with a Unified Text-to-Text Transformer", 2019; as a prompt
    encoder: Saharia et al., "Imagen", 2022.
    """

    def __init__(
        self,
        info: DataInfo,
        *,
        path: str,
        length: int = 128,
        tokenizer: str | None = None,
        online: bool = False,
        dtype: DType = "float32",
        width: int = 0,
        windows: int = 1,
        cache: str | None = None,
        batch: int = 8,
    ) -> None:
        encoder = T5Encoder(path, length=length, tokenizer=tokenizer, online=online, dtype=dtype)
        super().__init__(info, encoder, width=width, windows=windows, cache=cache, batch=batch)


@final
class T5Encoder(Pretrained):
    """See `T5`."""

    loader = "T5EncoderModel"

    def __init__(
        self,
        path: str,
        *,
        length: int = 128,
        tokenizer: str | None = None,
        online: bool = False,
        dtype: DType = "float32",
    ) -> None:
        super().__init__("t5", path, tokenizer=tokenizer, online=online, dtype=dtype, length=length, key="")
        self.loader = "MT5EncoderModel" if self.config.model_type == "mt5" else "T5EncoderModel"
        self.width = self.pooled_width = int(self.config.d_model)

    @property
    def longest(self) -> int:
        return _LONGEST

    def output(self, model: Any, ids: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        states: Tensor = model(input_ids=ids, attention_mask=mask.long()).last_hidden_state
        real = mask[:, :, None].to(states.dtype)
        return states, (states * real).sum(1) / real.sum(1)
