"""Sets of shapes against sets of shapes: MMD, COV and 1-NNA, under voxel overlap or Chamfer distance. torch alone.

Achlioptas et al., "Learning Representations and Generative Models for 3D Point Clouds", 2018, section 4 (COV, MMD);
Lopez-Paz & Oquab, "Revisiting Classifier Two-Sample Tests", 2017, and Yang et al., "PointFlow", 2019, section 5 (1-NNA).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from sfumato.errors import UserError
from sfumato.solid.grid import open_cells

_AT_ONCE = 1 << 20  # numbers of a table of distances between points
RESAMPLES = 1000


@dataclass(frozen=True)
class SetScores:
    """mmd: mean distance of a reference to the nearest sample, lower is better. cov: share of references that are the nearest
    one of a sample, higher is better. nna: accuracy of telling samples from references by the nearest other shape, 0.5 if
    they are of one distribution; nna_interval: 95% over draws of pairs (sample i, reference i)."""

    mmd: float
    cov: float
    nna: float
    nna_interval: tuple[float, float]


def set_scores(samples: Tensor, across: Tensor, references: Tensor, *, resamples: int = RESAMPLES) -> SetScores:
    """Scores of N samples against N references from their distances: samples (N, N), across (N samples, N references),
    references (N, N). A sample or reference is never its own neighbour; of equal distances the references' own count first,
    so that identical sets score 0, not 1."""
    n = len(across)
    if across.shape != (n, n) or samples.shape != (n, n) or references.shape != (n, n):
        raise UserError(f"sets of {tuple(across.shape)} shapes: 1-NNA needs equally many samples and references")
    if n < 2:
        raise UserError("1-NNA needs at least 2 samples and 2 references")
    right = _right(samples, across, references)
    mmd = float(across.amin(0).mean())
    cov = len(torch.unique(across.argmin(1))) / n
    each = right.double().view(2, n).mean(0)  # of sample i and reference i
    draws = torch.randint(n, (resamples, n), generator=torch.Generator().manual_seed(0))
    spread = each[draws].mean(1).quantile(torch.tensor([0.025, 0.975], dtype=torch.float64))
    return SetScores(mmd, cov, float(right.double().mean()), (float(spread[0]), float(spread[1])))


def _right(samples: Tensor, across: Tensor, references: Tensor) -> Tensor:
    """(2 N,) whether the nearest other shape of each is of its own set: samples first. A tie goes to the other set."""
    n = len(across)
    eye = torch.eye(n, dtype=torch.bool, device=across.device)
    own = torch.stack([samples.masked_fill(eye, torch.inf).amin(1), references.masked_fill(eye, torch.inf).amin(1)])
    other = torch.stack([across.amin(1), across.amin(0)])
    return (own < other).flatten().cpu()


def overlap_distance(a: Tensor, b: Tensor) -> Tensor:
    """1 - |A and B| / |A or B| of occupied cells: (N, *S) and (M, *S) bool to (N, M). Two empty grids are at 0."""
    x, y = a.flatten(1).float(), b.flatten(1).float()
    common = x @ y.T
    either = x.sum(1)[:, None] + y.sum(1) - common
    return torch.where(either > 0, 1 - common / either.clamp_min(1), 0.0)


def chamfer_distance(a: Tensor, b: Tensor) -> Tensor:
    """Mean squared distance to the nearest point, both ways added, of point sets (N, P, 3) and (M, Q, 3): (N, M).

    CD(A, B) = mean_a min_b |a - b|^2 + mean_b min_a |a - b|^2. Cost: N M P Q distances, in parts.
    """
    size = max(1, _AT_ONCE // (a.shape[1] * b.shape[1]))
    norms = b.square().sum(2)[:, None]
    rows = []
    for one in a:
        own = one.square().sum(1)[:, None]
        parts = []
        for some, theirs in zip(torch.split(b, size), torch.split(norms, size)):
            d = torch.matmul(-2 * one, some.mT).add_(theirs).add_(own)  # in place: memory is what it costs
            parts.append(d.amin(2).clamp_min_(0).mean(1) + d.amin(1).clamp_min_(0).mean(1))
        rows.append(torch.cat(parts))
    return torch.stack(rows)


def surface_points(occupied: Tensor, count: int, *, seed: int = 0) -> Tensor:
    """Points of the cells that touch an empty one or the rim, spread evenly: (B, X, Y, Z) bool to (B, count, 3) in [-1, 1].

    Cells are drawn without repetition while there are enough, each point at random within its cell. A grid without any gives
    its middle. A function of its arguments, item by item.
    """
    sides = occupied.shape[1:]
    scale = 2 / max(sides)
    middle = torch.tensor(sides, dtype=torch.float32) / 2
    found = []
    for grid in occupied.cpu().numpy():
        generator = torch.Generator().manual_seed(seed)
        cells = torch.from_numpy(open_cells(grid)).nonzero().float()
        if not len(cells):
            found.append(torch.zeros(count, 3))
            continue
        rounds = [torch.randperm(len(cells), generator=generator) for _ in range(-(-count // len(cells)))]
        chosen = cells[torch.cat(rounds)[:count]]
        found.append((chosen + torch.rand(count, 3, generator=generator) - middle) * scale)
    return torch.stack(found)
