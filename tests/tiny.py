"""Small models with weights that do something, for tests of what is built on models."""

from __future__ import annotations

from typing import Any

import torch

from sfumato.codecs import Arrays, Codec, Pixels
from sfumato.conditioners import Conditioner, Label, Number, Text, Together
from sfumato.core import DataInfo, Flow, Network, Velocity
from sfumato.model import Model, ModelSpec
from sfumato.nn import DiT, UNet
from sfumato.pipeline import Pipeline, Sampling
from sfumato.spec import Spec

DIGITS = DataInfo((1, 8, 8), "image", labels=tuple("0123456789"), captions=True, numbers=("slant",))
PAIR = DataInfo((1, 8, 8), "image", numbers=("slant", "weight"))
FIELD = DataInfo((2, 11), "array", captions=True)

CONDITIONERS: dict[str, Spec[Conditioner] | None] = {
    "none": None,
    "label": Spec(Label, width=16),
    "number": Spec(Number, width=16),
    "text": Spec(Text, width=16, depth=1, heads=2, length=32),
    "text+label": Spec(Together, first=Spec(Text, width=16, depth=1, heads=2, length=32), second=Spec(Label, width=16)),
}
NETWORKS: dict[str, Spec[Network]] = {
    "dit": Spec(DiT, width=16, depth=1, heads=2),
    "unet": Spec(UNet, width=8, mults=(1, 2), blocks=1, groups=4),
}


def tiny_spec(info: DataInfo = DIGITS, conditioner: str = "text", network: str = "dit") -> ModelSpec:
    """The settings of a model of some thousand weights."""
    codec: Spec[Codec] = Spec(Pixels if info.kind == "image" else Arrays)
    return ModelSpec(info, NETWORKS[network], Spec(Flow), Spec(Velocity), codec, CONDITIONERS[conditioner])


def tiny_model(spec: ModelSpec, *, shaken: bool = True, dropout: float = 0.0) -> Model:
    """A model with a measured codec; `shaken` moves its weights off the zero initialisation, so that all inputs matter."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = spec.build()
    if shaken:
        generator = torch.Generator().manual_seed(1)
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.add_(0.1 * torch.randn(parameter.shape, generator=generator))
    whitening: Any = model.codec.whitening
    whitening.mean.fill_(-0.25)
    whitening.std.fill_(0.5)
    return model


def tiny_pipeline(
    conditioner: str = "text", network: str = "dit", *, info: DataInfo = DIGITS, shaken: bool = True, steps: int = 3
) -> Pipeline:
    """A pipeline of a tiny model."""
    spec = tiny_spec(info, conditioner, network)
    return Pipeline(tiny_model(spec, shaken=shaken), spec, Sampling(steps=steps))
