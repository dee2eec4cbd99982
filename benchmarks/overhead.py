"""What a solver costs beside the network: microseconds a step at batch 1 on one thread.

    python -m benchmarks.overhead [--repeats 200] [--write]

Walks of N = 50 steps of `DiscreteVP("linear")` on the default grid with tensors (1, 3, 32, 32) of float32. `trivial`: a
denoiser that hands back a stored tensor; `network`: `NetDenoiser` around a network that does, so that scaling in and out
is counted too. A walk is timed whole (`sample`), and its planning alone; the step is what is left, over N. Times are the
thread's CPU time, which on one thread that waits for nothing is the time on the clock of an idle machine. The figure is
the smallest of the repeats; the median is in the settings.

The peer is diffusers' scheduler of the same kind, `step` with a stored network output and the scaling of the input, and
`set_timesteps` for planning. For `exp-adams` that is UniPC of order 3, for Heun two calls a step.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from benchmarks._table import RESULTS, Row, machine, show, versions, write
from sfumato.core import Cond, CondShape, Denoiser, DiscreteVP, Eps, LogisticGrid, NetDenoiser, Network, Process
from sfumato.samplers import DDIM, DPMpp2M, ExpAdams, Heun, Solver, sample
from sfumato.samplers.base import Asked

STEPS, SHAPE = 50, (1, 3, 32, 32)
SOLVERS: dict[str, Solver] = {"ddim": DDIM(), "dpmpp-2m": DPMpp2M(), "exp-adams": ExpAdams(), "heun": Heun()}


class Trivial:
    """A denoiser that is asked and answers at once."""

    def __init__(self, process: Process) -> None:
        self.process, self.answer = process, torch.full(SHAPE, 0.1)

    def __call__(self, x_t: Tensor, t: Tensor, cond: Cond | None = None) -> Tensor:
        return self.answer


class Nothing(Network, name="nothing"):
    """A network that does nothing."""

    def __init__(self, shape: tuple[int, ...], cond: CondShape) -> None:
        super().__init__()
        self.answer = torch.full(SHAPE, 0.1)

    def forward(self, x: Tensor, noise: Tensor, cond: Cond | None = None) -> Tensor:
        return self.answer


def walk(denoiser: Denoiser, solver: Solver) -> tuple[Callable[[], Any], Callable[[], Any]]:
    """(the whole walk, its planning) as functions to time."""
    times, x = LogisticGrid()(denoiser.process, STEPS), torch.ones(SHAPE)

    def planning() -> Any:
        plan = solver.plan(denoiser.process, times[:, None], x)
        return plan, Asked.of(denoiser, None, plan.asked, x)

    return lambda: sample(denoiser, solver, x, times), planning


def peer_walk(name: str) -> tuple[Callable[[], Any], Callable[[], Any]]:
    """The same of diffusers' scheduler."""
    import diffusers

    cls, settings = {
        "ddim": (diffusers.DDIMScheduler, {"clip_sample": False}),
        "dpmpp-2m": (diffusers.DPMSolverMultistepScheduler, {"solver_order": 2}),
        "exp-adams": (diffusers.UniPCMultistepScheduler, {"solver_order": 3}),
        "heun": (diffusers.HeunDiscreteScheduler, {}),
    }[name]
    scheduler = cls(num_train_timesteps=1000, beta_schedule="linear", beta_start=1e-4, beta_end=0.02, **settings)
    output = torch.full(SHAPE, 0.1)

    def whole() -> Tensor:
        scheduler.set_timesteps(STEPS)
        x = torch.ones(SHAPE)
        for t in scheduler.timesteps:
            scheduler.scale_model_input(x, t)
            x = scheduler.step(output, t, x).prev_sample
        return x

    return whole, lambda: scheduler.set_timesteps(STEPS)


def timed(functions: list[Callable[[], Any]], repeats: int) -> list[list[float]]:
    """Microseconds of each function, which take turns, after a tenth as many rounds to warm up."""
    found: list[list[float]] = [[] for _ in functions]
    for _ in range(repeats + repeats // 10):
        for function, times in zip(functions, found):
            start = time.thread_time()
            function()
            times.append((time.thread_time() - start) * 1e6)
    return [times[repeats // 10 :] for times in found]


@torch.no_grad()
def rows(repeats: int) -> list[Row]:
    """A row a solver and denoiser: microseconds a step beside the network, ours and the peer's."""
    process, made = DiscreteVP("linear"), []
    denoisers: dict[str, Denoiser] = {
        "trivial": Trivial(process),
        "network": NetDenoiser(Nothing(SHAPE[1:], CondShape()), process, Eps()),
    }
    for name, solver in SOLVERS.items():
        for kind, denoiser in denoisers.items():
            functions = [*walk(denoiser, solver), *peer_walk(name)]
            whole, planning, peer_whole, peer_planning = timed(functions, repeats)
            settings = {
                "steps": STEPS, "shape": SHAPE, "repeats": repeats,
                "median": (statistics.median(whole) - statistics.median(planning)) / STEPS,
                "planning": min(planning), "planning_median": statistics.median(planning),
                "with_planning": min(whole) / STEPS, "with_planning_median": statistics.median(whole) / STEPS,
                "peer_median": (statistics.median(peer_whole) - statistics.median(peer_planning)) / STEPS,
                "peer_planning": min(peer_planning),
            }  # fmt: skip
            ours, peer = (min(whole) - min(planning)) / STEPS, (min(peer_whole) - min(peer_planning)) / STEPS
            on = machine(threads=torch.get_num_threads())
            found = versions("sfumato", "diffusers")
            made.append(Row(f"{name}, {kind}", ours, peer, "us", None, on, found, settings))
    return made


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.overhead", description=__doc__.split("\n")[0])
    parser.add_argument("--repeats", type=int, default=200)
    parser.add_argument("--write", action="store_true", help="keep the rows in benchmarks/results/overhead.json")
    options = parser.parse_args()
    torch.set_num_threads(1)
    found = rows(options.repeats)
    show(found)
    print(
        "\nplanning a walk, microseconds (ours, peer); a step with its share of the planning; medians of the last two"
    )
    for row in found:
        s = row.settings
        print(
            f"{row.case:<24}{s['planning']:>8.0f}{s['peer_planning']:>8.0f}{s['with_planning']:>8.1f}"
            f"   median step {s['median']:.1f}, with planning {s['with_planning_median']:.1f}, peer {s['peer_median']:.1f}"
        )
    if options.write:
        write(found, RESULTS / "overhead.json")


if __name__ == "__main__":
    main()
