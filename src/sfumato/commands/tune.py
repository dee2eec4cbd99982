"""`sfumato tune-sampler`: the best few steps for one model."""

from __future__ import annotations

import math
import shlex
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext, suppress
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console

from sfumato.commands.say import columns, duration, say, say_json
from sfumato.commands.words import check_keys, find_model, numbers, split_words, whole_number
from sfumato.conditioners import Conditioner, Number
from sfumato.core import Column
from sfumato.core.random import keys, uniform
from sfumato.data import Data, open_data
from sfumato.device import choose_device
from sfumato.errors import UserError
from sfumato.modelfolder import find_folder, save_sampling
from sfumato.pipeline import Pipeline, Plan
from sfumato.recipes import load_recipe
from sfumato.request import as_arguments, word_of
from sfumato.spec import Spec, as_spec
from sfumato.train import Run, Terminal
from sfumato.tuning import MANY, Said, Tuning, check, starts, tune_pipeline, tuned_sampling

_KEYS = ("nfe", "n", "iterations", "batch", "many", "guidance", "seed", "data")
_FIRST_SEED = 1 << 40  # no picture that anybody draws begins with the noise that was tuned on
_MOST_SEED = 1 << 20  # seed= below this, each with room for 2^40 samples


def tune(source: str, words: Sequence[str], *, device: str, as_json: bool) -> None:
    """Fit, print what was found, and keep it with the model."""
    began = time.monotonic()
    prompts, settings = split_words(words)
    place = find_model(source)
    folder = find_folder(place)
    run = next((path for path in (place, folder.parent) if (path / "recipe.yaml").is_file()), None)
    of_data = {key: settings.pop(key) for key in list(settings) if key == "data" or key.startswith("data.")}
    check_keys(settings, _KEYS, "tune-sampler")
    nfes, how = _asked(settings)
    n, seed = whole_number(settings, "n", 256), whole_number(settings, "seed", 0)
    if n < 2:
        raise UserError(f"n={n}: the starts to tune on; use 2 or more, 256 are usual")
    if not 0 <= seed < _MOST_SEED:
        raise UserError(f"seed={seed}: must lie in 0 ... 2^20 - 1")
    choose_device(device)
    with _nobody_trains(run):
        pipeline = Pipeline.from_pretrained(folder)
        given = _conditions(pipeline, run, of_data, prompts, n + n // 2, seed)
        plan = _plan(pipeline, given, n + n // 2, seed, settings.get("guidance"))
        pipeline.to(choose_device(device))
        starts(pipeline, plan.take([0]))  # what can't be tuned is said before any work
        with _progress(n) as said:
            found = tune_pipeline(pipeline, plan, nfes, said=said, **how)
        if any(tuning.better for tuning in found):
            save_sampling(folder, as_spec(tuned_sampling(pipeline.sampling, found)).to_dict())
    _report(source, folder, found, {"n": n, "seed": seed, **how, "guidance": _scale(plan)}, began, as_json)


def _asked(settings: Mapping[str, str]) -> tuple[list[int], dict[str, int]]:
    """The numbers of evaluations, and the settings of the fit."""
    text = settings.get("nfe")
    if text is None:
        raise UserError("say for how many network evaluations to tune: nfe=8, or several such as nfe=5,8,10")
    how = {
        key: whole_number(settings, key, usual) for key, usual in (("iterations", 300), ("batch", 32), ("many", MANY))
    }
    nfes = []
    for part in text.split(","):
        nfes.append(whole_number({"nfe": part}, "nfe", 0))
        check(nfes[-1], how["iterations"], how["many"])
    if how["batch"] < 1:
        raise UserError(f"batch={how['batch']}: must be at least 1")
    return sorted(set(nfes)), how


@contextmanager
def _nobody_trains(run: Path | None) -> Iterator[None]:
    """Hold a run: a checkpoint would put another model in the place of the one that is tuned."""
    if run is not None and Run(run).is_locked():
        raise UserError(f"the run '{run}' is being trained; tune its sampler when that has ended")
    with nullcontext() if run is None else Run(run).lock():
        yield


# ---------------------------------------------------------------- what is asked of the model


def _conditions(
    pipeline: Pipeline, run: Path | None, of_data: dict[str, str], prompts: Sequence[str], total: int, seed: int
) -> dict[str, Any]:
    """Arguments of `Pipeline.plan` for `total` samples: what was typed, else as in the training data."""
    conditioner, info = pipeline.model.conditioner, pipeline.model.info
    asked = () if conditioner is None else conditioner.columns
    made: dict[str, Any] = {}
    if prompts:
        made["prompt"] = [prompts[i % len(prompts)] for i in range(total)]
    needed = [column for column in asked if word_of(column) not in made]
    if not needed and not of_data:
        return made
    spec = _data_of(run, of_data)
    if spec is not None:
        data = spec.build()
        if data.info.shape != info.shape:
            raise UserError(
                f"this model makes items of shape {info.shape} and the data has {data.info.shape}; give the data that it "
                "was trained on with data="
            )
        found = _drawn(data, total, seed)
        missing = [column for column in needed if column not in found]
        if missing:
            raise UserError(f"the data has no {missing[0]}, which this model is asked by; give other data with data=")
        return made | as_arguments({column: found[column] for column in needed})
    for column in needed:
        if column == "label" and info.labels:
            made["label"] = [i % len(info.labels) for i in range(total)]
        elif column == "number" and (known := _number_of(conditioner)) is not None:
            low, high = np.array(known.lows), np.array(known.highs)
            share = np.stack([uniform(keys(seed, f"number {k}", np.arange(total))) for k in range(len(low))], 1)
            made["number"] = (low + share * (high - low)).tolist()
        else:
            raise UserError(
                f"this model is asked by {word_of(column)} and its folder does not say what was asked in training; give "
                + ("prompts as words, or data=PATH" if column == "caption" else "data=PATH or data=NAME")
            )
    return made


def _data_of(run: Path | None, asked: dict[str, str]) -> Spec[Data] | None:
    if run is not None:
        spec: Spec[Data] = load_recipe(run, asked).data
        return spec
    if "data" not in asked:
        if asked:
            raise UserError(f"{next(iter(asked))}= is a setting of data, and data= is not given")
        return None
    named = open_data(asked["data"])
    for key, value in asked.items():
        named = named if key == "data" else named.override(key.removeprefix("data."), value)
    return named


def _drawn(data: Data, total: int, seed: int) -> Mapping[str, Column]:
    """The conditions of `total` training items in a random order, all captions of an item alike."""
    train = data.split("train")
    if len(train) == 0:
        raise UserError("the training part of the data is empty; give data= with items in it")
    order = np.argsort(keys(seed, "tune", np.arange(len(train))), kind="stable")
    return train.columns(np.resize(order, total), uniform(keys(seed, "caption", np.arange(total))))


def _number_of(conditioner: Conditioner | None) -> Number | None:
    if conditioner is None:
        return None
    return next((module for module in conditioner.modules() if isinstance(module, Number)), None)


def _plan(pipeline: Pipeline, given: Mapping[str, Any], total: int, seed: int, guidance: str | None) -> Plan:
    scale, named = None, guidance
    if guidance is not None:
        with suppress(UserError):  # else it is the name of one
            scale, named = numbers({"guidance": guidance}, "guidance"), None
    if scale is not None and len(scale) != 1:
        raise UserError(f"guidance={guidance}: the sampler is tuned for one scale; give one")
    return pipeline.plan(
        **given,
        n=1 if given else total,
        seed=_FIRST_SEED + (seed << 40),
        guidance_scale=None if scale is None else scale[0],
        guidance=named,
    )


def _scale(plan: Plan) -> Any:
    return None if plan.guidance is None else plan.settings["guidance_scale"]


# ---------------------------------------------------------------- what is said


@contextmanager
def _progress(walks: int) -> Iterator[Said]:
    """The time left on standard error. The share is of the network's evaluations, so it is right from the first batch on."""
    display, began = Terminal(Console(stderr=True, highlight=False)), time.monotonic()

    def said(done: int, total: int, error: float) -> None:
        spent = time.monotonic() - began
        display.update(done / total, walks, spent * (total - done) / done, None if math.isnan(error) else error, None)

    try:
        yield said
    finally:
        display.close()


def _report(
    source: str, folder: Path, found: Sequence[Tuning], settings: dict[str, Any], began: float, as_json: bool
) -> None:
    saved = [tuning.evaluations for tuning in found if tuning.better]
    if as_json:
        rows = {
            str(t.evaluations): {"before": t.before, "after": t.after, "ratio": t.before / t.after, "saved": t.better}
            for t in found
        }
        spent = round(time.monotonic() - began, 1)
        say_json({"model": str(folder), "tuned": rows, "seconds": spent, "settings": settings})
        return
    say(f"{folder}: tuned on {settings['n']:,} starts in {duration(time.monotonic() - began)}")
    table = [["nfe", "error before", "after", "ratio", ""]]
    for t in found:
        note = "" if t.better else "not better on starts that were held out: nothing is changed"
        table.append([str(t.evaluations), f"{t.before:.4f}", f"{t.after:.4f}", f"{t.before / t.after:.2f}", note])
    say(columns(table, indent="  "))
    if saved:
        say(
            f"  next: sfumato sample {shlex.quote(source)} steps={saved[0]}; other numbers of steps are sampled as before"
        )
