"""What was asked for, sorted by how it enters a network: not by what it means."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields, replace

import torch
from torch import Tensor
from torch.nn import functional as F

from sfumato.core.process import on_device
from sfumato.errors import UserError


@dataclass(frozen=True)
class CondShape:
    """Widths of a condition: what a network must be built for. 0 means that this way in is not used."""

    vector: int = 0
    tokens: int = 0
    concat: int = 0


@dataclass(frozen=True)
class Cond:
    """A batch of conditions.

    vector: (B, Dv), added to the noise-level embedding.
    tokens: (B, L, Dc), attended to; mask: (B, L) bool, True where a token is real.
    concat: (B, Cc, *S), joined to the input's channels.
    """

    vector: Tensor | None = None
    tokens: Tensor | None = None
    mask: Tensor | None = None
    concat: Tensor | None = None

    def __len__(self) -> int:
        for field in fields(self):
            value = getattr(self, field.name)
            if value is not None:
                return len(value)
        return 0

    def map(self, f: Callable[[Tensor], Tensor]) -> Cond:
        """Apply `f` to every part that is there."""
        return Cond(**{k.name: None if (v := getattr(self, k.name)) is None else f(v) for k in fields(self)})

    def to(self, device: torch.device | str, dtype: torch.dtype | None = None) -> Cond:
        """Move to a device; floating parts also take `dtype`."""
        return self.map(lambda v: v.to(device, dtype if v.is_floating_point() else None))

    def __getitem__(self, index: slice | Tensor) -> Cond:
        return self.map(lambda v: v[index])

    def repeat(self, n: int) -> Cond:
        """(B, ...) -> (B n, ...), each sample n times in a row."""
        return self.map(lambda v: v.repeat_interleave(n, 0))

    def pad(self, length: int) -> Cond:
        """Pad the tokens to `length` with masked zeros; a mask is made if there was none."""
        if self.tokens is None:
            return self
        mask = self.mask if self.mask is not None else self.tokens.new_ones(self.tokens.shape[:2], dtype=torch.bool)
        more = length - self.tokens.shape[1]
        if more <= 0:
            return replace(self, mask=mask)
        return replace(self, tokens=F.pad(self.tokens, (0, 0, 0, more)), mask=F.pad(mask, (0, more)))

    @staticmethod
    def cat(conds: Sequence[Cond]) -> Cond:
        """Join batches; token sequences are padded to the longest. All must have the same parts."""
        padded = _padded(conds)
        joined = {}
        for field in fields(Cond):
            parts = [getattr(c, field.name) for c in padded]
            if any(p is None for p in parts) and any(p is not None for p in parts):
                raise UserError(f"conditions can't be joined: some have '{field.name}' and some do not")
            joined[field.name] = None if parts[0] is None else torch.cat(parts)
        return Cond(**joined)

    def drop(self, where: Tensor, null: Cond) -> Cond:
        """Use `null` where `where` (B,) bool is True: condition dropout, per sample."""
        ours, theirs = _padded([self, null])

        def choose(kept: Tensor | None, dropped: Tensor | None) -> Tensor | None:
            if kept is None or dropped is None:
                return None
            here = on_device(where, kept.device).reshape(-1, *[1] * (kept.ndim - 1))
            return torch.where(here, dropped.to(kept), kept)

        return Cond(**{k.name: choose(getattr(ours, k.name), getattr(theirs, k.name)) for k in fields(Cond)})


def _padded(conds: Sequence[Cond]) -> list[Cond]:
    lengths = [c.tokens.shape[1] for c in conds if c.tokens is not None]
    if not lengths or (len(set(lengths)) == 1 and all(c.mask is None for c in conds)):
        return list(conds)
    return [c.pad(max(lengths)) for c in conds]
