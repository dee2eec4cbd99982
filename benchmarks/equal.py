"""Fast paths against plain ones at the sizes of the speed tables: outputs, gradients, trained weights, whole walks.

    python -m benchmarks.equal [--only WORD ...] [--json FILE] [--write] [--device cuda|cpu]

Ours is the fast path in bfloat16: fused kernels, compiled blocks, recorded graphs. The peer is the same in bfloat16 as it is
written (`compile=false`, `fused.plain`). Both start from the same weights, data and noise as the path as written in float32
without TF32, and a figure is how far they end from that, |a - exact| / |exact| over all numbers together; for trained weights
over how far those have moved. A fast path is right where it is as near as the plain one: at most `Case.times` its distance
and `Case.more`. A case that is not is named, and the command ends with exit code 1.

Weights that begin at zero are drawn instead, so that nothing is hidden behind them. On a CPU everything is tiny and no fast
path is taken: to see that it runs.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor, nn

from benchmarks._gpu import GUIDANCE, SHAPES, Kind, release, sizes
from benchmarks._ours import batch_of, denoiser_of, networks, steps_of, task_of
from benchmarks._table import RESULTS, Row, machine, show, versions, write
from sfumato.conditioners import Label
from sfumato.core import Network, UniformGrid
from sfumato.device import choose_device
from sfumato.guidance import ClassifierFree
from sfumato.nn import fused
from sfumato.nn.captured import Captured, regional
from sfumato.samplers import DDIM, sample
from sfumato.train.step import GraphStep

Way = Literal["exact", "plain", "fast"]
WAYS: tuple[Way, ...] = ("exact", "plain", "fast")
STEPS, EVALUATIONS = 20, 50


@dataclass(frozen=True)
class Case:
    """run: what a way makes, as one vector on the CPU. start: what `run` moves away from; None for 0."""

    name: str
    run: Callable[[Way], Tensor]
    start: Callable[[], Tensor] | None = None
    times: float = 1.2
    more: float = 2e-3


def _as_written(way: Way) -> AbstractContextManager[None]:
    return nullcontext() if way == "fast" else fused.plain()


def _dtype(way: Way) -> torch.dtype:
    return torch.float32 if way == "exact" else torch.bfloat16


def drawn(kind: Kind, device: torch.device) -> tuple[Network, Label | None]:
    """Our network and its conditioner with weights of their own wherever they would begin at zero."""
    torch.manual_seed(0)
    with device:
        network, label = networks(kind, sizes(device))
    for p in network.parameters():
        if not bool(p.detach().any()):
            nn.init.normal_(p, std=0.02)
    return network, label


def _vector(tensors: list[Tensor]) -> Tensor:
    return torch.cat([t.detach().float().flatten().cpu() for t in tensors])


# ---------------------------------------------------------------- what is compared


def once(kind: Kind, batch: int, device: torch.device, gradients: bool, way: Way) -> Tensor:
    """The network's output for a batch, or the gradients of all its weights."""
    network, label = drawn(kind, device)
    dtype, generator = _dtype(way), torch.Generator().manual_seed(1)
    x = torch.randn(batch, *SHAPES[kind], generator=generator).to(device, dtype)
    noise = torch.linspace(0.05, 0.95, batch, device=device)
    numbers = torch.arange(batch, device=device) % sizes(device).classes
    cond = None if label is None else label({"label": numbers}).to(device, dtype)
    network = network.to(dtype)
    if way == "fast" and device.type == "cuda":
        regional(network)
    with _as_written(way), torch.set_grad_enabled(gradients):
        out = network(x, noise) if cond is None else network(x, noise, cond)
        if not gradients:
            return _vector([out])
        toward = torch.randn(out.shape, generator=generator).to(device)
        (out.float() * toward).mean().backward()  # type: ignore[no-untyped-call]
    return _vector([p.grad for p in network.parameters() if p.grad is not None])


def trained(kind: Kind, batch: int, device: torch.device, way: Way | None) -> Tensor:
    """All weights after `STEPS` of the trainer's own steps on one batch; None: before them."""
    network, label = drawn(kind, device)
    task = task_of(kind, denoiser_of(kind, network), label, device)
    if way is not None:
        record = way == "fast" and device.type == "cuda"
        with _as_written(way):
            step, run = steps_of(task, batch_of(kind, batch, device), _dtype(way), record=record)
            assert isinstance(step, GraphStep) == record
            for _ in range(STEPS):
                run()
    return _vector(list(task.parameters()))


