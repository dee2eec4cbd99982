"""Conditioners on a frozen pretrained encoder: what they share."""

from __future__ import annotations

from abc import ABC
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from sfumato.conditioners.base import Conditioner
from sfumato.conditioners.encoder import Embedder, Encoder
from sfumato.conditioners.prompt import Weighted, clean, padded, reweigh, rounded
from sfumato.core.cond import Cond, CondShape
from sfumato.core.media import Column, DataInfo
from sfumato.errors import UserError


class Frozen(Conditioner, ABC):
    """Texts through an encoder that is not trained. Reads `caption`: B texts; a blank one means 'anything'.

    Gives `tokens` (B, L, D) with their mask, L = the most tokens of a text rounded up to a multiple of 32 (on a CPU of 8),
    and `vector` (B, P), the pooled vector brought to zero mean and unit deviation.

    The encoder is run by `prepare`, once for each text (`encoder.Embedder`); `forward` sees its embeddings. Its weights are
    in no checkpoint and no model folder: those hold where it lies and the sha256 of its files, and a model whose encoder
    is another one than it was trained with does not load. Texts longer than the encoder takes go through it in windows,
    whose tokens are put one after the other and whose pooled vectors are averaged; too long ones are refused, never cut.

    width: of the tokens given, through a trained linear map; 0: the encoder's own, as they are. windows: at most so many.
    cache: folder for embeddings, for runs to come; none to keep them in memory only. batch: windows computed at once.
    """

    columns = ("caption",)
    fingerprint: Tensor

    def __init__(
        self, info: DataInfo, encoder: Encoder, *, width: int, windows: int, cache: str | None, batch: int
    ) -> None:
        super().__init__()
        if not info.captions:
            raise UserError("the data has no captions; use another conditioner, or conditioner=none")
        if width < 0:
            raise UserError(f"{encoder.name}: width = {width} must be at least 1, or 0 for the encoder's own")
        self.embedder = Embedder(encoder, most=windows, batch=batch, cache=cache)
        self.width = width or encoder.width
        self.project = nn.Linear(encoder.width, width) if width else None
        self.anything = nn.Parameter(torch.randn(self.width))
        self.any_vector = nn.Parameter(torch.randn(encoder.pooled_width))
        digits = torch.tensor(list(bytes.fromhex(encoder.fingerprint)), dtype=torch.uint8)
        self.register_buffer("fingerprint", digits)
        self._verified = (0, -1)  # which buffer was found to be that of the encoder

    @property
    def shape(self) -> CondShape:
        return CondShape(vector=len(self.any_vector), tokens=self.width)

    def prepare(self, conditions: Mapping[str, Column]) -> dict[str, Tensor]:
        column = conditions.get("caption")
        if column is None or isinstance(column, Tensor):
            raise UserError("the text conditioner needs a 'caption', a text for every sample")
        if isinstance(column, str):
            raise UserError(f"captions come as one a sample, not as the single text '{column}'; write ['{column}']")
        self._verify()
        texts = [text if isinstance(text, Weighted) else clean(text) for text in column]
        said = [text for text in texts if text]
        embedded = iter(self.embedder(said, self.anything.device))
        encoder = self.embedder.encoder
        rows = [next(embedded) if text else None for text in texts]
        longest = max((len(row.tokens) for row in rows if row is not None), default=1)
        length = rounded(longest, self.anything.device)
        tokens, mask = torch.zeros(len(rows), length, encoder.width), torch.zeros(len(rows), length, dtype=torch.bool)
        pooled = torch.zeros(len(rows), encoder.pooled_width)
        for i, row in enumerate(rows):
            count = 1 if row is None else len(row.tokens)
            mask[i, :count] = True
            if row is not None:
                tokens[i, :count], pooled[i] = row.tokens, row.pooled
        made = {"tokens": tokens, "mask": mask, "pooled": pooled, "empty": torch.tensor([not text for text in texts])}
        if any(isinstance(text, Weighted) for text in texts):
            found = [self.embedder.weights(text) if isinstance(text, Weighted) else [] for text in texts]
            made["weights"] = padded(found, length)
        return made

    def forward(self, prepared: Mapping[str, Tensor]) -> Cond:
        kind = self.anything.dtype
        tokens, mask, empty = prepared["tokens"].to(kind), prepared["mask"], prepared["empty"]
        if "weights" in prepared:
            tokens = reweigh(tokens, prepared["weights"], mask)
        if self.project is not None:
            tokens = self.project(tokens)
        tokens = torch.where(empty[:, None, None], self.anything.to(tokens.dtype), tokens) * mask[:, :, None]
        pooled = F.layer_norm(prepared["pooled"], prepared["pooled"].shape[-1:], eps=1e-12).to(kind)
        return Cond(vector=torch.where(empty[:, None], self.any_vector, pooled), tokens=tokens, mask=mask)

    def null(self, n: int) -> Cond:
        return Cond(
            vector=self.any_vector.expand(n, -1),
            tokens=self.anything.expand(n, 1, -1),
            mask=torch.ones(n, 1, dtype=torch.bool, device=self.anything.device),
        )

    def _load_from_state_dict(self, state_dict: Mapping[str, Any], prefix: str, *rest: Any) -> None:
        stored = state_dict.get(f"{prefix}fingerprint")
        if isinstance(stored, Tensor):
            self._compare(stored)
        super()._load_from_state_dict(state_dict, prefix, *rest)

    def _verify(self) -> None:
        """The same for weights that were copied in place. Looks at the buffer only where it is new or was written to."""
        state = (id(self.fingerprint), self.fingerprint._version)
        if state != self._verified:
            self._compare(self.fingerprint)
            self._verified = state

    def _compare(self, stored: Tensor) -> None:
        encoder, theirs = self.embedder.encoder, bytes(stored.cpu().tolist()).hex()
        if theirs != encoder.fingerprint:
            raise UserError(
                f"{encoder.name}: this is not the text encoder that the model was trained with (sha256 "
                f"{encoder.fingerprint[:12]}... instead of {theirs[:12]}...); give the one it was trained with"
            )
