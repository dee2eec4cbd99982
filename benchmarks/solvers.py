"""Error against network evaluations: our solvers and diffusers' schedulers on an exact denoiser.

    python -m benchmarks.solvers [--json] [--write] [--ours] [--retune] [--seeds 0 1 2 3 4]

The problem is that of `benchmarks._mixture`. The error is |x0 - truth| / |truth|, the norms over the 256 starts of a
seed, and then the mean over five seeds of mixture and starts. `--json` prints a list of rows `{nfe, solver, grid,
library, error, per_seed, ...}` to standard output and nothing else; without it a table of the best of each library.
`--write` keeps the summary and the better rows in benchmarks/results/solvers.json. `--ours` leaves the peer out, which
takes two minutes on one core. LMS and the beta grids of the peer need scipy.

nfe is a budget: `evaluations` were made, at most nfe. `strayed` counts the starts that end in another component than
the truth.

`listed` marks the peer's solvers and grids of an earlier table of this problem, for seed 0 (at best 0.228, 0.120,
0.0953, 0.0778, 0.0587 and 0.0008). With seed 0 every figure of that table comes out here to its last digit, but for
PNDM's, which had one evaluation more than it said. The peer's best of everything it offers is chosen for each NFE on
the very problem that it is scored on: a bound that no user has without knowing the answer. Ours are fixed beforehand:
`role` is "default" for the one recommended solver and grid, "tuned" for a walk that was fitted to other mixtures (seeds
100-131, by `--retune`, kept in benchmarks/results/solvers_tuned.json).
"""

from __future__ import annotations

import argparse
import json
import math
import sys
import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor

from benchmarks._mixture import SEEDS, Problem, problem
from benchmarks._table import RESULTS, Row, machine, versions, write
from sfumato.core import Denoiser, Grid, KarrasGrid, LogisticGrid, LogSNRGrid, Process, UniformGrid
from sfumato.samplers import DDIM, DEIS, Adams, DPMpp2M, DPMpp3M, ExpAdams, Heun, Solver, UniPC, sample
from sfumato.tuning import Start, Tuning, tune

NFE = (5, 8, 10, 15, 20, 50)
LEVEL_0 = 0.01  # sigma / alpha at index 0, where the truth stops and denoises
Found = dict[str, Any]


class Task(Protocol):
    """What solvers are run on: `Problem`, or a network (benchmarks.solvers_network)."""

    @property
    def process(self) -> Process: ...
    @property
    def denoiser(self) -> Denoiser: ...
    @property
    def start(self) -> Tensor: ...


