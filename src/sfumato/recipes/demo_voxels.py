"""`sfumato demo modality=voxel`: text to voxel models, on solids that a program makes; another one reads the samples."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

from rich.console import Console

from sfumato import media
from sfumato.data import Solids
from sfumato.evaluate.voxels import solid_scores
from sfumato.files import write_atomic
from sfumato.kinds import kind_of
from sfumato.pipeline import Pipeline
from sfumato.recipes.build import trainer
from sfumato.recipes.demo import program
from sfumato.recipes.solids import solids
from sfumato.train import Run, Terminal
from sfumato.train.report import write_report

EACH = 100  # captions of the training part and of what is held out
SUMMARY = "summary.json"
LEAST = 0.8  # share of captions of the training part that has to be shown
_SHOWN = "a large red ball"
_SHEET = 48


def run_voxel_demo(runs: Path, console: Console, *, minutes: float | None = None, each: int = EACH) -> int:
    """Train, sample, read and say so in four lines; a second call says what is there. Returns the exit code.

    Writes `runs/demo-voxel`, a run like any other, with `summary.json`, `solids.png` (samples by caption) and `solid.vox`.
    Exit code 1 if less than `LEAST` of the samples of captions trained on show them. minutes: of training.
    """
    folder = runs / "demo-voxel"
    spec = (solids() if minutes is None else solids(minutes=minutes)).with_(title="demo-voxel")
    run = Run(folder, spec)
    summary = run.read(SUMMARY)
    if summary and summary.get("settings") == spec.to_dict() and (folder / "model").is_dir():
        console.print(f"The demo has been trained already; delete {folder} to train it again.")
    else:
        budget = f"{spec.train.samples:,} samples" if minutes is None else f"{minutes:g} min"
        console.print(f"Training text to voxel models on solids that a program makes, for {budget}.")
        result = trainer(spec, folder, display=Terminal(console)).fit()
        console.print(f"Sampling {each} captions trained on and {each} of new combinations, and reading the models.")
        began = time.perf_counter()
        summary = {**_read(run, spec.data.build(), each), "settings": spec.to_dict()}
        summary |= {
            "trained_seconds": round(result.seconds, 1),
            "scored_seconds": round(time.perf_counter() - began, 1),
        }
        run.write(SUMMARY, summary)
        write_report(run)
    _close(console, run, summary)
    return 0 if summary["shown"] >= LEAST else 1


def _read(run: Run, data: Any, each: int) -> dict[str, Any]:
    """Scores of captions trained on and of those held out; writes scores.json, a sheet and a model."""
    assert isinstance(data, Solids)
    pipeline = Pipeline.from_pretrained(run.folder)
    found = solid_scores(pipeline, data, n=each)
    run.write("scores.json", found.to_dict() | {"settings": {}})
    captions = list(found.settings["prompt"])
    kind = kind_of(data.info)
    count = min(_SHEET, len(captions))
    sheet = kind.sheet(list(found.media[:count]), data.info, 8, captions[:count])
    media.save_png(sheet, run.folder / "solids.png")
    one = pipeline(_SHOWN, output_type="pt").media[0]
    write_atomic(run.folder / "solid.vox", kind.encode(one, data.info, ".vox"))
    score = found.metrics
    return {
        "shown": score["prompt_accuracy_seen"].value,
        "shown_held_out": score["prompt_accuracy"].value,
        "single_component": score["single_component"].value,
        "samples": found.n,
    }


def _close(console: Console, run: Run, summary: dict[str, Any]) -> None:
    minutes, seconds = divmod(round(summary["trained_seconds"]), 60)
    console.print(
        f"Trained: text to voxel models on solids that a program makes in {minutes} min {seconds:02d} s.\n"
        f"Models: {run.folder / 'solid.vox'}, {run.folder / 'solids.png'} and models to turn about in {run.report}\n"
        f"Score: {summary['shown']:.1%} of the samples show their caption in every word ({summary['shown_held_out']:.1%} of "
        f"combinations that were never trained on; at least {LEAST:.0%} are expected), {summary['single_component']:.1%} are "
        "in one piece.\n"
        f'Next: {program()} sample {run.folder} "{_SHOWN}" n=1 -o ball.vox',
        soft_wrap=True,
        markup=False,
    )
