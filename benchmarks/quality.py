"""Quality for GPU minutes on CIFAR-10: ours and diffusers' U-Net, trained for the same minutes and scored by one judge.

    python -m benchmarks.quality --data CIFAR --who peer --minutes 1 2 4 --out DIR
    python -m benchmarks.quality --data CIFAR --who ours --minutes 1 2 4 --out DIR --recipe NAME [--set KEY=VALUE ...]
    python -m benchmarks.quality --data CIFAR --score DIR --judges FOLDER ... [--json FILE] [--write]

Without labels on both sides. The peer is the U-Net of google/ddpm-cifar10-32 with the usual settings: bfloat16, compiled,
batches of 256, fused AdamW at 2e-4 after 500 steps of warm-up, horizontal flips, noise prediction on linear betas, EMA of
0.9999 with diffusers' warm-up. It is trained once and pauses at each of the minutes; compilation is not counted. Ours is
a recipe in the library's own `Trainer`, a run of its own for each budget because the rate falls towards its end, with
everything the run does besides training counted, except that nothing is evaluated or drawn on the way.

Several GPUs train one model by `torchrun --nproc-per-node N -m benchmarks.quality --who ours ...`; minutes are then of each.

Each point leaves NAME-Nmin.npy, 10,000 samples (N, 3, 32, 32) uint8 by 50 evaluations, with a sheet of the first hundred
and what it took beside it. The score is the Frechet distance to the training set in the features of a judge; the real
test set and two halves of the training set are scored too; where the peer was not trained for as long, the test set stands
in its place. A distance depends on the judge and on the number of samples: compare ratios of one run.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, final

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.modules.module import register_module_forward_pre_hook

from benchmarks._gpu import SHAPES, release, sizes
from benchmarks._peer_networks import peer_unet
from benchmarks._table import RESULTS, Row, machine, show, versions, write
from benchmarks.sample_gpu import EVALUATIONS, Ddim
from benchmarks.train_gpu import How, UNetTraining
from sfumato import media
from sfumato.data import Subset, open_data
from sfumato.device import choose_device, has_bf16, wait
from sfumato.errors import UserError
from sfumato.evaluate import Judge, Moments, frechet_distance
from sfumato.nn.captured import Captured
from sfumato.pipeline import Pipeline
from sfumato.recipes import load_recipe
from sfumato.recipes.build import trainer

RATE, WARMUP = 2e-4, 500
SHEET = 100
# Of every recipe here: the peer sees no labels and flips, and is not evaluated while the clock runs.
OURS = {"conditioner": "none", "data.flip": "true", "train.evaluations": "0", "train.pictures": "0"}


@dataclass(frozen=True)
class Scale:
    """How much is done: in full, or `--quick`, which shows that it runs. minute: seconds that count as one."""

    minute: float = 60.0
    batch: int = 256
    samples: int = 10_000
    sampled: int = 500
    evaluations: int = EVALUATIONS


QUICK = Scale(minute=1.0, batch=8, samples=32, sampled=16, evaluations=2)


# ---------------------------------------------------------------- samples on disk


@dataclass(frozen=True)
class Point:
    """Samples (N, C, H, W) uint8 after some minutes, what it took and on what."""

    name: str
    minutes: float
    samples: Tensor
    about: dict[str, Any]

    def save(self, folder: Path) -> None:
        stem = folder / f"{self.name}-{self.minutes:g}min"
        folder.mkdir(parents=True, exist_ok=True)
        np.save(stem.with_name(stem.name + ".npy"), self.samples.numpy())
        shown = [media.to_image(item) for item in self.samples[:SHEET]]
        media.save_png(media.grid(shown, 10, scale=2), stem.with_name(stem.name + ".png"))
        where = {"machine": _machine(), "versions": versions("sfumato", "diffusers", "triton")}
        about = {"name": self.name, "minutes": self.minutes, **self.about, **where}
        stem.with_name(stem.name + ".json").write_text(json.dumps(about, indent=1) + "\n", encoding="utf-8")
        print(f"{stem.name}: {self.about['images']:,} images in {self.about['seconds']:.1f} s of training", flush=True)


def _machine() -> dict[str, Any]:
    return machine(gpu=torch.cuda.get_device_name() if torch.cuda.is_available() else None)


def pictures(data: Subset) -> Tensor:
    """All pictures of a part of the data, (N, C, H, W) uint8."""
    return data.fetch(np.arange(len(data))).media


# ---------------------------------------------------------------- the peer


@final
class Peer:
    """diffusers' U-Net in training on pictures that lie on the device."""

    def __init__(self, real: Tensor, scale: Scale, device: torch.device, seed: int, spacing: str) -> None:
        torch.manual_seed(seed)
        self.real, self.scale, self.device, self.seed = real.to(device), scale, device, seed
        how = How("" if device.type == "cuda" else None, fused=True)
        self.training = UNetTraining(peer_unet(sizes(device)), device, how, RATE)
        self.ddim = Ddim(device, scale.evaluations, spacing)
        self.order, self.at, self.steps, self.seconds = torch.empty(0, device=device), 0, 0, 0.0
        began = time.perf_counter()
        for _ in range(3):  # compiles; without a step of the optimizer nothing is learnt
            self.training.loss(self.batch()).backward()
            self.training.optimizer.zero_grad()
        wait(device)
        self.setup_seconds = time.perf_counter() - began

    def batch(self) -> Tensor:
        """The next pictures of a shuffled epoch in [-1, 1], half of them flipped."""
        size = self.scale.batch
        if self.at + size > len(self.order):
            self.order, self.at = torch.randperm(len(self.real), device=self.device), 0
        rows = self.order[self.at : self.at + size]
        self.at += size
        chosen = self.real[rows].float() / 127.5 - 1
        flipped = torch.rand(len(rows), 1, 1, 1, device=self.device) < 0.5
        return torch.where(flipped, chosen.flip(-1), chosen)

    def train(self, until: float) -> float:
        """Train until so many seconds are used up in all; the last loss."""
        self.training.network.train()
        loss = torch.zeros(())
        wait(self.device)
        while self.seconds < until:
            began = time.perf_counter()
            for _ in range(5):
                self.steps += 1
                for group in self.training.optimizer.param_groups:
                    group["lr"] = RATE * min(1.0, self.steps / WARMUP)
                loss = self.training.step(self.batch())
            wait(self.device)
            self.seconds += time.perf_counter() - began
        return float(loss)

    def sample(self) -> Tensor:
        """Pictures by DDIM with the averaged weights, always from the same noise."""
        training, scale = self.training, self.scale
        training.ema.store(training.parameters)
        training.ema.copy_to(training.parameters)
        training.network.eval()
        generator = torch.Generator(self.device).manual_seed(self.seed)

        def forward(x: Tensor, k: Tensor, return_dict: bool) -> tuple[Tensor]:
            with torch.autocast(self.device.type, torch.bfloat16):
                return (training.forward(x, k, return_dict=return_dict)[0].float(),)

        made = []
        for _ in range(-(-scale.samples // scale.sampled)):
            x = torch.randn(scale.sampled, *SHAPES["unet"], generator=generator, device=self.device)
            x0 = self.ddim(forward, x, lambda: None)
            made.append(((x0 + 1) * 127.5).round().clamp(0, 255).to(torch.uint8).cpu())
        training.ema.restore(training.parameters)
        return torch.cat(made)[: scale.samples]


def peer_points(options: argparse.Namespace, scale: Scale, device: torch.device) -> Iterable[Point]:
    """One training that pauses at each of the minutes."""
    real = pictures(open_data(options.data).build().split("train"))
    peer = Peer(real, scale, device, options.seed, options.spacing)
    for minutes in sorted(options.minutes):
        loss = peer.train(minutes * scale.minute)
        began = time.perf_counter()
        samples = peer.sample()
        about = {
            "seconds": round(peer.seconds, 2),
            "images": peer.steps * scale.batch,
            "loss": round(loss, 5),
            "evaluations": scale.evaluations,
            "gpus": 1,
            "sampling_seconds": round(time.perf_counter() - began, 2),
            "setup_seconds": round(peer.setup_seconds, 2),
            "settings": {"batch": scale.batch, "lr": RATE, "warmup_steps": WARMUP, "spacing": options.spacing},
        }
        yield Point(options.name, minutes, samples, about)


# ---------------------------------------------------------------- ours


def our_points(options: argparse.Namespace, scale: Scale, device: torch.device) -> Iterable[Point]:
    """A run of the recipe for each of the minutes; one that is finished already is sampled only."""
    asked = dict(pair.split("=", 1) for pair in options.set)
    small = {"network.width": "16", "train.batch": str(scale.batch)} if options.quick else {}
    for minutes in sorted(options.minutes):
        budget = {"data": options.data, "minutes": str(minutes * scale.minute / 60), "seed": str(options.seed)}
        spec = load_recipe(options.recipe, {**budget, **OURS, **small, **asked})
        run = options.out / f"{options.name}-{minutes:g}min-run"
        training = trainer(spec, run, device=str(device))
        result = training.fit()
        release(device)
        if not training.parallel.main:
            continue
        began = time.perf_counter()
        samples, evaluations = our_samples(run, scale, device, options.seed)
        about = {
            "seconds": round(result.seconds, 2),
            "images": result.samples,
            "loss": round(result.loss, 5),
            "evaluations": evaluations,
            "sampling_seconds": round(time.perf_counter() - began, 2),
            "gpus": training.parallel.size,
            "recipe": options.recipe,
            "settings": {k: v for k, v in spec.to_dict().items() if k != "data"},
        }
        release(device)
        yield Point(options.name, minutes, samples, about)


def our_samples(run: Path, scale: Scale, device: torch.device, seed: int) -> tuple[Tensor, int]:
    """Samples by the run's own solver and grid, and the evaluations that each took: counted, not assumed."""
    pipeline = Pipeline.from_pretrained(run).to(device, "bf16" if has_bf16(device) else None)
    solver = pipeline.sampling.solver
    plan = pipeline.plan(n=scale.samples, seed=seed, num_inference_steps=scale.evaluations // solver.evaluations)
    network, calls = pipeline.model.denoiser.network, {"plain": 0, "replayed": 0}

    def counted(module: nn.Module, _: object) -> None:
        if isinstance(module, Captured):  # where there is one, the network itself is only called to record it
            calls["replayed"] += 1
        elif module is network:
            calls["plain"] += 1

    handle = register_module_forward_pre_hook(counted)
    made = list(pipeline.run(plan, scale.sampled))
    handle.remove()
    return torch.cat(made), (calls["replayed"] or calls["plain"]) // len(made)


# ---------------------------------------------------------------- scores


@final
class Reference:
    """A judge, and the training set in its features."""

    def __init__(self, folder: Path, train: Tensor, device: torch.device) -> None:
        self.name, self.judge = folder.name, Judge.load(folder).to(device)
        self.device = device
        self.features = self.of(train)
        self.moments = Moments.of(self.features)

    def of(self, samples: Tensor) -> Tensor:
        """Features (N, D) of uint8 pictures."""
        parts = torch.split(samples, 1024)
        return torch.cat([self.judge.features(part.to(self.device)) for part in parts])

    def distance(self, samples: Tensor) -> float:
        """The Frechet distance of pictures to the training set."""
        return frechet_distance(Moments.of(self.of(samples)), self.moments)

    def halves(self) -> float:
        """The distance of two halves of the training set: as near as sets of that size come."""
        return frechet_distance(Moments.of(self.features[::2]), Moments.of(self.features[1::2]))


def score(folder: Path, judges: list[Path], data: str, device: torch.device) -> dict[str, dict[str, float]]:
    """The distances of all samples of a folder: judge -> name -> distance, with `test` and `halves` of real pictures."""
    files = sorted(folder.glob("*.npy"))
    if not files:
        raise UserError(f"{folder}: holds no samples (.npy); make some with --who")
    whole = open_data(data).build()
    train, test = pictures(whole.split("train")), pictures(whole.split("held_out"))
    found = {}
    for judge in judges:
        reference = Reference(judge, train, device)
        real = {"test": reference.distance(test), "halves": reference.halves()}
        made = {f.stem: reference.distance(torch.from_numpy(np.load(f))) for f in files}
        found[reference.name] = {**real, **made}
        for name, value in found[reference.name].items():
            print(f"{reference.name:<20} {name:<20} {value:10.4g}", flush=True)
    return found


def rows_of(folder: Path, scores: dict[str, dict[str, float]]) -> list[Row]:
    """A row for each judge, budget and name that is not the peer's; the real test set is the peer of one without another."""
    points = [json.loads(f.read_text(encoding="utf-8")) for f in sorted(folder.glob("*min.json"))]
    peers = {p["minutes"]: p for p in points if p["name"] == "peer"}
    rows = []
    for judge, distances in scores.items():
        for point in (p for p in points if p["name"] != "peer"):
            minutes = point["minutes"]
            peer, stem = peers.get(minutes), f"{minutes:g}min"
            rows.append(
                Row(
                    case=f"quality.{point['name']}.{stem}.{judge}",
                    ours=distances[f"{point['name']}-{stem}"],
                    peer=distances["test" if peer is None else f"peer-{stem}"],
                    unit=f"fd_{judge}",
                    share_of_ceiling=None,
                    machine=point["machine"],
                    versions=point["versions"],
                    settings={
                        "ours": point,
                        "peer": "the real test set" if peer is None else peer,
                        "real": {name: distances[name] for name in ("test", "halves")},
                    },
                )
            )
    return rows


# ---------------------------------------------------------------- command


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.quality", description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--data", required=True, help="a folder of CIFAR-10")
    parser.add_argument("--who", choices=("peer", "ours"), help="whom to train and sample")
    parser.add_argument("--minutes", type=float, nargs="+", default=[1, 2, 4])
    parser.add_argument("--out", type=Path, help="where samples go")
    parser.add_argument("--name", help="of the samples; peer or ours by default")
    parser.add_argument("--recipe", default="image", help="of ours")
    parser.add_argument("--set", nargs="*", default=[], metavar="KEY=VALUE", help="settings of the recipe")
    parser.add_argument("--spacing", choices=("leading", "trailing"), default="leading", help="of the peer's DDIM")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--score", type=Path, help="score the samples of this folder")
    parser.add_argument("--judges", type=Path, nargs="+", help="judge folders")
    parser.add_argument("--json", type=Path, help="write the rows of the scores here")
    parser.add_argument("--write", action="store_true", help=f"write them to {RESULTS.name}/quality.json")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--quick", action="store_true", help="seconds for minutes, 32 samples: to see that it runs")
    options = parser.parse_args()
    device = choose_device(options.device)
    if options.score is not None:
        if not options.judges:
            parser.error("--score needs --judges")
        scores = score(options.score, options.judges, options.data, device)
        (options.score / "scores.json").write_text(json.dumps(scores, indent=1) + "\n", encoding="utf-8")
        rows = rows_of(options.score, scores)
        show(rows)
        for file in [f for f in (options.json, RESULTS / "quality.json" if options.write else None) if f is not None]:
            write(rows, file)
        return
    if options.who is None or options.out is None:
        parser.error("give --who and --out, or --score")
    options.name = options.name or options.who
    if (options.name == "peer") != (options.who == "peer"):
        parser.error(f"--name {options.name}: 'peer' is the peer's name, and its only one")
    scale = QUICK if options.quick else Scale()
    for point in (peer_points if options.who == "peer" else our_points)(options, scale, device):
        point.save(options.out)


if __name__ == "__main__":
    main()
