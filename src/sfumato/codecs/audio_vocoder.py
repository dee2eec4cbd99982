"""Vocoders: small networks that give log-mel magnitudes the phases, and the bins, that they have lost."""

from __future__ import annotations

import json
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, final

import torch
from safetensors.torch import load_file, save
from torch import Tensor, nn
from torch.nn import functional as F

from sfumato.codecs.base import Whitening
from sfumato.errors import UserError
from sfumato.files import CorruptError, replacing_folder, verify_manifest
from sfumato.registry import Registered
from sfumato.spec import Spec, parse

WEIGHTS, CONFIG, FORMAT = "vocoder.safetensors", "vocoder.json", 1


class Vocoder(nn.Module, Registered, ABC, family="vocoder"):
    """Log-mel magnitudes to spectra. Built as `Vocoder(bank, *, settings)`: mel weights (bands, bins), rows of sum 1."""

    @abstractmethod
    def forward(self, h: Tensor) -> Tensor:
        """h (B, bands, frames), natural logarithms, to a complex spectrum (B, bins, frames)."""


class _Block(nn.Module):
    """x + gamma W2 GELU(W1 LN(depthwise conv_7(x))): ConvNeXt (Liu et al. 2022) in one dimension."""

    def __init__(self, width: int, hidden: int, scale: float) -> None:
        super().__init__()
        self.conv = nn.Conv1d(width, width, 7, padding=3, groups=width)
        self.norm = nn.LayerNorm(width, eps=1e-6)
        self.first, self.second = nn.Linear(width, hidden), nn.Linear(hidden, width)
        self.gamma = nn.Parameter(torch.full((width,), scale))

    def forward(self, x: Tensor) -> Tensor:
        h = self.norm(self.conv(x).transpose(1, 2))
        out: Tensor = x + (self.gamma * self.second(F.gelu(self.first(h)))).transpose(1, 2)
        return out


@final
class Vocos(Vocoder, name="vocos"):
    """ConvNeXt blocks at the rate of the frames, and a head that gives magnitude and phase of every bin.

        S = exp(l + m) exp(i p),      (m, p) = head(blocks(white(h))),   l = log of the bands' values spread over their
        bins

    All upsampling is left to the inverse Fourier transform, so a second of sound costs as many positions as it has
    frames. width: channels; depth: blocks; hidden: of a block's MLP over width. Parameters: about depth (2 hidden
    width^2) + 7 width bands. Siuzdak, "Vocos: closing the gap between time-domain and Fourier-based neural vocoders",
    2023, section 3.2. Unlike there, the magnitudes start from the bands that are known.
    """

    def __init__(self, bank: Tensor, *, width: int = 160, depth: int = 4, hidden: float = 3.0) -> None:
        super().__init__()
        bands, bins = bank.shape
        for name, value in (("width", width), ("depth", depth), ("hidden", hidden)):
            if value < 1:
                raise UserError(f"vocos: {name} = {value} must be at least 1")
        spread = bank / bank.sum(0, keepdim=True).clamp_min(
            1e-6
        )  # bins between no bands stay at the floor of their own
        self.register_buffer("spread", spread.T.float().clone(), persistent=False)
        self.white = Whitening(bands)
        self.stem = nn.Conv1d(bands, width, 7, padding=3)
        self.stem_norm = nn.LayerNorm(width, eps=1e-6)
        self.layers = nn.ModuleList(_Block(width, int(hidden * width), 1 / depth) for _ in range(depth))
        self.norm = nn.LayerNorm(width, eps=1e-6)
        self.head = nn.Linear(width, 2 * bins)
        nn.init.normal_(self.head.weight, std=0.02)
        nn.init.zeros_(self.head.bias)

    spread: Tensor

    def forward(self, h: Tensor) -> Tensor:
        x = self.stem(self.white(h))
        x = self.stem_norm(x.transpose(1, 2)).transpose(1, 2)
        for layer in self.layers:
            x = layer(x)
        size, phase = self.head(self.norm(x.transpose(1, 2))).transpose(1, 2).float().chunk(2, 1)
        known = self.spread @ h
        return torch.polar((known + size).clamp(max=4.0).exp(), phase)


@final
@dataclass(frozen=True)
class Trained:
    """A vocoder with its weights and the mel bands that it reads, as a folder."""

    vocoder: Vocoder
    spec: Spec[Vocoder]
    bands: Mapping[str, Any]
    trained: Mapping[str, Any]

    def save(self, folder: Path) -> None:
        """Write weights, settings and a manifest, all at once."""
        with replacing_folder(folder) as made:
            tensors = {k: v.detach().contiguous().cpu() for k, v in self.vocoder.state_dict().items()}
            (made / WEIGHTS).write_bytes(save(tensors))
            content = {"format": FORMAT, "vocoder": self.spec.to_dict(), "bands": dict(self.bands)}
            text = json.dumps({**content, "trained": dict(self.trained)}, indent=1)
            (made / CONFIG).write_text(text, encoding="utf-8")


def load_vocoder(folder: Path, vocoder: Vocoder, settings: Mapping[str, Any], bands: Mapping[str, Any]) -> None:
    """Read the weights of a folder into a vocoder of the same settings that reads the same bands. Raises UserError."""
    if not (folder / CONFIG).is_file():
        raise UserError(
            f"weights = {folder}: there is no vocoder here; sfumato.recipes.vocoder.train_vocoder makes one"
        )
    verify_manifest(folder)
    config = read_config(folder)
    if parse(Vocoder, config["vocoder"], path="vocoder") != parse(Vocoder, settings, path="vocoder"):
        raise UserError(
            f"weights = {folder}: a vocoder of other settings ({config['vocoder']}); give the codec the same"
        )
    different = [f"{k} = {v} there, {bands[k]} here" for k, v in config["bands"].items() if bands.get(k) != v]
    if different:
        raise UserError(f"weights = {folder}: reads other mel bands ({'; '.join(different)}); give the codec the same")
    try:
        vocoder.load_state_dict(load_file(folder / WEIGHTS))
    except RuntimeError as error:
        raise CorruptError(folder / WEIGHTS, f"does not fit {CONFIG}: {error}") from None


def read_config(folder: Path) -> dict[str, Any]:
    """`vocoder.json` of a folder."""
    config: dict[str, Any] = json.loads((folder / CONFIG).read_text(encoding="utf-8"))
    if config.get("format") != FORMAT:
        raise UserError(
            f"{folder}: a vocoder of format {config.get('format')} is not read; this sfumato reads {FORMAT}"
        )
    return config
