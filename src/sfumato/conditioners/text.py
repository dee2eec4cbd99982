"""Text in any language to tokens and a vector: a byte-level encoder that is trained with the network."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from sfumato.conditioners.base import Conditioner
from sfumato.conditioners.prompt import Weighted, clean, padded, reweigh, rounded
from sfumato.core.cond import Cond, CondShape
from sfumato.core.media import Column, DataInfo
from sfumato.errors import UserError
from sfumato.nn import SelfAttention, grid_positions, rope_table

_PAD, _NULL, _VOCABULARY = 256, 257, 258  # 0 to 255 are bytes
_BEFORE, _BASE, _PRIME = 258, 48_271, 2**31 - 1  # of the hash of n-grams; 48271 (2^31 - 1) + 259 fits 64 bits


def ngram_buckets(ids: Tensor, longest: int, buckets: int) -> Iterator[Tensor]:
    """Rows for the n-grams that end at each id, n = 2 ... longest: (B, L) each, in 0 ... buckets - 1.

    A polynomial hash modulo the prime 2^31 - 1, extended to the left one id at a time; places before the text hold an id
    of their own. Looks to the left only, so padding on the right changes nothing.
    """
    value = ids + 1
    for n in range(2, longest + 1):
        before = F.pad(ids, (n - 1, 0), value=_BEFORE)[:, : ids.shape[1]]
        value = (value * _BASE + before + 1) % _PRIME
        yield (value ^ (value >> 13)) % buckets


class TextBlock(nn.Module):
    """Pre-norm transformer block: x + Attention(LN x), then x + MLP(LN x)."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.attention = SelfAttention(width, heads, zero_out=False)
        self.mlp_in, self.mlp_out = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)

    def forward(self, x: Tensor, rope: Tensor, mask: Tensor | None = None) -> Tensor:
        x = x + self.attention(self.norm1(x), rope, mask)
        out: Tensor = x + self.mlp_out(F.gelu(self.mlp_in(self.norm2(x)), approximate="tanh"))
        return out


class Text(Conditioner, name="text"):
    """UTF-8 bytes through a small transformer. Reads `caption`: B texts; an empty one means 'anything'.

    A text is tidied first (`prompt.clean`), and a blank one is an empty one. In a prompt, `(word:1.3)` weighs the tokens of
    a word (`prompt.reweigh`).
    Gives `tokens` (B, L, width) with their mask, L = the longest text of the batch in bytes rounded up to a multiple
    of 32 (on a CPU of 8), and `vector` (B, width), the mean of the tokens. Padding does not change the result.
    Each byte is embedded with the byte sequences of 2 to `ngrams` that end at it, hashed into a table of `buckets` rows:
    most words are one of them, so that colours and names need not be spelled out by attention before they mean
    something. ngrams=1 leaves the bytes alone.
    length: the longest text taken, in bytes (a letter of English is one, of Greek two, of Chinese three). Longer texts
    are refused, never cut. depth: transformer blocks; heads: attention heads, which must divide width evenly.
    Bytes as tokens: Xue et al., "ByT5", 2021. Hashed n-grams of bytes: Pagnoni et al., "Byte Latent Transformer", 2024,
    section 3.2.1.
    """

    columns = ("caption",)

    def __init__(
        self,
        info: DataInfo,
        *,
        width: int = 128,
        depth: int = 2,
        heads: int = 4,
        length: int = 64,
        ngrams: int = 8,
        buckets: int = 4096,
    ) -> None:
        super().__init__()
        if not info.captions:
            raise UserError("the data has no captions; use another conditioner, or conditioner=none")
        sizes = {"width": width, "depth": depth, "heads": heads, "length": length, "ngrams": ngrams, "buckets": buckets}
        for name, value in sizes.items():
            if value < 1:
                raise UserError(f"text: {name} = {value} must be at least 1")
        if width % (2 * heads):
            raise UserError(f"text: width = {width} must be a multiple of 2 heads = {2 * heads}")
        self.width, self.length, self.head_dim = width, length, width // heads
        self.table = nn.Embedding(_VOCABULARY, width)
        self.ngrams, self.buckets = ngrams, buckets
        self.hashed = nn.Embedding(buckets, width) if ngrams > 1 else None
        self.layers = nn.ModuleList(TextBlock(width, heads) for _ in range(depth))
        self.norm = nn.LayerNorm(width)
        self.pool = nn.Linear(width, width)

    @property
    def shape(self) -> CondShape:
        return CondShape(vector=self.width, tokens=self.width)

    def prepare(self, conditions: Mapping[str, Column]) -> dict[str, Tensor]:
        column = conditions.get("caption")
        if column is None or isinstance(column, Tensor):
            raise UserError("the text conditioner needs a 'caption', a text for every sample")
        if isinstance(column, str):
            raise UserError(f"captions come as one a sample, not as the single text '{column}'; write ['{column}']")
        coded = [self._bytes(text) for text in column]
        longest = max(map(len, coded), default=1)
        ids = torch.full((len(coded), rounded(longest, self.table.weight.device)), _PAD, dtype=torch.int64)
        for row, code in zip(ids, coded):
            row[: len(code)] = torch.tensor(code)
        if not any(isinstance(text, Weighted) for text in column):
            return {"caption": ids}
        return {"caption": ids, "weights": padded([_byte_weights(text) for text in column], ids.shape[1])}

    def _bytes(self, text: str) -> list[int]:
        code = list((text if isinstance(text, Weighted) else clean(text)).encode("utf-8"))
        if len(code) > self.length:
            start = text if len(text) <= 40 else text[:40] + "..."
            raise UserError(
                f"the prompt '{start}' is {len(code)} bytes long and this model reads {self.length}: "
                f"shorten it, or train with conditioner.length={-(-len(code) // 8) * 8}"
            )
        return code or [_NULL]

    def forward(self, prepared: Mapping[str, Tensor]) -> Cond:
        ids = prepared["caption"]
        mask = ids != _PAD
        rope = rope_table(grid_positions((ids.shape[1],), ids.device), self.head_dim, base=10_000.0)
        x = self._embed(ids)
        for layer in self.layers:
            x = layer(x, rope, mask)
        real = mask[:, :, None].to(x.dtype)
        tokens = self.norm(x) * real
        if "weights" in prepared:
            tokens = reweigh(tokens, prepared["weights"], mask)
        return Cond(vector=self.pool(tokens.sum(1) / real.sum(1)), tokens=tokens, mask=mask)

    def _embed(self, ids: Tensor) -> Tensor:
        """(B, L) ids to (B, L, width): the byte and the hashed n-grams that end at it, of unit variance together."""
        x: Tensor = self.table(ids)
        if self.hashed is not None:  # one look-up for all n: the gradient of each sorts its rows
            x = x + self.hashed(torch.stack(list(ngram_buckets(ids, self.ngrams, self.buckets)))).sum(0)
        return x / math.sqrt(self.ngrams)

    def null(self, n: int) -> Cond:
        one = self({"caption": torch.full((1, 1), _NULL, device=self.table.weight.device)})
        return Cond(*(None if p is None else p.expand(n, *p.shape[1:]) for p in (one.vector, one.tokens, one.mask)))


def _byte_weights(text: str) -> list[float]:
    """The weight of every byte of a text: that of its character."""
    if not isinstance(text, Weighted):
        return []
    return [weight for character, weight in zip(text, text.weights) for _ in character.encode("utf-8")]
