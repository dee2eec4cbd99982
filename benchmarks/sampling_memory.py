"""Peak memory and time of sampling with tiles, slices and offload: ours is a way to save, the peer is all off.

    python -m benchmarks.sampling_memory [--device cpu] [--json FILE] [--write]

decode: (4, 128, 128) latents to (3, 1024, 1024) pictures, four of them, by a convolutional decoder of the usual size
(49 M parameters, float32, as codecs are computed). dit: one guided forward of a DiT-XL (width 1152, depth 28, bfloat16) on
2,048 tokens, eight samples, so a batch of 16. Each with everything off, with each way alone, and with all of them.

Two rows a way: GiB, `torch.cuda.max_memory_allocated` with the weights; and seconds, the median of rounds. A ratio is the
way over all off. `settings.difference` is how far the output is from that of all off, in deviations: rounding for slices and
offload; for tiles, a decoder of random weights whose group norms and attention see a tile instead of the picture.
--device cpu runs tiny ones, to see that it runs, without memory.
"""

from __future__ import annotations

import argparse
import gc
import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from benchmarks._gpu import GUIDANCE, Figure, Plan, Work, measure
from benchmarks._table import RESULTS, Row, machine, show, versions, write
from sfumato.conditioners import Label
from sfumato.core import Cond, DataInfo, Flow, NetDenoiser, Network, Velocity
from sfumato.guidance import ClassifierFree
from sfumato.nn import DiT
from sfumato.nn.layers import apply_conv, conv, norm_groups, to_inner
from sfumato.nn.norm import GroupNorm
from sfumato.nn.offload import Offload
from sfumato.nn.tiling import Sliced, sliced, tiled
from sfumato.nn.unet import FieldAttention

FACTOR = 8  # pictures over latents


@dataclass(frozen=True)
class Sizes:
    """widths of the decoder, coarsest first; latents and tiles in positions of latents."""

    widths: tuple[int, ...]
    latent: int
    tile: int
    overlap: int
    pictures: int
    width: int
    depth: int
    heads: int
    field: tuple[int, int, int]
    samples: int
    slice: int


FULL = Sizes((512, 512, 256, 128), 128, 64, 16, 4, 1152, 28, 16, (4, 64, 128), 8, 4)
TINY = Sizes((16, 16, 8, 8), 24, 16, 4, 2, 48, 3, 2, (4, 8, 16), 2, 1)


@dataclass(frozen=True)
class Way:
    """What is on. slice: samples at once, 0 for all."""

    name: str
    tile: bool = False
    slice: int = 0
    offload: bool = False


# ---------------------------------------------------------------- a decoder


