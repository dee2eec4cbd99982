"""Predicted memory of a training step against what the GPU measures: ours is the prediction, the peer is the GPU.

    python -m benchmarks.memory [--quick] [--only WORD] [--json FILE] [--write]

Each case is predicted without the device and then run: three real steps (loss, backward pass, AdamW, the average of the
weights) in bfloat16 on random data, as the trainer makes them when nothing is captured; the peak is
`torch.cuda.max_memory_allocated`. A ratio of 1 is exact; 0.9 to 1.1 is what the predictor promises. A case that does not
run (too large for this card, say) is named and left out. Without a GPU only the predictions are printed.
"""

from __future__ import annotations

import argparse
import gc
import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from benchmarks._table import RESULTS, Row, machine, show, versions, write
from sfumato.codecs import Arrays
from sfumato.core import Batch, DataInfo, DenoisingLoss, Draws, Flow, Network, Velocity
from sfumato.model import ModelSpec
from sfumato.nn import DiT, UNet
from sfumato.nn.recompute import first_blocks, recompute
from sfumato.spec import Spec
from sfumato.train import DiffusionTask, Training
from sfumato.train.memory import GIB, Memory, gib, network_of, predict
from sfumato.train.muon import Muon
from sfumato.train.optim8 import AdamW8
from sfumato.train.optim_offload import averages

LATENTS, PICTURES = (4, 32, 32), (3, 32, 32)
NETWORKS: dict[str, tuple[Spec[Network], tuple[int, int, int], tuple[int, int, int]]] = {
    "dit-b": (Spec(DiT, width=768, depth=12, heads=12, patch=2), LATENTS, (32, 128, 256)),
    "dit-l": (Spec(DiT, width=1024, depth=24, heads=16, patch=2), LATENTS, (16, 64, 96)),
    "dit-xl": (Spec(DiT, width=1152, depth=28, heads=16, patch=2), LATENTS, (8, 32, 64)),
    "unet": (Spec(UNet, width=128, mults=(1, 2, 2, 2), blocks=2, attention=(1,)), PICTURES, (64, 256, 512)),
}
WAYS: dict[str, dict[str, Any]] = {
    "recompute=0.5": {"recompute": 0.5},
    "recompute=1": {"recompute": 1.0},
    "accumulate=4": {"accumulate": 4},
    "adamw8": {"optimizer": Spec(AdamW8)},
    "muon": {"optimizer": Spec(Muon)},
    "offload=all": {"offload": "all"},
}


@dataclass(frozen=True)
class Case:
    """A network with a batch. more: settings other than the usual ones."""

    network: str
    batch: int
    more: dict[str, Any] = field(default_factory=dict)
    way: str = ""

    @property
    def name(self) -> str:
        return " ".join(filter(None, (self.network, str(self.batch), self.way)))

    @property
    def settings(self) -> Training:
        return Training(**{"batch": self.batch, "samples": 1, **self.more})


def cases(quick: bool) -> Iterator[Case]:
    """Every network at three batches, then every way to need less at the middle one. quick: the smallest batches, no ways."""
    for network, (_, _, batches) in NETWORKS.items():
        yield from (Case(network, batch) for batch in (batches[:1] if quick else batches))
    for network in () if quick else ("dit-l", "unet"):
        yield from (Case(network, NETWORKS[network][2][1], more, way) for way, more in WAYS.items())


def task_of(case: Case) -> tuple[DiffusionTask, Batch]:
    """The task on the CPU, and one item of its data."""
    network, shape, _ = NETWORKS[case.network]
    info = DataInfo(shape, "array")
    spec = ModelSpec(info, network, Spec(Flow), Spec(Velocity), Spec(Arrays))
    return DiffusionTask(spec.build(), DenoisingLoss()), Batch(torch.randn(1, *shape))


def measure(case: Case, task: DiffusionTask, item: Batch) -> int:
    """Peak bytes of three steps on the GPU, from before the task was there."""
    settings, device = case.settings, torch.device("cuda")
    micro = settings.batch // settings.accumulate
    batch = Batch(item.media.expand(micro, *item.media.shape[1:]).contiguous())
    torch.cuda.reset_peak_memory_stats()
    task = task.to(device).train()
    network = network_of(task)
    assert network is not None
    with recompute(network, first_blocks(network, settings.recompute)):
        optimizer = settings.optimizer.build(task, settings)
        ema = averages(task.model, settings.ema, settings.offload, optimizer.host)
        for step in range(3):
            optimizer.zero()
            value = torch.zeros((), device=device)
            for part in range(settings.accumulate):
                with torch.autocast("cuda", torch.bfloat16):
                    loss = task.loss(batch, Draws(0, part * micro, micro))
                (loss.value / settings.accumulate).backward()  # type: ignore[no-untyped-call]
                value += loss.value.detach() / settings.accumulate
                del loss
            optimizer.step(1e-4, value)
            ema.update(step + 1)
        torch.cuda.synchronize()
        return torch.cuda.max_memory_allocated()


def row(case: Case, on: dict[str, Any]) -> Row:
    """A case predicted and measured, in GiB."""
    task, item = task_of(case)
    found = predict(task, case.settings, item, device="cuda", dtype=torch.bfloat16, captured=False)
    before = torch.cuda.memory_allocated()  # of the libraries: it stays, and the prediction has it as workspace
    real = measure(case, task, item)
    settings = {
        "parts": found.to_dict(),
        "before": before,
        "network": case.network,
        "batch": case.batch,
        "way": case.way,
    }
    return Row(case.name, found.total / GIB, real / GIB, "GiB", None, on, versions("sfumato"), settings)


def measured_rows(chosen: list[Case]) -> list[Row]:
    """A row a case; one that fails is named and left out."""
    on, made = machine(gpu=torch.cuda.get_device_name()), []
    for case in chosen:
        try:
            made.append(row(case, on))
            print(f"{case.name:<28}{made[-1].ours:>9.2f}{made[-1].peer:>9.2f}{made[-1].ratio:>8.3f}", flush=True)
        except Exception as error:
            print(f"{case.name:<28}failed: {type(error).__name__}: {str(error).splitlines()[0][:120]}", flush=True)
        gc.collect()
        torch.cuda.empty_cache()
    return made


def predictions(chosen: list[Case]) -> None:
    """What is predicted, in parts, where there is no GPU to compare with."""
    for case in chosen:
        task, item = task_of(case)
        found: Memory = predict(task, case.settings, item, device="cuda", dtype=torch.bfloat16, captured=False)
        print(f"{case.name:<28}", {name: gib(count) for name, count in found.to_dict().items()}, flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.memory", description=__doc__.split("\n")[0])
    parser.add_argument("--quick", action="store_true", help="the smallest batch of each network only")
    parser.add_argument("--only", default="", help="cases whose name holds this word")
    parser.add_argument("--json", type=Path, help="write the rows there")
    parser.add_argument("--write", action="store_true", help="keep the rows in benchmarks/results/memory.json")
    options = parser.parse_args()
    chosen = [case for case in cases(options.quick) if options.only in case.name]
    if not torch.cuda.is_available():
        predictions(chosen)
        return
    rows = measured_rows(chosen)
    show(rows)
    if options.json is not None:
        options.json.write_text(json.dumps([one.to_dict() for one in rows], indent=1) + "\n", encoding="utf-8")
    if options.write:
        write(rows, RESULTS / "memory.json")


if __name__ == "__main__":
    main()
