"""The speech model that ships, its judges and its vocoder, trained and scored in one go on one GPU.

    python -m benchmarks.speech --data fsdd.npz --out DIR [--minutes 3] [--vocoder-minutes 1.2] [--judges FOLDER]
                                [--vocoder FOLDER] [--samples N] [--quick]

Trains two judges (digit, speaker; seconds), the vocoder, then recipe `digits-speech`, then draws 1,020 samples at
several guidance scales and scores them as `sfumato eval` does, with the vocoder and with Griffin-Lim. DIR gets seven
files: model.tar (the model folder as it ships, weights in 8 bits), full.tar (in float32), judges.tar, vocoder.tar,
metrics.json, spectrograms.png (six speakers x ten digits, samples above real recordings) and player.html. --quick shows
that all of it runs, on a CPU, and means nothing else.
"""

from __future__ import annotations

import argparse
import json
import shutil
import tarfile
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from benchmarks._table import machine, versions
from benchmarks.model_cards import settled, write_card
from sfumato import media, modelfolder
from sfumato.codecs import Mel
from sfumato.data import Sounds, open_data
from sfumato.data.digits import WORDS
from sfumato.evaluate.audio import sound_scores, target
from sfumato.evaluate.judge import Judge
from sfumato.guidance import ClassifierFree
from sfumato.kinds import kind_of
from sfumato.pipeline import Pipeline
from sfumato.recipes.build import trainer
from sfumato.recipes.judges_audio import sound_judge_of
from sfumato.recipes.speech import digits_speech, mel_codec, spoken
from sfumato.recipes.vocoder import VocoderTraining, vocoder_of

SCALES = (1.0, 1.5, 2.0, 3.0)
COLUMNS = ("label", "speakers")
ASKED = 1020  # 17 of each of 60


def say(text: str) -> None:
    """A line with the time."""
    print(f"[{time.strftime('%H:%M:%S')}] {text}", flush=True)


def main() -> None:
    args = _arguments()
    began, out, work = time.monotonic(), Path(args.out), Path(args.work)
    out.mkdir(parents=True, exist_ok=True)
    torch.backends.cuda.matmul.allow_tf32 = False
    data_spec = spoken(open_data(args.data))
    data = data_spec.build()
    assert isinstance(data, Sounds)
    report: dict[str, Any] = {"machine": machine(gpu=_gpu()), "versions": versions("torch"), "settings": vars(args)}

    judges = {}
    for column in COLUMNS:
        folder = Path(args.judges or work / "judges") / column
        judges[column] = sound_judge_of(data, column, folder, epochs=args.judge_epochs, device=args.device)
        say(
            f"judge {column}: {judges[column].trained['accuracy']:.2%} of {judges[column].trained['judged']} held-out sounds"
        )
    report["judges"] = {c: j.trained for c, j in judges.items()}
    _packed(out / "judges.tar", work / "judges")

    folder = Path(args.vocoder or work / "vocoder")
    schooling = VocoderTraining(minutes=args.vocoder_minutes, adversary=0.05)
    vocoder_of(data, mel_codec(str(folder)), folder, training=schooling, device=args.device, on_step=_told())
    report["vocoder"] = json.loads((folder / "vocoder.json").read_text())["trained"]
    say(f"vocoder: {report['vocoder']}")
    _packed(out / "vocoder.tar", folder)

    spec = digits_speech(
        data=data_spec, minutes=args.minutes, samples=args.samples, size=args.size, vocoder=str(folder)
    )
    try:
        made = trainer(spec, work / "run", device=args.device).fit()
    except RuntimeError as error:  # a transform that this machine can't record in a CUDA graph
        say(f"not recorded: {error}"[:300])
        shutil.rmtree(work / "run")
        spec = spec.override("train.compile", False)
        made = trainer(spec, work / "run", device=args.device).fit()
    say(f"model: {made.samples:,} samples in {made.seconds:.0f} s")
    report["model"] = {"samples": made.samples, "seconds": made.seconds}

    pipeline = Pipeline.from_pretrained(work / "run").to(args.device if args.device != "auto" else _device())
    scored: dict[str, Any] = {}
    for scale in SCALES:
        found = sound_scores(pipeline, data, _on(judges), n=args.n, guidance=scale)
        scored[f"{scale:g}"] = found.to_dict()["metrics"]
        say(f"guidance {scale:g}: " + _short(scored[f"{scale:g}"]))
    best = max(SCALES, key=lambda s: _worth(scored[f"{s:g}"]))
    pipeline.sampling = replace(pipeline.sampling, guidance=ClassifierFree(scale=best))
    report |= {"guidance": best, "scores": scored}
    codec = pipeline.model.codec
    assert isinstance(codec, Mel)
    kept, codec.vocoder = codec.vocoder, None
    report["griffin_lim"] = sound_scores(pipeline, data, _on(judges), n=args.n, guidance=best).to_dict()["metrics"]
    codec.vocoder = kept
    say("Griffin-Lim: " + _short(report["griffin_lim"]))

    pipeline.to("cpu")
    reads = {k: list(v) if isinstance(v, tuple) else v for k, v in data_spec.settings.items() if k != "path"}
    about = {
        "run": "speech",
        "data": "Free Spoken Digit Dataset (CC BY-SA 4.0)",
        "samples": made.samples,
        "seconds": round(made.seconds, 1),
        "vocoder_minutes": round(report["vocoder"]["seconds"] / 60, 2),
        "judge_seconds": round(sum(judge.trained["seconds"] for judge in judges.values()), 1),
        "machine": _gpu() or machine()["cpu"],
        "torch": torch.__version__.partition("+")[0],
        "command": f"python -m benchmarks.speech --data fsdd.npz --out DIR --minutes {args.minutes:g}",
        "reads": reads,
    }
    pipeline.trained = about
    _packed(out / "full.tar", pipeline.save_pretrained(work / "full"))
    compact = modelfolder.save_compact(work / "full", work / "compact", trained={})
    beside = {f"judges/{column}": judge for column, judge in judges.items()}
    ships = settled(compact, work / "speech", trained=about, judges=beside)
    pipeline = Pipeline.from_pretrained(ships).to(_device())
    found = sound_scores(pipeline, data, _on(judges), n=args.n, seed=10_000).to_dict()
    report["as_shipped"] = found["metrics"]
    right = {f"judge_{column}": judge.trained["accuracy"] for column, judge in judges.items()}
    write_card(ships, {**found, "settings": {"sounds": right}})
    _packed(out / "model.tar", ships)
    report["bytes"] = sum(file.stat().st_size for file in ships.iterdir() if file.is_file())
    say(f"as it ships, {report['bytes'] / 2**20:.2f} MiB, other seeds: " + _short(report["as_shipped"]))
    _shown(pipeline, data, out)
    report["wall_seconds"] = round(time.monotonic() - began, 1)
    (out / "metrics.json").write_text(json.dumps(report, indent=1, default=str))
    say(f"done in {report['wall_seconds']} s, guidance {best:g}")


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", required=True)
    parser.add_argument("--out", required=True)
    parser.add_argument("--work", default="runs/speech-benchmark")
    parser.add_argument("--minutes", type=float, default=3.0)
    parser.add_argument("--samples", type=int)
    parser.add_argument("--vocoder-minutes", type=float, default=1.2)
    parser.add_argument("--judges")
    parser.add_argument("--judge-epochs", type=int, default=40)
    parser.add_argument("--vocoder")
    parser.add_argument("--size", default="s")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--n", type=int, default=ASKED)
    parser.add_argument("--quick", action="store_true")
    args = parser.parse_args()
    if args.quick:
        args.minutes, args.vocoder_minutes, args.judge_epochs, args.n = 0.3, 0.3, 1, 60
    if args.samples is not None:
        args.minutes = None
    return args


