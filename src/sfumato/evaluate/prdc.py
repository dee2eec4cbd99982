"""How faithful and how varied samples are, by k-nearest-neighbour manifolds in any feature space."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from sfumato.evaluate.neighbours import distance_blocks, flat, nearest

_RIM = 1 + 1e-9  # an item on the rim of a ball is in it, whatever the rounding of its distance


@dataclass(frozen=True)
class PRDC:
    """precision, recall and coverage lie in [0, 1]; density is 1 in expectation for samples of the real distribution."""

    precision: float
    recall: float
    density: float
    coverage: float


def prdc(real: Tensor, samples: Tensor, k: int = 5) -> PRDC:
    """Precision, recall, density and coverage of samples (M, ...) against real items (N, ...).

        precision = mean_j 1[ y_j in some ball of a real ]      recall   = mean_i 1[ x_i in some ball of a sample ]
        density   = mean_j #[ balls of reals that hold y_j ]/k  coverage = mean_i 1[ the ball of x_i holds a sample ]

    with balls reaching to the k-th nearest neighbour of their own set, rim included. Precision and recall:
    Kynkaanniemi et al., "Improved Precision and Recall Metric", 2019, eq. 1-2. Density and coverage: Naeem et al.,
    "Reliable Fidelity and Diversity Metrics", 2020, section 3.1.

    All four depend on N and M: compare with what as many other real items score, never with 1.
    Cost: O(N M D), memory for a block of distances.
    """
    x, y = flat(real, "real items"), flat(samples, "samples")
    radius_x = nearest(x, x, k, itself=True).distance[:, -1] * _RIM
    radius_y = nearest(y, y, k, itself=True).distance[:, -1] * _RIM
    held = torch.zeros(len(y), dtype=torch.int64, device=y.device)  # balls of reals that hold each sample
    recalled, covered = [], []
    for here, block in distance_blocks(x, y):
        inside = block <= radius_x[here, None]
        held += inside.sum(0)
        covered.append(inside.any(1))
        recalled.append((block <= radius_y[None]).any(1))
    return PRDC(
        precision=float((held > 0).double().mean()),
        recall=float(torch.cat(recalled).double().mean()),
        density=float(held.double().mean() / k),
        coverage=float(torch.cat(covered).double().mean()),
    )
