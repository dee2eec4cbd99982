"""Pretrained text encoders: what each must say and do, and what their embeddings of texts are kept in."""

from __future__ import annotations

import hashlib
from abc import ABC, abstractmethod
from collections import OrderedDict
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple, Protocol, Self, final

import torch
from torch import Tensor

from sfumato.conditioners.prompt import weights_of
from sfumato.core.store import Store, key_of
from sfumato.errors import UserError

Span = tuple[int, int]  # first character of a token in its text, and the one after its last
_ROUND = 8  # lengths are rounded up, so that few shapes are computed
_ROOM = 1 << 30  # bytes of embeddings kept in memory
_VERSION = "1"  # part of every key: raise when what is computed from the encoder's output changes


class Reader(Protocol):
    """A tokenizer. before, after: ids of the marks around every window; pad: id that fills up, ignored where masked."""

    before: Sequence[int]
    after: Sequence[int]
    pad: int

    def read(self, text: str) -> tuple[list[int], list[Span]]:
        """Ids of a text without marks, and where in the text each stands."""


class Window(NamedTuple):
    """A part of a text that fits into an encoder, marks included: ids, and where each token stands ((0, 0): a mark)."""

    ids: list[int]
    spans: list[Span]


class Embedding(NamedTuple):
    """What an encoder says of a text: tokens (L, D) of all its windows, marks included, and pooled (P,). float32, CPU."""

    tokens: Tensor
    pooled: Tensor


