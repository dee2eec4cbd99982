"""`sfumato eval`: scores of a model on the held-out part of its data."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any, final

from rich.console import Console

from sfumato.commands.eval_audio import NAME as _SOUNDS
from sfumato.commands.eval_audio import SoundScoring, score_sounds
from sfumato.commands.eval_points import NAME as _POINTS
from sfumato.commands.eval_points import PointScoring, score_points
from sfumato.commands.eval_voxels import NAME as _VOXELS
from sfumato.commands.eval_voxels import VoxelScoring, score_voxels
from sfumato.commands.say import columns, duration, say, say_json
from sfumato.commands.words import RUNS, check_keys, find_model, only_settings, whole_number
from sfumato.data import Data, Emoji, open_data
from sfumato.device import choose_device
from sfumato.errors import UserError, did_you_mean
from sfumato.evaluate import (
    Extractor,
    Judge,
    JudgeExtractor,
    LevelErrors,
    OdeLikelihood,
    Score,
    VariationalBound,
    WalkError,
    alignment_scores,
    class_scores,
    draw,
    feature_scores,
    held_out_loss,
    nll,
    open_aligner,
    open_extractor,
)
from sfumato.evaluate.alignment import AMONG, Aligner, JudgeAligner
from sfumato.evaluate.emoji import emoji_scores
from sfumato.evaluate.features import REAL, SAMPLES, OnWork
from sfumato.evaluate.scores import NEIGHBOURS
from sfumato.modelfolder import find_folder, read_config
from sfumato.pipeline import Pipeline
from sfumato.recipes import load_recipe
from sfumato.recipes.emoji import emoji_data
from sfumato.recipes.image import title_of
from sfumato.recipes.judges import judge_of
from sfumato.spec import Spec, check_arguments, parameters
from sfumato.train import Run, Terminal

RESULT = "eval.json"
DEFAULT = "held_out,nll"
OF_SAMPLES = ("prompt_accuracy", "near_copies", "deviation", "coverage_pixels", "coverage_features", "fd")
_GROUP = "class_scores"  # all of them
_FEATURES = "features"  # Frechet and kernel distance, precision, recall, density, coverage, named after the extractor
_ALIGNMENT = "alignment"  # whether pictures show their captions, by a judge of words
_OF_STEPS = ("held_out", "nll", "bound", "walk", "levels")
_METRICS = (*_OF_STEPS, _FEATURES, _ALIGNMENT, _SOUNDS, _VOXELS, _POINTS, _GROUP, *OF_SAMPLES)
_OF_SAMPLES = ([_FEATURES], [_ALIGNMENT], [_SOUNDS], [_VOXELS], [_POINTS])  # metrics whose n counts samples
# Kind of media -> what is measured where nothing is asked for
_USUAL = {"audio": _SOUNDS, "voxels": _VOXELS, "points": _POINTS}
_KEYS = ("metrics", "n", "seed", "batch", "dtype", "data", "judge")
_ITEMS = 512  # by default, where there are as many
_DRAWN = 250  # samples at a time, by default


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


@final
@dataclass(frozen=True)
class _Features:
    """Settings of scores in features. samples: as many as are held out by default, 10,000 at most.

    extractor: a judge's folder, inception:FILE, dinov2:FOLDER or clip:FOLDER; several with commas are reported beside one
    another. real: training items at most. k: the neighbour at whose distance a ball ends.
    """

    extractor: str | None = None
    samples: int | None = None
    real: int = REAL
    k: int = NEIGHBOURS
    guidance: float | None = None
    steps: int | None = None

    def __post_init__(self) -> None:
        for name, least in (("samples", 2), ("real", 2), ("k", 1)):
            value = getattr(self, name)
            if value is not None and value < least:
                raise UserError(f"{name}={value}: must be at least {least}")


@final
@dataclass(frozen=True)
class _Alignment:
    """Settings of scores by a judge of words. among: captions to choose from, its own included. pictures: held-out captions.

    seen, curve: of emoji alone, the trained captions that are looked at for copies and the prompts of the guidance curve.
    """

    among: int = AMONG
    pictures: int | None = None
    seen: int = 300
    curve: int = 100
    guidance: float | None = None
    steps: int | None = None

    def __post_init__(self) -> None:
        for name, least in (("among", 2), ("pictures", 1), ("seen", 0), ("curve", 0)):
            value = getattr(self, name)
            if value is not None and value < least:
                raise UserError(f"{name}={value}: must be at least {least}")


# Settings of each metric: KEY, or METRIC.KEY where two metrics have that key.
_SETTINGS: dict[str, type] = {
    "held_out": _HeldOut,
    "nll": OdeLikelihood,
    "bound": VariationalBound,
    "walk": WalkError,
    "levels": LevelErrors,
    _FEATURES: _Features,
    _ALIGNMENT: _Alignment,
    _SOUNDS: SoundScoring,
    _VOXELS: VoxelScoring,
    _POINTS: PointScoring,
    _GROUP: _Samples,
}


@final
@dataclass(frozen=True)
class _Job:
    """What is asked. own: the settings of each metric. batch: None where it is not given. judge, extractors: those named."""

    pipeline: Pipeline
    data: Data
    title: str
    n: int
    batch: int | None
    seed: int
    own: dict[str, Any]
    judge: Judge | None = None
    extractors: list[Extractor] = field(default_factory=list)
    aligner: Aligner | None = None
    folder: Path = Path()

    @property
    def items_at_a_time(self) -> int:
        return 64 if self.batch is None else self.batch

    def a_judge(self) -> Judge:
        """The judge that is named, or one of this data, trained first if need be."""
        return self.judge or judge_of(self.data, RUNS / "judges" / self.title)


@final
@dataclass(frozen=True)
class _Found:
    """What a metric found: scores by name, how they came about, and the features that they are measured in."""

    scores: Mapping[str, Score]
    settings: dict[str, Any]
    features: dict[str, Any] | None = None


def evaluate(source: str, words: Sequence[str], *, device: str, as_json: bool) -> None:
    """Score a model, print the scores and keep them in the run's eval.json."""
    began = time.monotonic()
    settings = only_settings(words)
    place = find_model(source)
    folder = find_folder(place)
    run = next((path for path in (place, folder.parent) if (path / "recipe.yaml").is_file()), None)
    own_judge = folder / "judge"  # a model that ships has one beside it
    usual = _USUAL.get(_kind(folder), _ALIGNMENT if run is None and own_judge.is_dir() else DEFAULT)
    asked = _asked(settings.pop("metrics", usual))
    aligner = _judge_of_words(settings, asked, own_judge)
    of_data = {key: settings.pop(key) for key in list(settings) if key == "data" or key.startswith("data.")}
    own = _own_settings(settings, asked)
    judge, extractors = _opened(settings, own, asked)
    choose_device(device)
    pipeline = Pipeline.from_pretrained(folder)
    spec = _data_of(run, of_data, emoji=bool(pipeline.trained.get("styles")), reads=pipeline.trained.get("reads"))
    job = replace(_job(pipeline, spec, settings, own), folder=folder)
    if job.data.info.encoded and (others := [metric for metric in asked if metric != "held_out"]):
        raise UserError(
            f"metrics={','.join(others)}: need media, and this run's data are latents; add data= with what they were made of"
        )
    job.pipeline.to(choose_device(device), settings.get("dtype"))
    here = job.pipeline.model.device
    aligner = None if aligner is None else aligner.to(here)
    job = replace(job, judge=judge, extractors=[e.to(here) for e in extractors], aligner=aligner)
    found = {metric: _WORK[metric](job) for metric in dict.fromkeys(map(_group_of, asked))}
    result = _result(job, spec, str(run if run is not None else folder), found)
    kept = {k: s for group, one in found.items() for k, s in one.scores.items() if group in asked or k in asked}
    result["metrics"] = {k: {"value": s.value, "interval": s.interval, "real": s.real} for k, s in kept.items()}
    if run is not None:
        Run(run).write(RESULT, result)
    if as_json:
        say_json(result)
        return
    what = "samples" if list(found) in _OF_SAMPLES else "held-out items"
    say(f"{result['run']}: {result['n']:,} {what} of {job.title}, {duration(time.monotonic() - began)}")
    say(columns([_line(name, score) for name, score in kept.items()], indent="  "))
    if run is not None:
        say(f"  kept in {run / RESULT}")


