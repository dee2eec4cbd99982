"""What the GPU benchmarks share: ceilings, timing, counted operations, and what runs the cases.

A side of a comparison is a `Work`: something to run, and how many images a run makes. `measure` runs it and gives a
`Figure`; a case is a `Work` of ours and several of the peer's (`Variant`), all in one process on the same data, shapes
and precision, one after the other, with everything of one freed before the next begins.

On a CPU everything runs at the sizes of `TINY`: to see that it runs, not for figures.
"""

from __future__ import annotations

import argparse
import gc
import json
import math
import statistics
import time
import traceback
from collections.abc import Callable, Collection
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from benchmarks._table import Row, machine, show, versions, write
from sfumato.device import wait

Kind = Literal["unet", "dit"]
Unit = Literal["images/s", "s", "ms"]
Way = Literal["eager", "compiled", "autotuned"]
GIB = 1 << 30
GUIDANCE = 4.0  # of a guided forward; any number but 1 costs the same


# ---------------------------------------------------------------- shapes


@dataclass(frozen=True)
class Sizes:
    """Both networks: (3, 32, 32) pictures for the U-Net, (4, 32, 32) latents and class labels for the DiT."""

    unet_width: int
    unet_mults: tuple[int, ...]
    unet_groups: int
    unet_attention: int
    dit_width: int
    dit_depth: int
    dit_heads: int
    dit_patch: int
    classes: int


FULL = Sizes(128, (1, 2, 2, 2), 32, 1, 1152, 28, 16, 2, 1000)
TINY = Sizes(16, (1, 2, 2, 2), 4, 1, 96, 2, 2, 8, 10)
SHAPES: dict[Kind, tuple[int, int, int]] = {"unet": (3, 32, 32), "dit": (4, 32, 32)}


def sizes(device: torch.device) -> Sizes:
    """`FULL` on a GPU, `TINY` elsewhere."""
    return FULL if device.type == "cuda" else TINY


# ---------------------------------------------------------------- one side of a comparison


@dataclass(frozen=True)
class Work:
    """run: one step. images: made or learned by it. setup_seconds: compilation and capture done before.

    network: everything that is trained. note: how it is run, in a few words.
    """

    run: Callable[[], object]
    images: int
    setup_seconds: float
    network: nn.Module
    note: str


@dataclass(frozen=True)
class Variant:
    """One way to run a peer. make: called when its turn comes."""

    name: str
    way: Way
    make: Callable[[], Work]


@dataclass(frozen=True)
class Plan:
    """rounds of `steps` steps are timed, and the median of the rounds is taken, after `warmup` steps."""

    rounds: int = 5
    steps: int = 10
    warmup: int = 10


@dataclass(frozen=True)
class Figure:
    """seconds: of a step, the median; low, high: of the rounds. first_seconds: compilation, capture, the first step.

    peak_gib: most memory in tensors, reserved_gib: most taken from the device, from before the setup to the end.
    """

    seconds: float
    low: float
    high: float
    first_seconds: float
    images: int
    parameters: int
    peak_gib: float
    reserved_gib: float
    note: str

    @property
    def images_per_second(self) -> float:
        return self.images / self.seconds

    def to_dict(self) -> dict[str, Any]:
        """For the `settings` of a row."""
        plain = {k: round(v, 6) if isinstance(v, float) else v for k, v in asdict(self).items()}
        return {"images_per_second": round(self.images_per_second, 3), **plain}


def release(device: torch.device) -> None:
    """Give back what a side had: its tensors, graphs and compiled code."""
    torch._dynamo.reset()
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()


def measure(make: Callable[[], Work], device: torch.device, plan: Plan) -> Figure:
    """Build a side, run it and free it. The peak begins before the setup: graphs keep what was allocated in it."""
    release(device)
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    try:
        work = make()
        wait(device)
        began = time.perf_counter()
        work.run()
        wait(device)
        first = work.setup_seconds + time.perf_counter() - began
        for _ in range(plan.warmup):
            work.run()
        rounds = [timed(work.run, device, plan.steps) for _ in range(plan.rounds)]
        cuda = device.type == "cuda"
        return Figure(
            seconds=statistics.median(rounds),
            low=min(rounds),
            high=max(rounds),
            first_seconds=first,
            images=work.images,
            parameters=sum(p.numel() for p in work.network.parameters()),
            peak_gib=torch.cuda.max_memory_allocated(device) / GIB if cuda else 0.0,
            reserved_gib=torch.cuda.max_memory_reserved(device) / GIB if cuda else 0.0,
            note=work.note,
        )
    finally:
        work = None  # type: ignore[assignment]  # the last reference, so that `release` finds it gone
        release(device)


