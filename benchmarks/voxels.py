"""The voxel model that ships and its judge, trained and scored in one go on one GPU.

    python -m benchmarks.voxels --data voxels32.npz --out DIR [--minutes 8] [--size m] [--network dit] [--judge FOLDER]
        [--set KEY=VALUE ...] [--brief] [--quick]

Trains the judge of categories (about half a minute), then the recipe `voxels` for so many minutes, then draws what every
held-out model shows and scores it as `sfumato eval` does. DIR gets model.tar (the model folder as it ships, weights in 8
bits), weights.safetensors (all weights in bfloat16), judge.tar, metrics.json, captions.png (held-out captions: the real
model above four samples), turntable.png, guidance.png and run.tar. --brief ends with the model: `sfumato eval` scores it
anywhere. --quick shows that all of it runs, in minutes on a CPU, and means nothing else.
"""

from __future__ import annotations

import argparse
import json
import tarfile
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from safetensors.torch import save_file

from benchmarks._table import machine, versions
from benchmarks.model_cards import settled, write_card
from sfumato import media, modelfolder
from sfumato.data import Data, Voxels
from sfumato.evaluate.judge import Judge
from sfumato.evaluate.voxels import voxel_scores
from sfumato.guidance import ClassifierFree
from sfumato.kinds import kind_of
from sfumato.pipeline import Pipeline
from sfumato.recipes import load_recipe, trainer
from sfumato.recipes.judges_voxels import train_voxel_judge
from sfumato.solid.render import turntable

SCALES = (1.0, 1.5, 2.0, 3.0)
PROMPTS = (
    "a pine tree", "a house", "a car", "a robot", "a red mushroom", "a wooden chair", "a sword", "a dog",
)  # fmt: skip


def say(text: str) -> None:
    """A line with the time."""
    print(f"[{time.strftime('%H:%M:%S')}] {text}", flush=True)


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--minutes", type=float, default=8.0)
    parser.add_argument("--size", default="m")
    parser.add_argument("--network", default="dit")
    parser.add_argument("--judge", type=Path, help="a folder of a judge, instead of training one")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="a setting of the recipe")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--brief", action="store_true")
    parser.add_argument("--quick", action="store_true")
    asked = parser.parse_args(arguments)
    asked.out.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as folder:
        run(asked, Path(folder))


def run(asked: Any, place: Path) -> None:
    """Judge, training, scores, pictures."""
    data = Voxels(path=str(asked.data))
    if asked.quick:
        data = _few(data, place)
    judge = Judge.load(asked.judge) if asked.judge else _judge(data, asked.quick, asked.device)
    judge.save(place / "judge", compact=True)
    _pack(place / "judge", asked.out / "judge.tar")
    settings = dict(pair.partition("=")[::2] for pair in asked.set)
    settings |= {"minutes": str(asked.minutes), "size": asked.size, "network": asked.network}
    if asked.quick:
        settings |= {"samples": "64", "batch": "8", "size": "xs"}
        del settings["minutes"]
    spec = load_recipe("voxels", {"data": str(data.path), **settings})
    say(f"training: {json.dumps(spec.to_dict(), default=str)[:800]}")
    result = trainer(spec, place / "run", device=asked.device).fit()
    say(f"trained: {result.steps:,} steps, {result.samples:,} samples in {result.seconds:.0f} s")
    _pack(place / "run", asked.out / "run.tar", without=("checkpoints", "model"))
    pipeline = Pipeline.from_pretrained(place / "run")
    pipeline.save_pretrained(place / "full")
    half = {k: v.to(torch.bfloat16).contiguous() for k, v in pipeline.model.state_dict().items()}
    save_file(half, asked.out / "weights.safetensors")
    modelfolder.save_compact(place / "full", place / "compact", trained={})
    on_gpu = torch.cuda.is_available() and asked.device != "cpu"
    about = {
        "run": "voxels",
        "data": "2,545 voxel models of four sources (CC0 1.0 and CC BY 4.0)",
        "samples": result.samples,
        "seconds": round(result.seconds, 1),
        "judge_seconds": judge.trained["seconds"],
        "machine": torch.cuda.get_device_name() if on_gpu else machine()["cpu"],
        "torch": torch.__version__.partition("+")[0],
        "command": _command(asked),
        "judge": judge.weights_sha256,
    }
    if "init" in settings:
        record = modelfolder.read_config(modelfolder.find_folder(settings["init"]))["trained"]
        about["before"] = [*record.get("before", []), {key: record.get(key) for key in ("samples", "seconds")}]
    ships = settled(place / "compact", place / "voxels", trained=about, judges={"judge": judge})
    _pack(ships, asked.out / "model.tar")  # before it is scored: its card is written again afterwards
    say(f"8-bit model: {sum(f.stat().st_size for f in ships.iterdir() if f.is_file()):,} bytes")
    if asked.brief:
        return
    compact = Pipeline.from_pretrained(ships)
    if on_gpu:
        compact.to("cuda")
        judge.to("cuda")
    trained = {"steps": result.steps, "samples": result.samples, "seconds": result.seconds}
    metrics, usual = _scores(compact, data, judge, asked.quick)
    write_card(ships, {**usual, "settings": {"voxels": {"judge_accuracy": judge.trained["accuracy"]}}})
    _pack(ships, asked.out / "model.tar")
    content = {"machine": machine(), "versions": versions(), "training": trained, "recipe": spec.to_dict(), **metrics}
    (asked.out / "metrics.json").write_text(json.dumps(content, indent=1, default=str) + "\n")
    _pictures(compact, data, asked.out, asked.quick)
    say("done")