class Res(nn.Module):
    """shortcut(x) + conv(SiLU(GN(conv(SiLU(GN(x)))))."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.norm1, self.conv1 = GroupNorm(norm_groups(inputs, None), inputs), conv(2, inputs, outputs)
        self.norm2, self.conv2 = GroupNorm(norm_groups(outputs, None), outputs), conv(2, outputs, outputs)
        self.shortcut = conv(2, inputs, outputs, kernel=1) if inputs != outputs else None

    def forward(self, x: Tensor) -> Tensor:
        h = apply_conv(self.conv1, self.norm1(x, act=True))
        h = apply_conv(self.conv2, self.norm2(h, act=True))
        return h.add_(x if self.shortcut is None else apply_conv(self.shortcut, x))


class Middle(nn.Module):
    """A residual block, attention, a residual block."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.first, self.last = Res(width, width), Res(width, width)
        self.attention = FieldAttention(width, 0, max(1, width // 64), None)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.last(self.attention(self.first(x), None, None))
        return out


class Larger(nn.Module):
    """Twice the size by nearest neighbour, and a convolution."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.conv = conv(2, width, width)

    def forward(self, x: Tensor) -> Tensor:
        return apply_conv(self.conv, F.interpolate(x, scale_factor=2, mode="nearest"))


class Decoder(nn.Module):
    """(B, 4, h, w) to (B, 3, 8 h, 8 w): three residual blocks a level, attention in the middle. A plain peer of a codec's."""

    def __init__(self, widths: tuple[int, ...]) -> None:
        super().__init__()
        self.stem = conv(2, 4, widths[0])
        layers: list[nn.Module] = [Middle(widths[0])]
        at = widths[0]
        for level, width in enumerate(widths):
            layers += [Larger(at)] if level else []
            layers += [Res(at if i == 0 else width, width) for i in range(3)]
            at = width
        self.layers = nn.ModuleList(layers)
        self.norm, self.head = GroupNorm(norm_groups(at, None), at), conv(2, at, 3)

    @property
    def blocks(self) -> list[nn.Module]:
        """What is offloaded."""
        return list(self.layers)

    def forward(self, z: Tensor) -> Tensor:
        h = apply_conv(self.stem, to_inner(z))
        for layer in self.layers:
            h = layer(h)
        return apply_conv(self.head, self.norm(h, act=True))


# ---------------------------------------------------------------- cases


@dataclass(frozen=True)
class Case:
    """network: on the CPU. inputs: moved to the device. run: (inputs, way) to the output."""

    name: str
    network: nn.Module
    inputs: tuple[Tensor, ...]
    run: Callable[[tuple[Tensor, ...], Way], Tensor]
    ways: tuple[Way, ...]
    images: int


def decode(size: Sizes) -> Case:
    """Latents to pictures."""
    decoder = Decoder(size.widths)

    def one(z: Tensor, way: Way) -> Tensor:
        if not way.tile:
            out: Tensor = decoder(z)
            return out
        return tiled(decoder, z, tile=size.tile, overlap=size.overlap, factor=FACTOR)

    def run(inputs: tuple[Tensor, ...], way: Way) -> Tensor:
        return sliced(lambda z: one(z, way), inputs[0], way.slice or len(inputs[0]))

    ways = (
        Way("off"), Way("tile", tile=True), Way("slice", slice=1), Way("offload", offload=True),
        Way("all", tile=True, slice=1, offload=True),
    )  # fmt: skip
    z = torch.randn(size.pictures, 4, size.latent, size.latent)
    return Case("decode", decoder, (z,), run, ways, size.pictures)


def dit(size: Sizes) -> Case:
    """A guided forward, the denoiser around the network included."""
    label = Label(DataInfo(size.field, "array", labels=("a", "b")), width=size.width)
    network: Network = DiT(size.field, label.shape, width=size.width, depth=size.depth, heads=size.heads)
    with torch.no_grad():  # a DiT starts as zero, and differences would be too
        for p in network.parameters():
            p.add_(0.02 * torch.randn_like(p))
        asked = label(label.prepare({"label": torch.zeros(size.samples, dtype=torch.int64)})).vector
        null = label.null(size.samples).vector
    assert asked is not None and null is not None
    network.bfloat16()
    t = torch.full((size.samples,), 0.5, dtype=torch.float64)

    def run(inputs: tuple[Tensor, ...], way: Way) -> Tensor:
        x, wanted, nothing = inputs
        acting = Sliced(network, way.slice) if way.slice else network
        denoiser = ClassifierFree().wrap(
            NetDenoiser(acting, Flow(), Velocity()), Cond(vector=nothing), torch.full((len(x),), GUIDANCE)
        )
        return denoiser(x, t, Cond(vector=wanted))

    ways = (Way("off"), Way("slice", slice=size.slice), Way("offload", offload=True))
    inputs = (torch.randn(size.samples, *size.field), asked.bfloat16(), null.bfloat16())
    return Case("dit", network, inputs, run, (*ways, Way("all", slice=size.slice, offload=True)), size.samples)


CASES = {"decode": decode, "dit": dit}


@contextmanager
def placed(network: nn.Module, way: Way, device: torch.device) -> Iterator[None]:
    """The network on the device, or the part of it that has to be; afterwards on the CPU."""
    away = Offload(network, device) if way.offload else None
    try:
        if away is None:
            network.to(device)
        yield
    finally:
        if away is not None:
            away.remove()
        network.to("cpu")
        gc.collect()


@torch.no_grad()
def measured(case: Case, way: Way, device: torch.device, plan: Plan) -> tuple[Figure, Tensor]:
    """The figure of a way, and its output on the CPU."""
    with placed(case.network, way, device):
        inputs = tuple(v.to(device) for v in case.inputs)
        out = case.run(inputs, way).float().cpu()

        def make() -> Work:
            return Work(lambda: case.run(inputs, way), case.images, 0.0, case.network, way.name)

        return measure(make, device, plan), out


def rows(case: Case, size: Sizes, device: torch.device) -> Iterator[Row]:
    """Two rows a way but the first, against the first."""
    plan = Plan(rounds=3, steps=3, warmup=2)
    off, expected = measured(case, case.ways[0], device, plan)
    on = machine(gpu=torch.cuda.get_device_name(device) if device.type == "cuda" else None, cuda=torch.version.cuda)
    for way in case.ways[1:]:
        figure, out = measured(case, way, device, plan)
        settings = {
            "way": asdict(way),
            "sizes": asdict(size),
            "difference": float((out - expected).std() / expected.std()),
            "ours": figure.to_dict(),
            "peer": off.to_dict(),
        }
        peak = (figure.peak_gib, off.peak_gib) if device.type == "cuda" else (math.nan, math.nan)
        name = f"{case.name} {way.name}"
        yield Row(f"{name} peak", *peak, "GiB", None, on, versions("sfumato"), settings)
        yield Row(f"{name} time", figure.seconds, off.seconds, "s", None, on, versions("sfumato"), settings)


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.sampling_memory", description=__doc__.split("\n")[0])
    parser.add_argument("--only", nargs="+", choices=CASES, metavar="CASE", help="leave others out")
    parser.add_argument("--json", type=Path, help="write the rows there")
    parser.add_argument("--write", action="store_true", help="keep the rows in benchmarks/results/sampling_memory.json")
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda", help="cpu: tiny, to see that it runs")
    options = parser.parse_args()
    if options.device == "cuda" and not torch.cuda.is_available():
        parser.error("there is no GPU here; --device cpu runs tiny networks, to see that it runs")
    device = torch.device(options.device)
    files = [f for f in (options.json, RESULTS / "sampling_memory.json" if options.write else None) if f is not None]
    if files and device.type != "cuda":
        parser.error("rows are of memory, which is measured on a GPU; leave --json and --write out")
    size = FULL if device.type == "cuda" else TINY
    made: list[Row] = []
    for name in options.only or CASES:
        torch.manual_seed(0)
        case = CASES[name](size)
        print(f"{name}: {sum(p.numel() for p in case.network.parameters()) / 1e6:.1f} M parameters", flush=True)
        for row in rows(case, size, device):
            made.append(row)
            print(f"  {row.case:<24}{row.ours:>9.3f}{row.peer:>9.3f} {row.unit:<4}{row.ratio:>7.3f}", flush=True)
            for file in files:
                write(made, file)
        del case
    show(made)


if __name__ == "__main__":
    main()