def ours(
    task: Task, nfe: int, tunings: Mapping[int, Tuning] | None = None, only: Sequence[str] | None = None
) -> Iterator[tuple[str, str, str, int, Tensor]]:
    """(solver, grid, role, evaluations, x0) of each of our solvers at `nfe` evaluations, tuned ones where there are some."""
    for (solver_name, solver), (grid_name, grid) in _PAIRS:
        if only and solver_name not in only:
            continue
        # the last step, to t = 0, is one evaluation
        steps = solver.intervals(task.process, (nfe + solver.evaluations - 1) // solver.evaluations)
        counted = Counted(task)
        x0 = sample(counted, solver, task.start, grid(task.process, steps))
        role = "default" if (solver_name, grid_name) == DEFAULT else ""
        yield solver_name, grid_name, role, counted.evaluations, x0
    if tunings and nfe in tunings:
        solver, grid, counted = tunings[nfe].solver(), tunings[nfe].grid(), Counted(task)
        x0 = sample(counted, solver, task.start, grid(task.process, solver.intervals(task.process, nfe)))
        yield "tuned", "tuned", "tuned", counted.evaluations, x0


DEFAULT = ("exp-adams", "logistic")
_GRIDS: dict[str, Grid] = {
    "logistic": LogisticGrid(),
    "uniform": UniformGrid(),
    "karras": KarrasGrid(sigma_min=LEVEL_0, sigma_max=1e3),
    "logsnr": LogSNRGrid(sigma_min=LEVEL_0, sigma_max=1e3),
}
_SOLVERS: dict[str, Solver] = {
    "exp-adams": ExpAdams(),
    "ddim": DDIM(),
    "dpmpp-2m": DPMpp2M(),
    "dpmpp-3m": DPMpp3M(),
    "unipc-3": UniPC(3),
    "deis-3": DEIS(3),
    "adams-4": Adams(4),
    "heun": Heun(),
}
_PAIRS = [(solver, grid) for solver in _SOLVERS.items() for grid in _GRIDS.items()]
_PAIRS.append((("unipc-2", UniPC(2)), ("logistic -1, 2", LogisticGrid(center=-1.0, scale=2.0, leap=1.0))))


class Counted:
    """The denoiser of a task, counting its evaluations."""

    def __init__(self, task: Task) -> None:
        self.process, self.denoiser, self.evaluations = task.process, task.denoiser, 0

    def __call__(self, x_t: Tensor, t: Tensor, cond: Any = None) -> Tensor:
        self.evaluations += 1
        return self.denoiser(x_t, t)


TUNED = RESULTS / "solvers_tuned.json"
TUNED_NFE = (5, 8, 10)


def starts(seeds: range, count: int) -> Start:
    """Noise for mixtures of these seeds, as `tune` wants it."""
    task = problem(tuple(seeds), starts=count)
    return Start(task.denoiser, task.start / float(task.process.sigma(torch.ones((), dtype=torch.float64))))


def retune(file: Path = TUNED) -> None:
    """Fit a walk for each of TUNED_NFE on mixtures of seeds 100-131, checked on 200-209: none that is measured here."""
    training = [starts(range(first, first + 8), 128) for first in range(100, 132, 8)]
    held_out = [starts(range(200, 210), 256)]
    found = {nfe: tune(training, held_out, nfe, iterations=400) for nfe in TUNED_NFE}
    file.write_text(json.dumps([asdict(found[nfe]) for nfe in TUNED_NFE], indent=1) + "\n", encoding="utf-8")


def tunings(file: Path = TUNED) -> dict[int, Tuning]:
    """What `retune` wrote."""
    rows = json.loads(file.read_text(encoding="utf-8"))
    return {
        row["evaluations"]: Tuning(**{k: tuple(v) if isinstance(v, list) else v for k, v in row.items()})
        for row in rows
    }


def our_rows(task: Problem) -> list[Found]:
    """Rows of the library "sfumato"."""
    rows, fitted = [], tunings()
    for nfe in NFE:
        for solver, grid, role, evaluations, x0 in ours(task, nfe, fitted):
            if evaluations > nfe:
                raise AssertionError(f"{solver} on {grid} made {evaluations} evaluations, not {nfe}")
            rows.append({**_row(task, nfe, solver, grid, "sfumato", evaluations, x0), "role": role})
    return rows


def peer_rows(task: Problem) -> list[Found]:
    """Rows of the library "diffusers"; a scheduler that fails or does not stay finite has no row."""
    from benchmarks._peers import LISTED, Net, peers

    rows = []
    for peer in peers():
        for nfe in NFE:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                try:
                    done = peer.run(Net(task.denoiser), task.start, nfe)
                except (ImportError, IndexError, ValueError, torch.linalg.LinAlgError) as error:
                    print(
                        f"diffusers: {peer.solver} on {peer.grid} at {nfe}: {str(error).strip()[:90]}", file=sys.stderr
                    )
                    continue
            if done is None:
                continue
            row = _row(task, nfe, peer.solver, peer.grid, "diffusers", done[1], done[0])
            if math.isfinite(row["error"]):
                rows.append({**row, "listed": (peer.solver, peer.grid) in LISTED})
    return rows


def _row(task: Problem, nfe: int, solver: str, grid: str, library: str, evaluations: int, x0: Tensor) -> Found:
    errors = task.errors(x0)
    return {
        "nfe": nfe, "solver": solver, "grid": grid, "library": library, "error": sum(errors) / len(errors),
        "per_seed": errors, "evaluations": evaluations, "strayed": task.strayed(x0) if math.isfinite(sum(errors)) else [],
    }  # fmt: skip


def best(rows: list[Found], nfe: int, **wanted: Any) -> Found | None:
    """The row of the smallest error at `nfe` among those with the wanted fields."""
    fit = [row for row in rows if row["nfe"] == nfe and all(row.get(k) == v for k, v in wanted.items())]
    return min(fit, key=lambda row: float(row["error"]), default=None)


def show(rows: list[Found]) -> None:
    """A line for each NFE: ours and the peer's best, with what it was."""
    kinds: dict[str, Found] = {
        "peer, listed": {"library": "diffusers", "listed": True},
        "peer, any": {"library": "diffusers"},
        "ours, any": {"library": "sfumato"},
        "ours, default": {"role": "default"},
        "ours, tuned": {"role": "tuned"},
    }
    for nfe in NFE:
        found = {kind: best(rows, nfe, **wanted) for kind, wanted in kinds.items()}
        print(f"\n{nfe} evaluations")
        for kind, row in found.items():
            if row is None or (kind == "peer, any" and row is found["peer, listed"]):
                continue
            ratios = "  ".join(
                f"{row['error'] / peer['error']:6.2f} x {name}"
                for name in ("peer, listed", "peer, any")
                if (peer := found[name]) is not None and row["library"] == "sfumato"
            )
            what = f"{row['solver']} on {row['grid']}"
            strayed = f"strayed {sum(row['strayed']):>3}  " if "strayed" in row else ""
            print(f"  {kind:<14}{row['error']:>10.5f}  {strayed}{what:<50}{ratios}")


def summary(rows: list[Found], seeds: list[int]) -> list[Row]:
    """Our best, default and tuned against the peer's best, listed and of everything, for each NFE."""
    about, packages = machine(threads=torch.get_num_threads()), versions("sfumato", "diffusers", "numpy", "scipy")
    found: list[Row] = []
    for nfe in NFE:
        peer, listed = best(rows, nfe, library="diffusers"), best(rows, nfe, library="diffusers", listed=True)
        for role, wanted in (("best", {}), ("default", {"role": "default"}), ("tuned", {"role": "tuned"})):
            mine = best(rows, nfe, library="sfumato", **wanted)
            if mine is None or peer is None or listed is None:
                continue
            settings: Found = {"nfe": nfe, "seeds": seeds, "ours": mine, "peer": listed, "peer_of_everything": peer}
            if role == "best":
                settings["rows"] = sorted((r for r in rows if r["nfe"] == nfe), key=lambda r: float(r["error"]))[:20]
            case = f"solvers.{role}.nfe_{nfe}"
            unit = "relative L2 error"
            found.append(Row(case, mine["error"], listed["error"], unit, None, about, packages, settings))
    return found


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.solvers", description=__doc__.split("\n")[0])
    parser.add_argument("--json", action="store_true", help="print all rows as JSON")
    parser.add_argument("--write", action="store_true", help="keep the summary in benchmarks/results/solvers.json")
    parser.add_argument("--ours", action="store_true", help="leave the peer out")
    parser.add_argument("--retune", action="store_true", help="fit the tuned walks anew first (about 2 minutes)")
    parser.add_argument("--seeds", type=int, nargs="+", default=list(SEEDS))
    options = parser.parse_args()
    if options.retune:
        retune()
    task = problem(tuple(options.seeds))
    with torch.no_grad():
        rows = our_rows(task) + ([] if options.ours else peer_rows(task))
    if options.json:
        print(json.dumps(rows, indent=1))
    else:
        show(rows)
    if options.write:
        write(summary(rows, options.seeds), RESULTS / "solvers.json")


if __name__ == "__main__":
    main()