def _command(asked: Any) -> str:
    """What trains it again, without the paths of a machine."""
    more = [f" --set {pair}" for pair in asked.set if not pair.startswith("init=")]
    more += [" --set init=FOLDER"] if len(more) < len(asked.set) else []
    return f"python -m benchmarks.voxels --data voxels32.npz --out DIR --minutes {asked.minutes:g}{''.join(more)}"


def _judge(data: Data, quick: bool, device: str) -> Judge:
    judge = train_voxel_judge(data, epochs=1 if quick else 40, width=4 if quick else 32, device=device)
    say(
        f"judge: {judge.trained['accuracy']:.3f} of {judge.trained['judged']} held-out models, {judge.trained['seconds']} s"
    )
    return judge


def _scores(pipeline: Pipeline, data: Data, judge: Judge, quick: bool) -> tuple[dict[str, Any], dict[str, Any]]:
    """Scores by guidance scale, and all of those of the scale that the model is sampled with."""
    found: dict[str, Any] = {}
    usual: dict[str, Any] = {}
    for scale in SCALES[:1] if quick else SCALES:
        scores = voxel_scores(
            pipeline, data, judge, each=1 if quick else 4, guidance=scale, points=64 if quick else 256
        )
        found[f"guidance {scale:g}"] = {name: asdict(score) for name, score in scores.metrics.items()}
        shown = {k: f"{v.value:.3f} ({v.real:.3f})" for k, v in scores.metrics.items() if v.real is not None}
        say(f"guidance {scale:g}: {shown}")
        if not usual or pipeline.sampling.guidance == ClassifierFree(scale=scale):
            usual = scores.to_dict()
    return {"scores": found}, usual


def _pictures(pipeline: Pipeline, data: Data, out: Path, quick: bool) -> None:
    held_out = data.split("held_out")
    kind, info = kind_of(data.info), data.info
    chosen = np.arange(2 if quick else 16) * len(held_out) // (2 if quick else 16)
    real = held_out.fetch(chosen)
    captions = [str(text) for text in real.conditions["caption"]]
    each = 1 if quick else 4
    made = pipeline(captions, n=each, seed=7, output_type="pt").media
    rows = [real.media, *(made[k::each] for k in range(each))]
    words = captions + [""] * (each * len(captions))
    sheet = kind.sheet([item for row in rows for item in row], info, len(captions), words)
    media.save_png(sheet, out / "captions.png")
    prompts = PROMPTS[:1] if quick else PROMPTS
    turned = [turntable(item.numpy()) for item in pipeline(list(prompts), seed=3, output_type="pt").media]
    strip = Image.new("RGB", (turned[0].width, sum(t.height for t in turned)), "white")
    for i, one in enumerate(turned):
        strip.paste(one, (0, i * one.height))
    media.save_png(strip, out / "turntable.png")
    if not quick:
        by_scale = [pipeline(list(PROMPTS), seed=11, guidance_scale=s, output_type="pt").media for s in SCALES]
        names = [f"{p}, {s:g}" for s in SCALES for p in PROMPTS]
        media.save_png(
            kind.sheet([item for part in by_scale for item in part], info, len(PROMPTS), names), out / "guidance.png"
        )


def _few(data: Voxels, place: Path) -> Voxels:
    """Some models, for --quick."""
    from sfumato.data.voxel_files import write_stored

    index = np.concatenate([np.flatnonzero(data.held_out_mask())[:12], np.flatnonzero(~data.held_out_mask())[:60]])
    batch = data.fetch(index)
    labels = [data.info.labels[int(k)] for k in torch.as_tensor(batch.conditions["label"])]
    split = ["test"] * 12 + ["train"] * 60
    text: Mapping[str, Sequence[str]] = {
        "caption": list(map(str, batch.conditions["caption"])),
        "category": labels,
        "split": split,
    }
    write_stored(place / "few.npz", batch.media.numpy(), **text)
    return Voxels(path=str(place / "few.npz"))


def _pack(folder: Path, file: Path, without: Sequence[str] = ()) -> None:
    with tarfile.open(file, "w") as archive:
        archive.add(folder, folder.name, filter=lambda info: None if _among(info.name, without) else info)


def _among(name: str, folders: Sequence[str]) -> bool:
    return any(f"/{folder}" in name for folder in folders)


if __name__ == "__main__":
    torch.set_float32_matmul_precision("high")
    main()
