"""Between two evaluations nothing waits for the device: on a meta device nothing can be read back, on a GPU CUDA says so."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from sfumato.core import Cond, CondShape, DiscreteVP, Flow, LogisticGrid, NetDenoiser, Process, SampleNoise, V, lift
from sfumato.nn import DiT
from sfumato.samplers import (
    DDIM,
    RK4,
    Adams,
    Ancestral,
    DPMpp2M,
    DPMpp3M,
    ExpAdams,
    Heun,
    PredictorCorrector,
    SASolver,
    Solver,
    UniPC,
    sample,
    start,
)
from sfumato.samplers.base import Asked

SOLVERS: list[Solver] = [
    DDIM(), DDIM(eta=1.0), Ancestral(), DPMpp2M(), DPMpp3M(eta=1.0), UniPC(), ExpAdams(), SASolver(), Heun(),
    Heun(churn=20.0), RK4(), Adams(), PredictorCorrector(),
]  # fmt: skip


def network(process: Process) -> NetDenoiser:
    torch.manual_seed(0)
    return NetDenoiser(DiT((1, 8, 8), CondShape(), width=16, depth=1, heads=2), process, V())


@pytest.mark.parametrize("solver", SOLVERS, ids=repr)
def test_nothing_is_read_back(solver: Solver) -> None:
    """Every step of a walk runs on tensors that have no values."""
    process = DiscreteVP()
    denoiser, x = network(process).to("meta"), torch.empty(2, 1, 8, 8, device="meta")
    times = LogisticGrid()(process, 5)[:, None].expand(-1, 2)
    state, steps, asked = solver.plan(process, times, x)
    f = Asked.of(denoiser, None, asked, x)
    for step in steps:
        x, state = step(f, x, state, lambda t, s: torch.empty(2, 1, 8, 8, device="meta"))
    assert x.shape == (2, 1, 8, 8) and len(steps) == 5


class Watched:
    """The denoiser, with CUDA told to raise at every wait between its first call and its last."""

    def __init__(self, inner: NetDenoiser, calls: int) -> None:
        self.inner, self.process, self.left = inner, inner.process, calls

    def __call__(self, x_t: Tensor, t: Tensor, cond: Cond | None = None) -> Tensor:
        self.left -= 1
        torch.cuda.set_sync_debug_mode("error" if self.left > 0 else "default")
        return self.inner(x_t, t, cond)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU")
@pytest.mark.parametrize("prepared", [False, True])
@pytest.mark.parametrize("process", [DiscreteVP(), Flow()], ids=repr)
@pytest.mark.parametrize("solver", SOLVERS, ids=repr)
def test_cuda_is_never_waited_for(solver: Solver, process: Process, prepared: bool) -> None:
    denoiser = network(process).cuda()
    times = LogisticGrid()(process, 6)
    calls = []
    x = start(process, SampleNoise((0, 1)).prior((1, 8, 8), device="cuda"), times[0])
    counting = Watched(denoiser, 0)
    sample(counting, solver, x, times, noise=SampleNoise((0, 1)))
    if not prepared:
        watched = Watched(denoiser, -counting.left)
        try:
            y = sample(watched, solver, x, times, noise=SampleNoise((0, 1)))
        finally:
            torch.cuda.set_sync_debug_mode("default")
        assert watched.left == 0
    else:

        def on_step(k: int, t: Tensor, x: Tensor) -> None:
            calls.append(k)
            torch.cuda.set_sync_debug_mode("error" if k < 6 else "default")

        try:
            y = sample(denoiser, solver, x, times, noise=SampleNoise((0, 1)), on_step=on_step)
        finally:
            torch.cuda.set_sync_debug_mode("default")
        assert calls == [1, 2, 3, 4, 5, 6]
    assert y.is_cuda and lift(times[-1:], y).is_cuda
