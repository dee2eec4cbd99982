"""`sfumato demo modality=audio`: text to sound, trained on sounds drawn by a program and scored by one that hears them."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console

from sfumato import media
from sfumato.data.audio_tones import COUNTS, HELD_OUT, KINDS, PITCHES, captions_of, heard_as_asked
from sfumato.evaluate import Share
from sfumato.files import write_atomic
from sfumato.kinds import kind_of
from sfumato.pipeline import Pipeline
from sfumato.recipes.build import trainer
from sfumato.recipes.demo import program
from sfumato.recipes.tones import tones
from sfumato.train import Run, Terminal
from sfumato.train.report import write_report

EACH = 10  # samples of each of the 36 combinations
SUMMARY = "summary.json"
LEAST = 0.8  # share of samples of trained combinations in which what was asked has to be heard
_SHOWN = "two high rising sweeps"


def run_audio_demo(runs: Path, console: Console, *, minutes: float | None = None, each: int = EACH) -> int:
    """Train, sample, listen and say so in four lines; a second call says what is there. Returns the exit code.

    Writes `runs/demo-audio`, a run like any other, with `summary.json`, `tones.png` (spectrograms of samples) and
    `tone.wav`. Exit code 1 if fewer than 80% of the samples of trained combinations hold what was asked. minutes: of
    training.
    """
    folder = runs / "demo-audio"
    spec = (tones() if minutes is None else tones(minutes=minutes)).with_(title="demo-audio")
    run = Run(folder, spec)
    summary = run.read(SUMMARY)
    if summary and summary.get("settings") == spec.to_dict() and (folder / "model").is_dir():
        console.print(f"The demo has been trained already; delete {folder} to train it again.")
    else:
        console.print(f"Training text to sound on sounds drawn by a program for {spec.train.minutes:g} min.")
        result = trainer(spec, folder, display=Terminal(console)).fit()
        console.print(f"Sampling each of 36 captions {each} times, and listening.")
        began = time.perf_counter()
        summary = {**_listen(run, each), "settings": spec.to_dict(), "trained_seconds": round(result.seconds, 1)}
        summary["scored_seconds"] = round(time.perf_counter() - began, 1)
        run.write(SUMMARY, summary)
        write_report(run)
    _close(console, run, summary)
    return 0 if summary["heard"] >= LEAST else 1


def _listen(run: Run, each: int) -> dict[str, Any]:
    """Scores of combinations trained on and of those held out; writes scores.json, a sheet and a sound."""
    every = [(c, p, k) for c in range(len(COUNTS)) for p in range(len(PITCHES)) for k in range(len(KINDS))]
    captions = [captions_of(*combination)[0] for combination in every]
    pipeline = Pipeline.from_pretrained(run.folder)
    made = pipeline(captions, n=each, output_type="pt")
    right = heard_as_asked(made.audios, made.prompts)
    new = np.repeat([combination in HELD_OUT for combination in every], each)
    seen, unseen = (Share(int(right[part].sum()), int(part.sum())) for part in (~new, new))
    rows = made.media.reshape(len(every), each, *made.media.shape[1:])[:, 0]
    kind = kind_of(made.info)
    media.save_png(kind.sheet(list(rows), made.info, 6, captions), run.folder / "tones.png")
    write_atomic(run.folder / "tone.wav", kind.encode(rows[captions.index(_SHOWN)], made.info, ".wav"))
    note = "share in which a program hears count, pitch and kind as asked"
    scores = {
        "heard": {"value": seen.value, "interval": seen.interval, "real": 1.0, "note": note},
        "heard_held_out": {
            "value": unseen.value, "interval": unseen.interval, "real": 1.0, "note": f"{note}; combinations never trained on"
        },
    }  # fmt: skip
    run.write("scores.json", {"n": len(right), "metrics": scores})
    return {"heard": seen.value, "heard_held_out": unseen.value, "samples": len(right)}


def _close(console: Console, run: Run, summary: dict[str, Any]) -> None:
    minutes, seconds = divmod(round(summary["trained_seconds"]), 60)
    console.print(
        f"Trained: text to sound on sounds drawn by a program in {minutes} min {seconds:02d} s.\n"
        f"Sounds: {run.folder / 'tone.wav'}, {run.folder / 'tones.png'} and players in {run.report}\n"
        f"Score: in {summary['heard']:.1%} of {summary['samples']:,} samples a program hears what was asked "
        f"({summary['heard_held_out']:.1%} of combinations that were never trained on; at least {LEAST:.0%} are expected).\n"
        f'Next: {program()} sample {run.folder} "{_SHOWN}" n=1 -o tone.wav',
        soft_wrap=True,
        markup=False,
    )
