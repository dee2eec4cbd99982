"""Hidden states of a language model."""

from __future__ import annotations

from typing import Any, final

from torch import Tensor

from sfumato.conditioners.frozen import Frozen
from sfumato.conditioners.pretrained import DType, Pretrained
from sfumato.core.media import DataInfo
from sfumato.errors import UserError


@final
class LanguageModel(Frozen, name="lm"):
    """Hidden states of a decoder (Llama, Qwen, Gemma, ...), or of any encoder that transformers' AutoModel loads.

    layer: whose states are the tokens, counted from the end: -1, the last with its final norm; -2, the last but one, which is
    less bent to the next word. length: tokens of a window. vector: the mean of the tokens. No chat template and no
    instruction is put around a text. Large ones want dtype=bfloat16 and a cache. The other settings are those of every
    `Frozen` and `Pretrained` one.
    As prompt encoders: Xie et al., "SANA", 2024, section 2.3; Qin et al., "Lumina-Image 2.0", 2025.
    """

    def __init__(
        self,
        info: DataInfo,
        *,
        path: str,
        layer: int = -2,
        length: int = 128,
        tokenizer: str | None = None,
        online: bool = False,
        dtype: DType = "float32",
        width: int = 0,
        windows: int = 1,
        cache: str | None = None,
        batch: int = 8,
    ) -> None:
        encoder = LanguageModelEncoder(
            path, layer=layer, length=length, tokenizer=tokenizer, online=online, dtype=dtype
        )
        super().__init__(info, encoder, width=width, windows=windows, cache=cache, batch=batch)


@final
class LanguageModelEncoder(Pretrained):
    """See `LanguageModel`."""

    loader = "AutoModel"

    def __init__(
        self,
        path: str,
        *,
        layer: int = -2,
        length: int = 128,
        tokenizer: str | None = None,
        online: bool = False,
        dtype: DType = "float32",
    ) -> None:
        super().__init__("lm", path, tokenizer=tokenizer, online=online, dtype=dtype, length=length, key=f"{layer}")
        layers = int(self.config.num_hidden_layers)
        if not -layers <= layer <= -1:
            raise UserError(f"{self.name}: layer = {layer} must be -1, the last, to {-layers}, the first")
        self.layer = layer
        self.width = self.pooled_width = int(self.config.hidden_size)

    @property
    def longest(self) -> int:
        return int(getattr(self.config, "max_position_embeddings", None) or 1 << 20)

    def output(self, model: Any, ids: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        made = model(input_ids=ids, attention_mask=mask.long(), output_hidden_states=self.layer != -1)
        states: Tensor = made.last_hidden_state if self.layer == -1 else made.hidden_states[self.layer]
        real = mask[:, :, None].to(states.dtype)
        return states, (states * real).sum(1) / real.sum(1)
