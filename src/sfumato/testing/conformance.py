"""Checks that a new solver, network or codec must pass: `check_solver(Mine())` in one line of a test.

Each raises AssertionError with what was expected and what was found.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence

import torch
from torch import Tensor

from sfumato.codecs import Codec
from sfumato.core import (
    VE,
    VP,
    Cond,
    CondShape,
    Cosine,
    DiscreteVP,
    Flow,
    Network,
    Polynomial,
    Process,
    SampleNoise,
    Shifted,
    SubVP,
)
from sfumato.samplers import RK4, Solver, sample
from sfumato.spec import Spec
from sfumato.testing.denoisers import GaussianDenoiser, MixtureDenoiser

PROCESSES: tuple[Process, ...] = (
    Flow(),
    Cosine(),
    VP(),
    VE(),
    DiscreteVP("linear"),
    DiscreteVP("scaled_linear", zero_terminal_snr=True),
    DiscreteVP("cosine"),
    DiscreteVP("sigmoid"),
    SubVP(),
    Polynomial(2.0),
    Shifted(VP(), 2.0),
)


def _noisy(n: int, dims: Sequence[int] = (), *, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(n, *dims, generator=generator, dtype=torch.float64)


_MEANS = torch.tensor([[1.0, 0.5], [-1.0, 0.3], [0.2, -1.1]], dtype=torch.float64)
_GRADED = 20  # halvings of the first step: a multistep method has its order before the first whole step


def _even(process: Process, n: int, interval: float, graded: int) -> Tensor:
    """n equal steps in t between log-SNR -interval and +interval; the first in `graded` parts, each twice the last."""
    ends = process.time(torch.tensor([-interval, interval], dtype=torch.float64))
    u = torch.linspace(0, 1, n + 1, dtype=torch.float64)
    if graded:
        u = torch.cat([u[:1], u[1] * 2.0 ** -torch.arange(graded, 0, -1, dtype=torch.float64), u[1:]])
    return torch.lerp(ends[0], ends[1], u)


@functools.lru_cache(maxsize=64)
def _exact(process: Process, interval: float) -> tuple[MixtureDenoiser, Tensor, Tensor]:
    """A mixture of three Gaussians in the plane, 16 starts, and where the probability-flow ODE takes them."""
    denoiser, times = MixtureDenoiser(process, _MEANS, 0.6), _even(process, 800, interval, 0)
    x = _noisy(16, (2,)) * process.sigma(times[0])
    return denoiser, x, sample(denoiser, RK4(frame="ve"), x, times)


def measured_order(
    solver: Solver, process: Process, *, steps: int = 64, interval: float = 2.0, graded: bool = True
) -> float:
    """Slope of log2(error) between `steps` and twice as many, on an exact mixture, for log-SNR in +-`interval`.

    An interior interval, so that the smoothness that the theory asks for holds. graded: the first step is divided, each
    part twice as long as the one before, so that a multistep method has its full history before the first whole step;
    without it, what a start at order 1 costs is measured too. The error is the root mean square over 16 starts.
    """
    denoiser, x, exact = _exact(process, interval)
    errors = []
    for n in (steps, 2 * steps):
        y = sample(denoiser, solver, x, _even(process, n, interval, _GRADED if graded else 0))
        errors.append((y - exact).square().mean().sqrt().item())
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