def walked(batch: int, device: torch.device, way: Way) -> Tensor:
    """Samples of the U-Net by `EVALUATIONS` of DDIM, from the same noise."""
    network, _ = drawn("unet", device)
    network = network.to(_dtype(way)).eval()
    denoiser = denoiser_of("unet", Captured(network, compiled=True) if way == "fast" else network).eval()
    x = torch.randn(batch, *SHAPES["unet"], generator=torch.Generator().manual_seed(3)).to(device)
    with torch.no_grad(), _as_written(way):
        return _vector([sample(denoiser, DDIM(), x, UniformGrid()(denoiser.process, EVALUATIONS))])


def guided(batch: int, device: torch.device, way: Way) -> Tensor:
    """A guided estimate of the DiT: what was asked and "any class" in one pass."""
    network, label = drawn("dit", device)
    assert label is not None
    network, label = network.to(_dtype(way)).eval(), label.to(_dtype(way)).eval()
    denoiser = denoiser_of("dit", Captured(network, compiled=True) if way == "fast" else network).eval()
    x_t = torch.randn(batch, *SHAPES["dit"], generator=torch.Generator().manual_seed(4)).to(device)
    t = torch.full((batch,), 0.5, dtype=torch.float64)
    numbers = torch.arange(batch, device=device) % sizes(device).classes
    with torch.no_grad(), _as_written(way):
        cond, null = label({"label": numbers}), label.null(batch)
        return _vector([ClassifierFree(GUIDANCE).wrap(denoiser, null)(x_t, t, cond)])


def cases(device: torch.device) -> list[Case]:
    """At the batches of the speed tables, or as many of them as float32 has room for."""
    cuda = device.type == "cuda"
    b128, b512, b256, b32 = (128, 512, 256, 32) if cuda else (4, 4, 2, 2)
    found = [
        Case("unet.output.b512", partial(once, "unet", b512, device, False)),
        Case("unet.gradients.b512", partial(once, "unet", b512, device, True)),
        Case("dit.output.b32", partial(once, "dit", b32, device, False)),
        Case("dit.gradients.b32", partial(once, "dit", b32, device, True)),
        Case("unet.sample.b256", partial(walked, b256, device)),
        Case("dit.guided.b32", partial(guided, b32, device)),
    ]
    for kind, batch, said in (("unet", b128, "b128"), ("unet", b512, "b512"), ("dit", b32, "b32")):
        start = partial(trained, kind, batch, device, None)  # AdamW turns small errors into steps of full length
        found.append(Case(f"{kind}.train.{said}", partial(trained, kind, batch, device), start, more=0.02))
    return found


# ---------------------------------------------------------------- command


def compare(case: Case, device: torch.device) -> Row:
    """The distances of both ways to the exact one."""
    made: dict[Way, Tensor] = {}
    with torch.backends.cudnn.flags(enabled=True, allow_tf32=False):
        for way in WAYS:
            release(device)
            made[way] = case.run(way)
    start = torch.zeros(1) if case.start is None else case.start()
    whole = float((made["exact"] - start).double().norm())
    apart = {way: float((made[way] - made["exact"]).double().norm()) / whole for way in ("plain", "fast")}
    gpu = torch.cuda.get_device_name() if device.type == "cuda" else None
    settings = {
        "fast_to_plain": float((made["fast"] - made["plain"]).double().norm()) / whole,
        "allowed": case.times * apart["plain"] + case.more,
        "finite": bool(torch.isfinite(made["fast"]).all()),
    }
    about = (None, machine(gpu=gpu), versions("sfumato", "triton"), settings)
    return Row(f"equal.{case.name}", apart["fast"], apart["plain"], "relative", *about)


def wrong(rows: list[Row]) -> list[str]:
    """A sentence for each row whose fast path is further away than is allowed."""
    return [
        f"{row.case}: the fast path is {row.ours:.3g} from float32, {row.settings['allowed']:.3g} are allowed"
        for row in rows
        if not (row.ours <= row.settings["allowed"] and row.settings["finite"])
    ]


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.equal", description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--only", nargs="*", default=[], metavar="WORD", help="cases whose name has one of these")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--write", action="store_true", help="write the rows to results/equal.json")
    parser.add_argument("--device", default="auto")
    options = parser.parse_args()
    device = choose_device(options.device)
    rows = []
    for case in cases(device):
        if not options.only or any(word in case.name for word in options.only):
            rows.append(compare(case, device))
            row = rows[-1]
            print(
                f"{row.case:<26} fast {row.ours:.3e}  plain {row.peer:.3e}  allowed {row.settings['allowed']:.3e}",
                flush=True,
            )
    show(rows)
    for file in [f for f in (options.json, RESULTS / "equal.json" if options.write else None) if f is not None]:
        write(rows, file)
    if found := wrong(rows):
        sys.exit("\n".join(found))


if __name__ == "__main__":
    main()
