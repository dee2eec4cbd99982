"""Sounds of 10 s at 22.05 kHz and voxel models of 64^3 by the latent codecs, trained and scored in one go on one GPU.

    python -m benchmarks.seed_sizes sound  --data oneshots.npz --out DIR [--minutes 2 4] [--device auto] [--quick]
    python -m benchmarks.seed_sizes voxels --data voxels32.npz --out DIR [--minutes 2 4] [--device auto] [--quick]

--minutes: of the autoencoder and of the diffusion model in its latent, by the library's recipes; the commands that do the
same are printed. --adversarial 0.1: weight of the critic, which begins half way; 0 for none. sound: one-shots on a grid of
beats (data `sequenced`), windows of 2.5 s for the autoencoder and of 10 s (220,500 samples) for the model. voxels: 32^3
models, every voxel repeated to 64^3. Scored on what training has not seen.

DIR gets metrics.json, reconstructed.png (held-out items above what comes back), samples.png, model.tar (8 bits; all samples
are its), and player.html with two .wav, or two .glb (.vox without trimesh). --quick shows in a minute or two of a CPU that
all of it runs, and means nothing else.
"""

from __future__ import annotations

import argparse
import gc
import json
import resource
import shlex
import tarfile
import tempfile
import time
from collections.abc import Callable, Sequence
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from benchmarks._table import machine, versions
from sfumato import media, modelfolder
from sfumato.codecs import load_weights, open_codec
from sfumato.core import DataInfo
from sfumato.data import Data
from sfumato.device import choose_device, wait
from sfumato.editing import edit
from sfumato.evaluate import frechet, set_scores
from sfumato.evaluate.audio import clipped, log_mel_distance, signal_to_noise, silent, statistics, stft_distance
from sfumato.evaluate.solid_sets import overlap_distance
from sfumato.kinds import kind_of
from sfumato.pipeline import Pipeline
from sfumato.recipes import load_recipe, trainer
from sfumato.request import as_arguments
from sfumato.solid.grid import in_one_piece
from sfumato.solid.render import turntable

LENGTHS = (1.0, 4.5, 10.0)  # seconds
LEVELS, WINDOW = (-25.0, -50.0), 0.02  # below which a sound has ended, in dB of the loudest window; seconds of one
PROMPTS = ["a pine tree", "a house", "a car", "a robot", "a red mushroom", "a wooden chair", "a sword", "a dog"]
QUIET = {"train.evaluations": "0", "train.pictures": "0", "train.checkpoint_minutes": "100", "train.threads": "8"}


def say(text: str) -> None:
    """A line with the time."""
    print(f"[{time.strftime('%H:%M:%S')}] {text}", flush=True)


