"""Whether samples vary as much as real items do."""

from __future__ import annotations

import torch
from torch import Tensor

from sfumato.errors import UserError
from sfumato.evaluate.neighbours import flat


def deviation(items: Tensor, groups: Tensor | None = None) -> float:
    """Root of the mean over all values (pixels) of their variance over the items (N, ...).

    groups: (N,) what was asked for each; then the variance is the one within groups, every group counting the same, so
    that a model which draws one picture per prompt scores 0 and not the spread between prompts. Variances are unbiased;
    groups of one item say nothing and are left out.
    """
    rows = flat(items)
    if groups is None:
        groups = torch.zeros(len(rows), dtype=torch.int64)
    if groups.shape != (len(rows),):
        raise UserError(f"{tuple(groups.shape)} groups do not fit {len(rows)} items")
    parts = [rows[(groups == g).to(rows.device)] for g in set(groups.tolist())]
    variances = [part.var(0).mean() for part in parts if len(part) > 1]
    if not variances:
        raise UserError(
            f"the deviation of {len(rows)} items in {len(parts)} groups is not defined; give two of one group"
        )
    return float(torch.stack(variances).mean().sqrt())