class Encoder(ABC):
    """A frozen pretrained encoder. It is no module, so its weights are in no checkpoint; deep copies share it.

    name: what messages call it. width, pooled_width: D and P. length: tokens of a window, marks included. fingerprint:
    sha256 of the files of weights, settings and tokenizer. key: whatever else an embedding depends on, as text.
    fill: whether windows are filled up to `length` and the filling is attended to, because the encoder was trained so.
    """

    name: str
    width: int
    pooled_width: int
    length: int
    fingerprint: str
    key: str = ""
    fill: bool = False

    @property
    @abstractmethod
    def reader(self) -> Reader:
        """Its tokenizer."""

    @abstractmethod
    def run(self, ids: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        """ids (R, N) int64 and mask (R, N), True where a token is real, on the device on which to compute: the hidden states
        (R, N, D) and pooled vectors (R, P) of R windows. Called without gradients and without autocast."""

    @final
    def __deepcopy__(self, memo: object) -> Self:
        return self


def windows(reader: Reader, text: str, length: int) -> list[Window]:
    """A text in windows of at most `length` tokens, marks included; cut between words where there is one to cut between."""
    ids, spans = reader.read(text)
    room = length - len(reader.before) - len(reader.after)
    made: list[Window] = []
    start = 0
    while start < len(ids) or not made:
        stop = min(start + room, len(ids))
        if stop < len(ids):
            stop = next((i for i in range(stop, start, -1) if _begins_word(text, spans[i])), stop)
        marks = [(0, 0)] * len(reader.before), [(0, 0)] * len(reader.after)
        made.append(
            Window([*reader.before, *ids[start:stop], *reader.after], [*marks[0], *spans[start:stop], *marks[1]])
        )
        start = stop
    return made


def _begins_word(text: str, span: Span) -> bool:
    start = span[0]
    return start > 0 and (text[start - 1].isspace() or text[start].isspace())


@final
class Embedder:
    """Embeddings of texts, each computed once: kept in memory up to 1 GiB, and below `cache` if that is given.

    An entry's key holds the text, the encoder's fingerprint and its settings, so one of another encoder can't be found.
    Windows go through the encoder `batch` at a time, all padded to a multiple of 8 tokens; a batch that is not full is filled
    up by repeating, so that an embedding does not depend on what is asked beside it.
    windows: at most so many for a text. made, found: how many were computed and read from the disk so far.
    """

    def __init__(self, encoder: Encoder, *, most: int = 1, batch: int = 8, cache: str | None = None) -> None:
        for name, value in (("windows", most), ("batch", batch)):
            if value < 1:
                raise UserError(f"{encoder.name}: {name} = {value} must be at least 1")
        self.encoder, self.most, self.batch = encoder, most, batch
        self.store = None if cache is None else Store(Path(cache))
        self.made = self.found = 0
        self._kept: OrderedDict[str, Embedding] = OrderedDict()
        self._bytes = 0

    def __deepcopy__(self, memo: object) -> Self:
        return self

    def windows(self, text: str) -> list[Window]:
        """The windows of a text. Raises UserError if there are too many."""
        found = windows(self.encoder.reader, text, self.encoder.length)
        if len(found) > self.most:
            start = text if len(text) <= 40 else text[:40] + "..."
            tokens = sum(len(window.ids) for window in found)
            raise UserError(
                f"the prompt '{start}' is {tokens} tokens long and this model reads {self.most * self.encoder.length} of "
                f"{self.encoder.name}: shorten it, or train with conditioner.windows={len(found)}"
            )
        return found

    def weights(self, text: str) -> list[float]:
        """A weight for each token of a text's embedding (`prompt.reweigh`)."""
        return [w for window in self.windows(text) for w in weights_of(text, window.spans)]

    def __call__(self, texts: Sequence[str], device: torch.device) -> list[Embedding]:
        """The embeddings of texts, those that are not known computed on `device`."""
        asked = [str.__str__(text) for text in texts]
        known = {text: self._known(text) for text in dict.fromkeys(asked)}
        missing = [text for text, value in known.items() if value is None]
        for text, made in zip(missing, self._compute(missing, device)):
            known[text] = made
            self._keep(self._key(text), made)
            if self.store is not None:
                for part, tensor in zip(made._fields, made):
                    self.store.write(self._key(text, part), tensor)
        self.made += len(missing)
        return [value for text in asked if (value := known[text]) is not None]

    def _key(self, text: str, part: str = "") -> str:
        of, filled = self.encoder, "filled" if self.encoder.fill else ""
        parts = {
            "version": _VERSION, "encoder": of.fingerprint, "settings": of.key, "length": str(of.length), "fill": filled,
            "part": part,
        }  # fmt: skip
        return key_of(hashlib.sha256(text.encode()).hexdigest(), parts)

    def _known(self, text: str) -> Embedding | None:
        key = self._key(text)
        if key in self._kept:
            self._kept.move_to_end(key)
            return self._kept[key]
        if self.store is None:
            return None
        tokens, pooled = (self.store.read(self._key(text, part)) for part in Embedding._fields)
        if tokens is None or pooled is None:
            return None
        self.found += 1
        made = Embedding(tokens, pooled)
        self._keep(key, made)
        return made

    def _keep(self, key: str, made: Embedding) -> None:
        self._kept[key] = made
        self._bytes += sum(part.nbytes for part in made)
        while self._bytes > _ROOM and len(self._kept) > 1:
            _, old = self._kept.popitem(last=False)
            self._bytes -= sum(part.nbytes for part in old)

    def _compute(self, texts: Sequence[str], device: torch.device) -> list[Embedding]:
        cut = [self.windows(text) for text in texts]
        flat = [(t, window) for t, found in enumerate(cut) for window in found]
        size = self.encoder.length
        by_length: dict[int, list[int]] = {}
        for i, (_, window) in enumerate(flat):
            wide = size if self.encoder.fill else min(size, -(-len(window.ids) // _ROUND) * _ROUND)
            by_length.setdefault(wide, []).append(i)
        done: dict[int, Embedding] = {}
        for wide, members in by_length.items():
            for first in range(0, len(members), self.batch):
                part = members[first : first + self.batch]
                made = self._batch([flat[i][1] for i in part], wide, device)
                done.update(zip(part, made))
        pieces: list[list[Embedding]] = [[] for _ in texts]
        for i, (t, _) in enumerate(flat):
            pieces[t].append(done[i])
        return [Embedding(torch.cat([e.tokens for e in p]), torch.stack([e.pooled for e in p]).mean(0)) for p in pieces]

    def _batch(self, found: Sequence[Window], wide: int, device: torch.device) -> list[Embedding]:
        ids = torch.full((self.batch, wide), self.encoder.reader.pad, dtype=torch.int64)
        mask = torch.zeros(self.batch, wide, dtype=torch.bool)
        for row in range(self.batch):
            window = found[min(row, len(found) - 1)]
            ids[row, : len(window.ids)] = torch.tensor(window.ids)
            mask[row, : len(window.ids)] = True
        with torch.no_grad(), torch.autocast(device.type, enabled=False):
            hidden, pooled = self.encoder.run(ids.to(device), mask.to(device))
        hidden, pooled = hidden.float().cpu(), pooled.float().cpu()
        return [Embedding(hidden[i, : len(w.ids)].clone(), pooled[i].clone()) for i, w in enumerate(found)]
