"""The emoji model that ships and its judge, trained and scored in one go on one GPU.

    python -m benchmarks.emoji --data emoji64.parquet --out DIR [--minutes 6] [--judge FOLDER] [--init FOLDER]
                               [--scratch FOLDER] [--taught 1500] [--set KEY=VALUE ...] [--brief] [--quick]
    python -m benchmarks.emoji --join DIR MODEL

Trains a text encoder by the loss of the judge for --taught steps (0 for none), then recipe `emoji` on top of it for so many
minutes, then the judge of words with another seed, then draws and judges what `sfumato eval emoji` does. Stopped (SIGINT),
the same command with the same --scratch goes on where it was. --brief only prints and keeps the scores, without the curve,
to compare settings. DIR gets at most eight files: model.tar (the model folder as it ships, weights in 8 bits),
judge.tar, weights-1.safetensors and weights-2.safetensors (all weights in bfloat16, to train on from: `--join` makes a
model folder of them, for init=), metrics.json, prompts.png (64 prompts), guidance.png and run.tar. With --judge the judge
of that folder is taken, or trained there. --quick shows that all of it runs, in a minute on a CPU, and means nothing else.
"""

from __future__ import annotations

import argparse
import json
import tarfile
import tempfile
import time
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

from benchmarks._table import machine, versions
from benchmarks.emoji_card import card
from sfumato import media, modelfolder
from sfumato.conditioners import Text
from sfumato.data import Data, Emoji
from sfumato.data.emoji_words import caption
from sfumato.device import choose_device
from sfumato.errors import Interrupted
from sfumato.evaluate.contrastive import ContrastiveJudge
from sfumato.evaluate.emoji import emoji_scores
from sfumato.evaluate.judge import Judge
from sfumato.evaluate.scores import Scores
from sfumato.pipeline import Pipeline
from sfumato.recipes import load_recipe, prepare, start
from sfumato.recipes.attributes import Looks
from sfumato.recipes.contrastive import Lessons, teach_words, train_contrastive
from sfumato.spec import Spec
from sfumato.train import Result, Run

EACH = 16  # prompts of each kind on the sheet
SHOWN = (1.0, 2.0, 4.0, 7.5)
# New colours, new things in known designs, and several things at once: none of these is in the data.
COMPOSED = (
    "blue apple, fluent emoji", "purple banana, noto emoji", "green heart with a bow, twemoji emoji",
    "golden dog face, fluent emoji", "pink crocodile, noto emoji", "cat face with glasses, fluent flat emoji",
    "red star, fluent emoji", "black strawberry, twemoji emoji", "robot cat, fluent emoji",
    "crying pizza, noto emoji", "rainbow fish, fluent emoji", "blue rose, noto blob emoji",
    "happy sun with sunglasses, fluent emoji", "green house, twemoji emoji", "yellow car, fluent flat emoji",
    "ghost with a crown, noto emoji",
)  # fmt: skip


def say(text: str) -> None:
    """A line with the time."""
    print(f"[{time.strftime('%H:%M:%S')}] {text}", flush=True)


def judge_of(data: Emoji, folder: Path, lessons: Lessons, looks: Looks, device: str) -> ContrastiveJudge:
    """The judge in `folder`, trained first if there is none; as it is read back, in 8 bits."""
    if not (folder / "judge.json").is_file():
        judge = train_contrastive(data, lessons=lessons, looks=looks, device=device, on_step=_on_step)
        say(f"judge trained in {judge.trained['seconds']} s")
        judge.save(folder, compact=True)
    found = Judge.load(folder)
    assert isinstance(found, ContrastiveJudge)
    return found


def _on_step(done: int, of: int, loss: float) -> None:
    if done % 500 == 0 or done == of:
        say(f"  judge: step {done} of {of}, loss {loss:.3f}")


