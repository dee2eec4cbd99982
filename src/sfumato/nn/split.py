"""Tokens of a sample that several processes share: each computes a run of them, and in attention a part of the heads.

    per layer:  (B, N / P tokens, all heads) -> exchange of q, k, v -> (B, N tokens, heads / P) -> softmax(q k^T) v -> back

for P processes. What attention sums over is on one process, so nothing is approximated; all else is done token by token.
For a layer each process sends four tensors as large as its own tokens (B, N / P, C), and the same again in the backward pass.
Jacobs et al., "DeepSpeed Ulysses", 2023, section 3. https://arxiv.org/abs/2309.14509
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import final

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from sfumato.core.network import Network
from sfumato.errors import UserError


class TokenGroup(ABC):
    """The processes that share tokens: `size` of them, of which this one is `rank`. A network knows nothing else of them."""

    rank: int
    size: int

    @abstractmethod
    def exchange(self, x: Tensor) -> Tensor:
        """(size, ...) on every process: x[p] goes to process p, and place p of the result is what p had for this one.

        Differentiable: the gradient takes the way back. All processes must call it, in the same order.
        """


@final
@dataclass(frozen=True)
class Split:
    """How rows of tokens lie on the processes of `group`.

    lengths: of the rows, one after the other (tokens of a condition, patches). Each process has a P-th of each row, rounded
    up, neighbours: what the last processes have too many of is padding, which attention never sees and `together` cuts off.
    """

    group: TokenGroup
    lengths: tuple[int, ...]

    @property
    def count(self) -> int:
        """Tokens of all rows on all processes, without padding."""
        return sum(self.lengths)

    @property
    def last(self) -> Split:
        """The last row alone."""
        return replace(self, lengths=self.lengths[-1:])

    def after(self, other: Split | None) -> Split:
        """The rows of `other`, then these."""
        return self if other is None else replace(self, lengths=(*other.lengths, *self.lengths))

    @property
    def _each(self) -> list[int]:
        """Tokens of each row on a process."""
        return [-(-n // self.group.size) for n in self.lengths]

    def own(self, x: Tensor, dim: int = 1) -> Tensor:
        """This process's tokens of one row (..., N, ...), zeros where it has too many."""
        (length,), (each,) = self.lengths, self._each
        start = min(self.group.rank * each, length)
        stop = min(start + each, length)
        mine = x.narrow(dim, start, stop - start)
        if stop - start == each:
            return mine
        missing = list(mine.shape)
        missing[dim] = each - (stop - start)
        return torch.cat([mine, mine.new_zeros(missing)], dim)

    def together(self, x: Tensor) -> Tensor:
        """All tokens (B, N, C) of one row, on every process, from each one's (B, n, C)."""
        parts = self.group.exchange(x.expand(self.group.size, *x.shape))
        return parts.movedim(0, 1).flatten(1, 2)[:, : self.lengths[0]]

    def by_heads(self, *parts: Tensor) -> tuple[Tensor, ...]:
        """(B, heads, n, D) of this process's tokens to (B, heads / P, N, D), its heads of all: one exchange for all parts."""
        size = self.group.size
        sent = torch.stack([p.view(len(p), size, -1, *p.shape[2:]).movedim(1, 0) for p in parts], 1)
        found = self.group.exchange(sent).movedim(0, -3)  # (parts, B, heads / P, P, n, D)
        rows, at = [], 0
        for each, length in zip(self._each, self.lengths):
            rows.append(found[..., at : at + each, :].flatten(-3, -2)[..., :length, :])
            at += each
        return (torch.cat(rows, -2) if len(rows) > 1 else rows[0]).unbind(0)

    def by_tokens(self, x: Tensor) -> Tensor:
        """The way back: (B, N, C / P), side by side this process's heads of all tokens, to (B, n, C)."""
        size, rows = self.group.size, []
        for row, each in zip(torch.split(x, list(self.lengths), 1), self._each):
            padded = F.pad(row, (0, 0, 0, size * each - row.shape[1]))
            rows.append(padded.view(len(x), size, each, -1))
        sent = torch.cat(rows, 2) if len(rows) > 1 else rows[0]  # (B, P, n, C / P)
        return self.group.exchange(sent.movedim(1, 0)).permute(1, 2, 0, 3).flatten(2)


class TokenNetwork(Network, ABC):
    """A network of attention over tokens, which several processes can share. heads: of each attention."""

    heads: int
    token_group: TokenGroup | None = None

    def split(self, length: int) -> Split | None:
        """How a row of tokens is shared in this pass; None if one process has it all."""
        return None if self.token_group is None else Split(self.token_group, (length,))


@contextmanager
def share_tokens(network: TokenNetwork, group: TokenGroup | None) -> Iterator[None]:
    """Inside, passes of the network are shared by a group, each of whose processes calls it with the same input.

    All get the whole output. For a loss that each computes from it, the mean of their gradients is the gradient.
    """
    before, network.token_group = network.token_group, group
    try:
        yield
    finally:
        network.token_group = before


def check_shared(network: nn.Module | None, size: int, name: str = "train.sequence") -> None:
    """Raise UserError, which names a setting, if so many processes can't share this network's tokens."""
    if not isinstance(network, TokenNetwork):
        kind = getattr(network, "kind", "") or "this model"
        raise UserError(f"{name} = {size}: {kind} has no tokens to share; use network=dit or mmdit, or {name}=1")
    if network.heads % size:
        fitting = ", ".join(str(n) for n in range(1, network.heads + 1) if network.heads % n == 0)
        raise UserError(f"{name} = {size}: does not divide the network's {network.heads} heads; use one of {fitting}")
    if any(isinstance(module, nn.Dropout) and module.p > 0 for module in network.modules()):
        raise UserError(
            f"{name} = {size}: dropout would fall alike on the tokens of every process; set network.dropout=0"
        )
