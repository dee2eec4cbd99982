"""A network, data and a trainer that are small enough to train in a test."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, final

import numpy as np
import torch
from torch import Tensor, nn

from sfumato.codecs import Arrays
from sfumato.core import (
    Batch,
    Cond,
    CondShape,
    DataInfo,
    DenoisingLoss,
    Flow,
    NetDenoiser,
    Network,
    Velocity,
)
from sfumato.data import Data
from sfumato.model import Model
from sfumato.nn import DiT
from sfumato.train import DiffusionTask, Hook, Run, Silent, Trainer, Training


@final
class TinyNet(Network, name="tiny-for-tests"):
    """A perceptron on (x, noise level)."""

    def __init__(self, shape: tuple[int, ...], cond: CondShape, *, width: int = 16, dropout: float = 0.0) -> None:
        super().__init__()
        n = int(np.prod(shape))
        self.layers = nn.Sequential(
            nn.Linear(n + 2, width),
            nn.SiLU(),
            nn.Dropout(dropout),
            nn.Linear(width, width),
            nn.SiLU(),
            nn.Linear(width, n),
        )

    def forward(self, x: Tensor, noise: Tensor, cond: Cond | None = None) -> Tensor:
        level = torch.stack([noise, (8 * noise).sin()], 1).to(x)
        out: Tensor = self.layers(torch.cat([x.flatten(1), level], 1))
        return out.reshape(x.shape)


@final
class TinyData(Data, name="tiny-for-tests"):
    """`n` points (1, 2) of a mixture of `len(means)` Gaussians; the last eighth is held out."""

    def __init__(
        self,
        *,
        n: int = 512,
        means: Sequence[Sequence[float]] = ((-1.0, 0.0), (1.0, 0.0)),
        std: float = 0.3,
        seed: int = 0,
        poison: tuple[int, ...] = (),
    ) -> None:
        rng = np.random.default_rng(seed)
        where = np.asarray(means)[rng.integers(len(means), size=n)]
        self.x = (where + std * rng.normal(size=(n, 2))).astype(np.float32)[:, None]
        self.x[list(poison)] = np.nan

    @property
    def info(self) -> DataInfo:
        return DataInfo((1, 2), "array")

    def __len__(self) -> int:
        return len(self.x)

    def fetch(self, indices: Any, draws: Any = None) -> Batch:
        return Batch(torch.from_numpy(self.x[np.asarray(indices)]))

    def held_out_mask(self) -> Any:
        mask = np.zeros(len(self.x), np.bool_)
        mask[-(len(self.x) // 8) :] = True
        return mask

    def fingerprint(self) -> str:
        return f"{self.x.astype(np.float64).sum():.6f}"


def make_task(*, width: int = 16, dropout: float = 0.0, seed: int = 0, blocks: int = 0) -> DiffusionTask:
    """blocks: of a transformer instead of the perceptron."""
    torch.manual_seed(seed)
    info = TinyData(n=8).info
    network: Network = TinyNet(info.shape, CondShape(), width=width, dropout=dropout)
    if blocks:
        network = DiT(info.shape, CondShape(), width=2 * width, depth=blocks, heads=2, patch=1)
    model = Model(NetDenoiser(network, Flow(), Velocity()), Arrays(info), None, info)
    return DiffusionTask(model, DenoisingLoss())


def make_trainer(
    folder: Path,
    *,
    data: Data | None = None,
    task: DiffusionTask | None = None,
    hooks: Sequence[Hook] = (),
    dropout: float = 0.0,
    display: Any = None,
    seed: int = 0,
    **settings: Any,
) -> Trainer:
    if "minutes" not in settings:
        settings.setdefault("samples", 640)
    settings = {"batch": 16, "log_every": 5, "ema": (0.05, 0.1), **settings}
    return Trainer(
        task if task is not None else make_task(dropout=dropout),
        data if data is not None else TinyData(),
        Training(**settings),
        run=Run(folder),
        seed=seed,
        device="cpu",
        hooks=hooks,
        display=display if display is not None else Silent(),
    )