class Sound:
    """One-shots on a grid of beats."""

    name = "sounds-10s"

    def __init__(self, file: Path, quick: bool) -> None:
        self.length, self.count = (2.0, 60) if quick else (10.0, 2000)
        self.lengths = tuple(n * self.length / 10 for n in LENGTHS)
        window = self.length / 4
        clips = f"{{type: clips, path: {json.dumps(str(file))}, label: families, level: peak, held_out: 0.15}}"
        pattern = f"{{type: sequenced, data: {clips}, seconds: %g, count: {self.count}}}"
        size = {"size": "xs", "batch": "4"} if quick else {"size": "s", "batch": "32"}
        self.autoencoder = {
            "data": pattern % window, "codec": "{type: waveform, fold: 8}", "factor": "16", "channels": "16", **size,
        }  # fmt: skip
        model = {"size": "xs", "batch": "4"} if quick else {"size": "m", "batch": "64", "network.width": "80"}
        noise = {"objective.times.mean": "0.8", "objective.times.std": "1.4"}  # ten seconds are decided far up in it
        self.model = ("sounds", {"data": pattern % self.length, **noise, **model})

    def reconstruction(self, real: Tensor, made: Tensor, info: DataInfo) -> dict[str, Tensor]:
        far, off = stft_distance(real, made), log_mel_distance(real, made, info.rate)
        return {"snr_db": signal_to_noise(real, made), "stft_distance": far, "mel_db": off}

    def scores(self, pipeline: Pipeline, data: Data, made: Tensor, rows: np.ndarray) -> dict[str, Any]:
        info, real = data.info, data.fetch(rows)
        other = _training(data, len(rows))
        a, b, c = (statistics(x, info.rate).cpu() for x in (real.media, made, other))
        asked = torch.as_tensor(real.conditions["number"])[:, 0]
        found: dict[str, Any] = {
            "fd_mel": {"value": frechet(a, b, resamples=0).value, "real": frechet(a, c, resamples=0).value},
            **{test.__name__: float(test(made).float().mean()) for test in (silent, clipped)},
            **{
                f"end_off_seconds at {level:g} dB": {
                    "value": _off(made, asked, info.rate, level),
                    "real": _off(real.media, asked, info.rate, level),
                }
                for level in LEVELS
            },
            "after_the_end_db": {"value": _rest(made, asked, info.rate), "real": _rest(real.media, asked, info.rate)},
        }
        words = [str(c) for c in real.conditions["caption"]][:8]
        for length in self.lengths:  # as a condition, in a window of the usual length; and cut to it
            whole = pipeline(words, number=length, seed=99, output_type="pt").media
            size = round(length * info.rate)
            some = edit(pipeline, size=(size,), prompt=words, number=length, seed=99)
            ends = [round(end, 3) for end in _ends(whole, info.rate, LEVELS[0]).tolist()]
            found[f"asked_{length:g}_s"] = {"ends_at": ends, "samples": size, "got": some.media.shape[-1]}
        return found

    def show(self, pipeline: Pipeline, data: Data, out: Path) -> None:
        info, kind = data.info, kind_of(data.info)
        words = [str(c) for c in data.columns(np.flatnonzero(data.held_out_mask())[:4])["caption"]]
        made = [pipeline(words, number=length, seed=7, output_type="pt").media for length in self.lengths]
        rows = [*torch.cat(made)]
        said = [f"{w}, {length:g} s asked" for length in self.lengths for w in words]
        media.save_png(kind.sheet(rows, info, len(words), said), out / "samples.png")
        page = f"<!DOCTYPE html><meta charset=utf-8><title>{self.name}</title>{kind.viewer(rows, info, said)}"
        (out / "player.html").write_text(page, encoding="utf-8")
        for k in (0, 1):
            (out / f"sample-{k}.wav").write_bytes(kind.encode(rows[-1 - k], info, ".wav"))


class Solid:
    """Voxel models of 64^3."""

    name = "voxels-64"

    def __init__(self, file: Path, quick: bool) -> None:
        size = {"size": "xs", "batch": "2"} if quick else {"size": "s", "batch": "16"}
        data = {"data": str(file), "data.size": "64"}
        self.autoencoder = {**data, "codec": "voxels", "factor": "4", "channels": "8", **size}
        # a latent has a quarter of the numbers of the folded field that the recipe's noise levels are for
        noise = {
            "objective.times": "{type: logit-normal, mean: 1.1, std: 1.6}",
            "sampling.grid": "{type: logistic, center: -1.3, scale: 2}",
        }
        noise |= {
            "network": "unet",
            "parameterization": "velocity",
            "optimizer": "adamw",
            "sampling.guidance.scale": "2",
        }
        model = {"size": "xs", "batch": "4"} if quick else {"size": "m", "batch": "64", "lr": "1e-3"}
        self.model = ("voxels", {**data, **noise, **model})

    def reconstruction(self, real: Tensor, made: Tensor, info: DataInfo) -> dict[str, Tensor]:
        a, b = real[:, 3] > 0, made[:, 3] > 0
        both, either = (x.flatten(1).sum(1) for x in (a & b, a | b))
        off = (real[:, :3].float() - made[:, :3].float()).abs().mean(1) * (
            a & b
        )  # grey levels, where both are occupied
        return {"iou": both / either.clamp_min(1), "colour_error": off.flatten(1).sum(1) / both.clamp_min(1)}

    def scores(self, pipeline: Pipeline, data: Data, made: Tensor, rows: np.ndarray) -> dict[str, Any]:
        other = _training(data, len(rows))
        real, samples, third = (x[:, 3] > 0 for x in (data.fetch(rows).media, made, other))
        found: dict[str, Any] = {"asked": list(data.info.shape), "got": list(made.shape[1:])}
        for name, x in (("samples", samples), ("train", third)):
            parts = [overlap_distance(*pair) for pair in ((x, x), (x, real), (real, real))]
            found[f"iou_{name}_to_held_out"] = vars(set_scores(*parts))
        for name, x in (("samples", samples), ("held_out", real)):
            found[f"single_component_{name}"] = float(np.mean(in_one_piece(x)))
            found[f"occupied_{name}"] = float(x.float().mean())
        return found

    def show(self, pipeline: Pipeline, data: Data, out: Path) -> None:
        made = pipeline(PROMPTS, seed=3, output_type="pt").media
        strip = np.concatenate([np.asarray(turntable(item.numpy())) for item in made])
        media.save_png(Image.fromarray(strip), out / "samples.png")
        suffix = ".glb" if find_spec("trimesh") else ".vox"
        for k in (0, 1):
            (out / f"sample-{k}{suffix}").write_bytes(kind_of(data.info).encode(made[k], data.info, suffix))


