"""The fused kernels one by one on a GPU: microseconds, and the share of the copy bandwidth that their bytes make.

    python -m benchmarks.kernels [--only WORD ...] [--json FILE]

For who changes a kernel: the shapes are those of the U-Net and the DiT of `train_gpu` and `sample_gpu`. Beside ours stand
the ways of torch for the same thing where there are several, attention's backends above all.
"""

from __future__ import annotations

import argparse
import json
import statistics
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel

from benchmarks._gpu import ceiling
from sfumato.nn.embed import rope_table, rotate
from sfumato.nn.fused import norm, tokens

ROUNDS = 7


@dataclass(frozen=True)
class Measured:
    """microseconds: the median of the rounds. share: of the copy bandwidth, by the bytes that have to be moved."""

    name: str
    microseconds: float
    share: float


Job = tuple[str, Callable[[], Any], float]  # name, what is timed, bytes


def graphed(run: Callable[[], Any], times: int = 20) -> Callable[[], Any]:
    """So many runs in one CUDA graph, so that no launch is waited for."""
    for _ in range(3):
        run()
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        for _ in range(times):
            run()
    return graph.replay


def microseconds(run: Callable[[], Any], times: int = 20) -> float:
    """Of one run, the median of `ROUNDS`."""
    replay, found = graphed(run, times), []
    for _ in range(ROUNDS):
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        replay()
        end.record()
        torch.cuda.synchronize()
        found.append(1000 * start.elapsed_time(end) / times)
    return statistics.median(found)


def half(*shape: int) -> Tensor:
    return torch.randn(*shape, device="cuda", dtype=torch.bfloat16)


def field(batch: int, channels: int, side: int) -> Tensor:
    return half(batch, channels, side, side).contiguous(memory_format=torch.channels_last)


def norms() -> Iterator[Job]:
    for batch in (1, 128, 512):
        for channels, side in ((128, 32), (256, 16), (512, 16), (256, 8), (256, 4)):
            x, g = field(batch, channels, side), half(channels)
            n = norm.Normed(32, 1e-5, True, g, g)
            where = f"{batch} x {channels} x {side} x {side}"
            yield f"norm_forward {where}", lambda x=x, n=n: norm.norm_forward(x, None, n), 2 * 2.0 * x.numel()
            _, stats = norm.norm_forward(x, None, n)
            if batch > 1:
                back = lambda x=x, n=n, s=stats: norm.norm_backward(x, None, x, n, s)  # noqa: E731
                yield f"norm_backward {where}", back, 3 * 2.0 * x.numel()


def convolutions() -> Iterator[Job]:
    for channels, wide, side in ((128, 128, 32), (384, 128, 32), (256, 256, 16), (512, 256, 8), (256, 256, 4)):
        x, weight = field(1, channels, side), field(wide, channels, 3)
        moved = 2.0 * (x.numel() + weight.numel())
        where = f"1 x {channels} to {wide} x {side} x {side}"
        g = half(wide)
        n = norm.Normed(32, 1e-5, True, g, g)
        for programs in (132, 264, 528):

            def shared(x: Tensor = x, w: Tensor = weight, n: norm.Normed = n, programs: int = programs) -> Any:
                norm._PROGRAMS = programs
                return norm.norm_forward(norm.convolve_parts(x, w), None, n)

            yield f"conv_parts and norm, {programs} programs, {where}", shared, moved

        def whole(x: Tensor = x, w: Tensor = weight, n: norm.Normed = n) -> Any:
            return norm.norm_forward(F.conv2d(x, w, padding=1), None, n)

        yield f"cuDNN and norm, {where}", whole, moved


def sums() -> Iterator[Job]:
    for rows, wide in ((128 * 1024, 128), (512 * 1024, 128), (128 * 256, 256), (128 * 64, 256), (128, 768)):
        x = half(rows, wide)
        for part in (128, 256, 1024):

            def run(x: Tensor = x, part: int = part) -> Any:
                norm._PART = part
                return norm.column_sums(x)

            yield f"column_sums {rows} x {wide}, parts of {part}", run, 2.0 * x.numel()


