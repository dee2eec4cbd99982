"""Scores of a model by its samples: whether they show what was asked, whether they vary, whether they are copies."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from sfumato.conditioners.prompt import literal
from sfumato.data import Data
from sfumato.errors import UserError
from sfumato.evaluate.accuracy import Share, accuracy
from sfumato.evaluate.deviation import deviation
from sfumato.evaluate.frechet import frechet
from sfumato.evaluate.judge import Judge
from sfumato.evaluate.memorization import memorization
from sfumato.evaluate.prdc import prdc
from sfumato.output import Output
from sfumato.pipeline import Pipeline

NEIGHBOURS = 5  # k of the k-nearest-neighbour manifolds
_BATCH = 250


@dataclass(frozen=True)
class Score:
    """One figure. interval: 95%. real: what real items score in the same test. note: what it is, in a few words."""

    value: float
    interval: tuple[float, float] | None = None
    real: float | None = None
    note: str = ""

    @property
    def of_real(self) -> float:
        """value / real."""
        if not self.real:
            raise UserError(f"this score ({self.note}) has no score of real items to be compared with")
        return self.value / self.real


@dataclass(frozen=True)
class Scores:
    """Figures by name, of `n` samples made with `settings`. media: the samples (n, C, H, W), class by class."""

    metrics: Mapping[str, Score]
    n: int
    settings: Mapping[str, Any]
    media: Tensor

    def to_dict(self) -> dict[str, Any]:
        """Plain data: {"n", "metrics": {name: {"value", "interval", "real", "note"}}, "settings"}."""
        return {
            "n": self.n,
            "metrics": {k: asdict(v) for k, v in self.metrics.items()},
            "settings": dict(self.settings),
        }


@dataclass(frozen=True)
class Reals:
    """The real items that samples are measured against: media (N, C, H, W), labels (N,) and the judge's features (N, D)."""

    media: Tensor
    labels: Tensor
    features: Tensor

    @staticmethod
    def of(data: Data, judge: Judge) -> Reals:
        """All items of a split."""
        batch = data.fetch(np.arange(len(data)))
        labels = batch.conditions.get("label")
        if not isinstance(labels, Tensor):
            raise UserError("this data has no labels; scores by class need them")
        return Reals(batch.media, labels, judge.features(batch.media))


def class_prompts(pipeline: Pipeline, data: Data) -> dict[str, Any]:
    """How each class is asked for: by its canonical caption where the model reads captions, else by its label."""
    conditioner = pipeline.model.conditioner
    columns = () if conditioner is None else conditioner.columns
    if "caption" in columns:
        found = data.columns(np.arange(len(data)))
        labels, captions = found.get("label"), found.get("caption")
        if not isinstance(labels, Tensor) or captions is None or isinstance(captions, Tensor):
            raise UserError("this data has no labels beside its captions; scores by class need both")
        listed = labels.tolist()
        return {"prompt": [literal(captions[listed.index(k)]) for k in range(len(data.info.labels))]}
    if "label" in columns:
        return {"label": list(range(len(data.info.labels)))}
    raise UserError("this model can't be asked for a class; train it with conditioner=label or conditioner=text")


def class_scores(
    pipeline: Pipeline,
    data: Data,
    judge: Judge,
    *,
    each: int = 100,
    seed: int = 0,
    guidance: float | None = None,
    steps: int | None = None,
) -> Scores:
    """Ask for every class of `data` `each` times, and measure the samples against the real items and with the judge.

    prompt_accuracy: share of samples that the judge takes for what was asked; real: its accuracy on held-out items.
    near_copies: share nearer to a training item than the 5th percentile of held-out items; real: the held-out share.
    deviation: of pixels within a class (see `deviation`); real: of held-out items.
    coverage_pixels, coverage_features: share of held-out items with a sample in their k-NN ball, from as many samples as
        there are held-out items (mean over disjoint draws); real: from as many training items.
    fd: squared Frechet distance of the samples to held-out items in the judge's features; real: of training items.

    guidance, steps: instead of the model's own settings. A function of its arguments.
    """
    train, held_out = (Reals.of(data.split(part), judge) for part in ("train", "held_out"))
    asked = class_prompts(pipeline, data)
    classes = len(data.info.labels)
    made = pipeline(
        **asked,
        n=each,
        seed=seed,
        num_inference_steps=steps,
        guidance_scale=guidance,
        batch_size=_BATCH,
        output_type="pt",
    )
    media, labels = made.media, torch.arange(classes).repeat_interleave(each)
    features = judge.features(media)
    right = accuracy(judge.predict(media), labels)
    right_on_real = accuracy(judge.predict(held_out.media), held_out.labels)
    copies = memorization(media, train.media, held_out.media)
    distance = frechet(held_out.features, features)
    real_distance = frechet(held_out.features, train.features, resamples=0)
    found = {
        "prompt_accuracy": Score(
            right.value, right.interval, right_on_real.value, "share that the judge takes for what was asked"
        ),
        "near_copies": Score(
            copies.near_copies.value,
            copies.near_copies.interval,
            copies.held_out.value,
            "share nearer to training than 95% of held-out items are",
        ),
        "deviation": Score(
            deviation(media, labels),
            real=deviation(held_out.media, held_out.labels),
            note="of pixels, within a class, in units of 1/255",
        ),
        "coverage_pixels": _coverage(held_out.media, media, train.media, "pixels"),
        "coverage_features": _coverage(held_out.features, features, train.features, "the judge's features"),
        "fd": Score(
            distance.value, distance.interval, real_distance.value, "squared Frechet distance in the judge's features"
        ),
    }
    return Scores(found, len(media), made.settings, media)


