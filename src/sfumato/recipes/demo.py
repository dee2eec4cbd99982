"""`sfumato demo`: a text-to-image model trained on real digits, sampled by prompt and scored, in minutes on two cores."""

from __future__ import annotations

import shutil
import sys
import time
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from torch import Tensor

from sfumato import media
from sfumato.data import Digits
from sfumato.data.digits import WORDS
from sfumato.evaluate import Judge, Score, Scores, class_scores, nearest
from sfumato.pipeline import Pipeline
from sfumato.recipes.build import trainer
from sfumato.recipes.digits import digits
from sfumato.recipes.judges import digits_judge
from sfumato.spec import Spec
from sfumato.train import Run, Terminal
from sfumato.train.report import write_report

EACH = 100  # samples of each digit
SUMMARY = "summary.json"
_SHOWN = 10  # samples of each digit on the sheet


def run_demo(runs: Path, console: Console, *, minutes: float | None = None, each: int = EACH) -> int:
    """Train, sample, score and say so in four lines; a second call says what is there. Returns the exit code.

    Writes `runs/demo`, a run like any other, with `summary.json`, `digits.png` (samples of every digit by prompt) and
    `nearest.png` (samples beside their nearest training pictures), and `runs/judges/digits`. Interrupted, the same call
    goes on. minutes: of training, instead of the recipe's.
    """
    folder = runs / "demo"
    spec = (digits() if minutes is None else digits(minutes=minutes)).with_(title="demo")
    run = Run(folder, spec)
    summary = run.read(SUMMARY)
    if summary and summary.get("settings") == spec.to_dict() and _complete(run):
        console.print(f"The demo has been trained already; delete {folder} to train it again.")
        _close(console, run, summary)
        return 0
    console.print("Training a judge of real digits, to score the samples with later.")
    judge = digits_judge(runs)
    right = float(judge.trained["accuracy"])
    console.print(f"The judge is right on {right:.1%} of {judge.trained['judged']} held-out digits.")
    console.print(
        f"Training text to image on {len(Digits().split('train')):,} real digits for {spec.train.minutes:g} min."
    )
    result = trainer(spec, folder, display=Terminal(console)).fit()
    console.print(f"Sampling every digit by prompt, {each} times, and scoring.")
    began = time.perf_counter()
    pipeline = Pipeline.from_pretrained(folder)
    summary = _score(run, spec, pipeline, judge, each)
    summary |= {"trained_seconds": round(result.seconds, 1), "scored_seconds": round(time.perf_counter() - began, 1)}
    run.write(SUMMARY, summary)
    write_report(run)
    _close(console, run, summary)
    return 0


def _complete(run: Run) -> bool:
    return all((run.folder / name).exists() for name in ("digits.png", "nearest.png", "model", "report.html"))


def _score(run: Run, spec: Spec[Any], pipeline: Pipeline, judge: Judge, each: int) -> dict[str, Any]:
    """Score at the chosen guidance and at none, write scores.json and the two sheets; returns the summary."""
    data = Digits()
    guided = class_scores(pipeline, data, judge, each=each)
    plain = class_scores(pipeline, data, judge, each=each, guidance=1.0)
    _sheets(run, guided.media, data)
    found = dict(guided.metrics)
    for name, score in plain.metrics.items():
        found[f"{name}, guidance 1"] = replace(score, note=f"{score.note}; without guidance")
    found["judge_accuracy"] = _judge_score(judge)
    run.write("scores.json", Scores(found, guided.n, guided.settings, guided.media).to_dict())
    return _summary(guided, plain, judge) | {"settings": spec.to_dict()}


def _judge_score(judge: Judge) -> Score:
    low, high = judge.trained["interval"]
    return Score(judge.trained["accuracy"], (low, high), note="of the judge, on real held-out digits")


def _summary(guided: Scores, plain: Scores, judge: Judge) -> dict[str, Any]:
    at, without = guided.metrics, plain.metrics
    return {
        "prompt_accuracy": at["prompt_accuracy"].value,
        "prompt_accuracy_interval": at["prompt_accuracy"].interval,
        "prompt_accuracy_guidance_1": without["prompt_accuracy"].value,
        "guidance": guided.settings.get("guidance_scale"),
        "judge_accuracy": judge.trained["accuracy"],
        "near_copy_rate": at["near_copies"].value,
        "held_out_near_copy_rate": at["near_copies"].real,
        "deviation_of_real": at["deviation"].of_real,
        "coverage_pixels_of_real": at["coverage_pixels"].of_real,
        "coverage_features_of_real": at["coverage_features"].of_real,
        "samples": guided.n,
        "metrics": guided.to_dict()["metrics"],
        "metrics_guidance_1": plain.to_dict()["metrics"],
    }


def _sheets(run: Run, samples: Tensor, data: Digits) -> None:
    """digits.png: a row for every digit. nearest.png: one sample of each above its nearest training picture."""
    rows = samples.reshape(len(WORDS), -1, *samples.shape[1:])[:, :_SHOWN]
    images = [media.to_image(item) for item in rows.flatten(0, 1)]
    media.save_png(
        media.grid(images, rows.shape[1]), run.folder / "digits.png", {"prompt": "a handwritten zero ... nine"}
    )
    train = torch.from_numpy(data.media[~data.held_out_mask()])
    first = rows[:, 0]
    pairs = [*first, *train[nearest(first, train).index[:, 0]]]
    words = ["sample"] * len(first) + ["nearest"] * len(first)
    media.save_png(media.grid([media.to_image(p) for p in pairs], len(first), words), run.folder / "nearest.png", {})


def program() -> str:
    """How the command line is called here: `sfumato` where the shell finds it, else the path it was called by."""
    called = Path(sys.argv[0])
    if shutil.which("sfumato") or called.stem != "sfumato":
        return "sfumato"
    here = called.absolute()
    return str(here.relative_to(Path.cwd()) if here.is_relative_to(Path.cwd()) else here)


def _close(console: Console, run: Run, summary: Mapping[str, Any]) -> None:
    """The four lines: what and how long, where, how good, what next."""
    minutes, seconds = divmod(round(summary["trained_seconds"]), 60)
    console.print(
        f"Trained: text to image on the real digits in {minutes} min {seconds:02d} s.\n"
        f"Pictures: {run.folder / 'digits.png'} and {run.report}\n"
        f"Score: {summary['prompt_accuracy']:.1%} of {summary['samples']:,} samples show the digit asked for "
        f"(guidance {summary['guidance']:g}; {summary['prompt_accuracy_guidance_1']:.1%} without), "
        f"{summary['near_copy_rate']:.1%} are near-copies of training digits "
        f"({summary['held_out_near_copy_rate']:.1%} of real held-out ones are).\n"
        f'Next: {program()} sample {run.folder} "a handwritten seven" n=16 -o seven.png',
        soft_wrap=True,
        markup=False,
    )
