"""How faithful and how varied samples are, by k-nearest-neighbour manifolds in any feature space."""

from __future__ import annotations

from dataclasses import astuple, dataclass, fields

import torch
from torch import Tensor

from sfumato.evaluate.accuracy import wilson
from sfumato.evaluate.neighbours import distance_blocks, flat, nearest

_RIM = 1 + 1e-9  # an item on the rim of a ball is in it, whatever the rounding of its distance
_PARTS = 10
_T = 2.2621571628540993  # Student's 97.5% for the 9 degrees of freedom that 10 parts leave


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


def prdc_intervals(
    real: Tensor, samples: Tensor, k: int = 5, *, seed: int = 0, found: PRDC | None = None
) -> dict[str, tuple[float, float]]:
    """95% intervals of the four scores of `prdc`, by name, over the choice of real items and samples.

    By the jackknife: both sets are dealt at random into 10 parts, and the scores are worked out again without each part;
    with theta_g those scores, the variance is 9/10 sum_g (theta_g - their mean)^2 (Efron & Stein, "The jackknife estimate
    of variance", 1981). What counts neighbours is not smooth, so these intervals are on the wide side (measured on
    Gaussians: 95 to 100% hold the expected score). A share's interval is at least Wilson's, which has a width at 0 and 1.

    found: `prdc(real, samples, k)`, where it is known. Cost: 10 times that of `prdc`, and so for k items in 9/10 of each.
    """
    x, y = flat(real, "real items"), flat(samples, "samples")
    value = prdc(x, y, k) if found is None else found
    generator = torch.Generator().manual_seed(seed)
    part_x, part_y = ((torch.randperm(len(rows), generator=generator) % _PARTS).to(rows.device) for rows in (x, y))
    without = [astuple(prdc(x[part_x != g], y[part_y != g], k)) for g in range(_PARTS)]
    spread = torch.tensor(without, dtype=torch.float64).var(0, correction=0) * (_PARTS - 1)
    made = {}
    for field, half in zip(fields(PRDC), (_T * spread.sqrt()).tolist()):
        at = getattr(value, field.name)
        low, high = max(0.0, at - half), at + half
        if field.name != "density":
            n = len(y) if field.name == "precision" else len(x)
            least = wilson(round(at * n), n)
            low, high = min(low, least[0]), min(1.0, max(high, least[1]))
        made[field.name] = (low, high)
    return made
