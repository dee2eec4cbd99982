"""How the default grid was chosen: `exp-adams` on logistic grids of many centers and scales, on other mixtures.

    python -m benchmarks.grid_choice [--nfe 5 8 10 15 20 50] [--seeds 300 301 302 303 304]

Four families of Gaussian mixtures, 192 starts a seed, with the truth of `benchmarks._mixture`; none of the seeds of the
tables (0 to 4) is among them. A grid's score is the geometric mean, over the families, of its mean relative error over
the seeds, so that no family outweighs the others. For each number of evaluations the five best (center, scale) of a scan
are printed, then what the rule of `LogisticGrid` has. About a minute and a half on one core.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Sequence

import torch

from benchmarks._mixture import SEEDS, Problem, problem
from sfumato.core import Grid, LogisticGrid
from sfumato.samplers import ExpAdams, sample

NFE = (5, 8, 10, 15, 20, 50)
CHOICE_SEEDS = (300, 301, 302, 303, 304)
STARTS = 192
CENTERS = (-1.25, -1.0, -0.75, -0.5, -0.25, 0.0, 0.25, 0.5)
SCALES = (0.8, 1.0, 1.2, 1.4, 1.6, 1.8)


def families(seeds: tuple[int, ...] = CHOICE_SEEDS) -> dict[str, Problem]:
    """The mixtures: tight and close together, tight and white, few and wide, many and wide."""
    if set(seeds) & set(SEEDS):
        raise ValueError(f"the seeds {SEEDS} are for the tables; choose grids on others")
    return {
        "tight": problem(seeds, components=32, dimensions=64, std=0.05, spread=0.5, starts=STARTS),
        "white": problem(seeds, components=32, dimensions=64, std=0.1, spread=1.0, starts=STARTS),
        "few": problem(seeds, components=6, dimensions=16, std=0.3, spread=0.95, starts=STARTS),
        "many": problem(seeds, components=128, dimensions=96, std=0.2, spread=0.9, starts=STARTS),
    }


def errors(grid: Grid, nfe: int, problems: dict[str, Problem]) -> dict[str, float]:
    """The mean relative error over the seeds of each family."""
    found = {}
    for name, task in problems.items():
        times = grid(task.process, ExpAdams().intervals(task.process, nfe))
        per_seed = task.errors(sample(task.denoiser, ExpAdams(), task.start, times))
        found[name] = sum(per_seed) / len(per_seed)
    return found


def score(per_family: dict[str, float]) -> float:
    """The geometric mean over the families."""
    return math.exp(sum(math.log(e) for e in per_family.values()) / len(per_family))


def scan(nfe: int, problems: dict[str, Problem]) -> list[tuple[float, LogisticGrid, dict[str, float]]]:
    """(score, grid, errors) of every center and scale, the best first."""
    rows = []
    for center in CENTERS:
        for scale in SCALES:
            grid = LogisticGrid(center, scale)
            per_family = errors(grid, nfe, problems)
            rows.append((score(per_family), grid, per_family))
    return sorted(rows, key=lambda row: row[0])


def show(name: str, value: float, per_family: dict[str, float]) -> None:
    """One line."""
    print(f"   {name:<24} {value:.5f}   " + "  ".join(f"{k} {v:.5f}" for k, v in per_family.items()), flush=True)


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.grid_choice", description=__doc__.split("\n")[0])
    parser.add_argument("--nfe", type=int, nargs="+", default=list(NFE))
    parser.add_argument("--seeds", type=int, nargs="+", default=list(CHOICE_SEEDS))
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)
    problems = families(tuple(options.seeds))
    for nfe in options.nfe:
        print(f"{nfe} evaluations")
        for value, grid, per_family in scan(nfe, problems)[:5]:
            show(f"center {grid.center:5.2f}  scale {grid.scale:.1f}", value, per_family)
        by_rule = errors(LogisticGrid(), nfe, problems)
        show("the rule", score(by_rule), by_rule)


if __name__ == "__main__":
    main()
