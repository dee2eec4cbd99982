"""What the trainer costs around its step: finite checks, agreement, watchdog, counters, log lines, display.

    python -m benchmarks.guards [--rounds 12] [--steps 40] [--device cpu|cuda] [--write]

Ours is `Trainer.fit` as it comes, with a line of the log every 20 steps and every step, without checkpoints, pictures and
evaluation, whose time is given to them. The peers, on the same batches from the same loader:

* step: the trainer's own step (loss, backward pass, clipping, finite check, AdamW, average) in a loop that does nothing else;
* torch: the loop as one would write it, with `clip_grad_norm_`, `torch.optim.AdamW(fused=True)` and an average by foreach,
  which checks nothing. Not on a GPU: there the step is recorded, and a loop as one would write it is several times slower.

On a CPU a step is a U-Net's of some 100 ms on one thread, counted in CPU time of the thread that trains; on a GPU a DiT-B/2's
of 256 pictures of 32 x 32, by the clock. Rounds of all ways alternate; the figure is the smallest mean of a round. `trivial`
has a network of a few numbers, so that what is left is the trainer: its microseconds a step are true of every network.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any, final

import numpy as np
import torch

from benchmarks._table import RESULTS, Row, machine, show, versions, write
from sfumato.codecs import Arrays
from sfumato.core import Batch, Cond, CondShape, DataInfo, DenoisingLoss, Draws, Flow, NetDenoiser, Network, Velocity
from sfumato.data import Data, Loader
from sfumato.model import Model
from sfumato.nn import DiT, UNet
from sfumato.train import DiffusionTask, Run, Trainer, Training
from sfumato.train.ema import power_beta, power_gamma

WARM = 12  # steps of a round that are not counted: the trainer waits for the device after each of the first ten
STD = 0.05


@final
class Noise(Data, name="noise-for-benchmarks"):
    """Random fields that lie in memory."""

    def __init__(self, shape: tuple[int, ...], n: int = 2048) -> None:
        self.x = torch.randn(n, *shape, generator=torch.Generator().manual_seed(0))

    @property
    def info(self) -> DataInfo:
        return DataInfo(tuple(self.x.shape[1:]), "array")

    def __len__(self) -> int:
        return len(self.x)

    def fetch(self, indices: Any, draws: Any = None) -> Batch:
        return Batch(self.x[torch.from_numpy(np.asarray(indices))])

    def held_out_mask(self) -> Any:
        return np.arange(len(self)) >= len(self) - 16

    def fingerprint(self) -> str:
        return "noise"


@final
class Dot(Network, name="dot-for-benchmarks"):
    """One number."""

    def __init__(self, shape: tuple[int, ...], cond: CondShape) -> None:
        super().__init__()
        self.gain = torch.nn.Parameter(torch.ones(()))

    def forward(self, x: torch.Tensor, noise: torch.Tensor, cond: Cond | None = None) -> torch.Tensor:
        return self.gain * x


CASES: dict[str, tuple[tuple[int, ...], int, Callable[[tuple[int, ...]], Network]]] = {
    "unet": ((3, 16, 16), 8, lambda shape: UNet(shape, CondShape(), width=32, mults=(1, 2))),
    "dit-b": ((3, 32, 32), 256, lambda shape: DiT(shape, CondShape(), size="b", patch=2)),
    "trivial": ((1, 2), 16, lambda shape: Dot(shape, CondShape())),
}


class Stopwatch:
    """A display that notes the time after each step."""

    def __init__(self, clock: Callable[[], float], device: torch.device, last: int) -> None:
        self.clock, self.device, self.last, self.times = clock, device, last, [0.0]
        self.first = self.end = 0.0

    def update(self, done: float, samples: int, *_: Any) -> None:
        self.times.append(0.0)
        if len(self.times) - 1 in (WARM, self.last):
            if self.device.type == "cuda":
                torch.cuda.synchronize()
            self.first, self.end = (self.clock(), 0.0) if len(self.times) - 1 == WARM else (self.first, self.clock())

    def say(self, text: str) -> None:
        pass

    def close(self) -> None:
        pass


def trainer(case: str, folder: Path, steps: int, log_every: int, device: torch.device, watch: Stopwatch) -> Trainer:
    shape, batch, network = CASES[case]
    torch.manual_seed(0)
    data = Noise(shape)
    model = Model(NetDenoiser(network(shape), Flow(), Velocity()), Arrays(data.info), None, data.info)
    often = {"checkpoint_minutes": 1e6, "evaluations": 0, "pictures": 0, "decay": 0.0, "warmup": 0.0}
    settings = Training(batch=batch, samples=batch * (steps + 8), ema=(STD,), log_every=log_every, **often)
    return Trainer(
        DiffusionTask(model, DenoisingLoss()), data, settings, run=Run(folder), device=str(device), display=watch
    )


class _Enough(Exception):  # noqa: N818 - an event, not an error
    """The steps to be counted have been made: no checkpoint is wanted."""


def fit(case: str, steps: int, log_every: int, device: torch.device, clock: Callable[[], float]) -> float:
    """Seconds a step of the trainer."""
    watch = Stopwatch(clock, device, steps)
    with tempfile.TemporaryDirectory() as folder:
        ours = trainer(case, Path(folder) / "run", steps, log_every, device, watch)
        counted = watch.update

        def update(done: float, samples: int, *rest: Any) -> None:
            counted(done, samples, *rest)
            if watch.end:
                raise _Enough

        watch.update = update  # type: ignore[method-assign]
        with suppress(_Enough):
            ours.fit()
    return (watch.end - watch.first) / (steps - WARM)


def alone(case: str, steps: int, torch_loop: bool, device: torch.device, clock: Callable[[], float]) -> float:
    """Seconds a step of a loop that does nothing else: the trainer's step, or torch's own parts."""
    with tempfile.TemporaryDirectory() as folder:
        ours = trainer(case, Path(folder) / "run", steps, 20, device, Stopwatch(clock, device, steps))
        train = ours.data.split("train")
        ours._prepare(train)
        step = as_written(ours) if torch_loop else ours.step
        assert step is not None
        first = 0.0
        with Loader(train, ours.settings.batch, 0) as loader:
            for number in range(1, steps + 1):
                numbers, batch = next(loader)
                step([(batch, Draws(0, int(numbers[0]), len(numbers)))], 1e-3, number)
                if number in (WARM, steps) and device.type == "cuda":
                    torch.cuda.synchronize()
                first = clock() if number == WARM else first
            return (clock() - first) / (steps - WARM)


def as_written(ours: Trainer) -> Callable[[list[tuple[Batch, Draws]], float, int], None]:
    """The step as one writes it in torch."""
    parameters = [p for p in ours.task.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(parameters, 1e-3, (0.9, 0.99), weight_decay=0.01, fused=True)
    averages, gamma = [p.detach().clone() for p in parameters], power_gamma(STD)

    def step(micros: list[tuple[Batch, Draws]], lr: float, number: int) -> None:
        optimizer.zero_grad()
        ours.task.loss(*micros[0]).value.backward()
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        torch._foreach_lerp_(averages, [p.detach() for p in parameters], 1 - power_beta(gamma, number))

    return step


def measured(case: str, rounds: int, steps: int, device: torch.device) -> dict[str, list[float]]:
    """Seconds a step of every way, in each round."""
    cuda = device.type == "cuda"
    clock = time.perf_counter if cuda else time.thread_time
    ways: dict[str, Callable[[], float]] = {
        "log every 20": lambda: fit(case, steps, 20, device, clock),
        "log every step": lambda: fit(case, steps, 1, device, clock),
        "step": lambda: alone(case, steps, False, device, clock),
    }
    if not cuda:
        ways["torch"] = lambda: alone(case, steps, True, device, clock)
    times: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(rounds):
        for name, way in ways.items():
            times[name].append(way())
    return times


def rows(rounds: int, steps: int, device: torch.device, cases: tuple[str, ...] = ()) -> list[Row]:
    cuda = device.type == "cuda"
    on = machine(gpu=torch.cuda.get_device_name(), threads=torch.get_num_threads()) if cuda else machine(threads=1)
    found = []
    for case in cases or ("dit-b" if cuda else "unet", "trivial"):
        counted = steps if case != "trivial" else 5 * steps
        times = measured(case, rounds, counted, device)
        best = {name: min(seconds) for name, seconds in times.items()}
        for ours in ("log every 20", "log every step"):
            for peer in ("step",) if cuda else ("step", "torch"):
                settings = {
                    "rounds": rounds,
                    "steps": counted - WARM,
                    "median": 1e3 * statistics.median(times[ours]),
                    "peer_median": 1e3 * statistics.median(times[peer]),
                    "microseconds_a_step": round(1e6 * (best[ours] - best[peer]), 1),
                    "clock": "wall" if cuda else "CPU time of the thread",
                }
                name, known = f"{case}, {ours}, {peer}", versions("sfumato")
                found.append(Row(name, 1e3 * best[ours], 1e3 * best[peer], "ms", None, on, known, settings))
    return found


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.guards", description=__doc__.split("\n")[0])
    parser.add_argument("--rounds", type=int, default=12)
    parser.add_argument("--steps", type=int, default=52)
    parser.add_argument("--device", default="cpu", choices=["cpu", "cuda"])
    parser.add_argument("--write", action="store_true", help="keep the rows in benchmarks/results/guards.json")
    asked = parser.parse_args()
    torch.set_num_threads(1)
    found = rows(asked.rounds, asked.steps, torch.device(asked.device))
    show(found)
    for row in found:
        print(f"{row.case}: {row.settings['microseconds_a_step']} us a step")
    if asked.write:
        write(found, RESULTS / ("guards.json" if asked.device == "cpu" else "guards_cuda.json"))


if __name__ == "__main__":
    main()
