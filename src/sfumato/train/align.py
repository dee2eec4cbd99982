"""Alignment of a network's inner features with those of an encoder, or with its own deeper ones, while it is trained."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Self, final

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from sfumato.errors import UserError
from sfumato.evaluate.extractor import Extractor, open_extractor
from sfumato.model import Model
from sfumato.registry import Registered

SELF = "self"
_STUDENT, _TARGET = 0.3, 0.7  # shares of the depth: REPA aligns block 8 of 28


@final
@dataclass(frozen=True)
class Align(Registered, family="alignment", name="repa"):
    """A term beside the loss: features of a block, through a small perceptron P, look where those of a teacher look.

        weight * mean_n (1 - cos(P(h_n), y_n)),   h_n the block's feature at place n of the noisy sample, y_n the teacher's

    teacher: `self` (a later block of the same network in the same pass, without gradients: nothing to download, nothing more
    to compute), a judge's folder, `dinov2:FOLDER` or `clip:FOLDER`, which see the clean pictures. Maps are resampled to the
    network's grid. block: whose features learn, from 0; none: 3/10 of the way. target: the later block of `self`; none: 7/10
    of the way. The perceptron (three layers, twice as wide as the block) is thrown away after training. Steps are not
    recorded as CUDA graphs with this. The loss that is logged by noise level is the denoising one alone.
    Yu et al., "Representation Alignment for Generation", 2024, eq. 8, https://arxiv.org/abs/2410.06940; by the network
    itself: Jiang et al., "No Other Representation Component Is Needed" (SRA), 2025, whose target is an average of the weights
    at less noise.
    """

    teacher: str = SELF
    block: int | None = None
    target: int | None = None
    weight: float = 0.5

    def __post_init__(self) -> None:
        if not 0 < self.weight < math.inf:
            raise UserError(f"align: weight = {self.weight} must be above 0; leave alignment out with align=none")
        if self.target is not None and self.teacher != SELF:
            raise UserError(f"align: target = {self.target} is a block of teacher=self; leave it out")


@final
class Alignment(nn.Module):
    """What of `Align` has weights, for one model. `watch` a pass of the network, then `loss` says how far it is off."""

    def __init__(self, settings: Align, model: Model) -> None:
        super().__init__()
        network = model.denoiser.network
        count = len(network.blocks)
        if count < 2:
            raise UserError(
                f"align: the network '{network.kind}' has no list of blocks to align; use unet, dit or mmdit"
            )
        block = int(_STUDENT * count) if settings.block is None else settings.block
        later = max(block + 1, int(_TARGET * count)) if settings.target is None else settings.target
        own = settings.teacher == SELF
        for name, value in (("block", block), ("target", later)):
            if (name == "block" or own) and not 0 <= value < count:
                raise UserError(f"align: {name} = {value}: the network has blocks 0 to {count - 1}")
        if own and later <= block:
            raise UserError(f"align: target = {later} must be a block after block = {block}")
        self.weight, self.block = settings.weight, block
        self.target = later if own else None
        self.teacher = None if own else _Teacher(open_extractor(settings.teacher))
        width, other = self._widths(model)
        hidden = 2 * width
        self.project = nn.Sequential(
            nn.Linear(width, hidden), nn.SiLU(), nn.Linear(hidden, hidden), nn.SiLU(), nn.Linear(hidden, other)
        )

    @contextmanager
    def watch(self, blocks: Sequence[nn.Module]) -> Iterator[dict[int, Tensor]]:
        """Inside, the last outputs of the blocks that take part, by their number."""
        seen: dict[int, Tensor] = {}

        def note(number: int) -> Any:
            def hook(module: nn.Module, given: Any, out: Any) -> None:
                seen[number] = out[0] if isinstance(out, tuple) else out

            return hook

        wanted = [self.block] if self.target is None else [self.block, self.target]
        handles = [blocks[number].register_forward_hook(note(number)) for number in wanted]
        try:
            yield seen
        finally:
            for handle in handles:
                handle.remove()

    def loss(self, seen: Mapping[int, Tensor], media: Tensor, patch: Sequence[int] | None) -> Tensor:
        """The weighted term (), after a pass that was watched. media: the clean ones (B, C, *S); patch: of a transformer."""
        h, grid = places(seen[self.block], media.shape[2:], patch)
        if self.target is not None:
            y = resampled(*places(seen[self.target].detach(), media.shape[2:], patch), grid)
        else:
            assert self.teacher is not None
            maps = self.teacher.maps(media)
            y = resampled(maps.flatten(2).mT, tuple(maps.shape[2:]), grid)
        kind = next(self.project.parameters()).dtype
        with torch.autocast(h.device.type, enabled=False):
            cosine = F.cosine_similarity(self.project(h.to(kind)), y.to(kind), dim=-1)
            return self.weight * (1 - cosine.mean())

    @torch.no_grad()
    def _widths(self, model: Model) -> tuple[int, int]:
        """Channels of the block that learns and of what it learns from, found by asking both once."""
        network, shape = model.denoiser.network, model.codec.shape
        training = network.training
        cond = None if model.conditioner is None else model.conditioner.null(1)
        x = torch.zeros(1, *shape, device=model.device)
        with self.watch(network.blocks) as seen:
            model.denoiser.eval()(x, torch.full((1,), 0.5, dtype=torch.float64), cond)
        model.denoiser.train(training)
        patch = getattr(network, "patch", None)
        width = places(seen[self.block], shape[1:], patch)[0].shape[-1]
        if self.target is not None:
            return width, places(seen[self.target], shape[1:], patch)[0].shape[-1]
        assert self.teacher is not None
        kind = torch.uint8 if model.info.kind == "image" else torch.float32
        return width, self.teacher.maps(torch.zeros(1, *model.info.shape, dtype=kind, device=model.device)).shape[1]


@final
class _Teacher:
    """A frozen encoder that is no module, so that its weights are in no checkpoint; deep copies share it."""

    def __init__(self, extractor: Extractor) -> None:
        self.extractor = extractor

    def __deepcopy__(self, memo: object) -> Self:
        return self

    @torch.no_grad()
    def maps(self, media: Tensor) -> Tensor:
        """Features (B, D, h, w) of uint8 pictures."""
        if media.dtype != torch.uint8 or media.ndim != 4:
            raise UserError(
                f"align: {self.extractor.name} sees pictures, uint8 (B, C, H, W), not {media.dtype} of shape "
                f"{tuple(media.shape)}; use align.teacher=self"
            )
        if self.extractor.device != media.device:
            self.extractor.to(media.device)
        with torch.autocast(media.device.type, enabled=False):
            return self.extractor.maps(media)


def places(out: Tensor, size: Sequence[int], patch: Sequence[int] | None) -> tuple[Tensor, tuple[int, ...]]:
    """What a block gives as tokens (B, N, C) in rows of a grid, and the grid.

    A field (B, C, *s) has its own; tokens (B, L, C) are those of patches of a sample of `size`, the last N if there are more
    (those of a condition come first).
    """
    if patch is None:
        flat = out.flatten(2).mT
        inner = tuple(out.shape[2:])
        return flat, inner[1:] if len(inner) > len(size) else inner  # 1-D fields are of height 1 inside a network
    grid = tuple(-(-n // p) for n, p in zip(size, patch))
    return out[:, -math.prod(grid) :], grid


def resampled(tokens: Tensor, grid: tuple[int, ...], to: tuple[int, ...]) -> Tensor:
    """Tokens (B, N, C) of one grid on another (B, N', C): linear where it is finer, means where it is coarser."""
    if grid == to:
        return tokens
    field = tokens.mT.reshape(len(tokens), -1, *grid).float()
    coarser = tuple(min(a, b) for a, b in zip(grid, to))
    pool: Any = (F.adaptive_avg_pool1d, F.adaptive_avg_pool2d, F.adaptive_avg_pool3d)[len(grid) - 1]
    field = pool(field, coarser)
    if coarser != to:
        mode = ("linear", "bilinear", "trilinear")[len(grid) - 1]
        field = F.interpolate(field, to, mode=mode, align_corners=False)
    return field.flatten(2).mT
