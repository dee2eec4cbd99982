"""A model: a denoiser with its codec and conditioner, and the settings that it is built from."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from typing import Any, final

import torch
from torch import nn

from sfumato.codecs import Codec
from sfumato.conditioners import Conditioner
from sfumato.core import Column, Cond, CondShape, DataInfo, NetDenoiser, Network, Parameterization, Process, on_device
from sfumato.spec import Marks, Spec, parse


@final
class Model(nn.Module):
    """Everything with weights: what is trained, averaged (EMA), saved and loaded together."""

    def __init__(self, denoiser: NetDenoiser, codec: Codec, conditioner: Conditioner | None, info: DataInfo) -> None:
        super().__init__()
        self.denoiser = denoiser
        self.codec = codec
        self.conditioner = conditioner
        self.info = info

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return next(self.denoiser.parameters()).device

    def condition(self, conditions: Mapping[str, Column]) -> Cond | None:
        """Columns of a batch to a `Cond` on the model's device, None for an unconditional model."""
        if self.conditioner is None:
            return None
        prepared = self.conditioner.prepare(conditions)
        cond: Cond = self.conditioner({k: on_device(v, self.device) for k, v in prepared.items()})
        return cond


@contextmanager
def resting(model: nn.Module) -> Iterator[None]:
    """Evaluation mode and no gradients of weights; afterwards everything is as it was."""
    modes = [(module, module.training) for module in model.modules()]
    learning = [parameter for parameter in model.parameters() if parameter.requires_grad]
    model.eval().requires_grad_(False)
    try:
        yield
    finally:
        for module, training in modes:
            module.training = training
        for parameter in learning:
            parameter.requires_grad_(True)


@final
@dataclass(frozen=True)
class ModelSpec:
    """The settings of a `Model`: `config.json` of a model folder.

    learned_variance: the network is built with `outputs=2` and gives the variance of reverse steps too.
    self_conditioned: it is built with room for an earlier estimate of x0 beside its input.
    """

    info: DataInfo
    network: Spec[Network]
    process: Spec[Process]
    parameterization: Spec[Parameterization]
    codec: Spec[Codec]
    conditioner: Spec[Conditioner] | None = None
    learned_variance: bool = False
    self_conditioned: bool = False

    def build(self) -> Model:
        """A new model with fresh weights (from torch's global generator)."""
        codec = self.codec.build(self.info)
        conditioner = self.conditioner.build(self.info) if self.conditioner is not None else None
        settings = self.network.with_(outputs=2) if self.learned_variance else self.network
        cond = conditioner.shape if conditioner is not None else CondShape()
        if self.self_conditioned:
            cond = replace(cond, concat=cond.concat + codec.shape[0])
        denoiser = NetDenoiser(
            settings.build(codec.shape, cond),
            self.process.build(),
            self.parameterization.build(),
            learned_variance=self.learned_variance,
            self_conditioned=self.self_conditioned,
        )
        return Model(denoiser, codec, conditioner, self.info)

    def to_dict(self) -> dict[str, Any]:
        """Plain data for JSON."""
        return {
            "info": {k: list(v) if isinstance(v, tuple) else v for k, v in asdict(self.info).items()},
            "network": self.network.to_dict(),
            "process": self.process.to_dict(),
            "parameterization": self.parameterization.to_dict(),
            "codec": self.codec.to_dict(),
            "conditioner": None if self.conditioner is None else self.conditioner.to_dict(),
            "learned_variance": self.learned_variance,
            "self_conditioned": self.self_conditioned,
        }

    @staticmethod
    def from_dict(data: Mapping[str, Any], marks: Marks | None = None) -> ModelSpec:
        """Read what `to_dict` wrote; raises UserError naming what does not fit."""
        info: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in data["info"].items()}
        conditioner = data.get("conditioner")
        return ModelSpec(
            DataInfo(**info),
            parse(Network, data["network"], path="network", marks=marks),
            parse(Process, data["process"], path="process", marks=marks),
            parse(Parameterization, data["parameterization"], path="parameterization", marks=marks),
            parse(Codec, data["codec"], path="codec", marks=marks),
            None if conditioner is None else parse(Conditioner, conditioner, path="conditioner", marks=marks),
            bool(data.get("learned_variance", False)),
            bool(data.get("self_conditioned", False)),
        )
