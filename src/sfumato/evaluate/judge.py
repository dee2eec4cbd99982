"""A judge: a small classifier of real data that says what a sample shows, and whose features measure distances."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, final

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn import functional as F

from sfumato.errors import UserError
from sfumato.files import CorruptError, replacing_folder, sha256, verify_manifest

FORMAT = 1
WEIGHTS = "judge.safetensors"
CONFIG = "judge.json"
_COARSEST = 4  # positions along a side at which the convolutions stop halving
_BATCH = 512


def _block(inputs: int, outputs: int, stride: int) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False),
        nn.BatchNorm2d(outputs),
        nn.ReLU(),
        nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False),
        nn.BatchNorm2d(outputs),
        nn.ReLU(),
    )


@final
class Judge(nn.Module):
    """Convolutions, halving the size down to 4 positions a side, then `features` numbers, then the classes' logits.

    shape: (C, H, W) of a uint8 picture. classes: their names. Trained by `sfumato.recipes.judges` on real training data;
    `trained` keeps how, and its accuracy on real held-out data, with the weights.
    """

    def __init__(
        self,
        shape: tuple[int, int, int],
        classes: tuple[str, ...],
        *,
        width: int = 16,
        features: int = 64,
        trained: Mapping[str, Any] | None = None,
    ) -> None:
        super().__init__()
        self.shape, self.classes, self.width = tuple(shape), tuple(classes), width
        self.trained: dict[str, Any] = dict(trained or {})
        channels, (height, wide) = width, shape[1:]
        blocks = [_block(shape[0], channels, 1)]
        while max(height, wide) > _COARSEST:
            blocks.append(_block(channels, 2 * channels, 2))
            channels, height, wide = 2 * channels, -(-height // 2), -(-wide // 2)
        self.blocks = nn.Sequential(*blocks)
        self.to_features = nn.Linear(channels * height * wide, features)
        self.drop = nn.Dropout(0.2)
        self.head = nn.Linear(features, len(classes))

    def _features(self, media: Tensor) -> Tensor:
        if tuple(media.shape[1:]) != self.shape:
            raise UserError(f"this judge looks at pictures of shape {self.shape}, not {tuple(media.shape[1:])}")
        return F.relu(self.to_features(self.blocks(media.float() / 127.5 - 1).flatten(1)))

    def forward(self, media: Tensor) -> Tensor:
        """media (B, C, H, W) of 0 ... 255, any type, to logits (B, classes)."""
        logits: Tensor = self.head(self.drop(self._features(media)))
        return logits

    @torch.no_grad()
    def predict(self, media: Tensor) -> Tensor:
        """The most likely class of each picture (N,) int64."""
        return torch.cat([self(part).argmax(1) for part in torch.split(media, _BATCH)])

    @torch.no_grad()
    def features(self, media: Tensor) -> Tensor:
        """What the last layer sees: (N, features)."""
        return torch.cat([self._features(part) for part in torch.split(media, _BATCH)])

    @property
    def weights_sha256(self) -> str | None:
        """The hash of the weights' file it was loaded from or saved to: the name of this feature space."""
        return self.trained.get("sha256")

    def save(self, folder: Path) -> None:
        """Write a judge folder: weights, settings and a manifest, all at once."""
        with replacing_folder(folder) as made:
            save_file({k: v.contiguous() for k, v in self.state_dict().items()}, made / WEIGHTS)
            self.trained["sha256"] = sha256(made / WEIGHTS)
            config = {
                "format": FORMAT,
                "shape": list(self.shape),
                "classes": list(self.classes),
                "width": self.width,
                "features": self.head.in_features,
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
        judge = Judge(
            tuple(config["shape"]),
            tuple(config["classes"]),
            width=config["width"],
            features=config["features"],
            trained=config["trained"],
        )
        try:
            judge.load_state_dict(load_file(folder / WEIGHTS))
        except (RuntimeError, SafetensorError) as error:
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