def _told() -> Any:
    last = [time.monotonic()]

    def on_step(done: float, loss: float) -> None:
        if time.monotonic() - last[0] > 10:
            last[0] = time.monotonic()
            say(f"vocoder: {done:.0%}, loss {loss:.4f}")

    return on_step


def _device() -> str:
    return "cuda" if torch.cuda.is_available() else "cpu"


def _gpu() -> str | None:
    return torch.cuda.get_device_name() if torch.cuda.is_available() else None


def _on(judges: dict[str, Judge]) -> dict[str, Judge]:
    return {c: j.to(_device()) for c, j in judges.items()}


def _worth(scores: dict[str, Any]) -> float:
    """Accuracies, and distances in units of what real sounds have."""
    right = scores["label_accuracy"]["value"] + scores["speakers_accuracy_least"]["value"]
    far = sum(scores[f"fd_{c}"]["value"] / max(scores[f"fd_{c}"]["real"], 1e-9) for c in COLUMNS)
    return float(right - 0.02 * far)


def _short(scores: dict[str, Any]) -> str:
    return ", ".join(f"{k} {v['value']:.4g} (real {v['real']:.4g})" for k, v in scores.items())


def _packed(file: Path, folder: Path) -> None:
    if folder.is_dir():
        with tarfile.open(file, "w") as tar:
            tar.add(folder, arcname=folder.name)


def _shown(pipeline: Pipeline, data: Sounds, out: Path) -> None:
    """spectrograms.png, and player.html, a page that plays the samples."""
    prompts, made = asked_for_all(pipeline, data)
    media.save_png(spectrograms(prompts, made, data), out / "spectrograms.png")
    page = kind_of(data.info).viewer(list(made), data.info, prompts)
    (out / "player.html").write_text(
        f"<!DOCTYPE html><meta charset=utf-8><title>speech</title>{page}", encoding="utf-8"
    )


def asked_for_all(pipeline: Pipeline, data: Sounds) -> tuple[list[str], Tensor]:
    """A sample of every speaker and digit: prompts and sounds (60, 1, T), speaker by speaker."""
    prompts = [f"speaker {name} says {word}" for name in target(data, "speakers").classes for word in WORDS]
    return prompts, pipeline(prompts, seed=7, output_type="pt").media


def spectrograms(prompts: list[str], made: Tensor, data: Sounds) -> Image.Image:
    """Each of these samples above a held-out recording of the same, a line a speaker."""
    speakers, digits = target(data, "speakers").values, target(data, "label").values
    held = np.flatnonzero(data.held_out_mask())
    rows, words = [], []
    for s in range(len(prompts) // len(WORDS)):
        here = slice(s * len(WORDS), (s + 1) * len(WORDS))
        index = [next(i for i in held if speakers[i] == s and digits[i] == d) for d in range(len(WORDS))]
        rows += [*made[here], *data.fetch(index).media]
        words += [*(p.removeprefix("speaker ") for p in prompts[here]), *["real"] * len(WORDS)]
    return kind_of(data.info).sheet(rows, data.info, len(WORDS), words)


if __name__ == "__main__":
    main()
