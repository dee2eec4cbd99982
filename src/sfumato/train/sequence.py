"""The processes that share the tokens of each sample, by torch.distributed (`nn.split` says what for)."""

from __future__ import annotations

from typing import Any, final

import torch
import torch.distributed as dist
from torch import Tensor

from sfumato.nn.split import TokenGroup


@final
class Neighbours(TokenGroup):
    """Groups of `size` processes with neighbouring ranks, so that they lie on one machine where it has as many."""

    def __init__(self, size: int) -> None:
        own, _ = dist.new_subgroups(size)  # type: ignore[no-untyped-call]
        self._group: dist.ProcessGroup = own
        self.rank, self.size = dist.get_rank(own), size

    def exchange(self, x: Tensor) -> Tensor:
        out: Tensor = _Exchange.apply(x, self._group)  # type: ignore[no-untyped-call]
        return out


class _Exchange(torch.autograd.Function):
    """all-to-all of equal parts, whose transpose it is itself."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, group: dist.ProcessGroup) -> Tensor:
        ctx.group = group
        x = x.contiguous()
        out = torch.empty_like(x)
        dist.all_to_all_single(out, x, group=group)
        return out

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        return _Exchange.apply(gradient, ctx.group), None  # type: ignore[no-untyped-call]