def transformer() -> Iterator[Job]:
    for batch in (2, 128):
        x, branch, (gate, scale, shift) = half(batch, 256, 1152), half(batch, 256, 1152), half(3, batch, 1152)
        one = 2.0 * x.numel()
        yield (
            f"gate_norm {batch}",
            lambda x=x, b=branch, g=gate, s=scale, h=shift: tokens.gate_norm(x, b, g, s, h),
            4 * one,
        )
        out, _, stats = tokens.gate_norm(x, branch, gate, scale, shift)
        back = lambda x=x, o=out, b=branch, g=gate, s=scale, t=stats: tokens.gate_norm_back(x, x, o, b, g, s, t)  # noqa: E731
        yield f"gate_norm_back {batch}", back, 6 * one
    x, bias = half(128, 256, 4608), half(4608)
    yield "bias_gelu", lambda: tokens.bias_gelu(x, bias), 2 * 2.0 * x.numel()
    yield "bias_gelu_back", lambda: tokens.bias_gelu_back(x, x, bias), 3 * 2.0 * x.numel()
    for backend in (SDPBackend.CUDNN_ATTENTION, SDPBackend.FLASH_ATTENTION):
        for forward_only in (True, False):
            yield (
                f"attention {backend.name} {'forward' if forward_only else 'both'}",
                _attention(backend, forward_only),
                1.0,
            )
    yield "queries, keys and values turned, compiled, both", _turned(), 12 * 2.0 * 128 * 256 * 1152


def _attention(backend: SDPBackend, forward_only: bool) -> Callable[[], Any]:
    parts = [half(128, 256, 16, 72).transpose(1, 2).requires_grad_() for _ in range(3)]
    ones = half(128, 256, 16, 72).transpose(1, 2)

    def run() -> Any:
        with sdpa_kernel(backend), torch.no_grad() if forward_only else nullcontext():
            out = F.scaled_dot_product_attention(*parts)
        return None if forward_only else torch.autograd.grad(out, parts, ones)

    return run


def _turned() -> Callable[[], Any]:
    qkv = half(128, 256, 3 * 1152).requires_grad_()
    table = rope_table(torch.rand(256, 2, device="cuda"), 72, 10_000.0)

    @torch.compile(dynamic=False)
    def heads(qkv: Tensor) -> tuple[Tensor, ...]:
        q, k, v = (part.transpose(1, 2) for part in qkv.view(128, 256, 3, 16, 72).unbind(2))
        return rotate(q, table), rotate(k, table), v.contiguous()

    def run() -> Any:
        found = heads(qkv)
        return torch.autograd.grad(found, qkv, [v.detach() for v in found])

    return run


def updates() -> Iterator[Job]:
    from sfumato.train import Training
    from sfumato.train.ema import Ema
    from sfumato.train.fused_update import FusedUpdate

    class Weights(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.w = torch.nn.ParameterList(torch.zeros(1152, 4608, device="cuda") for _ in range(32))

    model: Any = Weights()
    settings = Training(samples=1, batch=16)
    optimizer, ema = settings.optimizer.build(model, settings), Ema[torch.nn.Module](model, settings.ema)
    pairs = [(p, torch.nn.Parameter(p.detach().bfloat16())) for p in model.parameters()]
    given = [torch.zeros_like(q) for _, q in pairs]
    update = FusedUpdate(optimizer, ema, pairs, given)  # type: ignore[arg-type]
    lr, loss = torch.tensor(1e-4, device="cuda"), torch.ones((), device="cuda")
    weights = torch.tensor(ema.weights(1), device="cuda")
    each = 26 + 2 + 8 * len(ema.gammas)  # weight and moments in and out, gradient in, copy out
    yield "update of 170 M weights", lambda: update(lr, loss, weights), each * 32.0 * 1152 * 4608


JOBS = {"norms": norms, "convolutions": convolutions, "sums": sums, "transformer": transformer, "updates": updates}


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.kernels", description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--only", nargs="+", choices=JOBS, default=list(JOBS))
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    if not torch.cuda.is_available():
        parser.error("there is no GPU here")
    torch.backends.cudnn.benchmark = True
    best, found = ceiling(torch.device("cuda")), []
    for kind in options.only:
        for name, run, moved in JOBS[kind]():
            one = microseconds(run)
            found.append(Measured(name, one, moved / (one * 1e-6) / best.copy))
            print(f"{one:10.1f} us {100 * found[-1].share:6.1f} %  {name}", flush=True)
    if options.json is not None:
        options.json.write_text(json.dumps([asdict(m) for m in found], indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
