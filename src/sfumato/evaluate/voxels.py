"""Scores of voxel models: are they what was asked, do they vary as real ones do, are they whole, are they copies."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from sfumato.core.random import keys, uniform
from sfumato.data import Data, Pictured, shows
from sfumato.errors import UserError
from sfumato.evaluate.accuracy import Share, accuracy
from sfumato.evaluate.judge import Judge
from sfumato.evaluate.scores import Score, Scores
from sfumato.evaluate.solid_sets import SetScores, chamfer_distance, overlap_distance, set_scores, surface_points
from sfumato.kinds import kind_of
from sfumato.pipeline import Pipeline
from sfumato.request import as_arguments
from sfumato.solid.faces import Surface
from sfumato.solid.grid import in_one_piece
from sfumato.solid.smooth import smooth_surface

POINTS = 256  # of a surface, for the Chamfer distance
DRAWS = 3  # of as many training models as there are samples, for real against real
_BATCH = 32
_PERCENTILE = 5.0
_Measure = Callable[[Tensor, Tensor], Tensor]
_NAMES = {"iou": "1 - IoU of occupied cells", "cd": "Chamfer distance of surface points"}


@dataclass(frozen=True)
class _Reals:
    """The models of a part: media (N, 4, X, Y, Z) and labels (N,)."""

    media: Tensor
    labels: Tensor | None

    @property
    def occupied(self) -> Tensor:
        return self.media[:, 3] > 127

    @staticmethod
    def of(data: Data) -> _Reals:
        batch = data.fetch(np.arange(len(data)))
        labels = batch.conditions.get("label")
        return _Reals(batch.media, labels if isinstance(labels, Tensor) else None)


def voxel_scores(
    pipeline: Pipeline,
    data: Data,
    judge: Judge | None,
    *,
    each: int = 4,
    points: int = POINTS,
    seed: int = 0,
    guidance: float | None = None,
    steps: int | None = None,
) -> Scores:
    """Ask for what each held-out model shows, `each` times, and measure the samples against the held-out models.

    category_accuracy: share of samples that the judge takes for the category of their model; real: its accuracy on the
        held-out models. Only where there are labels and a judge.
    mmd_*, cov_*, nna_*: the first sample of each against the held-out models (`solid_sets`), under 1 - IoU (`iou`) and
        Chamfer distance (`cd`); real: of as many training models, the mean over 3 draws.
    single_component: share of models whose occupied cells hang together through faces; real: of held-out models.
    watertight: share that give a closed surface (an empty model gives none); real: of held-out models.
    near_copies: share of samples nearer to a training model (1 - IoU, mirrored ones too) than 5% of held-out models are.

    guidance, steps: instead of the model's own settings. A function of its arguments. Cost on one core beside the samples,
    109 held-out models of 32^3: twenty seconds.
    """
    if kind_of(data.info).kind != "voxels":
        raise UserError(f"voxel scores are for voxel models, and this data is '{data.info.kind}'; leave them out")
    held_out, train = (_Reals.of(data.split(part)) for part in ("held_out", "train"))
    made = pipeline(
        **_asked(pipeline, data.split("held_out"), held_out),
        n=each,
        seed=seed,
        num_inference_steps=steps,
        guidance_scale=guidance,
        batch_size=_BATCH,
        output_type="pt",
    )
    samples = made.media
    found = _categories(judge, samples, held_out, each)
    found |= _sets(samples[::each, 3] > 127, held_out.occupied, train.occupied, points, seed, pipeline.model.device)
    found |= _whole(samples[:, 3] > 127, held_out.occupied)
    found["near_copies"] = _copies(samples[:, 3] > 127, train.occupied, held_out.occupied)
    return Scores(found, len(samples), made.settings, samples)


def solid_scores(
    pipeline: Pipeline,
    data: Data,
    *,
    n: int = 200,
    seed: int = 0,
    guidance: float | None = None,
    steps: int | None = None,
) -> Scores:
    """Ask for `n` captions of held-out combinations and `n` of the training part, and let a program read the samples.

    data: `Solids`, or these `Pictured`: a model that is asked by pictures gets one of each, each from another side.
    prompt_accuracy, prompt_accuracy_seen: share of models that show their caption in every word, and nothing else; real: of
    the models that the captions belong to. single_component: share in one piece, of all samples. A function of its arguments.
    """
    found: dict[str, Score] = {}
    media: list[Tensor] = []
    settings: dict[str, Any] = {}
    words = {"prompt_accuracy": "of a combination never trained on", "prompt_accuracy_seen": "of the training part"}
    for number, (part, name) in enumerate((("held_out", "prompt_accuracy"), ("train", "prompt_accuracy_seen"))):
        split = data.split("held_out" if part == "held_out" else "train")
        count = min(n, len(split))
        if not count:
            raise UserError(f"the {part} part of the solids is empty; set count to 100 or more")
        views = uniform(keys(seed, f"view/{part}", np.arange(count))) if isinstance(data, Pictured) else None
        batch = split.fetch(np.arange(count) * len(split) // count, views)
        captions = [str(text) for text in batch.conditions["caption"]]
        if lacking := [column for column in _columns(pipeline) or ("caption",) if column not in batch.conditions]:
            raise UserError(
                f"the model is asked by {lacking[0]}, which this data has not; give the data it was trained on"
            )
        made = pipeline(
            **as_arguments({column: batch.conditions[column] for column in _columns(pipeline)}),
            seed=seed + number * n,
            num_inference_steps=steps,
            guidance_scale=guidance,
            batch_size=_BATCH,
            output_type="pt",
        )
        share = _share(shows(made.media.numpy(), captions).tolist())
        real = float(shows(batch.media.numpy(), captions).mean())
        found[name] = Score(share.value, share.interval, real, f"share that shows its caption, {words[name]}")
        media.append(made.media)
        settings = settings or made.settings
    samples = torch.cat(media)
    whole = _share(in_one_piece(samples[:, 3] > 127))
    found["single_component"] = Score(whole.value, whole.interval, note="share in one piece, through faces")
    return Scores(found, len(samples), settings, samples)


def _asked(pipeline: Pipeline, held_out: Data, reals: _Reals) -> Mapping[str, Any]:
    """What each held-out model shows, in the words of the model."""
    columns = _columns(pipeline)
    if set(columns) - {"caption", "label"}:  # pictures
        found = held_out.columns(np.arange(len(held_out)))
        return as_arguments({column: found[column] for column in columns})
    if "caption" in columns:
        captions = held_out.columns(np.arange(len(held_out))).get("caption")
        if captions is None or isinstance(captions, Tensor):
            raise UserError("this data has no captions, and the model is asked by captions; give its own data")
        return {"prompt": [str(caption) for caption in captions]}
    if "label" in columns and reals.labels is not None:
        return {"label": reals.labels.tolist()}
    return {"n": len(held_out)}


def _columns(pipeline: Pipeline) -> tuple[str, ...]:
    """What the model is asked by."""
    return () if pipeline.model.conditioner is None else pipeline.model.conditioner.columns


def _categories(judge: Judge | None, samples: Tensor, held_out: _Reals, each: int) -> dict[str, Score]:
    if judge is None or held_out.labels is None:
        return {}
    right = accuracy(judge.predict(samples), held_out.labels.repeat_interleave(each))
    real = accuracy(judge.predict(held_out.media), held_out.labels)
    note = "share that the judge takes for the category asked for"
    return {"category_accuracy": Score(right.value, right.interval, real.value, note)}


def _sets(
    samples: Tensor, held_out: Tensor, train: Tensor, points: int, seed: int, device: torch.device
) -> dict[str, Score]:
    """The distances are measured on `device`."""
    n = len(held_out)
    if len(train) < n:
        raise UserError(f"{len(train)} training models are fewer than the {n} held-out ones; lower held_out")
    draws = [np.argsort(keys(seed, f"real/{draw}", np.arange(len(train))), kind="stable")[:n] for draw in range(DRAWS)]
    found: dict[str, Score] = {}
    for name, space in _NAMES.items():
        see, measure = _SPACES[name]
        reference = see(held_out, points, seed).to(device)
        among = measure(reference, reference)
        ours, *real = (
            _against(see(grids, points, seed).to(device), reference, among, measure)
            for grids in (samples, *(train[draw] for draw in draws))
        )
        mean = {key: float(np.mean([getattr(one, key) for one in real])) for key in ("mmd", "cov", "nna")}
        found[f"mmd_{name}"] = Score(ours.mmd, real=mean["mmd"], note=f"held-out models to the nearest sample, {space}")
        found[f"cov_{name}"] = Score(
            ours.cov, real=mean["cov"], note=f"held-out models that are a sample's nearest, {space}"
        )
        note = f"nearest other model is of the same set, 0.5 is best, {space}"
        found[f"nna_{name}"] = Score(ours.nna, ours.nna_interval, mean["nna"], note)
    return found


def _against(those: Tensor, reference: Tensor, among: Tensor, measure: _Measure) -> SetScores:
    return set_scores(measure(those, those), measure(those, reference), among)


def _grids(occupied: Tensor, points: int, seed: int) -> Tensor:
    return occupied


def _points(occupied: Tensor, points: int, seed: int) -> Tensor:
    return surface_points(occupied, points, seed=seed)


_SPACES: dict[str, tuple[Callable[[Tensor, int, int], Tensor], _Measure]] = {
    "iou": (_grids, overlap_distance),
    "cd": (_points, chamfer_distance),
}


def _whole(samples: Tensor, held_out: Tensor) -> dict[str, Score]:
    single, tight = ([_share(f(grids)) for grids in (samples, held_out)] for f in (in_one_piece, _watertight))
    return {
        "single_component": Score(
            single[0].value, single[0].interval, single[1].value, "share in one piece, through faces"
        ),
        "watertight": Score(tight[0].value, tight[0].interval, tight[1].value, "share with a closed surface"),
    }


def _share(which: list[bool]) -> Share:
    return Share(sum(which), len(which))


def _watertight(occupied: Tensor) -> list[bool]:
    return [is_closed(smooth_surface(np.stack([grid.numpy().astype(np.uint8) * 255] * 4))) for grid in occupied]


def is_closed(surface: Surface) -> bool:
    """Whether there are triangles and each of their edges belongs to exactly two, once in each direction."""
    if not len(surface.triangles):
        return False
    ends = np.concatenate([surface.triangles[:, [a, b]] for a, b in ((0, 1), (1, 2), (2, 0))])
    key = ends[:, 0] * len(surface.vertices) + ends[:, 1]
    back = ends[:, 1] * len(surface.vertices) + ends[:, 0]
    ordered = np.sort(key)
    return bool((ordered[1:] != ordered[:-1]).all()) and np.array_equal(ordered, np.sort(back))


def _copies(samples: Tensor, train: Tensor, held_out: Tensor) -> Score:
    bank = torch.cat([train, train.flip(1)])
    nearest = overlap_distance(held_out, bank).amin(1)
    threshold = float(nearest.double().quantile(_PERCENTILE / 100))
    share = Share(int((overlap_distance(samples, bank).amin(1) < threshold).sum()), len(samples))
    real = float((nearest < threshold).double().mean())
    return Score(share.value, share.interval, real, "share nearer to training than 95% of held-out models are")