def _training(data: Data, n: int) -> Tensor:
    """Training items from all over the set."""
    train = data.split("train")
    return train.fetch(np.arange(n) * len(train) // n).media


def _ends(sounds: Tensor, rate: int, level: float) -> Tensor:
    """Seconds up to the end of the last window of each (N, c, T) that is above a level, in dB of the loudest one."""
    heard = _levels(sounds, rate) > level
    return torch.where(heard, torch.arange(1, heard.shape[1] + 1), 0).amax(1) * round(WINDOW * rate) / rate


def _levels(sounds: Tensor, rate: int) -> Tensor:
    """Root mean square of windows of each (N, c, T), in dB of the loudest one: (N, T / window)."""
    window = round(WINDOW * rate)
    power = sounds.double().square().mean(1).unfold(1, window, window).mean(2)
    return 10 * torch.log10((power / power.amax(1, keepdim=True).clamp_min(1e-12)).clamp_min(1e-12))


def _rest(sounds: Tensor, asked: Tensor, rate: int) -> float:
    """Level of what comes a tenth of a second and more after the end that was asked for, dB: the median of all windows."""
    level = _levels(sounds, rate)
    late = torch.arange(level.shape[1]) * WINDOW > asked[:, None] + 0.1
    return float(level[late].median())


def _off(sounds: Tensor, asked: Tensor, rate: int, level: float) -> dict[str, float]:
    """How far the ends are from where they should be, in seconds, and the share that is within half a second."""
    off = (_ends(sounds, rate, level) - asked).abs()
    median, most = off.quantile(torch.tensor([0.5, 0.9])).tolist()
    return {"median": median, "90%": most, "within 0.5 s": float((off < 0.5).float().mean())}


def fitted(name: str, settings: dict[str, str], folder: Path, device: torch.device) -> dict[str, Any]:
    """Train a recipe; how many items a second and how much memory."""
    say(f"sfumato train {name} {shlex.join(f'{k}={v}' for k, v in settings.items())}")
    gib(device, anew=True)
    made = trainer(load_recipe(name, QUIET | settings), folder, device=str(device)).fit()
    found = {"steps": made.steps, "items": made.samples, "seconds": made.seconds}
    found |= {"items_per_second": made.samples / made.seconds, "peak_gib": gib(device)}
    say(f"trained: {json.dumps(found)}")
    return found


def gib(device: torch.device, anew: bool = False) -> float:
    """The most memory so far, of the GPU since it was counted anew, or of the process in all its life."""
    if device.type != "cuda":
        return round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20, 3)
    if anew:
        gc.collect()
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
    return round(torch.cuda.max_memory_reserved() / 2**30, 3)


def timed(run: Callable[[], Any], device: torch.device) -> float:
    """Seconds of a call, the best of three after one that is not counted."""
    found = []
    for _ in range(4 if device.type == "cuda" else 2):
        wait(device)
        began = time.perf_counter()
        run()
        wait(device)
        found.append(time.perf_counter() - began)
    return min(found[1:])


@torch.no_grad()
def through(case: Any, folder: Path, data: Data, out: Path, device: torch.device, quick: bool) -> dict[str, Any]:
    """Held-out items through the codec and back: how near they come, and how quick it is."""
    load_weights(codec := open_codec(str(folder)).build(data.info), str(folder))
    codec.eval().to(device)
    held, parts, shown, batch = data.split("held_out"), [], [], 2 if quick else 8
    for first in range(0, min(len(held) - batch, 4 if quick else 104), batch):
        real = held.fetch(range(first, first + batch)).media
        made = codec.decode(codec.encode(real.to(device))).cpu()  # its latent is not whitened yet
        parts.append(case.reconstruction(real, made, data.info))
        shown += list(zip(real, made)) if len(shown) < 8 else []
    mean = {name: float(torch.cat([part[name] for part in parts]).float().mean()) for name in parts[0]}
    sheet = kind_of(data.info).sheet([pair[k] for k in (0, 1) for pair in shown], data.info, len(shown))
    media.save_png(sheet, out / "reconstructed.png")
    h = codec.encode(some := held.fetch(range(batch)).media.to(device))
    found = {"media": data.info.shape, "latent": codec.shape, "held_out": mean}
    found["encoded_per_second"] = batch / timed(lambda: codec.encode(some), device)
    found["decoded_per_second"] = batch / timed(lambda: codec.decode(h), device)
    found["parameters"] = sum(p.numel() for p in codec.net.parameters())
    say(f"codec: {json.dumps(found)}")
    return found