def _result(job: _Job, spec: Spec[Data], name: str, found: Mapping[str, _Found]) -> dict[str, Any]:
    """The object that is printed and kept, its metrics still empty."""
    features = next((one.features for one in found.values() if one.features is not None), None)
    shared = {"data": spec.to_dict(), "fingerprint": job.data.fingerprint(), "part": "held_out", "seed": job.seed}
    return {
        "run": name,
        "data": job.title,
        "n": next(iter(found.values())).settings["samples"] if list(found) in _OF_SAMPLES else job.n,
        "metrics": {},
        "features": {"name": None, "sha256": None} if features is None else features,
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


def _judge_of_words(settings: dict[str, str], asked: Sequence[str], own: Path) -> Aligner | None:
    """What `judge=` names, where only metrics=alignment has a use for it, or the judge beside the model."""
    if _ALIGNMENT not in asked:
        return None
    if "judge" in settings:
        if len(asked) > 1:
            raise UserError("judge= of metrics=alignment is a judge of words; ask for metrics=alignment by itself")
        return open_aligner(settings.pop("judge"))
    if not own.is_dir():
        raise UserError("metrics=alignment needs a judge of words; give judge=FOLDER or judge=clip:FOLDER")
    return open_aligner(str(own))


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


def _opened(
    settings: dict[str, str], own: Mapping[str, Any], asked: Sequence[str]
) -> tuple[Judge | None, list[Extractor]]:
    """The judge and the extractors that are named: before any work, so that what is not there is said at once."""
    used, folder, text = set(map(_group_of, asked)), settings.pop("judge", None), own[_FEATURES].extractor
    if folder is not None and not used & {_FEATURES, _GROUP, _VOXELS}:
        judging = f"{_FEATURES}, {_GROUP} and {_VOXELS}"
        raise UserError(f"judge={folder} is a setting of metrics={judging}, none of which is asked for")
    judge = None if folder is None else Judge.load(Path(folder))
    if text is not None:
        return judge, [open_extractor(one.strip()) for one in text.split(",")]
    return judge, [JudgeExtractor(judge)] if judge is not None and _FEATURES in used else []


def _data_of(
    run: Path | None, asked: dict[str, str], *, emoji: bool = False, reads: Mapping[str, Any] | None = None
) -> Spec[Data]:
    """The data of the run's recipe, or those that `data=` names. emoji: the model was trained on a table of emoji.

    reads: how data were read that a shipped model was trained on, settings by name.
    """
    if run is not None:
        spec: Spec[Data] = load_recipe(run, asked).data
        return spec
    if "data" not in asked:
        raise UserError("this model folder has no recipe that says what it was trained on; give data=PATH or data=NAME")
    spec = emoji_data(open_data(asked.pop("data"))) if emoji else open_data(asked.pop("data"))
    spec = spec.with_(**{k: v for k, v in (reads or {}).items() if k in parameters(spec.cls)})
    for key, value in asked.items():
        spec = spec.override(key.removeprefix("data."), value)
    return spec


def _kind(folder: Path) -> str:
    """What a model makes."""
    return str(read_config(folder).get("model", {}).get("info", {}).get("kind", "image"))


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
    n, seed = whole_number(settings, "n", min(there, _ITEMS)), whole_number(settings, "seed", 0)
    batch = whole_number(settings, "batch", 0) if "batch" in settings else None
    if not 1 <= n <= there:
        raise UserError(f"n={n}: the held-out part has {there:,} items; set n between 1 and that")
    if batch is not None and batch < 1:
        raise UserError(f"batch={batch}: must be at least 1")
    return _Job(pipeline, data, title_of(spec), n, batch, seed, own)


# ---------------------------------------------------------------- the metrics


@contextmanager
def _watched() -> Iterator[OnWork]:
    """The time left on standard error, of one piece of work after the other."""
    display = Terminal(Console(stderr=True, highlight=False))
    work, began = "", time.monotonic()
    last = began

    def said(what: str, done: int, total: int) -> None:
        nonlocal work, began, last
        if what != work:  # it began when the one before ended
            work, began = what, last
        last = time.monotonic()
        spent = max(last - began, 1e-6)
        display.update(done / total, done, spent * (total - done) / done, None, done / spent)

    try:
        yield said
    finally:
        display.close()


def _loss(job: _Job) -> _Found:
    own, batch = job.own["held_out"], job.items_at_a_time
    held_out = job.data.split("held_out")
    found = held_out_loss(job.pipeline.model, held_out, job.n, own.levels, batch=batch, seed=job.seed)
    score = Score(found.loss, note="mean squared error of the network's output, over noise levels")
    return _Found({"held_out": score}, asdict(own))


def _walk(job: _Job) -> _Found:
    own: WalkError = job.own["walk"]
    ratio = own(job.pipeline.model, job.data.split("held_out"), job.n, batch=job.items_at_a_time, seed=job.seed)
    return _Found({"walk": Score(ratio, note="error of a walk over that of one step; 1 to 2 is sound")}, asdict(own))


def _levels(job: _Job) -> _Found:
    own: LevelErrors = job.own["levels"]
    parts = job.data.split("held_out"), job.data.split("train")
    found = own(job.pipeline.model, *parts, job.n, batch=job.items_at_a_time, seed=job.seed)
    return _Found(found.scores(), asdict(own))


def _likelihood(job: _Job, name: str) -> _Found:
    method: OdeLikelihood | VariationalBound = job.own[name]
    held_out, batch = job.data.split("held_out"), job.items_at_a_time
    with _watched() as said:
        on_batch = partial(said, name)
        found = nll(job.pipeline, held_out, job.n, method, batch=batch, seed=job.seed, on_batch=on_batch)
    settings = {
        **asdict(method),
        "unit": found.unit,
        "standard_errors": found.errors,
        "network_evaluations": found.evaluations,
        **({"terms": dict(found.terms)} if found.terms else {}),
    }
    return _Found({name: found.score}, settings)


def _by_features(job: _Job) -> _Found:
    own: _Features = job.own[_FEATURES]
    extractors = job.extractors
    if not extractors:
        if not job.data.info.labels:
            raise UserError(
                f"metrics={_FEATURES}: {job.title} has no labels to train a judge of; give extractor=FOLDER of a judge of "
                "like pictures, inception:FILE, dinov2:FOLDER or clip:FOLDER"
            )
        extractors = [JudgeExtractor(job.a_judge()).to(job.pipeline.model.device)]
    there = int(job.data.held_out_mask().sum())
    n = own.samples or min(SAMPLES, there)
    if own.k >= (most := 9 * min(n, there, len(job.data) - there) // 10):  # before anything is drawn
        raise UserError(f"k={own.k}: with {n:,} samples and {there:,} held-out items it must be below {most}")
    with _watched() as said:
        drawing = draw(
            job.pipeline,
            job.data,
            n,
            seed=job.seed,
            guidance=own.guidance,
            steps=own.steps,
            batch=job.batch or _DRAWN,
            on_work=said,
        )
        found = feature_scores(job.data, drawing.batches, extractors, k=own.k, most_real=own.real, on_work=said)
    first, *others = (e.about() for e in extractors)
    return _Found(found.metrics, {**found.settings, "sampling": dict(drawing.settings)}, {**first, "beside": others})


def _by_samples(job: _Job) -> _Found:
    judge = job.a_judge()
    scores = class_scores(job.pipeline, job.data, judge, seed=job.seed, **asdict(job.own[_GROUP]))
    about = {"name": f"judge of {job.title}", "sha256": judge.weights_sha256}
    return _Found(scores.metrics, {"samples": scores.n, "judge": judge.weights_sha256, **scores.settings}, about)


def _by_words(job: _Job) -> _Found:
    own: _Alignment = job.own[_ALIGNMENT]
    assert job.aligner is not None
    drawn: dict[str, Any] = {"among": own.among, "seed": job.seed, "guidance": own.guidance, "steps": own.steps}
    if isinstance(job.data, Emoji) and isinstance(job.aligner, JudgeAligner) and own.pictures is None:
        more: dict[str, Any] = {"seen": own.seen, "curve": own.curve, "batch": job.items_at_a_time}
        with _watched() as said:
            scores = emoji_scores(job.pipeline, job.data, job.aligner.judge, on_work=said, **more, **drawn)
    else:
        scores = alignment_scores(job.pipeline, job.data, job.aligner, n=own.pictures, **drawn)
    about = {"name": job.aligner.name, "sha256": job.aligner.sha256}
    return _Found(scores.metrics, {"samples": scores.n, "judge": about["sha256"], **scores.settings}, about)


def _by_sounds(job: _Job) -> _Found:
    places = {"model": job.folder, "kept": RUNS / "judges" / job.title}
    return _Found(*score_sounds(job.pipeline, job.data, job.own[_SOUNDS], job.seed, places))


def _by_voxels(job: _Job) -> _Found:
    places = {"model": job.folder, "kept": RUNS / "judges" / job.title}
    return _Found(*score_voxels(job.pipeline, job.data, job.own[_VOXELS], job.seed, places, job.judge))


def _by_points(job: _Job) -> _Found:
    return _Found(*score_points(job.pipeline, job.data, job.own[_POINTS], job.seed))


_WORK: dict[str, Callable[[_Job], _Found]] = {
    "held_out": _loss,
    "nll": partial(_likelihood, name="nll"),
    "bound": partial(_likelihood, name="bound"),
    "walk": _walk,
    "levels": _levels,
    _FEATURES: _by_features,
    _ALIGNMENT: _by_words,
    _SOUNDS: _by_sounds,
    _VOXELS: _by_voxels,
    _POINTS: _by_points,
    _GROUP: _by_samples,
}