def timed(run: Callable[[], object], device: torch.device, steps: int) -> float:
    """Seconds of one of `steps` steps: by the device's own events on a GPU."""
    if device.type != "cuda":
        began = time.perf_counter()
        for _ in range(steps):
            run()
        return (time.perf_counter() - began) / steps
    torch.cuda.synchronize(device)
    first, last = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    first.record()
    for _ in range(steps):
        run()
    last.record()
    last.synchronize()
    return float(first.elapsed_time(last)) / 1000 / steps


# ---------------------------------------------------------------- ceilings and operations


@dataclass(frozen=True)
class Ceiling:
    """The best rates of a device. flops: operations a second of a bfloat16 product. copy: bytes read and written a second."""

    flops: float
    copy: float


def ceiling(device: torch.device) -> Ceiling:
    """Measured on random data (zeros need less power and are faster): the best of 5 rounds of 10.

    A product of two 8192 x 8192 matrices, and a copy of 2 GiB from the device to itself.
    """
    n, size = (8192, 2 * GIB) if device.type == "cuda" else (512, GIB // 64)
    a, b = (torch.randn(n, n, device=device).bfloat16() for _ in range(2))
    source = torch.randint(0, 256, (size,), dtype=torch.uint8, device=device)
    out, target = torch.empty_like(a), torch.empty_like(source)

    def best(run: Callable[[], object]) -> float:
        timed(run, device, 5)
        return min(timed(run, device, 10) for _ in range(5))

    return Ceiling(2 * n**3 / best(lambda: torch.mm(a, b, out=out)), 2 * size / best(lambda: target.copy_(source)))


@dataclass(frozen=True)
class Counted:
    """parameters of a network; operations of the matrix products and convolutions for one image."""

    parameters: int
    forward: int
    both: int


def count(build: Callable[[], tuple[nn.Module, Callable[[], Tensor]]]) -> Counted:
    """Count what `build` returns, a network and a call of it for one image, on the meta device: nothing is computed.

    A tensor there is not on a GPU, so fused kernels are not taken and the plain formulas are counted; attention is
    counted by its two products, whichever kernel would run. Recomputation in a backward pass does not count.
    """
    with torch.device("meta"), sdpa_kernel(SDPBackend.MATH):
        network, call = build()
        with torch.no_grad(), FlopCounterMode(display=False) as forward:
            call()
        with FlopCounterMode(display=False) as both:
            call().sum().backward()
    parameters = sum(p.numel() for p in network.parameters())
    return Counted(parameters, int(forward.get_total_flops()), int(both.get_total_flops()))


# ---------------------------------------------------------------- a case, and the command that runs several


OneImage = Callable[[Kind, Sizes], tuple[nn.Module, Callable[[], Tensor]]]


@dataclass(frozen=True)
class Case:
    """unit: images/s, or s or ms of a step. training: whether a step has a backward pass. forwards: passes an image.

    one_images: our network and a call of it for `count`, and the peer's. ours, peers: built anew whenever they are called.
    """

    name: str
    kind: Kind
    unit: Unit
    training: bool
    forwards: int
    plan: Plan
    one_images: tuple[OneImage, OneImage]
    ours: Callable[[torch.device], Work]
    peers: Callable[[torch.device], list[Variant]]

    def value(self, figure: Figure) -> float:
        scale = {"s": 1.0, "ms": 1000.0}
        return figure.images_per_second if self.unit == "images/s" else scale[self.unit] * figure.seconds

    def operations(self, counted: Counted) -> int:
        """Of one image in one step."""
        return self.forwards * (counted.both if self.training else counted.forward)


def compare(
    case: Case, device: torch.device, best: Ceiling, ways: Collection[str], quick: bool, names: Collection[str] = ()
) -> Row:
    """One row: ours, and the fastest of the peer's variants that are run in one of `ways` (and have one of `names`)."""
    size = sizes(device)
    counts = [count(partial(make, case.kind, size)) for make in case.one_images]
    flops = [case.operations(c) for c in counts]
    print(f"\n{case.name}: {[c.parameters for c in counts]} parameters, ", end="")
    print(f"{flops[0] / 1e9:.3f} and {flops[1] / 1e9:.3f} GFLOP an image, ours and the peer's", flush=True)
    if abs(flops[0] / flops[1] - 1) > 0.02:
        raise SystemExit(f"{case.name}: the operations differ by more than 2%, the times can't be compared")
    plan = case.plan if device.type == "cuda" else Plan(1, 1, 0)
    plan = replace(plan, rounds=min(plan.rounds, 3), steps=min(plan.steps, 3)) if quick else plan

    def side(name: str, make: Callable[[], Work], flop: int) -> Figure:
        figure = measure(make, device, plan)
        share = figure.images_per_second * flop / best.flops
        print(
            f"  {name:<36}{case.value(figure):>10.4g} {case.unit:<8} {share:>5.1%} of the ceiling "
            f"{figure.peak_gib:>6.1f} GiB ({figure.reserved_gib:.1f}) {figure.first_seconds:>6.1f} s setup  {figure.note}",
            flush=True,
        )
        return figure

    ours = side("ours", lambda: case.ours(device), flops[0])
    peers, failed = {}, {}
    for variant in [v for v in case.peers(device) if v.way in ways and (not names or v.name in names)]:
        try:
            peers[variant.name] = side(variant.name, variant.make, flops[1])
        except Exception as error:  # one that does not fit or does not compile is said, and the others go on
            failed[variant.name] = f"{type(error).__name__}: {(str(error).splitlines() or [''])[0]}"
            print(f"  {variant.name:<36}{failed[variant.name]}", flush=True)
    fastest = max(peers, key=lambda name: peers[name].images_per_second, default=None)
    return Row(
        case=case.name,
        ours=case.value(ours),
        peer=math.nan if fastest is None else case.value(peers[fastest]),
        unit=case.unit,
        share_of_ceiling=ours.images_per_second * flops[0] / best.flops,
        machine=machine(
            gpu=torch.cuda.get_device_name(device) if device.type == "cuda" else None,
            cuda=torch.version.cuda,
            ceiling_gflops=round(best.flops / 1e9, 1),
            copy_gb_per_s=round(best.copy / 1e9, 1),
        ),
        versions=versions("sfumato", "diffusers", "triton", "numpy"),
        settings={
            "fastest_peer": fastest,
            "ours": ours.to_dict(),
            "peers": {name: figure.to_dict() for name, figure in peers.items()},
            "failed": failed,
            "gflop_per_image": [round(f / 1e9, 3) for f in flops],
            "parameters": [c.parameters for c in counts],
            **asdict(plan),
        },
    )


def command(prog: str, about: str, cases: list[Case], results: Path) -> None:
    """The command line of a benchmark of several cases. Rows are written after each: what is cut short keeps them."""
    parser = argparse.ArgumentParser(prog=prog, description=about)
    parser.add_argument("--only", nargs="+", choices=[c.name for c in cases], metavar="CASE", help="leave others out")
    parser.add_argument("--json", type=Path, help="write the rows here")
    parser.add_argument("--write", action="store_true", help=f"write the rows to results/{results.name}")
    parser.add_argument("--peer", choices=("eager", "compiled", "both"), default="both", help="how the peer is run")
    parser.add_argument("--variants", nargs="+", metavar="NAME", help='of the peer these alone: "peer, compiled"')
    parser.add_argument("--autotune", action="store_true", help="and autotuned, which compiles for minutes")
    parser.add_argument("--no-peer", action="store_true", help="ours alone: nothing is written")
    parser.add_argument("--quick", action="store_true", help="3 rounds of 3 steps: the order of magnitude")
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda", help="cpu: tiny, to see that it runs")
    options = parser.parse_args()
    files = [f for f in (options.json, results if options.write else None) if f is not None]
    if options.no_peer and files:
        parser.error("a row needs the peer of the same run; leave --no-peer, --json or --write out")
    if options.device == "cuda" and not torch.cuda.is_available():
        parser.error("there is no GPU here; --device cpu runs tiny networks, to see that it runs")
    device = torch.device(options.device)
    torch.backends.cudnn.benchmark = True  # for both sides: convolutions by measured choice
    best = ceiling(device)
    print(f"ceiling: {best.flops / 1e12:.1f} TFLOP/s in bf16, {best.copy / 1e12:.3f} TB/s copy")
    asked = [] if options.no_peer else ["eager", "compiled"] if options.peer == "both" else [options.peer]
    ways = {*asked, "autotuned"} if options.autotune and asked else {*asked}
    print(
        "then, for each side: GiB in tensors at most (GiB reserved), and seconds of compilation, capture and first step"
    )
    rows, broken = [], []
    for case in [c for c in cases if not options.only or c.name in options.only]:
        try:
            rows.append(compare(case, device, best, ways, options.quick, options.variants or ()))
        except Exception:  # the other cases can still be measured
            traceback.print_exc()
            broken.append(case.name)
        for file in files:
            write(_merged(rows, file), file)
    print()
    show(rows)
    if broken:
        raise SystemExit(f"not measured: {', '.join(broken)}")


def _merged(rows: list[Row], file: Path) -> list[Row]:
    """The rows with those of other cases that the file has already."""
    kept = json.loads(file.read_text(encoding="utf-8")) if file.is_file() else []
    new = {row.case for row in rows}
    return [Row(**{k: v for k, v in r.items() if k != "ratio"}) for r in kept if r["case"] not in new] + rows
