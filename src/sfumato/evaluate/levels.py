"""Where along the noise a model knows what: errors of E[x0 | x_t] by level, asked and unasked, beside those of the mean."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import final

import numpy as np
import torch
from torch import Tensor

from sfumato.core import Cond
from sfumato.core.random import keys, normal
from sfumato.data import Data
from sfumato.errors import UserError
from sfumato.evaluate.scores import Score
from sfumato.model import Model, resting

_MOST = 100.0  # of a log-SNR: beyond, single precision holds one of data and noise alone
_MEANT = 512  # training items that the mean is taken of


@final
@dataclass(frozen=True)
class Level:
    """Mean squared errors of x0 at one log-SNR: with the condition of each item, and with none where the model takes one."""

    log_snr: float
    asked: float
    unasked: float | None


@final
@dataclass(frozen=True)
class Levels:
    """levels: from noise to data. mean: error of the training items' mean, what is best where nothing can be seen."""

    levels: tuple[Level, ...]
    mean: float

    @property
    def at_noise(self) -> float:
        """Error of the model with nothing asked, at the highest noise, over that of the mean: 1 if it was trained there."""
        first = self.levels[0]
        return (first.asked if first.unasked is None else first.unasked) / self.mean

    def scores(self) -> dict[str, Score]:
        """By name: `asked_-8` and `unasked_-8` at log-SNR -8, `x0_-8` of a model that is asked nothing, and `mean`."""
        found: dict[str, Score] = {}
        for level in self.levels:
            at = f"at log-SNR {level.log_snr:g}"
            if level.unasked is None:
                found[f"x0_{level.log_snr:g}"] = Score(level.asked, note=f"error of x0 {at}")
            else:
                found[f"asked_{level.log_snr:g}"] = Score(level.asked, note=f"error of x0 {at}, asked by what it is")
                found[f"unasked_{level.log_snr:g}"] = Score(level.unasked, note=f"error of x0 {at}, nothing asked")
        note = "error of x0, nothing asked, at the first level over that of the mean; above 1: hardly trained there"
        mean = Score(self.mean, note="error of the training items' mean")
        return {**found, "mean": mean, "at_noise": Score(self.at_noise, note=note)}


@final
@dataclass(frozen=True)
class LevelErrors:
    """E |D(x_t, c) - x0|^2 and E |D(x_t) - x0|^2 over items of `data`, at each of `levels`, in units of the whitened x0.

    Three things can be read off. Levels at which the error falls are where a sample is decided, and where training and steps
    of a walk belong (`objective.times`, `sampling.grid`); those at which `asked` lies below `unasked` are where the condition
    counts. And at the highest noise, where nothing is seen, the best guess with nothing asked is the mean: a model that is
    worse than the mean was not trained there, and guidance, which goes away from that guess, goes astray.
    Of exact Gaussian data of variance v: v / (1 + v SNR).

    levels: log-SNRs, ln(alpha^2 / sigma^2), from noise to data.
    """

    levels: tuple[float, ...] = (-16.0, -12.0, -10.0, -8.0, -6.0, -4.0, -2.0, 0.0, 2.0)

    def __post_init__(self) -> None:
        if not self.levels:
            raise UserError("levels: none are given; at least one log-SNR is needed")
        if any(not abs(level) <= _MOST for level in self.levels) or list(self.levels) != sorted(set(self.levels)):
            raise UserError(f"levels={self.levels}: give log-SNRs from {-_MOST:g} to {_MOST:g} in rising order")

    @torch.no_grad()
    def __call__(self, model: Model, data: Data, train: Data, n: int = 64, *, batch: int = 64, seed: int = 0) -> Levels:
        """Over `n` items of `data`, which is used as it is given; `train` gives the mean.

        Item i has the noise of (seed, i), the same at every level. Cost: two passes of the network an item and level, one
        where the model takes no condition.
        """
        if len(data) == 0 or len(train) == 0:
            raise UserError("a part of the data is empty; set held_out to a share between 0 and 1")
        told, rows, off = model.conditioner is not None, [], 0.0
        with resting(model):
            mean = self._mean(model, train, batch)
            for start in range(0, n, batch):
                i = np.arange(start, min(start + batch, n))
                fetched = data.fetch(i * len(data) // n if n <= len(data) else i % len(data))
                x0 = model.codec.whiten(model.codec.encode(fetched.media.to(model.device)))
                eps = normal(keys(seed, "levels", i), x0.shape[1:], device=x0.device)
                conds = [model.condition(fetched.conditions)]
                if model.conditioner is not None:
                    conds.append(model.conditioner.null(len(x0)))
                rows.append(self._errors(model, x0, eps, conds))
                off += float(_squares(x0 - mean).sum())
        sums = torch.stack(rows).sum(0) / n
        found = [
            Level(at, errors[0], errors[-1] if told else None)
            for at, errors in zip(self._reached(model), sums.tolist())
        ]
        return Levels(tuple(found), off / n)

    def _times(self, model: Model) -> Tensor:
        """(levels,) in float64; a level beyond an end of the process is that end, which counts once."""
        t = model.denoiser.process.time(torch.tensor(self.levels, dtype=torch.float64)).clamp(0, 1)
        once: Tensor = torch.unique(t)
        return once.flip(0)

    def _reached(self, model: Model) -> list[float]:
        """The log-SNRs of these times."""
        found: list[float] = model.denoiser.process.logsnr(self._times(model)).tolist()
        return [round(level, 2) + 0.0 for level in found]

    def _errors(self, model: Model, x0: Tensor, eps: Tensor, conds: Sequence[Cond | None]) -> Tensor:
        """Sums over a batch, (levels, conditions)."""
        found = []
        for time in self._times(model):
            t = time.expand(len(x0))
            x = model.denoiser.process.diffuse(x0, eps, t)
            found.append(torch.stack([_squares(model.denoiser(x, t, cond) - x0).sum() for cond in conds]).cpu())
        return torch.stack(found)

    @staticmethod
    def _mean(model: Model, train: Data, batch: int) -> Tensor:
        """The mean x0 of training items from all over the set."""
        n, total = min(len(train), _MEANT), None
        for start in range(0, n, batch):
            i = np.arange(start, min(start + batch, n)) * len(train) // n
            part = model.codec.whiten(model.codec.encode(train.fetch(i).media.to(model.device))).sum(0)
            total = part if total is None else total + part
        assert total is not None
        return total / n


def _squares(x: Tensor) -> Tensor:
    """Mean squares by item, float64."""
    return x.double().square().flatten(1).mean(1)
