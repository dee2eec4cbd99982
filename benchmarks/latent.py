"""Diffusion in the latent of an autoencoder against diffusion of pixels, for the same minutes on the same pictures.

    python -m benchmarks.latent DATA CODEC [--minutes 4] [--judge FOLDER] [--samples 1000] [--steps 50]
                                [--json FILE] [--write] [--tiny] [--device cuda|cpu]

DATA: as of benchmarks.autoencoder. CODEC: the run of an autoencoder (benchmarks.autoencoder --keep makes one). Both models
are the recipe `image` at size m, unconditional, asked for nothing but the codec; the latent one reads latents that are
encoded first, whose time is given and not counted. Distances are Frechet's, of samples to all training pictures, in the
features of a judge that is trained on the data's labels if FOLDER has none (from another seed than the one that
benchmarks.autoencoder takes for its perceptual loss); beside them that of held-out pictures.

Rows, ours the latent model and `peer` the pixel one: pictures learnt a second, pictures sampled a second, Frechet distance.
Needs, with 4 minutes: about 12 minutes of one GPU, of which 8 are training; the rest is sampling and, once, the judge.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from benchmarks._pictures import everything, judge_of, opened, where
from benchmarks._table import RESULTS, Row, show, write
from sfumato.commands.encode import encode
from sfumato.device import wait
from sfumato.evaluate import Judge, frechet
from sfumato.pipeline import Pipeline
from sfumato.recipes import load_recipe, trainer
from sfumato.train import Silent


@dataclass(frozen=True)
class Figures:
    """learnt, sampled: pictures a second. samples: uint8. seen: pictures learnt in all."""

    learnt: float
    sampled: float
    samples: Tensor
    seen: int
    parameters: int


def trained(args: argparse.Namespace, folder: Path, device: torch.device, **asked: str) -> Figures:
    """Train the recipe and draw samples."""
    usual = {
        "minutes": str(args.minutes), "size": "xs" if args.tiny else "m", "conditioner": "none",
        "train.evaluations": "0", "train.pictures": "0", "train.checkpoint_minutes": "100",
    }  # fmt: skip
    result = trainer(load_recipe("image", usual | asked), folder, device=str(device), display=Silent()).fit()
    pipeline = Pipeline.from_pretrained(folder).to(device)
    if device.type == "cuda":
        pipeline.to(dtype=torch.bfloat16)
    settings: dict[str, Any] = {"num_inference_steps": args.steps, "batch_size": args.batch, "output_type": "pt"}
    pipeline(n=args.batch, seed=1 << 20, **settings)  # recording is not counted
    wait(device)
    begun = time.perf_counter()
    made = pipeline(n=args.samples, **settings).media
    wait(device)
    count = sum(p.numel() for p in pipeline.model.denoiser.parameters())
    rate = args.samples / (time.perf_counter() - begun)
    return Figures(result.samples / result.seconds, rate, made, result.samples, count)


def features(judge: Judge, media: Tensor, device: torch.device) -> Tensor:
    """(N, D) float64 on the CPU."""
    return torch.cat([judge.features(part.to(device)).double().cpu() for part in media.split(256)])


def rows_of(args: argparse.Namespace, latent: Figures, pixel: Figures, judge: Judge, seconds: float) -> list[Row]:
    device = torch.device(args.device)
    data = opened(args.data, args.tiny_side if args.tiny else None)
    judge.to(device)
    train, held = (features(judge, everything(data.split(name)), device) for name in ("train", "held_out"))  # type: ignore[arg-type]
    distances = {
        name: frechet(train, features(judge, of.samples, device)) for name, of in (("latent", latent), ("pixel", pixel))
    }
    settings = {
        "minutes": args.minutes, "steps": args.steps, "samples": args.samples, "judge": judge.name,
        "encoding_seconds": round(seconds, 1), "shape": data.info.shape, "codec_sha256": args.sha256,
        "latent_seen": latent.seen, "pixel_seen": pixel.seen,
        "latent_parameters": latent.parameters, "pixel_parameters": pixel.parameters,
        "real_distance": frechet(train, held, resamples=0).value,  # of fewer pictures where the samples are more
        "intervals": {name: list(score.interval) for name, score in distances.items()},
    }  # fmt: skip
    mine, theirs = where(device)
    return [
        Row(f"latent.{name}", a, b, unit, None, mine, theirs, settings)
        for name, a, b, unit in (
            ("learnt", latent.learnt, pixel.learnt, "pictures/s"),
            ("sampled", latent.sampled, pixel.sampled, "pictures/s"),
            ("frechet", distances["latent"].value, distances["pixel"].value, ""),
        )
    ]


def parsed(words: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser("python -m benchmarks.latent", description=(__doc__ or "").split("\n")[0])
    parser.add_argument("data")
    parser.add_argument("codec")
    parser.add_argument("--minutes", type=float, default=4.0)
    parser.add_argument("--judge", type=Path, default=Path("runs/judges/pictures"))
    parser.add_argument("--samples", type=int, default=1000)
    parser.add_argument("--steps", type=int, default=50)
    parser.add_argument("--batch", type=int, default=250)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--write", action="store_true", help="write benchmarks/results/latent.json")
    parser.add_argument("--tiny", action="store_true", help="small networks and pictures, to see that it runs")
    parser.add_argument("--tiny-side", type=int, default=32)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    return parser.parse_args(words)


def main(words: list[str] | None = None) -> list[Row]:
    args = parsed(words)
    device = torch.device(args.device)
    size = {"size": str(args.tiny_side)} if args.tiny else {}
    data = opened(args.data, args.tiny_side if args.tiny else None)
    judge = judge_of(data, args.judge, device, seed=1)
    with tempfile.TemporaryDirectory() as spare:
        latents = Path(spare) / "latents"
        begun = time.perf_counter()
        given = [f"codec={args.codec}", *(f"{k}={v}" for k, v in size.items())]
        encode(args.data, given, out=latents, fresh=False, device=args.device, as_json=False)
        seconds = time.perf_counter() - begun
        args.sha256 = json.loads((latents / "packed.json").read_text())["encoded"]["sha256"]
        latent = trained(args, Path(spare) / "latent", device, data=str(latents), codec=args.codec)
        pixel = trained(
            args, Path(spare) / "pixel", device, data=args.data, **{f"data.{k}": v for k, v in size.items()}
        )
    rows = rows_of(args, latent, pixel, judge, seconds)
    show(rows)
    if args.json:
        args.json.write_text(json.dumps([row.to_dict() for row in rows], indent=1), encoding="utf-8")
    if args.write:
        write(rows, RESULTS / "latent.json")
    return rows


if __name__ == "__main__":
    main()
