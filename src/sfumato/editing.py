"""Samples that begin with media: variations, parts filled in, clips continued, and sizes that a model was not trained
on.

Nothing here knows what the media are: pictures, sounds and voxels are tensors (B, C, *S), and a mask says what stays.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, final

import torch
from torch import Tensor
from torch.nn import functional as F

from sfumato.codecs import Codec
from sfumato.core import Cond, DataInfo, Denoiser, Process, SampleNoise, lift
from sfumato.errors import UserError
from sfumato.kinds import kind_of
from sfumato.model import resting
from sfumato.output import Output
from sfumato.pipeline import OnStepEnd, Pipeline, Plan
from sfumato.samplers import sample, start

_FADE = 0.004  # seconds over which a sound that stays goes over into one that is made


@final
@dataclass(frozen=True)
class Edit:
    """What a sample begins with.

    media: (B, C, *S) as data sets hold them; one for all samples, or one each. None for noise alone.
    known: (1 or B, 1, *S) bool, True where the media stay as they are; None: nowhere. strength: how far back into noise
    the walk begins, above 0 and at most 1; 1 keeps nothing of what is not known. size: of the sample, where it differs
    from the model's; a shorter sound is cut from one of the model's own length.
    """

    media: Tensor | None = None
    known: Tensor | None = None
    strength: float = 1.0
    size: tuple[int, ...] | None = None

    def __post_init__(self) -> None:
        if not 0 < self.strength <= 1:
            raise UserError(
                f"strength={self.strength:g}: must be above 0 (nothing changes) and at most 1 (everything does)"
            )
        if self.media is None and (self.known is not None or self.strength < 1):
            raise UserError("strength= and a part to keep need something to begin with; give init=")
        if self.known is not None and self.media is not None and self.known.shape[2:] != self.media.shape[2:]:
            raise UserError(
                f"a mask of size {tuple(self.known.shape[2:])} does not fit media of size {tuple(self.media.shape[2:])}"
            )


def edit(
    pipeline: Pipeline,
    media: Tensor | None = None,
    *,
    known: Tensor | None = None,
    strength: float = 1.0,
    size: Sequence[int] | None = None,
    batch_size: int = 64,
    **call: Any,
) -> Output:
    """Samples of a pipeline that begin with media; see `Edit`. call: as for the pipeline itself (prompt, seed, n, ...).

    `strength=0.6` makes variations of media; `known=mask` fills in the rest; `size=` draws a longer sound or a larger
    picture.
    """
    made = Edit(media, known, strength, None if size is None else tuple(size))
    plan = pipeline.plan(**{k: v for k, v in call.items() if k != "output_type"})
    found = torch.cat(list(run(pipeline, plan, made, batch_size)))
    info, request = pipeline.model.info, plan.request
    images = [kind_of(info).picture(item, info) for item in found]
    return Output(found, images, request.seeds, request.texts, plan.settings, info)


def extend(
    pipeline: Pipeline, media: Tensor, length: int, *, overlap: float = 0.5, seed: int = 0, **call: Any
) -> Tensor:
    """A sound or other media (C, L) continued along its last axis to `length`, window by window: (C, length).

    Every window of the model's own length begins with the last `overlap` of what is there. Cost: one sample for each
    (1 - overlap) of a window.
    """
    window = pipeline.model.info.shape[-1]
    if not 0 < overlap < 1:
        raise UserError(f"overlap={overlap:g}: the share of a window that is there already, above 0 and below 1")
    kept = max(1, min(round(overlap * window), window - 1))
    whole, number = media, 0
    while whole.shape[-1] < length:
        tail = whole[..., -kept:]
        begin = torch.zeros(*whole.shape[:-1], window, dtype=whole.dtype)
        begin[..., : tail.shape[-1]] = tail
        known = torch.zeros(1, 1, *begin.shape[1:], dtype=torch.bool)
        known[..., : tail.shape[-1]] = True
        made = edit(pipeline, begin[None], known=known, seed=seed + number, **call).media[0]
        whole, number = torch.cat([whole, made[..., tail.shape[-1] :]], -1), number + 1
    return whole[..., :length]


def run(
    pipeline: Pipeline, plan: Plan, asked: Edit, batch_size: int = 64, callback_on_step_end: OnStepEnd | None = None
) -> Iterator[Tensor]:
    """As `Pipeline.run`: the samples of a plan as media (B, C, *S) on the CPU, at most `batch_size` at a time."""
    total, done = len(plan.request.seeds), 0
    for part in (asked.media, asked.known):
        if part is not None and len(part) not in (1, total):
            raise UserError(f"{len(part)} media to begin with for {total} samples; give one, or one a sample")
    for batch, real in plan.request.batches(batch_size):
        rows = [min(i, total - 1) for i in range(done, done + len(batch.seeds))]
        here = replace(asked, media=_rows(asked.media, rows), known=_rows(asked.known, rows))
        with torch.no_grad(), resting(pipeline.model):
            made = _drawn(pipeline, replace(plan, request=batch), here, callback_on_step_end)
        done += real
        yield made[:real]


def _rows(part: Tensor | None, rows: list[int]) -> Tensor | None:
    if part is None:
        return None
    return part.expand(len(rows), *part.shape[1:]) if len(part) == 1 else part[rows]


def _drawn(pipeline: Pipeline, plan: Plan, asked: Edit, callback: OnStepEnd | None) -> Tensor:
    """The media of one batch, on the CPU."""
    model = pipeline.model
    codec, process = model.codec, model.denoiser.process
    times = plan.grid(process, plan.solver.intervals(process, plan.steps))
    skipped = min(round((1 - asked.strength) * (len(times) - 1)), len(times) - 1 - max(1, plan.solver.fewest))
    times = times[max(0, skipped) :]
    x0, known = _begun(codec, model.info, asked, model.device)
    shape = _shape(codec, model.info, asked.size) if x0 is None else tuple(x0.shape[1:])
    noise = SampleNoise(plan.request.seeds)
    eps = noise.prior(shape, device=model.device)
    x = start(process, eps, times[0])
    denoiser, cond = pipeline.guided(plan, times)
    if x0 is not None:
        held = known if asked.strength == 1 and known is not None else None
        shown = x0 if held is None else x0 * held
        if asked.strength < 1 or held is not None:
            x = x + lift(process.alpha(times[0]), x0) * shown
        if known is not None:
            denoiser = Known(denoiser, x0, known)

    def on_step(done: int, t: Tensor, state: Tensor) -> Tensor | None:
        return None if callback is None else (callback(pipeline, done - 1, t, {"x": state}) or {}).get("x")

    made = codec.decode(sample(denoiser, plan.solver, x, times, cond, noise=noise, on_step=on_step)).cpu()
    made = made if asked.media is None else _joined(made, asked, model.info)
    for axis, n in enumerate(asked.size or (), 2):
        made = made.narrow(axis, 0, min(n, made.shape[axis]))
    return made


def _shape(codec: Codec, info: DataInfo, size: tuple[int, ...] | None) -> tuple[int, ...]:
    """Of x0, for media of this size."""
    if size is None:
        return codec.shape
    own, latent = info.shape[1:], codec.shape[1:]
    if len(size) != len(own) or min(size) < 1:
        raise UserError(
            f"size={size}: this model makes media of {len(own)} axes, {tuple(own)}; give one number for each"
        )
    least = own if info.kind == "audio" else size
    return (codec.shape[0], *(math.ceil(max(n, m) * b / a) for n, m, a, b in zip(size, least, own, latent)))


def _begun(codec: Codec, info: DataInfo, asked: Edit, device: torch.device) -> tuple[Tensor | None, Tensor | None]:
    """x0 of the media, and the mask of its positions that are known whole."""
    if asked.media is None:
        return None, None
    if asked.media.shape[1] != info.shape[0] or asked.media.ndim != len(info.shape) + 1:
        raise UserError(
            f"init: media of shape {tuple(asked.media.shape[1:])} are not what this model makes, {tuple(info.shape)}"
        )
    x0 = codec.whiten(codec.encode(asked.media.to(device)))
    if asked.known is None:
        return x0, None
    mask = asked.known.to(device).float()
    size = x0.shape[2:]
    if mask.shape[2:] != size:  # a position is known if all media that it is made of are, and its neighbours'
        mask = -_largest(-_resized(mask, size))
    return x0, mask > 0.999


def _resized(mask: Tensor, size: Sequence[int]) -> Tensor:
    """The smallest value of the media of every position."""
    pool = (F.adaptive_max_pool1d, F.adaptive_max_pool2d, F.adaptive_max_pool3d)[mask.ndim - 3]
    made: Tensor = -pool(-mask, list(size) if len(size) > 1 else size[0])
    return made


def _largest(values: Tensor) -> Tensor:
    """The largest value among each position and its neighbours."""
    pool = (F.max_pool1d, F.max_pool2d, F.max_pool3d)[values.ndim - 3]
    made: Tensor = pool(values, 3, stride=1, padding=1)
    return made


@final
class Known(Denoiser):
    """A denoiser of data of which a part is known: D' = x0 there, D elsewhere.

    Where x_t = alpha x0 + sigma eps at the start, it stays so on any deterministic walk, exactly, and ends at x0: the
    rest is drawn beside a part that is noised as training noised it. Song et al., "Score-based generative modeling
    through stochastic differential equations", 2021, appendix I.2, with one eps for all times.
    """

    def __init__(self, denoiser: Denoiser, x0: Tensor, known: Tensor) -> None:
        self.denoiser, self.x0, self.known = denoiser, x0, known

    @property
    def process(self) -> Process:
        return self.denoiser.process

    def __call__(self, x_t: Tensor, t: Tensor, cond: Cond | None = None) -> Tensor:
        return torch.where(self.known, self.x0.to(x_t.dtype), self.denoiser(x_t, t, cond))


def _joined(made: Tensor, asked: Edit, info: DataInfo) -> Tensor:
    """What was made, with what is known put back as it was; sounds go over into one another."""
    if asked.known is None or asked.media is None:
        return made
    media, known = asked.media.cpu(), asked.known.cpu()
    if media.shape[2:] != made.shape[2:]:
        for axis, n in enumerate(media.shape[2:], 2):
            made = made.narrow(axis, 0, n)
    if info.kind != "audio":
        return torch.where(known, media.to(made.dtype), made)
    half = max(1, int(_FADE * info.rate / 2))
    weight = known.float()
    inner = -F.max_pool1d(F.pad(-weight, (half, half), mode="replicate"), 2 * half + 1, stride=1)
    weight = F.avg_pool1d(F.pad(inner, (half, half), mode="replicate"), 2 * half + 1, stride=1)
    return media * weight + made * (1 - weight)