def sampled(case: Any, pipeline: Pipeline, data: Data, device: torch.device, quick: bool) -> dict[str, Any]:
    """What held-out items are asked by, asked; and how long it takes."""
    columns = data.columns(rows := np.flatnonzero(data.held_out_mask())[: 3 if quick else 100])
    asked = as_arguments({k: columns[k] for k in pipeline.model.conditioner.columns})
    more = {"output_type": "pt", "num_inference_steps": 2 if quick else None, "batch_size": 25}
    gib(device, anew=True)
    made = pipeline(**asked, seed=1000, **more).media
    found: dict[str, Any] = {"n": len(rows), "steps": more["num_inference_steps"] or pipeline.sampling.steps}
    found |= {"peak_gib": gib(device), **case.scores(pipeline, data, made, rows)}
    for n in (1,) if quick else (1, 16):
        some = more | {k: v[:n] for k, v in asked.items()}
        found[f"seconds_for_{n}"] = timed(partial(pipeline, seed=5, **some), device)
    say(f"samples: {json.dumps(found)}")
    return found


def run(case: Any, asked: argparse.Namespace, device: torch.device, place: Path) -> dict[str, Any]:
    began, after = time.monotonic(), 16
    if not asked.quick:  # the critic begins half way, which the recipe counts in samples
        tenth = {"minutes": f"{asked.minutes[0] / 10:g}", "adversarial": "0"}
        after = int(5 * fitted("ae", case.autoencoder | tenth, place / "probe", device)["items"])
    budget = {"minutes": f"{asked.minutes[0]}", "losses.after": f"{after}", "adversarial": f"{asked.adversarial}"}
    report = {"autoencoder": fitted("ae", case.autoencoder | budget, place / "ae", device)}
    name, settings = case.model
    settings |= {"codec": str(place / "ae"), "minutes": str(asked.minutes[1])}
    data = load_recipe(name, settings).data.build()
    report["codec"] = through(case, place / "ae", data, asked.out, device, asked.quick)
    report["model"] = fitted(name, settings, place / "run", device)
    modelfolder.save_compact(place / "run", place / "model", trained={})
    with tarfile.open(asked.out / "model.tar", "w") as archive:
        archive.add(place / "model", case.name)
    pipeline = Pipeline.from_pretrained(place / "model").to(device, "bf16" if device.type == "cuda" else None)
    report["model"]["parameters"] = sum(p.numel() for p in pipeline.model.denoiser.parameters())
    report["samples"] = sampled(case, pipeline, data, device, asked.quick)
    case.show(pipeline, data, asked.out)
    return {**report, "wall_seconds": round(time.monotonic() - began, 1)}


def main(words: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("case", choices=("sound", "voxels"))
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--minutes", type=float, nargs=2, default=(2.0, 4.0))
    parser.add_argument("--adversarial", type=float, default=0.1)
    parser.add_argument("--device", default="auto")
    parser.add_argument("--quick", action="store_true")
    asked = parser.parse_args(words)
    asked.minutes = (0.15, 0.15) if asked.quick else asked.minutes
    asked.out.mkdir(parents=True, exist_ok=True)
    device = choose_device(asked.device)
    gpu = torch.cuda.get_device_name() if device.type == "cuda" else None
    settings = {k: v.name if isinstance(v, Path) else v for k, v in vars(asked).items() if k != "out"}
    about = {"machine": machine(gpu=gpu), "versions": versions("torch", "sfumato"), "settings": settings}
    with tempfile.TemporaryDirectory() as place:
        case = {"sound": Sound, "voxels": Solid}[asked.case](asked.data, asked.quick)
        report = run(case, asked, device, Path(place))
    (asked.out / "metrics.json").write_text(json.dumps(about | report, indent=1, default=str) + "\n")
    say(f"done in {report['wall_seconds']} s")


if __name__ == "__main__":
    torch.set_float32_matmul_precision("high")
    main()
