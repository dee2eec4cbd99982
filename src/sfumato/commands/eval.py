"""`sfumato eval`: scores of a model on the held-out part of its data."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any, final

from rich.console import Console

from sfumato.commands.say import columns, duration, say, say_json
from sfumato.commands.words import RUNS, check_keys, find_model, only_settings, whole_number
from sfumato.data import Data, open_data
from sfumato.errors import UserError, did_you_mean
from sfumato.evaluate import Judge, OdeLikelihood, Score, VariationalBound, class_scores, held_out_loss, nll
from sfumato.modelfolder import find_folder
from sfumato.pipeline import Pipeline
from sfumato.recipes import load_recipe
from sfumato.recipes.image import title_of
from sfumato.recipes.judges import judge_of
from sfumato.spec import Spec, check_arguments, parameters
from sfumato.train import Run, Terminal
from sfumato.train.device import choose_device

RESULT = "eval.json"
DEFAULT = "held_out,nll"
OF_SAMPLES = ("prompt_accuracy", "near_copies", "deviation", "coverage_pixels", "coverage_features", "fd")
_GROUP = "class_scores"  # all of them
_METRICS = ("held_out", "nll", "bound", _GROUP, *OF_SAMPLES)
_KEYS = ("metrics", "n", "seed", "batch", "dtype", "data")
_ITEMS = 512  # by default, where there are as many


@final
@dataclass(frozen=True)
class _HeldOut:
    """Settings of the held-out loss."""

    levels: int = 8


@final
@dataclass(frozen=True)
class _Samples:
    """Settings of scores of samples: how many of each class, and how they are drawn if not as the model says."""

    each: int = 100
    guidance: float | None = None
    steps: int | None = None


# Settings of each metric: KEY, or METRIC.KEY where two metrics have that key.
_SETTINGS: dict[str, type] = {"held_out": _HeldOut, "nll": OdeLikelihood, "bound": VariationalBound, _GROUP: _Samples}


@final
@dataclass(frozen=True)
class _Job:
    """What is asked. own: the settings of each metric."""

    pipeline: Pipeline
    data: Data
    title: str
    n: int
    batch: int
    seed: int
    own: dict[str, Any]


@final
@dataclass(frozen=True)
class _Found:
    """What a metric found: scores by name, how they came about, and the judge whose features they are measured in."""

    scores: Mapping[str, Score]
    settings: dict[str, Any]
    judge: Judge | None = None


def evaluate(source: str, words: Sequence[str], *, device: str, as_json: bool) -> None:
    """Score a model, print the scores and keep them in the run's eval.json."""
    began = time.monotonic()
    settings = only_settings(words)
    place = find_model(source)
    folder = find_folder(place)
    run = next((path for path in (place, folder.parent) if (path / "recipe.yaml").is_file()), None)
    asked = _asked(settings.pop("metrics", DEFAULT))
    of_data = {key: settings.pop(key) for key in list(settings) if key == "data" or key.startswith("data.")}
    own = _own_settings(settings, asked)
    choose_device(device)
    spec = _data_of(run, of_data)
    job = _job(Pipeline.from_pretrained(folder), spec, settings, own)
    job.pipeline.to(choose_device(device), settings.get("dtype"))
    found = {metric: _WORK[metric](job) for metric in dict.fromkeys(map(_group_of, asked))}
    result = _result(job, spec, str(run if run is not None else folder), found)
    scores = {name: score for one in found.values() for name, score in one.scores.items()}
    kept = {name: score for name, score in scores.items() if name in asked or _group_of(name) in asked}
    result["metrics"] = {k: {"value": s.value, "interval": s.interval, "real": s.real} for k, s in kept.items()}
    if run is not None:
        Run(run).write(RESULT, result)
    if as_json:
        say_json(result)
        return
    say(f"{result['run']}: {job.n:,} held-out items of {job.title}, {duration(time.monotonic() - began)}")
    say(columns([_line(name, score) for name, score in kept.items()], indent="  "))
    if run is not None:
        say(f"  kept in {run / RESULT}")


def _result(job: _Job, spec: Spec[Data], name: str, found: Mapping[str, _Found]) -> dict[str, Any]:
    """The object that is printed and kept, its metrics still empty."""
    judge = next((one.judge for one in found.values() if one.judge is not None), None)
    shared = {"data": spec.to_dict(), "fingerprint": job.data.fingerprint(), "part": "held_out", "seed": job.seed}
    return {
        "run": name,
        "data": job.title,
        "n": job.n,
        "metrics": {},
        "features": {
            "name": None if judge is None else f"judge of {job.title}",
            "sha256": None if judge is None else judge.weights_sha256,
        },
        "settings": {**shared, **{metric: one.settings for metric, one in found.items()}},
    }


def _line(name: str, score: Score) -> list[str]:
    spread = "" if score.interval is None else "{:.4g} ... {:.4g}".format(*score.interval)
    real = "" if score.real is None else f"real {score.real:.4g}"
    return [name, f"{score.value:.4f}", spread, real, score.note]


# ---------------------------------------------------------------- what is asked


