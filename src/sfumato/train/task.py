"""Tasks: what a batch of data is to teach. The trainer knows nothing else of a model."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import is_dataclass
from typing import Any, final

import torch
from torch import Tensor, nn

from sfumato.core import Batch, Draws, Loss, Objective, Planned, Process, on_device
from sfumato.errors import UserError
from sfumato.model import Model
from sfumato.registry import Registered
from sfumato.spec import as_spec
from sfumato.train.align import Alignment

_ASKED = "asked."  # before the names of a conditioner's tensors


class Task(nn.Module, ABC):
    """A model and a loss of it. Everything random comes from `draws`, or from torch's generators (dropout)."""

    model: nn.Module  # what is averaged, evaluated and saved

    @property
    def process(self) -> Process | None:
        """The process that the losses' times belong to, for curves by noise level."""
        return None

    @property
    def halved(self) -> nn.Module | None:
        """The part that computes from half-precision copies of its weights in a captured step; None for nothing."""
        return None

    def describe(self) -> dict[str, Any]:
        """Settings by dotted path, for runs that have no recipe: a resume must agree with them."""
        return {}

    @abstractmethod
    def loss(self, batch: Batch, draws: Draws) -> Loss:
        """The loss of a batch on the CPU, its mean over the samples as `value`."""

    @property
    def separable(self) -> bool:
        """Whether `plan` and `compute` are there: the loss in two halves, so that the second can be captured in a graph."""
        return False

    def plan(self, batch: Batch, draws: Draws) -> Planned:
        """The host's half of the loss: all that `compute` needs, as tensors on the CPU."""
        raise NotImplementedError

    def compute(self, planned: Mapping[str, Tensor]) -> tuple[Tensor, Tensor]:
        """The device's half: (value, per_sample) of `Loss`, from tensors on the device alone."""
        raise NotImplementedError


@final
class DiffusionTask(Task):
    """Denoising: media -> codec -> noise -> network. Conditions are dropped per sample for guidance.

    drop: share of samples that see "anything" instead of their condition (Ho & Salimans, "Classifier-Free Diffusion
    Guidance", 2022, algorithm 1).
    align: a term that the features of a block add to the loss (`Align`).
    """

    model: Model

    def __init__(
        self, model: Model, objective: Objective, *, drop: float = 0.1, align: Alignment | None = None
    ) -> None:
        super().__init__()
        if not 0 <= drop < 1:
            raise UserError(f"drop = {drop}: a share of the samples, at least 0 and below 1")
        self.model = model
        self.objective = objective
        self.drop = drop
        self.align = align
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

    @property
    def halved(self) -> nn.Module:
        return self.model.denoiser.network

    @property
    def separable(self) -> bool:
        return self.objective.separable and not isinstance(self.process, nn.Module) and self.align is None

    def loss(self, batch: Batch, draws: Draws) -> Loss:
        model = self.model
        media = on_device(batch.media, model.device)
        x0 = self._clean(media)
        cond = model.condition(batch.conditions)
        if cond is not None and model.conditioner is not None and self.drop > 0:
            cond = cond.drop(draws.uniform("drop") < self.drop, model.conditioner.null(len(batch)))
        if self.align is None:
            return self.objective(model.denoiser, x0, cond, draws)
        network = model.denoiser.network
        with self.align.watch(network.blocks) as seen:
            loss = self.objective(model.denoiser, x0, cond, draws)
        return loss._replace(value=loss.value + self.align.loss(seen, media, getattr(network, "patch", None)))

    def plan(self, batch: Batch, draws: Draws) -> Planned:
        planned = self.objective.plan(self.model.denoiser, draws)
        tensors = {"media": batch.media, **planned.tensors}
        if self.model.conditioner is not None:
            asked = self.model.conditioner.prepare(batch.conditions)
            tensors |= {_ASKED + name: column for name, column in asked.items()}
            tensors["drop"] = draws.uniform("drop") < self.drop
        return Planned(tensors, planned.t)

    def compute(self, planned: Mapping[str, Tensor]) -> tuple[Tensor, Tensor]:
        x0, cond, conditioner = self._clean(planned["media"]), None, self.model.conditioner
        if conditioner is not None:
            cond = conditioner({k.removeprefix(_ASKED): v for k, v in planned.items() if k.startswith(_ASKED)})
            if self.drop > 0:
                cond = cond.drop(planned["drop"], conditioner.null(len(x0)))
        return self.objective.compute(self.model.denoiser, x0, cond, planned)

    @torch.no_grad()
    def _clean(self, media: Tensor) -> Tensor:
        codec = self.model.codec
        return codec.whiten(codec.encode(media))
