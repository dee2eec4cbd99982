"""One score network, three ways to sample: annealed Langevin dynamics, predictor-corrector, DDIM.

    python -m benchmarks.scores [--data digits|FILE|FOLDER] [--run runs/scores] [--minutes 10] [--n 1000] [--json] [--write]

Trains (or goes on with, or loads, if it is finished) an unconditional noise-conditional score network in the run folder: VE
process to the largest distance between two items, geometric levels, parameterization eps, loss sigma^2 |score error|^2
(Song & Ermon 2019 and 2020). Then samples the same seeds each way and compares features of a judge with those of held-out
items: Frechet distance and KID, beside what as many real training items score. A contact sheet for each in RUN/sheets,
the table in RUN/scores.json. `--data`: anything that `sfumato train image data=` takes, with labels for the judge: MNIST as
an .npz of x_train, y_train, x_test, y_test. Runs on CUDA where it is, on the CPU with a small network.
`--write` keeps the table in benchmarks/results/scores.json too.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from benchmarks._table import RESULTS, machine, versions
from sfumato import media
from sfumato.codecs import Pixels
from sfumato.core import (
    VE,
    DenoisingLoss,
    Eps,
    GeometricTimes,
    LogSNRGrid,
    SigmaSquared,
    geometric_levels,
    largest_distance,
)
from sfumato.data import Data, Digits
from sfumato.data import open_data as find_data
from sfumato.evaluate import Judge, frechet, kid
from sfumato.pipeline import Pipeline, Sampling
from sfumato.recipes import Recipe, trainer
from sfumato.recipes.image import batch_for, network_for
from sfumato.recipes.judges import judge_of
from sfumato.samplers import DDIM, AnnealedLangevin, DPMpp2M, PredictorCorrector, Solver, langevin_step
from sfumato.spec import Spec
from sfumato.train import Training

SIGMA_MIN = 0.01  # of white data, and the last level that is denoised
SHOWN = 64
Found = dict[str, Any]


@dataclass(frozen=True)
class Way:
    """A way to sample, its steps, and how many evaluations of the network they are."""

    name: str
    solver: Solver
    steps: int
    evaluations: int


def open_data(name: str) -> Spec[Data]:
    """`digits`, or a file or folder as the recipe `image` takes it."""
    return Spec(Digits) if name == "digits" else find_data(name)


def levels_of(data: Data) -> tuple[float, int]:
    """sigma_max and the number of levels of NCSNv2's rules for this data, measured on 2,000 whitened items."""
    train = data.split("train")
    some = train.fetch(np.arange(min(len(train), 2000))).media
    codec = Pixels(data.info)
    codec.measure([some])
    white = codec.whiten(codec.encode(some))
    sigma_max = largest_distance(white)
    return sigma_max, geometric_levels(white[0].numel(), SIGMA_MIN, sigma_max)


def score_recipe(data: Spec[Data], *, width: int, blocks: int, budget: Found) -> Spec[Recipe]:
    """The training of a noise-conditional score network, without conditions. budget: `minutes` or `samples`."""
    opened = data.build()
    sigma_max, levels = levels_of(opened)
    cuda = torch.cuda.is_available()
    return Spec(
        Recipe,
        title="scores",
        data=data,
        network=network_for(opened.info.shape, width, blocks, few=len(opened) < 5000),
        process=Spec(VE, sigma_max=sigma_max),
        parameterization=Eps(),
        objective=DenoisingLoss(times=GeometricTimes(SIGMA_MIN, sigma_max, levels), weighting=SigmaSquared()),
        sampling=Sampling(solver=DPMpp2M(), grid=LogSNRGrid(SIGMA_MIN, sigma_max), steps=50, guidance=None),
        train=Training(
            batch=batch_for(opened.info.shape, 1 << (18 if cuda else 16)), lr=5e-4 if cuda else 2e-3, **budget
        ),
    )


def ways(sigma_max: float, levels: int, repeats: int, steps: int) -> list[Way]:
    """What is compared. levels: of Langevin dynamics; steps: of the predictor-corrector."""
    ratio = (sigma_max / SIGMA_MIN) ** (1 / (levels - 1))
    langevin = AnnealedLangevin(repeats, langevin_step(ratio, repeats))
    found = [Way("annealed-langevin", langevin, levels, levels * repeats + 1)]
    found += [Way("pc", PredictorCorrector(), steps, 2 * steps - 1)]
    found += [Way(f"ddim-{n}", DDIM(), n, n) for n in (20, 100)]
    return [*found, Way("dpmpp-2m-20", DPMpp2M(), 20, 20)]


def sheet(items: Tensor, path: Path) -> None:
    """The first items as one picture."""
    media.save_png(media.grid([media.to_image(item) for item in items[:SHOWN]]), path)


def scored(judge: Judge, real: Tensor, items: Tensor) -> Found:
    """Frechet distance and KID of features, with 95% intervals."""
    ours, theirs = judge.features(items), judge.features(real)
    found: Found = {}
    for name, measure in (("frechet", frechet), ("kid", kid)):
        result = measure(theirs, ours)
        found[name] = {"value": result.value, "interval": list(result.interval)}
    return found


