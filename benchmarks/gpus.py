"""Two GPUs of one host against one: a DiT-XL/2 trained by DDP and by FSDP2, and the largest model that trains.

    python -m benchmarks.gpus [--gpus 2] [--batch 128] [--only one ddp fsdp] [--json FILE] [--write] [--device cuda|cpu]
    python -m benchmarks.gpus --largest 19 40        # blocks of 302 million weights, on one GPU and by FSDP2 on all

Each way is a process group of its own, started by torchrun, that builds a `Trainer` and makes its steps: batches from the
loader, draws, loss, backward pass, clipping, AdamW, average, the losses of all processes gathered, and what they agree on
after a step. The batch is so many samples a GPU. The median of five rounds of ten steps; recording and compiling are before.
`apart` is the largest difference of a weight between processes at the end, which must be 0 by DDP.

On a CPU the networks are small: to see that it runs.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any, final

import numpy as np
import torch
import torch.distributed as dist

from benchmarks._gpu import SHAPES, Sizes, sizes
from benchmarks._ours import DROP
from benchmarks._table import RESULTS, Row, machine, show, versions, write
from sfumato.codecs import Arrays
from sfumato.conditioners import Label
from sfumato.core import Batch, DataInfo, DiscreteVP, Draws, Eps, HybridLoss, NetDenoiser
from sfumato.data import Data, Loader
from sfumato.device import wait
from sfumato.model import Model
from sfumato.nn import DiT
from sfumato.train import DiffusionTask, Run, Silent, Trainer, Training
from sfumato.train.parallel import Words

ROUNDS, STEPS, WARM = 5, 10, 12
GIB = 1 << 30
WIDE = 4096  # of the largest model


@final
class Latents(Data, name="latents-for-benchmarks"):
    """Random latents of labelled pictures, in memory."""

    def __init__(self, classes: int, n: int = 4096) -> None:
        generator = torch.Generator().manual_seed(0)
        self.classes = classes
        self.x = torch.randn(n, *SHAPES["dit"], generator=generator)
        self.labels = torch.randint(0, classes, (n,), generator=generator)

    @property
    def info(self) -> DataInfo:
        return DataInfo(SHAPES["dit"], "array", labels=tuple(str(i) for i in range(self.classes)))

    def __len__(self) -> int:
        return len(self.x)

    def fetch(self, indices: Any, draws: Any = None) -> Batch:
        at = torch.from_numpy(np.asarray(indices))
        return Batch(self.x[at], {"label": self.labels[at]})

    def held_out_mask(self) -> Any:
        return np.arange(len(self)) >= len(self) - 16

    def fingerprint(self) -> str:
        return "latents"


def made(way: str, processes: int, asked: argparse.Namespace, folder: Path) -> Trainer:
    """The trainer of a way: DiT-XL/2, or with --blocks the wide one of so many blocks, all blocks recomputed."""
    device, size, blocks = torch.device(asked.device), sizes(torch.device(asked.device)), asked.blocks
    if asked.device == "cuda":
        torch.cuda.set_device(torch.device("cuda", int(asked.rank)))
    data = Latents(size.classes)
    torch.manual_seed(0)
    with device:
        label, network = _network(size, blocks, data.info)
    denoiser = NetDenoiser(network, DiscreteVP("linear"), Eps(), learned_variance=True)
    task = DiffusionTask(Model(denoiser, Arrays(data.info), label, data.info), HybridLoss(), drop=DROP)
    settings = Training(
        batch=asked.batch * processes, samples=10**9, lr=1e-4, parallel="fsdp" if way == "fsdp" else "auto",
        evaluations=0, pictures=0, recompute=1.0 if blocks else 0.0,
    )  # fmt: skip
    return Trainer(task, data, settings, run=Run(folder), device=asked.device, display=Silent())


def _network(size: Sizes, blocks: int, info: DataInfo) -> tuple[Label, DiT]:
    width, depth, heads = size.dit_width, size.dit_depth, size.dit_heads
    if blocks:
        width, depth, heads = (WIDE, blocks, 32) if size.classes == 1000 else (width, blocks, heads)
    label = Label(info, width=width)
    dit = DiT(
        SHAPES["dit"], label.shape, width=width, depth=depth, heads=heads, patch=size.dit_patch, qk_norm=False, outputs=2
    )  # fmt: skip
    return label, dit


def child(way: str, asked: argparse.Namespace) -> None:
    """One process of a way; the main one writes what was measured."""
    with tempfile.TemporaryDirectory() as folder:
        ours = made(way, asked.processes, asked, Path(folder) / "run")
        train, parallel = ours.data.split("train"), ours.parallel
        begun = time.perf_counter()
        ours._prepare(train)
        step, seconds, number = ours.step, [], 0
        assert step is not None
        warm, rounds = (2, 1) if asked.blocks else (WARM, ROUNDS)
        with Loader(train, ours.micro, 0, threads=2, rank=parallel.rank, world=parallel.size) as loader:
            for round_ in range(rounds + 1):
                count = warm if round_ == 0 else STEPS if not asked.blocks else 2
                wait(ours.device)
                since = time.perf_counter()
                for _ in range(count):
                    numbers, batch = next(loader)
                    number += 1
                    stepped = step([(batch, Draws(0, int(numbers[0]), len(numbers)))], 1e-4, number)
                    parallel.agree(Words(0.0))
                wait(ours.device)
                if round_:
                    seconds.append((time.perf_counter() - since) / count)
                elif parallel.main:
                    print(f"{way}: ready after {time.perf_counter() - begun:.0f} s, {type(step).__name__}", flush=True)
        found = {
            "seconds": statistics.median(seconds),
            "low": min(seconds),
            "high": max(seconds),
            "images": asked.batch * asked.processes,
            "parameters": sum(p.numel() for p in ours.task.parameters()),
            "step": type(step).__name__,
            "loss": float(stepped.value),
            "peak_gib": torch.cuda.max_memory_allocated() / GIB if asked.device == "cuda" else None,
            "apart": _apart(ours) if way == "ddp" else None,
            "gpu": torch.cuda.get_device_name() if asked.device == "cuda" else None,
        }
        if parallel.main:
            Path(asked.out).write_text(json.dumps(found), encoding="utf-8")
        parallel.close()


@torch.no_grad()
def _apart(ours: Trainer) -> float:
    most = torch.zeros((), device=ours.device)
    for p in ours.task.parameters():
        theirs = p.detach().clone().contiguous()
        dist.broadcast(theirs, 0)
        most = torch.maximum(most, (p - theirs).abs().max())
    dist.all_reduce(most, dist.ReduceOp.MAX)
    return float(most)


def started(way: str, asked: argparse.Namespace, blocks: int = 0) -> dict[str, Any] | None:
    """Run a way in processes of its own; None where it failed, which says why on the terminal."""
    processes = 1 if way == "one" else asked.gpus
    torchrun = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(processes)]
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "found.json"
        given = {"--child": way, "--device": asked.device, "--batch": 4 if blocks else asked.batch, "--blocks": blocks}
        more = {"--processes": processes, "--out": out}
        words = [str(w) for pair in {**given, **more}.items() for w in pair]
        command = [sys.executable, *(torchrun if processes > 1 else []), "-m", "benchmarks.gpus", *words]
        begun = time.perf_counter()
        code = subprocess.run(command, check=False).returncode
        print(f"{way}: exit code {code} after {time.perf_counter() - begun:.0f} s", flush=True)
        return json.loads(out.read_text(encoding="utf-8")) if code == 0 else None


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.gpus", description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--gpus", type=int, default=2)
    parser.add_argument("--batch", type=int, default=128, help="samples a GPU")
    parser.add_argument("--only", nargs="+", default=["one", "ddp", "fsdp"], choices=["one", "ddp", "fsdp"])
    parser.add_argument("--largest", nargs=2, type=int, metavar=("ONE", "ALL"), help="blocks of the wide model")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--write", action="store_true", help="keep the rows in benchmarks/results/gpus.json")
    parser.add_argument("--device", default="cuda", choices=["cuda", "cpu"])
    parser.add_argument("--one", type=float, help="seconds a step of one GPU, measured before")
    for name in ("--child", "--out"):
        parser.add_argument(name, help=argparse.SUPPRESS)
    for name in ("--processes", "--blocks"):
        parser.add_argument(name, type=int, default=0, help=argparse.SUPPRESS)
    asked = parser.parse_args()
    asked.rank = os.environ.get("LOCAL_RANK", "0")
    if asked.child:
        child(asked.child, asked)
        return
    if asked.largest:
        ways = {"largest on one GPU": ("one", asked.largest[0]), f"largest on {asked.gpus}": ("fsdp", asked.largest[1])}
        ways = {name: way for name, way in ways.items() if way[0] in asked.only and way[1]}
        results = {name: started(way, asked, blocks) for name, (way, blocks) in ways.items()}
    else:
        results = {way: started(way, asked) for way in asked.only}
    rows = _rows(results, asked)
    show(rows)
    for row in rows:
        print(row.case, json.dumps(row.settings))
    if asked.json:
        write(rows, asked.json)
    if asked.write:
        write(rows, RESULTS / "gpus.json")


def _rows(results: dict[str, dict[str, Any] | None], asked: argparse.Namespace) -> list[Row]:
    """Images a second beside those of one GPU times the number of GPUs; of the largest, billions of weights."""
    one = results.get("one")
    alone = one["images"] / one["seconds"] if one else (asked.batch / asked.one if asked.one else float("nan"))
    rows, first = [], next((f["parameters"] / 1e9 for f in results.values() if f), 0.0)
    for name, found in results.items():
        if found is None:
            continue
        on, known = machine(gpu=found.pop("gpu"), gpus=1 if "one" in name else asked.gpus), versions("sfumato")
        if name.startswith("largest"):
            rows.append(Row(name, found["parameters"] / 1e9, first, "1e9 weights", None, on, known, found))
        else:
            rate, times = found["images"] / found["seconds"], 1 if name == "one" else asked.gpus
            rows.append(Row(f"dit.train.{name}", rate, times * alone, "images/s", None, on, known, found))
    return rows


if __name__ == "__main__":
    main()
