"""Tasks: what a batch of data is to teach. The trainer knows nothing else of a model."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import is_dataclass
from typing import Any, final

import torch
from torch import nn

from sfumato.core import Batch, Draws, Loss, Objective, Process
from sfumato.errors import UserError
from sfumato.model import Model
from sfumato.registry import Registered
from sfumato.spec import as_spec


class Task(nn.Module, ABC):
    """A model and a loss of it. Everything random comes from `draws`, or from torch's generators (dropout)."""

    model: nn.Module  # what is averaged, evaluated and saved

    @property
    def process(self) -> Process | None:
        """The process that the losses' times belong to, for curves by noise level."""
        return None

    def describe(self) -> dict[str, Any]:
        """Settings by dotted path, for runs that have no recipe: a resume must agree with them."""
        return {}

    @abstractmethod
    def loss(self, batch: Batch, draws: Draws) -> Loss:
        """The loss of a batch on the CPU, its mean over the samples as `value`."""


@final
class DiffusionTask(Task):
    """Denoising: media -> codec -> noise -> network. Conditions are dropped per sample for guidance.

    drop: share of samples that see "anything" instead of their condition (Ho & Salimans, "Classifier-Free Diffusion
    Guidance", 2022, algorithm 1).
    """

    model: Model

    def __init__(self, model: Model, objective: Objective, *, drop: float = 0.1) -> None:
        super().__init__()
        if not 0 <= drop < 1:
            raise UserError(f"drop = {drop}: a share of the samples, at least 0 and below 1")
        self.model = model
        self.objective = objective
        self.drop = drop
        model.codec.requires_grad_(False)

    @property
    def process(self) -> Process:
        return self.model.denoiser.process

    def describe(self) -> dict[str, Any]:
        denoiser = self.model.denoiser
        parts: dict[str, Registered] = {
            "process": denoiser.process,
            "parameterization": denoiser.parameterization,
            "objective": self.objective,
        }
        described = {"drop": self.drop, "network.type": denoiser.network.kind}
        for name, part in parts.items():
            if is_dataclass(type(part)):
                described |= dict(as_spec(part).leaves(f"{name}."))
        return described

    def loss(self, batch: Batch, draws: Draws) -> Loss:
        model = self.model
        with torch.no_grad():
            x0 = model.codec.whiten(model.codec.encode(batch.media.to(model.device, non_blocking=True)))
        cond = model.condition(batch.conditions)
        if cond is not None and model.conditioner is not None and self.drop > 0:
            cond = cond.drop(draws.uniform("drop") < self.drop, model.conditioner.null(len(batch)))
        return self.objective(model.denoiser, x0, cond, draws)