def compare(
    pipeline: Pipeline, data: Data, judge: Judge, n: int, chosen: list[Way], out: Path, batch: int
) -> Iterator[Found]:
    """A row for real items, then one for each way to sample. n: of samples, at most as many as are held out."""
    grid = pipeline.sampling.grid
    held_out, train = data.split("held_out"), data.split("train")
    n = min(n, len(held_out), len(train))
    real = held_out.fetch(np.arange(n)).media
    others = train.fetch(np.linspace(0, len(train) - 1, n).astype(np.int64)).media
    sheet(real, out / "real.png")
    yield {"case": "scores.real", "n": n, "evaluations": 0, "seconds": 0.0, **scored(judge, real, others)}
    for way in chosen:
        began = time.perf_counter()
        made = pipeline(
            n=n,
            seed=0,
            solver=way.solver,
            grid=grid,
            num_inference_steps=way.steps,
            batch_size=batch,
            output_type="pt",
        ).media
        seconds = time.perf_counter() - began
        sheet(made, out / f"{way.name}.png")
        yield {
            "case": f"scores.{way.name}",
            "n": n,
            "evaluations": way.evaluations,
            "seconds": round(seconds, 2),
            **scored(judge, real, made),
        }


def run(
    data: Spec[Data],
    folder: Path,
    *,
    budget: Found,
    n: int = 1000,
    width: int = 32,
    blocks: int = 1,
    repeats: int = 5,
    steps: int = 250,
    levels: int | None = None,
    epochs: int = 30,
    batch: int = 256,
    device: str = "auto",
) -> list[Found]:
    """Train, unless there is a finished model in `folder`; sample each way; write sheets and table; the rows."""
    if not _finished(folder):
        trainer(score_recipe(data, width=width, blocks=blocks, budget=budget), folder, device=device).fit()
    pipeline, opened = Pipeline.from_pretrained(folder), data.build()
    pipeline.to("cuda" if device in ("auto", "cuda") and torch.cuda.is_available() else "cpu")
    process = pipeline.model.denoiser.process
    sigma_max = float(process.sigma(torch.ones((), dtype=torch.float64)))
    count = (
        geometric_levels(int(np.prod(pipeline.model.codec.shape)), SIGMA_MIN, sigma_max) if levels is None else levels
    )
    judge = judge_of(opened, folder / "judge", epochs=epochs)
    rows = []
    for row in compare(pipeline, opened, judge, n, ways(sigma_max, count, repeats, steps), folder / "sheets", batch):
        rows.append(row)
        print(show(row), flush=True)
    found = {
        "rows": rows,
        "data": repr(data),
        "sigma": [SIGMA_MIN, sigma_max],
        "judge": judge.trained,
        "machine": machine(gpu=torch.cuda.get_device_name() if pipeline.model.device.type == "cuda" else None),
        "versions": versions("sfumato", "torch"),
    }
    (folder / "scores.json").write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    return rows


def _finished(folder: Path) -> bool:
    state = folder / "state.json"
    return state.is_file() and json.loads(state.read_text(encoding="utf-8"))["state"] == "finished"


def show(row: Found) -> str:
    """A row as one line."""
    frechet_, kid_ = row["frechet"]["value"], row["kid"]["value"]
    return (
        f"{row['case'].removeprefix('scores.'):18} {row['evaluations']:6d} evaluations  {row['seconds']:8.1f} s"
        f"  Frechet {frechet_:8.3f}  KID {kid_:8.4f}"
    )


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.scores", description=__doc__.split("\n")[0])
    parser.add_argument("--data", default="digits", help="digits, or a file or folder")
    parser.add_argument("--run", type=Path, default=Path("runs/scores"))
    parser.add_argument("--minutes", type=float, default=10.0, help="of training")
    parser.add_argument("--n", type=int, default=1000, help="samples each way")
    parser.add_argument("--width", type=int, default=64 if torch.cuda.is_available() else 32)
    parser.add_argument("--blocks", type=int, default=2 if torch.cuda.is_available() else 1)
    parser.add_argument("--repeats", type=int, default=5, help="Langevin steps a level")
    parser.add_argument("--steps", type=int, default=250, help="of the predictor-corrector")
    parser.add_argument("--epochs", type=int, default=30, help="of the judge's training")
    parser.add_argument("--batch", type=int, default=256, help="samples at a time")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--write", action="store_true")
    options = parser.parse_args()
    rows = run(
        open_data(options.data),
        options.run,
        budget={"minutes": options.minutes},
        n=options.n,
        width=options.width,
        blocks=options.blocks,
        repeats=options.repeats,
        steps=options.steps,
        epochs=options.epochs,
        batch=options.batch,
        device=options.device,
    )
    if options.json:
        print(json.dumps(rows))
    if options.write:
        text = (options.run / "scores.json").read_text(encoding="utf-8")
        (RESULTS / "scores.json").write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
