"""Scores of samples in the features of an extractor: distances to training and held-out data, fidelity, variety."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import astuple, dataclass
from typing import Any, final

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from sfumato.conditioners.prompt import literal
from sfumato.core.random import keys, uniform
from sfumato.data import Data
from sfumato.errors import UserError
from sfumato.evaluate.extractor import Extractor
from sfumato.evaluate.frechet import frechet
from sfumato.evaluate.kid import kid
from sfumato.evaluate.prdc import prdc, prdc_intervals
from sfumato.evaluate.scores import NEIGHBOURS, Score
from sfumato.pipeline import Pipeline
from sfumato.request import ASKED, as_arguments

SAMPLES = 10_000  # by default, and at most where every item is compared with every other
REAL = 50_000  # training items that a Frechet distance is measured to, at most

OnWork = Callable[[str, int, int], None]  # (what of: "samples", "training items", "held-out items"; done; in all)


@final
@dataclass(frozen=True)
class FeatureScores:
    """Figures by name of `n` samples. settings: plain data, all that a figure depends on but the samples themselves."""

    metrics: Mapping[str, Score]
    n: int
    settings: Mapping[str, Any]


def feature_scores(
    real: Data,
    samples: Tensor | Iterable[Tensor],
    extractor: Extractor | Sequence[Extractor],
    *,
    k: int = NEIGHBOURS,
    most: int = SAMPLES,
    most_real: int = REAL,
    on_work: OnWork | None = None,
) -> FeatureScores:
    """Measure samples, uint8 pictures (N, C, H, W) or batches of them, against both parts of `real`, by every extractor.

    With NAME the extractor's, for example `wrn16-4` (see `scores_between` for what each is):
    fd_NAME: Frechet distance to the training items (`fid` for the true Inception). fd_held_out_NAME: to the held-out ones.
    kid_NAME, precision_NAME, recall_NAME, density_NAME, coverage_NAME: against held-out items.

    most_real: training and held-out items for the Frechet distances at most, the same random ones every time. most: samples
    and real items for the rest at most. Features of all real items are held at once, pictures only by batches.
    A function of its arguments.
    """
    extractors = [extractor] if isinstance(extractor, Extractor) else list(extractor)
    names = _names(extractors)
    train, held_out = real.split("train"), real.split("held_out")
    if real.info.kind != "image" or len(real.info.shape) != 3:
        raise UserError(f"features are those of pictures, not of {real.info.kind} items of shape {real.info.shape}")
    for part, name in ((train, "training"), (held_out, "held-out")):
        if len(part) < 2:
            raise UserError(f"the {name} part of the data has {len(part)} items; set held_out so that both have some")
    said = on_work or (lambda what, done, of: None)
    batches = torch.split(samples, max(e.batch for e in extractors)) if isinstance(samples, Tensor) else samples
    of_samples = _through(extractors, batches)
    of_train = _through(extractors, _fetched(train, choose(len(train), most_real), "training items", said))
    of_held_out = _through(extractors, _fetched(held_out, choose(len(held_out), most_real), "held-out items", said))
    metrics: dict[str, Score] = {}
    about = []
    for e, name, x, h, y in zip(extractors, names, of_train, of_held_out, of_samples):
        special = {"fd": "fid", "fd_held_out": "fid_held_out"} if e.is_fid else {}
        found = scores_between(x, h, y, k=k, most=most)
        named = {special.get(key, f"{key}_{name}"): score for key, score in found.items()}
        metrics |= named
        about.append({**e.about(), "dims": y.shape[1], "scores": list(named)})
    counts = [len(found[0]) for found in (of_train, of_held_out, of_samples)]
    settings = {
        **dict(zip(("training_items", "held_out_items", "samples"), counts)),
        "compared": min(*counts, most),
        "k": k,
        "extractors": about,
    }
    return FeatureScores(metrics, counts[-1], settings)


def scores_between(
    train: Tensor, held_out: Tensor, samples: Tensor, *, k: int = NEIGHBOURS, most: int = SAMPLES
) -> dict[str, Score]:
    """Features (T, D) of training items, (H, D) of held-out ones and (N, D) of samples, compared.

    fd: squared Frechet distance of the samples to the training items; real: of min(N, H) held-out items to them.
    fd_held_out: of the samples to the held-out items; real: of min(N, T) training items to them.
    kid, precision, recall, density, coverage: of m = min(N, H, T, most) samples against m held-out items; real: of m
        training items against these. `k` is the neighbour at whose distance a ball ends.

    Each with a 95% interval. The Frechet distance falls with the number of items: where H < N its score of real items is one
    of fewer items, and more than N would score.
    """
    if (m := min(len(train), len(held_out), len(samples), most)) < 2:
        raise UserError(f"{m} item can't be scored; give at least 2 samples, training and held-out items")
    h, x, y = (rows[torch.from_numpy(choose(len(rows), m)).to(rows.device)] for rows in (held_out, train, samples))
    found = {
        "fd": _frechet(train, samples, held_out, "training", "held-out"),
        "fd_held_out": _frechet(held_out, samples, train, "held-out", "training"),
    }
    kernel = kid(h, y)
    about = f"{m:,} samples against {m:,} held-out items"
    found["kid"] = Score(kernel.value, kernel.interval, kid(h, x).value, f"squared kernel distance, {about}")
    ours, reals = prdc(h, y, k), prdc(h, x, k)
    intervals = prdc_intervals(h, y, k, found=ours)
    for name, at, real in zip(intervals, astuple(ours), astuple(reals)):
        found[name] = Score(at, intervals[name], real, f"{about}, k = {k}")
    return found


def _frechet(real: Tensor, samples: Tensor, others: Tensor, of: str, of_others: str) -> Score:
    """The distance of the samples to `real`; for comparison that of as many `others`, which are real too."""
    found = frechet(real, samples)
    some = others[torch.from_numpy(choose(len(others), len(samples))).to(others.device)]
    by_others = frechet(real, some, resamples=0).value
    note = f"squared Frechet distance, {len(samples):,} samples to {len(real):,} {of} items, interval: {found.method}"
    fewer = "" if len(some) == len(samples) else f"; real: of only {len(some):,} {of_others} items, so rather too high"
    return Score(found.value, found.interval, by_others, note + fewer)


def choose(n: int, most: int) -> NDArray[np.int64]:
    """At most `most` of n indices, the same ones every time, random so that no order of the items can matter."""
    if n <= most:
        return np.arange(n, dtype=np.int64)
    order = np.argsort(keys(0, "features", np.arange(n)), kind="stable")[:most]
    return np.sort(order).astype(np.int64)


def _names(extractors: Sequence[Extractor]) -> list[str]:
    """The names of the extractors, with the beginning of the hash where two have one name."""
    if not extractors:
        raise UserError("scores in features need at least one extractor; give a judge, or open_extractor(...)")
    if len({(e.sha256, e.resize) for e in extractors}) < len(extractors):
        raise UserError("one extractor is given twice; leave one out")
    plain = [e.name for e in extractors]
    return [f"{e.name}-{e.sha256[:6]}" if plain.count(e.name) > 1 else e.name for e in extractors]


def _fetched(part: Data, indices: NDArray[np.int64], what: str, said: OnWork, size: int = 500) -> Iterator[Tensor]:
    for first in range(0, len(indices), size):
        yield part.fetch(indices[first : first + size]).media
        said(what, min(first + size, len(indices)), len(indices))


def _through(extractors: Sequence[Extractor], batches: Iterable[Tensor]) -> list[Tensor]:
    """Features of all batches by each extractor, (N, D) each."""
    rows: list[list[Tensor]] = [[] for _ in extractors]
    for media in batches:
        for extractor, found in zip(extractors, rows):
            found.append(extractor(media))
    if not rows[0]:
        raise UserError("there are no samples to score; draw at least 2")
    return [torch.cat(found) for found in rows]


# ---------------------------------------------------------------- samples of a model


@final
@dataclass(frozen=True)
class Drawing:
    """n samples that a pipeline will draw. batches: uint8 media (B, C, H, W), once. settings: how, as plain data."""

    batches: Iterator[Tensor]
    n: int
    settings: Mapping[str, Any]


def draw(
    pipeline: Pipeline,
    data: Data,
    n: int = SAMPLES,
    *,
    seed: int = 0,
    guidance: float | None = None,
    steps: int | None = None,
    batch: int = 250,
    on_work: OnWork | None = None,
) -> Drawing:
    """n samples of a model, in no order: sample i has the seed `seed + i`.

    A conditional model is asked what random training items of `data` are asked by (class, one of the captions, numbers), so
    that conditions are as frequent as in the data. guidance, steps: instead of the model's own settings.
    """
    conditioner = pipeline.model.conditioner
    columns = () if conditioner is None else conditioner.columns
    asked = asked_by(data.split("train"), columns, n, seed) if columns else {}
    plan = pipeline.plan(**asked, n=1 if asked else n, seed=seed, num_inference_steps=steps, guidance_scale=guidance)
    said = on_work or (lambda what, done, of: None)

    def batches() -> Iterator[Tensor]:
        done = 0
        for media in pipeline.run(plan, batch):
            yield media
            done += len(media)
            said("samples", done, n)

    settings = {k: v for k, v in plan.settings.items() if k not in (*ASKED, "n", "seed", "guidance_scale")}
    scale = None if plan.guidance is None else (plan.guidance.scale if guidance is None else guidance)
    return Drawing(batches(), n, {"seed": seed, "asked_by": list(columns), "guidance_scale": scale, **settings})


def asked_by(train: Data, columns: Sequence[str], n: int, seed: int) -> dict[str, Any]:
    """What n random training items are asked by, as arguments of a pipeline; items come again where there are fewer."""
    if len(train) == 0:
        raise UserError("the training part of the data is empty; give data= with items in it")
    order = np.argsort(keys(seed, "asked", np.arange(len(train))), kind="stable")
    found = train.columns(np.resize(order, n), uniform(keys(seed, "caption", np.arange(n))))
    if lacking := [column for column in columns if column not in found]:
        raise UserError(f"the model is asked by {lacking[0]}, which this data has not; give the data it was trained on")
    listed = {column: found[column] for column in columns}
    if (captions := listed.get("caption")) is not None and not isinstance(captions, Tensor):
        listed["caption"] = list(map(literal, captions))  # words of data, in which no part is weighted
    return as_arguments(listed)