def prompts(data: Emoji) -> list[str]:
    """Sixteen captions each that were trained on, of known names in a design held out, of new names, and composed ones."""
    known, new, train = data.part("known"), data.part("new"), data.split("train").indices
    spread = [part[:: max(1, len(part) // EACH)][:EACH] for part in (train, known, new)]
    return [*(caption(data.rows[i]) for part in spread for i in part), *COMPOSED]


def sheet(pipeline: Pipeline, asked: Sequence[str], file: Path, scales: Sequence[float | None] = (None,)) -> None:
    """One picture for each prompt, a row a scale, seeds 0, 1, ..."""
    rows = [
        pipeline(list(asked), seed=0, guidance_scale=scale, batch_size=64, output_type="pt").media for scale in scales
    ]
    shown = [media.to_image(item) for row in rows for item in row]
    media.save_png(media.grid(shown, 8 if len(scales) == 1 else len(asked), [*asked] * len(scales)), file)


def tar(folder: Path, file: Path, without: Sequence[str] = ()) -> None:
    """The files of a folder, one level or more, but for some entries of it."""
    with tarfile.open(file, "w") as packed:
        for entry in sorted(folder.iterdir()):
            if entry.name not in without:
                packed.add(entry, arcname=f"{folder.name}/{entry.name}")


def trained_model(spec: Spec[Any], data: Emoji, run: Run, options: argparse.Namespace, device: str) -> Result:
    """The run to its end, from where it was; a new one begins with a text encoder that was taught."""
    made = prepare(spec, run)
    conditioner = made.task.model.conditioner
    fresh = run.checkpoints().newest_info() is None and options.init is None
    if fresh and options.taught and isinstance(conditioner, Text):
        steps, batch = (3, 32) if options.quick else (options.taught, 512)
        teach_words(conditioner, data, lessons=Lessons(steps=steps, batch=batch, seed=1), device=device)
        say("words taught")
    return start(made, run, device=device).fit()


def halves(model: torch.nn.Module, out: Path) -> None:
    """All weights in bfloat16, in two files of about the same size."""
    names = sorted(model.state_dict())
    tensors = {n: t.detach().cpu().to(torch.bfloat16).contiguous() for n, t in model.state_dict().items()}
    total, done = sum(t.numel() for t in tensors.values()), 0
    parts: tuple[dict[str, Any], dict[str, Any]] = ({}, {})
    for name in names:
        parts[int(done > total / 2)][name] = tensors[name]
        done += tensors[name].numel()
    for number, part in enumerate(parts, 1):
        save_file(part, out / f"weights-{number}.safetensors")


def join(out: Path, model: Path) -> None:
    """A model folder with the weights of `halves`, for init=."""
    with tarfile.open(out / "model.tar") as packed:
        packed.extractall(model.parent / f".{model.name}", filter="data")
    stored = modelfolder.load(next((model.parent / f".{model.name}").iterdir()))
    tensors = {k: v.float() for n in (1, 2) for k, v in load_file(out / f"weights-{n}.safetensors").items()}
    stored.model.load_state_dict(tensors)
    modelfolder.save(model, stored.model, stored.spec, sampling=stored.sampling, trained=stored.trained)
    say(f"{model}: ready for init={model}")


def recipe_of(options: argparse.Namespace) -> Spec[Any]:
    """The recipe with everything that was asked for."""
    settings = {"data": str(options.data), "minutes": str(options.minutes)}
    settings |= {"init": str(options.init)} if options.init else {}
    settings |= {"size": "xs", "train.pictures": "1", "train.evaluations": "1"} if options.quick else {}
    return load_recipe("emoji", settings | dict(pair.split("=", 1) for pair in options.set))


def work(options: argparse.Namespace) -> None:
    """From data to a model, whose files are kept as soon as they are there."""
    out: Path = options.out
    out.mkdir(parents=True, exist_ok=True)
    scratch = options.scratch or Path(tempfile.mkdtemp(prefix="emoji-"))
    device = choose_device(options.device)
    spec = recipe_of(options)
    opened: Spec[Data] = spec.data
    data = opened.build()
    assert isinstance(data, Emoji)
    say(f"{len(data)} pictures read, {len(data.split('train'))} to train on; {device}")
    _ = data.media
    result = trained_model(spec, data, Run(scratch / "emoji", spec), options, str(device))
    say(f"model trained: {result.samples:,} samples in {result.seconds:.0f} s, loss {result.loss:.4f}")
    lessons = Lessons(steps=3, batch=32) if options.quick else Lessons(steps=options.steps)
    looks = Looks(epochs=1, batch=512) if options.quick else Looks()
    folder = options.judge or scratch / "judge"
    judge = judge_of(data, folder, lessons, looks, str(device))
    tar(folder, out / "judge.tar")
    place = torch.cuda.get_device_name(device) if device.type == "cuda" else str(machine()["cpu"])
    trained: dict[str, Any] = {
        "gpu_minutes": round(result.seconds / 60, 2),
        "judge_minutes": round(judge.trained["seconds"] / 60, 2),
        "taught_steps": options.taught,
        "dropped": dict(spec.leaves())["train.drop"],
        "swapped": data.swap,
        "machine": place,
        "versions": versions("sfumato"),
        "styles": list(data.styles),
        "judge": judge.weights_sha256,
    }
    if options.init:
        last = modelfolder.read_config(modelfolder.find_folder(options.init))["trained"]
        stage = {"samples": last["samples"], "gpu_minutes": round(last["seconds"] / 60, 2)}
        trained["before"] = [*last.get("before", []), stage]
    whole = Pipeline.load(scratch / "emoji")
    small = modelfolder.save_compact(scratch / "emoji", scratch / "compact" / "emoji", trained=trained)
    if not options.brief:
        halves(whole.model, out)
        tar(small, out / "model.tar")
    pipeline = Pipeline.load(small)
    for one in (whole.model, pipeline.model, judge):
        one.to(device)
    sheet(pipeline, prompts(data), out / "prompts.png")
    found, scores = judged(whole, pipeline, data, judge, options)
    found |= {"judge": judge.trained, "trained": trained, "settings": dict(spec.leaves())}
    (out / "metrics.json").write_text(json.dumps(found, indent=1, default=str), encoding="utf-8")
    if not options.brief:
        text = card(data, pipeline, scores, judge, trained)
        modelfolder.save_compact(scratch / "emoji", small, trained=trained, card=text)
        tar(small, out / "model.tar")
        sheet(pipeline, prompts(data)[1::5][:12], out / "guidance.png", SHOWN)
        tar(scratch / "emoji", out / "run.tar", without=("checkpoints", "model"))


def judged(
    whole: Pipeline, pipeline: Pipeline, data: Emoji, judge: ContrastiveJudge, options: argparse.Namespace
) -> tuple[dict[str, Any], Scores]:
    """Scores of the model as it ships, and without the 8 bits; printed as they come."""
    few: dict[str, Any] = {"seen": 8, "curve": 4, "steps": 2} if options.quick else {}
    few |= {"seen": 0, "curve": 0} if options.brief else {}
    batch = 64 if judge.device.type == "cpu" else 256
    scores = emoji_scores(pipeline, data, judge, batch=batch, **few)
    for name, score in scores.metrics.items():
        say(f"{name:24} {score.value:.4f}  {score.interval}  real {score.real}")
    found = {"emoji": _plain(scores)}
    if not (options.quick or options.brief):
        found["float32"] = _plain(emoji_scores(whole, data, judge, batch=batch, curve=0, seen=0))
    return found, scores


def _plain(scores: Scores) -> dict[str, Any]:
    return {
        "n": scores.n,
        "settings": dict(scores.settings),
        "metrics": {k: asdict(v) for k, v in scores.metrics.items()},
    }


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.emoji", description=__doc__.split("\n")[0])
    parser.add_argument("--data", type=Path, help="the table of the emoji")
    parser.add_argument("--out", type=Path, help="where the files are put")
    parser.add_argument("--minutes", type=float, default=6.0)
    parser.add_argument("--steps", type=int, default=Lessons().steps, help="of the judge")
    parser.add_argument("--judge", type=Path, help="a judge that is there")
    parser.add_argument("--init", type=Path, help="a model folder to train on from")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="any setting of the recipe")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--scratch", type=Path, help="where the run is kept, to go on with it later")
    parser.add_argument("--taught", type=int, default=1500, help="steps that the text encoder is taught before")
    parser.add_argument("--brief", action="store_true")
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--join", nargs=2, type=Path, metavar=("DIR", "MODEL"))
    options = parser.parse_args()
    if options.join:
        join(*options.join)
    elif options.data is None or options.out is None:
        parser.error("give --data and --out")
    else:
        try:
            work(options)
        except Interrupted as stopped:
            say(str(stopped))
            raise SystemExit(stopped.exit_code) from None


if __name__ == "__main__":
    main()
