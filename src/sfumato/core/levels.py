"""How many noise levels a score model needs and how strong the strongest: the rules of NCSNv2.

Song & Ermon, "Improved Techniques for Training Score-Based Generative Models", 2020. https://arxiv.org/abs/2006.09011
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from sfumato.errors import UserError


def largest_distance(x0: Tensor) -> float:
    """The largest Euclidean distance between two samples x0 (N, *S): the right `sigma_max` (technique 1).

    Cost N^2 prod(S): some thousand samples tell as much as all.
    """
    if len(x0) < 2:
        raise UserError(f"the largest distance between samples needs at least 2 of them, not {len(x0)}")
    flat = x0.detach().flatten(1).double()
    return max(float(torch.cdist(flat[i : i + 256], flat).max()) for i in range(0, len(flat), 256))


def overlap(ratio: float, dims: int) -> float:
    """The share of one level's samples (in `dims` dimensions) that lie within 3 deviations of the next level's shell.

    ratio = sigma_{i-1} / sigma_i > 1;  Phi(sqrt(2D) (ratio - 1) + 3 ratio) - Phi(sqrt(2D) (ratio - 1) - 3 ratio)
    Proposition 2 and technique 2.
    """
    middle = math.sqrt(2 * dims) * (ratio - 1)
    return _normal_cdf(middle + 3 * ratio) - _normal_cdf(middle - 3 * ratio)


def geometric_levels(dims: int, sigma_min: float, sigma_max: float, share: float = 0.5) -> int:
    """The number of levels between two sigmas whose neighbours overlap by `share` (technique 2).

    The paper asks for about 0.5 and uses 232 levels for CIFAR-10 and 500 for CelebA 64, which are both 0.567.
    """
    if not (dims >= 1 and 0 < sigma_min < sigma_max and 0 < share < 0.99):
        raise UserError(
            f"levels need dims >= 1, 0 < sigma_min < sigma_max and a share in (0, 0.99), not {dims}, {sigma_min}, "
            f"{sigma_max} and {share}"
        )
    low, high = 1.0, 2.0
    while overlap(high, dims) > share and high < 1e6:
        high *= 2
    for _ in range(80):  # the overlap falls with the ratio
        middle = (low + high) / 2
        low, high = (middle, high) if overlap(middle, dims) > share else (low, middle)
    return 1 + max(1, round(math.log(sigma_max / sigma_min) / math.log(high)))


def _normal_cdf(x: float) -> float:
    return 0.5 * (1 + math.erf(x / math.sqrt(2)))