def _asked(text: str) -> list[str]:
    asked = [name.strip() for name in text.split(",") if name.strip()]
    if not asked:
        raise UserError(f"metrics={text}: name at least one of {', '.join(_METRICS)}")
    for name in asked:
        if name not in _METRICS:
            raise UserError(f"metrics={name}: there is no such metric; {did_you_mean(name, _METRICS)}")
    return asked


def _group_of(name: str) -> str:
    return _GROUP if name in OF_SAMPLES else name


def _own_settings(settings: dict[str, str], asked: Sequence[str]) -> dict[str, Any]:
    """Take the metrics' own settings out of `settings`: `draws=4`, or `bound.steps=1000` where two have such a key."""
    paths = [f"{metric}.{key}" for metric, cls in _SETTINGS.items() for key in parameters(cls)]
    taken: dict[str, dict[str, Any]] = {metric: {} for metric in _SETTINGS}
    used = set(map(_group_of, asked))
    for key in [key for key in settings if key not in _KEYS]:
        ends = [path for path in paths if path == key or path.rpartition(".")[2] == key]
        ends = [path for path in ends if path.partition(".")[0] in used] or ends
        if len(ends) > 1:
            raise UserError(f"{key}= could mean {' or '.join(ends)}; write the whole name")
        if ends:
            metric, _, name = ends[0].partition(".")
            if metric not in used:
                raise UserError(f"{key}= is a setting of metrics={metric}, which is not asked for; leave it out")
            taken[metric][name] = settings.pop(key)
    known = [*_KEYS, *paths, *(path.rpartition(".")[2] for path in paths)]
    check_keys(settings, known, "eval")
    return {
        metric: cls(**check_arguments(cls, taken[metric], name=f"metrics={metric}"))
        for metric, cls in _SETTINGS.items()
    }


def _data_of(run: Path | None, asked: dict[str, str]) -> Spec[Data]:
    """The data of the run's recipe, or those that `data=` names."""
    if run is not None:
        spec: Spec[Data] = load_recipe(run, asked).data
        return spec
    if "data" not in asked:
        raise UserError("this model folder has no recipe that says what it was trained on; give data=PATH or data=NAME")
    spec = open_data(asked.pop("data"))
    for key, value in asked.items():
        spec = spec.override(key.removeprefix("data."), value)
    return spec


def _job(pipeline: Pipeline, spec: Spec[Data], settings: Mapping[str, str], own: dict[str, Any]) -> _Job:
    data, info = spec.build(), pipeline.model.info
    if data.info.shape != info.shape or data.info.kind != info.kind:
        raise UserError(
            f"this model makes {info.kind} items of shape {info.shape} and the data has {data.info.kind} items of "
            f"{data.info.shape}; give the data that it was trained on with data="
        )
    there = int(data.held_out_mask().sum())
    if there == 0:
        raise UserError("the held-out part of the data is empty; set data.held_out to a share above 0")
    n, batch, seed = (
        whole_number(settings, key, d) for key, d in (("n", min(there, _ITEMS)), ("batch", 64), ("seed", 0))
    )
    if not 1 <= n <= there:
        raise UserError(f"n={n}: the held-out part has {there:,} items; set n between 1 and that")
    if batch < 1:
        raise UserError(f"batch={batch}: must be at least 1")
    return _Job(pipeline, data, title_of(spec), n, batch, seed, own)


# ---------------------------------------------------------------- the metrics


def _loss(job: _Job) -> _Found:
    own = job.own["held_out"]
    held_out = job.data.split("held_out")
    found = held_out_loss(job.pipeline.model, held_out, job.n, own.levels, batch=job.batch, seed=job.seed)
    score = Score(found.loss, note="mean squared error of the network's output, over noise levels")
    return _Found({"held_out": score}, asdict(own))


def _likelihood(job: _Job, name: str) -> _Found:
    method: OdeLikelihood | VariationalBound = job.own[name]
    held_out = job.data.split("held_out")
    display, began = Terminal(Console(stderr=True, highlight=False)), time.monotonic()

    def on_batch(done: int, total: int) -> None:
        spent = time.monotonic() - began
        display.update(done / total, done, spent * (total - done) / done, None, done / spent)

    try:
        found = nll(job.pipeline, held_out, job.n, method, batch=job.batch, seed=job.seed, on_batch=on_batch)
    finally:
        display.close()
    settings = {
        **asdict(method),
        "unit": found.unit,
        "standard_errors": found.errors,
        "network_evaluations": found.evaluations,
        **({"terms": dict(found.terms)} if found.terms else {}),
    }
    return _Found({name: found.score}, settings)


def _by_samples(job: _Job) -> _Found:
    judge = judge_of(job.data, RUNS / "judges" / job.title)
    scores = class_scores(job.pipeline, job.data, judge, seed=job.seed, **asdict(job.own[_GROUP]))
    return _Found(scores.metrics, {"samples": scores.n, **scores.settings}, judge)


_WORK: dict[str, Callable[[_Job], _Found]] = {
    "held_out": _loss,
    "nll": partial(_likelihood, name="nll"),
    "bound": partial(_likelihood, name="bound"),
    _GROUP: _by_samples,
}
