"""The loss on data that training has not seen, by noise level."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch

from sfumato.core import DenoisingLoss
from sfumato.core.random import keys, normal
from sfumato.data import Data
from sfumato.errors import UserError
from sfumato.model import Model


@dataclass(frozen=True)
class HeldOutLoss:
    """loss: mean over the levels. levels: their noise levels u = sigma / (alpha + sigma). by_level: the loss at each."""

    loss: float
    levels: tuple[float, ...]
    by_level: tuple[float, ...]
    n: int


@torch.no_grad()
def held_out_loss(
    model: Model, data: Data, n: int = 512, levels: int = 8, *, batch: int = 64, seed: int = 0
) -> HeldOutLoss:
    """Mean squared error of the network's output on `n` items at `levels` noise levels, even in u between 0 and 1.

    Item i is seen at level i mod `levels` with noise that depends on (seed, i) only, so two models, or two moments of a
    run, are compared on the same questions. `data` is used as it is given (pass its held-out part), in its own order,
    evenly thinned to n, or repeated with new noise. Only the first caption is used and nothing is augmented.
    The error is unweighted and in the units of the network's target, about 1 for an untrained network; models of one
    parameterization can be compared. The model is put back into the mode that it was in.
    """
    if len(data) == 0:
        raise UserError("the held-out part of the data is empty; set held_out to a share above 0")
    if n < levels or levels < 1:
        raise UserError(f"held-out loss over n = {n} items at {levels} levels: n must be at least the number of levels")
    u = (torch.arange(levels, dtype=torch.float64) + 0.5) / levels
    times = model.denoiser.process.time(2 * torch.log1p(-u) - 2 * u.log())
    objective = DenoisingLoss()
    errors = []
    training = model.training
    model.eval()
    try:
        for start in range(0, n, batch):
            i = np.arange(start, min(start + batch, n))
            items = i * len(data) // n if n <= len(data) else i % len(data)
            fetched = data.fetch(items)
            x0 = model.codec.whiten(model.codec.encode(fetched.media.to(model.device)))
            eps = normal(keys(seed, "held-out", i), x0.shape[1:], device=x0.device)
            cond = model.condition(fetched.conditions)
            errors.append(objective.at(model.denoiser, x0, cond, times[i % levels], eps).per_sample.double().cpu())
    finally:
        model.train(training)
    error = torch.cat(errors).numpy()
    by_level = tuple(float(error[j::levels].mean()) for j in range(levels))
    return HeldOutLoss(float(np.mean(by_level)), tuple(u.tolist()), by_level, n)
