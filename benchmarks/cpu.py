"""Our U-Net against diffusers' `UNet2DModel` of the same blocks and operations, both in one run on the same cores.

    python -m benchmarks.cpu [--quick] [--threads 2] [--json FILE] [--write]

Both networks have the same parameters and, counted, the same operations within 2%; both train with one loss, one
optimizer (fused AdamW) and one clipping rule. The two take turns, a step each, so that whatever else the machine does
falls on both; the figures are medians. The last row is the time to 95% digit accuracy, see `_digits.py`. Build with
`pip install sfumato[bench]`.
"""

from __future__ import annotations

import argparse
import gc
import statistics
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from benchmarks._digits import BATCH, GOAL, minutes_to_goal
from benchmarks._table import RESULTS, Row, machine, show, versions, write
from sfumato.core.cond import CondShape
from sfumato.nn import UNet

Step = Callable[[], None]


@dataclass(frozen=True)
class Shape:
    """A network and a batch. attention: the level that has it (and the middle); groups: of every group norm."""

    size: int
    channels: int
    width: int
    mults: tuple[int, ...]
    attention: int
    groups: int
    batch: int


# Pictures and digits at width 32 (the recipe `digits` has it; `image` takes 16 on a CPU), and pictures twice as wide.
SHAPES = {
    "": Shape(size=32, channels=3, width=32, mults=(1, 2, 2), attention=1, groups=4, batch=16),
    "_8x8": Shape(size=8, channels=1, width=32, mults=(1, 2), attention=1, groups=4, batch=64),
    "_wide": Shape(size=32, channels=3, width=64, mults=(1, 2, 2), attention=1, groups=8, batch=16),
}


def networks(shape: Shape) -> tuple[nn.Module, nn.Module]:
    """(ours, the peer's) of one shape."""
    from diffusers import UNet2DModel

    levels = range(len(shape.mults))
    ours = UNet(
        (shape.channels, shape.size, shape.size),
        CondShape(),
        width=shape.width,
        mults=shape.mults,
        attention=(shape.attention,),
        head_dim=shape.width,
        groups=shape.groups,
        modulation="shift",
    )
    peer = UNet2DModel(
        sample_size=shape.size,
        in_channels=shape.channels,
        out_channels=shape.channels,
        block_out_channels=tuple(shape.width * m for m in shape.mults),
        layers_per_block=2,
        down_block_types=tuple("AttnDownBlock2D" if i == shape.attention else "DownBlock2D" for i in levels),
        up_block_types=tuple("AttnUpBlock2D" if i == shape.attention else "UpBlock2D" for i in reversed(levels)),
        attention_head_dim=shape.width,
        norm_num_groups=shape.groups,
    )
    return ours, peer


