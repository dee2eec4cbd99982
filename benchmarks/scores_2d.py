"""Score networks of points in the plane: denoising against sliced score matching, sampled by annealed Langevin dynamics.

    python -m benchmarks.scores_2d [--steps 4000] [--n 2000] [--out runs/scores-2d] [--json] [--write]

Two sets: a mixture of four Gaussians of unequal weights, whose score is known, and two moons. A small perceptron learns each
by either loss; the table has the error of the learned score where it is known, how far the components' shares are off, and
the kernel distance of the samples from new data; the picture has data and samples side by side. About two minutes on a core.
"""

from __future__ import annotations

import argparse
import json
import math
import time
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from benchmarks._table import RESULTS, machine, versions
from sfumato import media
from sfumato.core import (
    VE,
    CondShape,
    Denoiser,
    DenoisingLoss,
    Draws,
    Eps,
    GeometricTimes,
    LogSNRGrid,
    NetDenoiser,
    Objective,
    SampleNoise,
    SigmaSquared,
    SlicedScoreMatching,
    score,
)
from sfumato.evaluate import kid
from sfumato.nn import MLP
from sfumato.samplers import AnnealedLangevin, langevin_step, sample, start
from sfumato.testing import MixtureDenoiser

SIGMA_MIN, SIGMA_MAX, LEVELS = 0.05, 8.0, 24
PROCESS = VE(sigma_max=SIGMA_MAX)
TIMES = GeometricTimes(SIGMA_MIN, SIGMA_MAX, LEVELS)
MEANS = torch.tensor([[1.2, 1.0], [-1.2, 0.9], [-0.9, -1.3], [1.3, -1.1]], dtype=torch.float64)
WEIGHTS = torch.tensor([0.4, 0.3, 0.2, 0.1], dtype=torch.float64)
STD = 0.15
EXACT = MixtureDenoiser(PROCESS, MEANS - (WEIGHTS[:, None] * MEANS).sum(0), STD, WEIGHTS)
LOSSES: dict[str, Objective] = {
    "dsm": DenoisingLoss(times=TIMES, weighting=SigmaSquared()),
    "ssm": SlicedScoreMatching(times=TIMES),
}
Found = dict[str, Any]


def mixture(n: int, seed: int) -> Tensor:
    """Four Gaussians with the weights 0.4, 0.3, 0.2, 0.1. (n, 2)."""
    generator = torch.Generator().manual_seed(seed)
    which = torch.multinomial(WEIGHTS, n, replacement=True, generator=generator)
    return (EXACT.means[which] + STD * torch.randn(n, 2, generator=generator)).float()


def moons(n: int, seed: int) -> Tensor:
    """Two half circles that reach into one another, with noise of 0.08; zero mean, about unit deviation. (n, 2)."""
    generator = torch.Generator().manual_seed(seed)
    angle, upper = math.pi * torch.rand(n, generator=generator), torch.rand(n, generator=generator) < 0.5
    x = torch.where(upper, angle.cos(), 1 - angle.cos())
    y = torch.where(upper, angle.sin(), 0.5 - angle.sin())
    points = torch.stack([(x - 0.5) / 0.87, (y - 0.25) / 0.49], 1)
    return points + 0.08 * torch.randn(n, 2, generator=generator)


