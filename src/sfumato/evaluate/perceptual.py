"""A distance of pictures in the features of a network, with gradients: what a reconstruction is trained on beside pixels."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Self, final

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.nn import functional as F

from sfumato.errors import UserError
from sfumato.evaluate.judge import CONFIG, Judge
from sfumato.files import refuse_pickle

_VGG = ((64, 64), (128, 128), (256, 256, 256), (512, 512, 512), (512, 512, 512))  # widths by stage of VGG-16
_MEAN, _STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


class Maps(nn.Module):
    """Pictures (B, C, H, W) of 0 ... 255, floating point, to feature maps, coarser and coarser."""

    def forward(self, media: Tensor) -> list[Tensor]:
        raise NotImplementedError


@final
class Perceptual(nn.Module):
    """sum over maps of mean over positions of  w . (f(a) / |f(a)| - f(b) / |f(b)|)^2,  |f| over channels: (B,).

    w is 1 for a network without weights of its own: then a map's distance is 2 - 2 cos. Zhang et al., "The Unreasonable
    Effectiveness of Deep Features as a Perceptual Metric", 2018, eq. 1. The network never learns.
    """

    def __init__(self, maps: Maps, weights: Sequence[Tensor] = ()) -> None:
        super().__init__()
        self.maps = maps.eval().requires_grad_(False)
        self.count = len(weights)
        for i, weight in enumerate(weights):
            self.register_buffer(f"w{i}", weight.reshape(-1, 1, 1))

    def train(self, mode: bool = True) -> Self:
        return super().train(False)

    def forward(self, made: Tensor, real: Tensor) -> Tensor:
        """Pictures (B, C, H, W) of 0 ... 255."""
        total = torch.zeros(len(made), device=made.device)
        with torch.no_grad():
            theirs = self.maps(real)
        for i, (a, b) in enumerate(zip(self.maps(made), theirs)):
            apart = (_unit(a) - _unit(b)).square()
            weighted = apart if self.count == 0 else apart * getattr(self, f"w{i}")
            total = total + weighted.sum(1).flatten(1).mean(1)
        return total


def _unit(x: Tensor) -> Tensor:
    return F.normalize(x.float(), dim=1, eps=1e-10)


@final
class JudgeMaps(Maps):
    """Those of a judge trained in this library."""

    def __init__(self, judge: Judge) -> None:
        super().__init__()
        self.judge = judge

    def forward(self, media: Tensor) -> list[Tensor]:
        if media.shape[1] != self.judge.shape[0]:
            raise UserError(
                f"perceptual: this judge sees {self.judge.shape[0]} channels, and the data has {media.shape[1]}"
            )
        return self.judge.maps(media)


@final
class VggMaps(Maps):
    """VGG-16, after the last rectifier of each of its five stages. Simonyan & Zisserman 2015, configuration D."""

    def __init__(self) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        at = 3
        for number, widths in enumerate(_VGG):
            layers += [nn.MaxPool2d(2)] if number else []
            for width in widths:
                layers += [nn.Conv2d(at, width, 3, 1, 1), nn.ReLU()]
                at = width
        self.features = nn.Sequential(*layers)  # numbered as in torchvision's file
        self.register_buffer("mean", torch.tensor(_MEAN).view(3, 1, 1) * 255, persistent=False)
        self.register_buffer("std", torch.tensor(_STD).view(3, 1, 1) * 255, persistent=False)

    mean: Tensor
    std: Tensor

    def forward(self, media: Tensor) -> list[Tensor]:
        x = (media.expand(-1, 3, -1, -1) - self.mean) / self.std
        found = []
        for layer in self.features:
            if isinstance(layer, nn.MaxPool2d):
                found.append(x)
            x = layer(x)
        return [*found, x]


def open_perceptual(text: str) -> Perceptual:
    """`FOLDER` of a judge; `vgg:FILE`, torchvision's VGG-16 as safetensors; `lpips:FILE,FILE`, that and LPIPS's weights.

    LPIPS's second file has one tensor of C numbers for each of the five stages, `lin0.model.1.weight` and so on. Raises
    UserError naming what does not fit. Nothing is downloaded.
    """
    kind, colon, rest = text.partition(":")
    if colon and kind in ("vgg", "lpips"):
        files = rest.split(",")
        if len(files) != (2 if kind == "lpips" else 1):
            raise UserError(
                f"perceptual={text}: takes vgg:FILE, or lpips:FILE,FILE with the weights of VGG-16 and of LPIPS"
            )
        maps = VggMaps()
        _load(maps, _read(files[0]), files[0])
        return Perceptual(maps, _lpips(_read(files[1]), files[1]) if kind == "lpips" else ())
    if (Path(text) / CONFIG).is_file():
        return Perceptual(JudgeMaps(Judge.load(Path(text))))
    raise UserError(f"perceptual={text}: there is no judge in this folder; give one, vgg:FILE, or lpips:FILE,FILE")


def _read(path: str) -> dict[str, Tensor]:
    file = Path(path)
    if not file.is_file():
        raise UserError(f"perceptual: there is no file {file}; nothing is downloaded, give a file of this machine")
    refuse_pickle(file)
    try:
        return load_file(file)
    except SafetensorError as error:
        raise UserError(f"{file}: is not a safetensors file that can be read ({error})") from None


def _load(maps: VggMaps, tensors: dict[str, Tensor], file: str) -> None:
    own = maps.state_dict()
    wrong = [name for name in own if name not in tensors or tensors[name].shape != own[name].shape]
    if wrong:
        raise UserError(
            f"{file}: these are not the weights of VGG-16 as torchvision names them: {', '.join(wrong[:3])}"
        )
    maps.load_state_dict({name: tensors[name] for name in own})


def _lpips(tensors: dict[str, Tensor], file: str) -> list[Tensor]:
    found = []
    for i, widths in enumerate(_VGG):
        weight = tensors.get(f"lin{i}.model.1.weight")
        if weight is None or weight.numel() != widths[-1]:
            raise UserError(
                f"{file}: has no lin{i}.model.1.weight of {widths[-1]} numbers; these are not LPIPS's weights"
            )
        found.append(weight.float())
    return found