def steps(network: nn.Module, forward: Callable[[Tensor, Tensor], Tensor], shape: Shape) -> tuple[Step, Step]:
    """(a training step, a sampling step) of a network on fixed data."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(shape.batch, shape.channels, shape.size, shape.size, generator=generator)
    target, noise = torch.randn(x.shape, generator=generator), torch.rand(shape.batch, generator=generator)
    optimizer = torch.optim.AdamW(network.parameters(), 1e-4, fused=True)

    def train() -> None:
        loss = (forward(x, noise) - target).square().mean()
        loss.backward()
        nn.utils.clip_grad_norm_(network.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()

    def sample() -> None:
        with torch.inference_mode():
            forward(x, noise)

    return train, sample


def operations(step: Step) -> int:
    """Operations of the matrix products and convolutions of one step."""
    with FlopCounterMode(display=False) as counter:
        step()
    return int(counter.get_total_flops())


def ceiling() -> float:
    """The best float32 rate of this machine, operations a second: a large matrix product, the best of 5."""
    a = torch.randn(2048, 2048)
    return 2 * 2048**3 / min(_seconds(lambda: a @ a) for _ in range(5))


def _seconds(step: Callable[[], Any]) -> float:
    start = time.perf_counter()
    step()
    return time.perf_counter() - start


def alternate(ours: Step, peer: Step, rounds: int) -> tuple[list[float], list[float]]:
    """Seconds of each step, the two taking turns and the first turn; two rounds of warm-up are not counted."""
    taken: dict[int, list[float]] = {0: [], 1: []}
    gc.collect()
    gc.disable()
    try:
        for i in range(rounds + 2):
            for which in (0, 1) if i % 2 else (1, 0):
                seconds = _seconds((ours, peer)[which])
                if i >= 2:
                    taken[which].append(seconds)
    finally:
        gc.enable()
    return taken[0], taken[1]


def compare(suffix: str, shape: Shape, rounds: int, best: float) -> list[Row]:
    """The rows `cpu.train_step` and `cpu.sample_step` of one shape."""
    torch.manual_seed(0)
    ours, peer = networks(shape)
    our_steps = steps(ours, ours, shape)
    peer_steps = steps(peer, lambda x, noise: peer(x, 1000 * noise, return_dict=False)[0], shape)
    rows = []
    for case, train, mine, theirs in zip(("train_step", "sample_step"), (True, False), our_steps, peer_steps):
        ours.train(train)
        peer.train(train)
        counts = operations(mine), operations(theirs)
        print(f"cpu.{case}{suffix}: {counts[0] / 1e9:.3f} and {counts[1] / 1e9:.3f} GFLOP a step, ours and the peer's")
        if abs(counts[0] / counts[1] - 1) > 0.02:
            raise SystemExit(f"cpu.{case}{suffix}: the operations differ by more than 2%, the times can't be compared")
        a, b = alternate(mine, theirs, rounds)
        middle = statistics.median(a)
        rows.append(
            Row(
                case=f"cpu.{case}{suffix}",
                ours=middle,
                peer=statistics.median(b),
                unit="s",
                share_of_ceiling=counts[0] / middle / best,
                machine=machine(threads=torch.get_num_threads(), ceiling_gflops=round(best / 1e9, 1)),
                versions=versions("sfumato", "diffusers", "numpy"),
                settings={
                    **asdict(shape),
                    "rounds": rounds,
                    "parameters": [sum(p.numel() for p in m.parameters()) for m in (ours, peer)],
                    "gflop": [round(c / 1e9, 3) for c in counts],
                    "ratio_of_fastest": round(min(a) / min(b), 4),
                },
            )
        )
    return rows


def digits() -> Row:
    """`cpu.digits_minutes`: minutes of training until 95% of the samples are the digit asked for."""
    shape = SHAPES["_8x8"]
    ours, peer = minutes_to_goal(shape.width, shape.mults)
    return Row(
        case="cpu.digits_minutes",
        ours=ours["seconds"] / 60,
        peer=peer["seconds"] / 60,
        unit="min",
        share_of_ceiling=None,
        machine=machine(threads=torch.get_num_threads()),
        versions=versions("sfumato", "diffusers", "numpy"),
        settings={"goal": GOAL, "batch": BATCH, "width": shape.width, "mults": shape.mults, "runs": [ours, peer]},
    )


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.cpu", description=__doc__.split("\n")[0])
    parser.add_argument(
        "--quick", action="store_true", help="a few rounds and no digits: the order of magnitude in a minute"
    )
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--json", type=Path, help="write the rows here")
    parser.add_argument("--write", action="store_true", help=f"write the rows to {RESULTS.name}/cpu.json")
    options = parser.parse_args()
    try:
        import diffusers  # noqa: F401
    except ImportError:
        raise SystemExit("the peer is missing: pip install 'sfumato[bench]'") from None
    torch.set_num_threads(options.threads)
    best = ceiling()
    rows = [r for suffix, shape in SHAPES.items() for r in compare(suffix, shape, 3 if options.quick else 15, best)]
    if not options.quick:
        rows.append(digits())
    show(rows)
    for file in [f for f in (options.json, RESULTS / "cpu.json" if options.write else None) if f is not None]:
        write(rows, file)
        print(f"written: {file}")


if __name__ == "__main__":
    main()
