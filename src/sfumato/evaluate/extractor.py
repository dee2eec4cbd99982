"""What turns pictures into features for distances: one of our own judges, or a published network from a local file."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Self, final

import torch
from torch import Tensor, nn

from sfumato.errors import UserError, did_you_mean
from sfumato.evaluate.judge import CONFIG, Judge

OnBatch = Callable[[int, int], None]  # (items done, items in all)


class Extractor(ABC):
    """Pictures (N, C, H, W) uint8 to features (N, D) float32, the same whatever the batch, but for rounding.

    name: what scores in these features are named after. sha256: of the weights. resize: what is done to the size, "none" or
    the method and the side. batch: pictures at a time. Two feature spaces are the same if sha256 and resize are.
    is_fid: whether these are the features whose Frechet distance all the world calls FID.
    """

    is_fid = False

    def __init__(self, network: nn.Module, name: str, sha256: str, resize: str, batch: int) -> None:
        self.network = network.eval().requires_grad_(False)
        self.name, self.sha256, self.resize, self.batch = name, sha256, resize, batch
        self.device = next(network.parameters()).device

    @abstractmethod
    def see(self, media: Tensor) -> Tensor:
        """Pictures (B, C, H, W) uint8 on the device to features (B, D)."""

    def maps(self, media: Tensor) -> Tensor:
        """Features by place (B, D, h, w) of pictures (B, C, H, W) uint8 on the device, h x w being the network's own grid."""
        raise UserError(f"{self.name} has no features by place; use a judge, dinov2 or clip")

    @final
    def to(self, device: torch.device | str) -> Self:
        """Move the network."""
        self.device = torch.device(device)
        self.network.to(self.device)
        return self

    @final
    @torch.no_grad()
    def __call__(self, media: Tensor, on_batch: OnBatch | None = None) -> Tensor:
        """Features (N, D) on the device (on the CPU where the device has no float64, which distances are computed in)."""
        if media.dtype != torch.uint8 or media.ndim != 4 or len(media) == 0:
            raise UserError(
                f"{self.name}: features are those of pictures, (N, C, H, W) uint8, not of {media.dtype} items of shape "
                f"{tuple(media.shape)}"
            )
        rows = []
        with _float32(self.device):
            for first in range(0, len(media), self.batch):
                part = media[first : first + self.batch].to(self.device, non_blocking=True)
                rows.append(self.see(part).float())
                if on_batch is not None:
                    on_batch(min(first + self.batch, len(media)), len(media))
        found = torch.cat(rows)
        return found.cpu() if self.device.type == "mps" else found

    @final
    def about(self) -> dict[str, Any]:
        """Plain data: what a report must say of a feature space."""
        return {"name": self.name, "sha256": self.sha256, "resize": self.resize}


@final
class JudgeExtractor(Extractor):
    """What the last layer of a judge sees. Pictures have its size already: nothing is resized."""

    def __init__(self, judge: Judge, *, batch: int = 500) -> None:
        super().__init__(judge, judge.name, judge.weights_sha256, "none", batch)
        self.judge = judge

    def see(self, media: Tensor) -> Tensor:
        return self.judge.features(media)

    def maps(self, media: Tensor) -> Tensor:
        return self.judge.maps(media.float())[-1]


def rgb(media: Tensor, name: str) -> Tensor:
    """(B, 1, H, W) as (B, 3, H, W); three channels as they are."""
    if media.shape[1] not in (1, 3):
        raise UserError(f"{name} looks at pictures of 1 or 3 channels, not {media.shape[1]}; use a judge of this data")
    return media.expand(-1, 3, -1, -1) if media.shape[1] == 1 else media


def open_extractor(text: str) -> Extractor:
    """`FOLDER` of a judge, `inception:FILE`, `dinov2:FOLDER` or `clip:FOLDER`, on the CPU. Raises UserError."""
    from sfumato.evaluate.standard import Clip, DinoV2, Inception

    known: dict[str, Callable[[Path], Extractor]] = {"inception": Inception, "dinov2": DinoV2, "clip": Clip}
    kind, colon, path = text.partition(":")
    if colon and kind in known:
        return known[kind](Path(path))
    if (Path(text) / CONFIG).is_file():
        return JudgeExtractor(Judge.load(Path(text)))
    if colon and not Path(text).exists():
        raise UserError(f"extractor={text}: there is no extractor '{kind}'; {did_you_mean(kind, known)}")
    raise UserError(
        f"extractor={text}: there is no judge in this folder; give one that `python -m benchmarks.judges` or "
        "sfumato.recipes.judges made, inception:FILE, dinov2:FOLDER or clip:FOLDER"
    )


@contextmanager
def _float32(device: torch.device) -> Iterator[None]:
    """Convolutions in full float32, so that features agree between machines; CUDA rounds to 10 bits by default."""
    if device.type != "cuda":
        yield
        return
    with torch.backends.cudnn.flags(enabled=True, allow_tf32=False):
        yield
