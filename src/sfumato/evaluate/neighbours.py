"""Euclidean distances and nearest neighbours, in blocks, in float64."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from sfumato.errors import UserError

_BLOCK = 1 << 22  # distances held at once: 32 MiB


@dataclass(frozen=True)
class Nearest:
    """distance (N, k) float64, rising along k; index (N, k) into the bank."""

    distance: Tensor
    index: Tensor


def flat(items: Tensor, name: str = "items") -> Tensor:
    """Items or features of any shape and type as rows: (N, D) float64."""
    if items.ndim < 2 or len(items) == 0:
        raise UserError(f"{name} of shape {tuple(items.shape)} can't be compared; give at least one, as (N, ...)")
    rows = items.detach().flatten(1).to(torch.float64)
    if not bool(torch.isfinite(rows).all()):
        bad = int((~torch.isfinite(rows)).any(1).nonzero()[0])
        raise UserError(f"item {bad} of the {name} holds values that are not finite; leave it out")
    return rows


def distance_blocks(queries: Tensor, bank: Tensor) -> Iterator[tuple[slice, Tensor]]:
    """Rows of the (N, M) matrix of distances between (N, D) and (M, D), a block of queries at a time.

    By |a|^2 - 2 a.b + |b|^2 about the bank's mean: exact for whole numbers such as pixels, and to about 1e-8 of the
    spread of the bank otherwise.
    """
    if queries.shape[1] != bank.shape[1]:
        raise UserError(f"items of {queries.shape[1]} values can't be compared with items of {bank.shape[1]}")
    centre = bank.mean(0).round() if _whole(bank) and _whole(queries) else bank.mean(0)
    bank, queries = bank - centre, queries - centre
    of_bank = bank.square().sum(1)
    step = max(1, _BLOCK // len(bank))
    for start in range(0, len(queries), step):
        here = slice(start, min(start + step, len(queries)))
        rows = queries[here]
        squared = torch.addmm(of_bank[None] + rows.square().sum(1, keepdim=True), rows, bank.T, alpha=-2)
        yield here, squared.clamp_min_(0).sqrt_()


def _whole(rows: Tensor) -> bool:
    return bool((rows == rows.round()).all())


def nearest(queries: Tensor, bank: Tensor, k: int = 1, *, itself: bool = False) -> Nearest:
    """The k nearest members of the bank (M, ...) for every query (N, ...), by Euclidean distance.

    itself: the queries are the bank, and an item is not its own neighbour.
    """
    rows, others = flat(queries, "queries"), flat(bank, "bank")
    most = len(others) - int(itself)
    if not 1 <= k <= most:
        raise UserError(f"k = {k} nearest neighbours can't be had from {most} others; set k between 1 and {most}")
    indices = []
    for here, block in distance_blocks(rows, others):
        if itself:
            block[torch.arange(len(block)), torch.arange(here.start, here.stop)] = torch.inf
        indices.append(block.topk(k, dim=1, largest=False).indices)
    index = torch.cat(indices)
    # The few that count are measured again by differences, so that a copy is at distance 0 and not at 1e-8.
    distance = torch.stack([(rows - others[index[:, j]]).norm(dim=1) for j in range(k)], 1)
    distance, order = distance.sort(dim=1)
    return Nearest(distance, index.gather(1, order))
