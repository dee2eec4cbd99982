"""A judge: a small classifier of real data that says what a sample shows, and whose features measure distances."""

from __future__ import annotations

import hashlib
import json
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, final

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save
from torch import Tensor, nn

from sfumato.compact import compacted, expanded
from sfumato.errors import UserError
from sfumato.files import CorruptError, replacing_folder, verify_manifest
from sfumato.registry import Registered, find

FORMAT = 1
WEIGHTS = "judge.safetensors"
CONFIG = "judge.json"
_FIRST = "conv"  # the architecture of folders that name none
_NOT_SETTINGS = ("format", "architecture", "shape", "classes", "trained")
_BATCH = 512


class Judge(nn.Module, Registered, ABC, family="judge"):
    """A classifier of pictures or sounds: `features` numbers, then the classes' logits. Subclasses are architectures.

    shape: (C, H, W) of a uint8 picture, (c, T) of a sound. classes: their names. Trained by `sfumato.recipes.judges` on
    real training data; `trained` keeps how, and its accuracy on real held-out data, with the weights. A subclass sets
    `head`, a linear layer of the features; its settings beyond shape and classes are whole numbers.
    """

    head: nn.Linear

    def __init__(
        self,
        shape: tuple[int, ...],
        classes: tuple[str, ...],
        trained: Mapping[str, Any] | None,
        drop: float = 0.0,
    ) -> None:
        super().__init__()
        self.shape, self.classes = tuple(shape), tuple(classes)
        self.trained: dict[str, Any] = dict(trained or {})
        self.drop = nn.Dropout(drop)

    @property
    @abstractmethod
    def name(self) -> str:
        """What distances in its features are named after: `wrn16-4`."""

    @property
    @abstractmethod
    def settings(self) -> dict[str, int]:
        """Arguments of the constructor beyond shape, classes and trained."""

    @abstractmethod
    def see(self, media: Tensor) -> Tensor:
        """Pictures (B, C, H, W) of 0 ... 255, floating point, to features (B, D)."""

    def maps(self, media: Tensor) -> list[Tensor]:
        """Feature maps of such pictures of any size, each (B, C', H', W'), coarser and coarser: for perceptual distances."""
        raise UserError(f"judge {self.kind} has no feature maps; use conv, wrn or vgg")

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return self.head.weight.device

    def _features(self, media: Tensor) -> Tensor:
        return self.see(self._checked(media))

    def _checked(self, media: Tensor) -> Tensor:
        """Of the right shape, in floating point, on the device."""
        if tuple(media.shape[1:]) != self.shape:
            what = "pictures" if len(self.shape) == 3 else "sounds"
            raise UserError(f"this judge looks at {what} of shape {self.shape}, not {tuple(media.shape[1:])}")
        return media.to(self.device).float()

    def forward(self, media: Tensor) -> Tensor:
        """media (B, C, H, W) of 0 ... 255, any type, to logits (B, classes)."""
        logits: Tensor = self.head(self.drop(self._features(media)))
        return logits

    @final
    @torch.no_grad()
    def predict(self, media: Tensor) -> Tensor:
        """The most likely class of each picture (N,) int64."""
        return torch.cat([self(part).argmax(1) for part in torch.split(media, _BATCH)])

    @final
    @torch.no_grad()
    def features(self, media: Tensor) -> Tensor:
        """What the last layer sees: (N, features)."""
        return torch.cat([self._features(part) for part in torch.split(media, _BATCH)])

    @property
    def weights_sha256(self) -> str:
        """The hash of the weights' file that it was loaded from or saved to, or would be: the name of this feature space."""
        return self.trained.get("sha256") or hashlib.sha256(self._bytes()).hexdigest()

    def _bytes(self, compact: bool = False) -> bytes:
        tensors = {k: v.contiguous().cpu() for k, v in self.state_dict().items()}
        raw: bytes = save(compacted(tensors) if compact else tensors)
        return raw

    def save(self, folder: Path, *, compact: bool = False) -> None:
        """Write a judge folder: weights, settings and a manifest, all at once. compact: weights in 8 bits (`compacted`)."""
        with replacing_folder(folder) as made:
            raw = self._bytes(compact)
            (made / WEIGHTS).write_bytes(raw)
            self.trained["sha256"] = hashlib.sha256(raw).hexdigest()
            config = {
                "format": FORMAT,
                "architecture": self.kind,
                "shape": list(self.shape),
                "classes": list(self.classes),
                **self.settings,
                "trained": self.trained,
            }
            (made / CONFIG).write_text(json.dumps(config, indent=1), encoding="utf-8")

    @staticmethod
    def load(folder: Path) -> Judge:
        """Read a judge folder, ready to judge (evaluation mode). Raises CorruptError naming a file that has changed."""
        if not (folder / CONFIG).is_file():
            raise UserError(f"{folder}: there is no judge here; train one with sfumato.recipes.judges.judge_of")
        verify_manifest(folder)
        config = json.loads((folder / CONFIG).read_text(encoding="utf-8"))
        if config.get("format") != FORMAT:
            raise UserError(
                f"{folder}: a judge of format {config.get('format')} is not read; this sfumato reads {FORMAT}"
            )
        made: Any = find("judge", config.get("architecture", _FIRST))
        try:
            judge: Judge = made(
                tuple(config["shape"]),
                tuple(config["classes"]),
                **{k: v for k, v in config.items() if k not in _NOT_SETTINGS},
                trained=config["trained"],
            )
            judge.load_state_dict(expanded(load_file(folder / WEIGHTS)))
        except (RuntimeError, TypeError, SafetensorError) as error:
            raise CorruptError(folder / WEIGHTS, f"does not fit {CONFIG}: {error}") from None
        return judge.eval()


@dataclass(frozen=True)
class Judged:
    """What a judge said of N pictures: labels (N,) and features (N, D)."""

    labels: Tensor
    features: Tensor

    @staticmethod
    def of(judge: Judge, media: Tensor) -> Judged:
        """Judge uint8 pictures (N, C, H, W)."""
        return Judged(judge.predict(media), judge.features(media))