def learn(
    x0: Tensor, objective: Objective, steps: int, *, batch: int = 256, width: int = 96, seed: int = 0
) -> NetDenoiser:
    """A noise-conditional score network (a perceptron in the parameterization eps) after `steps` of Adam."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        denoiser = NetDenoiser(MLP((2,), CondShape(), width=width, depth=3), PROCESS, Eps())
    optimizer = torch.optim.Adam(denoiser.parameters(), lr=2e-3)
    schedule = torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.01, steps)
    for step in range(steps):
        draws = Draws(seed, step * batch, batch)
        items = x0[(draws.uniform("items") * len(x0)).long()]
        loss = objective(denoiser, items, None, draws).value
        optimizer.zero_grad()
        torch.autograd.backward(loss)
        torch.nn.utils.clip_grad_norm_(denoiser.parameters(), 1.0)
        optimizer.step()
        schedule.step()
    return denoiser.eval()


@torch.no_grad()
def draw(denoiser: Denoiser, n: int, *, repeats: int = 30, seed: int = 0) -> Tensor:
    """Samples by annealed Langevin dynamics: 30 steps on each of the levels. (n, 2)."""
    ratio = (SIGMA_MAX / SIGMA_MIN) ** (1 / (LEVELS - 1))
    times = LogSNRGrid(SIGMA_MIN, SIGMA_MAX)(PROCESS, LEVELS)
    noise = SampleNoise((seed,))
    x = start(PROCESS, noise.prior((n, 2))[0], times[0])
    torch.manual_seed(seed)
    return sample(denoiser, AnnealedLangevin(repeats, langevin_step(ratio, repeats)), x, times)


@torch.no_grad()
def score_error(denoiser: NetDenoiser, n: int = 4000) -> float:
    """E |s - s_exact|^2 / E |s_exact|^2 of the mixture, weighted by sigma^2, over all levels."""
    draws = Draws(99, 0, n)
    t = TIMES(PROCESS, draws.uniform("times"))
    x = PROCESS.diffuse(mixture(n, 98).double(), draws.normal((2,)).double(), t)
    sigma = PROCESS.sigma(t)[:, None]
    exact, learned = sigma * score(EXACT, x, t), sigma * score(denoiser, x.float(), t)
    return float((exact - learned).square().mean() / exact.square().mean())


def shares_off(points: Tensor) -> float:
    """The largest difference between a component's share of the points and its weight."""
    nearest = torch.cdist(points.double(), EXACT.means).argmin(1)
    return float((torch.bincount(nearest, minlength=len(WEIGHTS)) / len(points) - WEIGHTS).abs().max())


def plot(points: Tensor) -> Any:
    """Points within the frame of the data."""
    return media.scatter(points[(points.abs() < 2.5).all(1)])


def run(out: Path, steps: int, n: int) -> list[Found]:
    """The rows; and OUT/scores-2d.png."""
    rows, pictures, captions = [], [], []
    for name, make in (("mixture", mixture), ("moons", moons)):
        x0, new = make(20_000, 0), make(n, 1)
        pictures.append(plot(new))
        captions.append(f"{name}: data")
        rows.append({"case": f"scores_2d.{name}.data", "kid": kid(make(n, 2), new).value})
        if name == "mixture":
            rows[-1] |= {"score_error": 0.0, "shares_off": shares_off(new)}
            exact = draw(EXACT, n)
            rows.append(
                {"case": "scores_2d.mixture.exact", "kid": kid(new, exact).value, "shares_off": shares_off(exact)}
            )
        for loss, objective in LOSSES.items():
            began = time.perf_counter()
            denoiser = learn(x0, objective, steps)
            seconds = time.perf_counter() - began
            made = draw(denoiser, n)
            row: Found = {"case": f"scores_2d.{name}.{loss}", "seconds": round(seconds, 1), "kid": kid(new, made).value}
            if name == "mixture":
                row |= {"score_error": score_error(denoiser), "shares_off": shares_off(made)}
            rows.append(row)
            pictures.append(plot(made))
            captions.append(f"{name}: {loss}")
    media.save_png(media.grid(pictures, 3, captions), out / "scores-2d.png")
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.scores_2d", description=__doc__.split("\n")[0])
    parser.add_argument("--steps", type=int, default=4000, help="of training")
    parser.add_argument("--n", type=int, default=2000, help="points drawn")
    parser.add_argument("--out", type=Path, default=Path("runs/scores-2d"))
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--write", action="store_true")
    options = parser.parse_args()
    rows = run(options.out, options.steps, options.n)
    for row in rows:
        values = "  ".join(f"{k} {v:.4f}" for k, v in row.items() if k not in ("case", "seconds"))
        print(json.dumps(row) if options.json else f"{row['case']:28} {values}")
    if options.write:
        found = {"rows": rows, "settings": {"steps": options.steps, "n": options.n}, "machine": machine()}
        found["versions"] = versions("sfumato", "torch")
        (RESULTS / "scores_2d.json").write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