def _coverage(held_out: Tensor, samples: Tensor, train: Tensor, space: str) -> Score:
    value, real = (_mean_coverage(held_out, items) for items in (samples, train))
    return Score(
        value, real=real, note=f"share of held-out items with a sample as near as their neighbours, in {space}"
    )


def _mean_coverage(held_out: Tensor, items: Tensor) -> float:
    """Coverage by as many items as there are held-out ones, averaged over disjoint random draws."""
    size = len(held_out)
    if len(items) < size:
        return prdc(held_out, items, NEIGHBOURS).coverage
    order = torch.randperm(len(items), generator=torch.Generator().manual_seed(0))
    draws = [order[first : first + size] for first in range(0, len(items) - size + 1, size)]
    return sum(prdc(held_out, items[draw], NEIGHBOURS).coverage for draw in draws) / len(draws)


Check = Callable[[NDArray[np.uint8], Sequence[str]], NDArray[np.bool_]]


def caption_scores(
    pipeline: Pipeline,
    data: Data,
    check: Check,
    *,
    n: int = 500,
    seed: int = 0,
    guidance: float | None = None,
    steps: int | None = None,
) -> Scores:
    """Ask for captions of `data`, and let a program say which pictures show theirs.

    check: (pictures (N, C, H, W) uint8, N captions) -> (N,) whether they match, such as `sfumato.data.matches_many`.
    prompt_accuracy: on `n` canonical captions from all over the held-out part, one sample each; real: the score of the
        held-out pictures that the captions belong to. prompt_accuracy_seen: the same on the training part.
    near_copies, deviation: of the samples for held-out captions; see `class_scores`.
    """
    held_out, train = data.split("held_out"), data.split("train")
    seen, _ = _checked(pipeline, train, check, n, seed + n, guidance, steps)
    score, made = _checked(pipeline, held_out, check, n, seed, guidance, steps)
    real = held_out.fetch(_spread(held_out, n)).media
    copies = memorization(made.media, train.fetch(np.arange(len(train))).media, real)
    found = {
        "prompt_accuracy": replace(score, note="share that shows its caption, of a combination never trained on"),
        "prompt_accuracy_seen": replace(seen, note="share that shows its caption, of the training part"),
        "near_copies": Score(
            copies.near_copies.value,
            copies.near_copies.interval,
            copies.held_out.value,
            "share nearer to training than 95% of held-out items are",
        ),
        "deviation": Score(deviation(made.media), real=deviation(real), note="of pixels, in units of 1/255"),
    }
    return Scores(found, len(made.media), made.settings, made.media)


def _spread(data: Data, n: int) -> NDArray[np.int64]:
    """n indices from all over a set."""
    if not 1 <= n <= len(data):
        raise UserError(f"n = {n}: this part of the data has {len(data)} items; set n between 1 and that")
    return np.arange(n, dtype=np.int64) * len(data) // n


def _checked(
    pipeline: Pipeline, data: Data, check: Check, n: int, seed: int, guidance: float | None, steps: int | None
) -> tuple[Score, Output]:
    batch = data.fetch(_spread(data, n))
    captions = batch.conditions.get("caption")
    if captions is None or isinstance(captions, Tensor):
        raise UserError("this data has no captions; caption scores need them")
    prompts = [str(caption) for caption in captions]
    made = pipeline(
        list(map(literal, prompts)),  # words of data, in which no part is weighted
        seed=seed,
        num_inference_steps=steps,
        guidance_scale=guidance,
        batch_size=_BATCH,
        output_type="pt",
    )
    shown, real = (check(media.numpy(), prompts) for media in (made.media, batch.media))
    share = Share(int(shown.sum()), n)
    return Score(share.value, share.interval, float(real.mean())), made
