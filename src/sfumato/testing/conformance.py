"""Checks that a new solver, network or codec must pass: `check_solver(Mine())` in one line of a test.

Each raises AssertionError with what was expected and what was found.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from sfumato.codecs import Codec
from sfumato.core import VE, VP, Cond, CondShape, Cosine, DiscreteVP, Flow, Network, Process, SampleNoise
from sfumato.samplers import Solver, sample
from sfumato.spec import Spec
from sfumato.testing.denoisers import GaussianDenoiser

PROCESSES: tuple[Process, ...] = (
    Flow(),
    Cosine(),
    VP(),
    VE(),
    DiscreteVP("linear"),
    DiscreteVP("scaled_linear", zero_terminal_snr=True),
    DiscreteVP("cosine"),
    DiscreteVP("sigmoid"),
)


def _noisy(n: int, dims: Sequence[int] = (), *, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(n, *dims, generator=generator, dtype=torch.float64)


def measured_order(solver: Solver, process: Process, *, steps: int = 128, interval: float = 4.0) -> float:
    """Slope of log2(error) between `steps` and twice as many, on the exact Gaussian, for log-SNR in +-`interval`.

    An interior interval, so that the smoothness that the theory asks for holds; the error is the largest of 64 starts.
    """
    ends = process.time(torch.tensor([-interval, interval], dtype=torch.float64))
    denoiser, x = GaussianDenoiser(process), _noisy(64)
    errors = []
    for n in (steps, 2 * steps):
        times = torch.lerp(ends[0], ends[1], torch.linspace(0, 1, n + 1, dtype=torch.float64))
        errors.append((sample(denoiser, solver, x, times) - denoiser.flow(x, times[0], times[-1])).abs().max().item())
    return math.log2(errors[0] / errors[1])


def check_order(solver: Solver, processes: Sequence[Process] = PROCESSES, tolerance: float = 0.15) -> None:
    """The declared order of a deterministic solver holds on every process."""
    for process in processes:
        order = measured_order(solver, process)
        assert abs(order - solver.order) < tolerance, (
            f"{solver} on {process}: order {order:.2f}, declared {solver.order}"
        )


def check_ends(solver: Solver, processes: Sequence[Process] = PROCESSES, *, steps: int = 256) -> None:
    """From pure noise to clean data the result is finite and has the Gaussian's mean and deviation within 3%."""
    for process in processes:
        times = torch.cat([_log_spaced(process, steps), torch.zeros(1, dtype=torch.float64)])
        x = _noisy(32, (320,)) * process.sigma(times[0])  # few rows: times are per row
        y = sample(GaussianDenoiser(process), solver, x, times, noise=None)
        assert torch.isfinite(y).all(), f"{solver} on {process}: not finite"
        mean, std = y.mean().item(), y.std().item()
        assert abs(mean - 0.5) < 0.03 and abs(std - 0.7) < 0.03, (
            f"{solver} on {process}: {mean:.3f}, {std:.3f} not 0.5, 0.7"
        )


def _log_spaced(process: Process, n: int) -> Tensor:
    first = process.logsnr(torch.ones((), dtype=torch.float64)).clamp(min=-12)
    times = process.time(torch.lerp(first, torch.tensor(10.0, dtype=torch.float64), torch.linspace(0, 1, n).double()))
    times[0] = 1.0
    return times


def check_mixed_times(solver: Solver, process: Process | None = None) -> None:
    """Two requests at different times in one batch get, bit for bit, what they get alone; a held element stays."""
    process = process or Flow()
    denoiser, x, seeds = GaussianDenoiser(process), _noisy(2, (5,)), (3, 4)
    grids = (torch.linspace(0.95, 0, 9).double(), torch.linspace(0.9, 0.1, 9).double())
    alone = [
        sample(denoiser, solver, x[i : i + 1], g, noise=SampleNoise(seeds[i : i + 1])) for i, g in enumerate(grids)
    ]
    both = sample(denoiser, solver, x, torch.stack(grids, 1), noise=SampleNoise(seeds))
    assert torch.equal(both, torch.cat(alone)), f"{solver}: a sample depends on its neighbours"
    held = sample(
        denoiser, solver, x, torch.stack([grids[0], torch.full((9,), 0.3).double()], 1), noise=SampleNoise(seeds)
    )
    assert torch.equal(held[1], x[1]), f"{solver}: a sample whose time stands still moved"


def check_solver(solver: Solver, *, deterministic: bool = True, processes: Sequence[Process] = PROCESSES) -> None:
    """Order (of a deterministic solver), both ends of time, mixed times, independence of the batch."""
    if deterministic:
        check_order(solver, processes)
    check_ends(solver, processes)
    check_mixed_times(solver)


SIZES: tuple[tuple[int, ...], ...] = ((11,), (16,), (28, 28), (7, 5), (6, 5, 4), (8, 8, 8))


def check_network(spec: Spec[Network], *, channels: int = 3, sizes: Sequence[tuple[int, ...]] = SIZES) -> None:
    """1, 2 and 3 dimensions, odd sizes, a zero first output, gradients to every weight, and samples that do not mix."""
    for size in sizes:
        torch.manual_seed(0)
        network = spec.build((channels, *size), CondShape(vector=6, tokens=5)).eval()
        x, noise = torch.randn(2, channels, *size), torch.tensor([0.2, 0.9])
        cond = Cond(torch.randn(2, 6), torch.randn(2, 3, 5), torch.tensor([[True, True, False], [True, True, True]]))
        first = network(x, noise, cond)
        assert first.shape == x.shape, f"{spec} at {size}: {tuple(first.shape)} for {tuple(x.shape)}"
        assert not first.any(), f"{spec} at {size}: the first output is not zero"
        _shake(network)
        out = network(x, noise, cond)
        out.square().sum().backward()
        silent = [name for name, p in network.named_parameters() if p.grad is None or not p.grad.any()]
        assert not silent, f"{spec} at {size}: no gradient reaches {silent}"
        changed = network(torch.cat([x[:1], torch.randn_like(x[:1])]), torch.tensor([0.2, 0.5]), cond)
        assert torch.equal(changed[0], out[0]), f"{spec} at {size}: sample 0 changed with sample 1"
        assert not torch.equal(changed[1], out[1]), f"{spec} at {size}: the input makes no difference"


@torch.no_grad()
def _shake(network: Network) -> None:
    """Leave the zero initialisation, where most weights have no effect yet."""
    generator = torch.Generator().manual_seed(1)
    for parameter in network.parameters():
        parameter.add_(0.1 * torch.randn(parameter.shape, generator=generator))


def check_codec(codec: Codec, media: Tensor, *, tolerance: float = 0.0) -> None:
    """Round trip within `tolerance` (in the units of media) and white output on the media it was measured on."""
    codec.measure([media])
    x0 = codec.whiten(codec.encode(media))
    assert tuple(x0.shape[1:]) == codec.shape, f"x0 of shape {tuple(x0.shape[1:])}, declared {codec.shape}"
    error = (codec.decode(x0).double() - media.double()).abs().max().item()
    assert error <= tolerance, f"round trip is off by {error}"
    per_channel = x0.double().transpose(0, 1).flatten(1)
    mean, std = per_channel.mean(1).abs().max().item(), (per_channel.std(1, correction=0) - 1).abs().max().item()
    assert mean < 1e-4 and std < 1e-4, f"x0 is not white: mean off by {mean}, deviation by {std}"
