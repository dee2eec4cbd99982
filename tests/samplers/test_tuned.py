"""Solvers as tables of numbers: what is read off a solver walks as it does; what no table can hold is refused."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from sfumato.core import Flow, LogisticGrid, Process, TunedGrid, UniformGrid
from sfumato.errors import UserError
from sfumato.registry import find
from sfumato.samplers import (
    DDIM,
    DEIS,
    IPNDM,
    Adams,
    DPMpp2M,
    DPMpp2S,
    DPMpp3M,
    Euler,
    ExpAdams,
    Heun,
    SASolver,
    Solver,
    Tuned,
    UniPC,
    sample,
    start,
)
from sfumato.samplers.tuned import TableSolver, rows_of, unrolled
from sfumato.spec import as_spec, parse
from sfumato.testing import PROCESSES, MixtureDenoiser

# of which every step combines at most five answers with the last x
SHORT: list[Solver] = [
    DDIM(), Euler(), DPMpp2M(), DPMpp3M(), UniPC(), UniPC(2, "bh1"), UniPC(4), ExpAdams(), ExpAdams(4, free_start=False),
    SASolver(eta=0.0),
]  # fmt: skip
# whose former slopes or eps hold former x: in terms of x and answers, a step goes back to the start
LONG: list[Solver] = [DEIS(), DEIS(2), Adams(), IPNDM()]


def mixture(process: Process) -> tuple[MixtureDenoiser, Tensor]:
    generator = torch.Generator().manual_seed(0)
    means = torch.randn(3, 4, generator=generator, dtype=torch.float64)
    x = torch.randn(6, 4, generator=generator, dtype=torch.float64)
    return MixtureDenoiser(process, means, 0.3), start(process, x, torch.ones(6, dtype=torch.float64))


def trajectory(solver: Solver, process: Process, times: Tensor) -> Tensor:
    denoiser, x = mixture(process)
    walk: list[Tensor] = []
    sample(denoiser, solver, x, times, on_step=lambda done, t, x: walk.append(x))
    return torch.stack(walk)


@pytest.mark.parametrize("process", PROCESSES, ids=repr)
@pytest.mark.parametrize(
    ("solver", "steps"), [(s, n) for s in SHORT for n in (1, 5, 9)] + [(s, n) for s in LONG for n in (1, 5)], ids=repr
)
def test_a_table_walks_as_its_solver(solver: Solver, steps: int, process: Process) -> None:
    """Flow and Cosine start at alpha = 0."""
    for grid in (LogisticGrid(), UniformGrid()):
        times = grid(process, steps)
        own, by_table = (trajectory(s, process, times) for s in (solver, TableSolver(unrolled(solver, process, times))))
        torch.testing.assert_close(by_table, own, rtol=1e-12, atol=1e-12)


def test_tables_of_many_walks_are_those_of_each() -> None:
    walks = torch.stack([LogisticGrid()(Flow(), 7), UniformGrid()(Flow(), 7)], 1)
    both = unrolled(ExpAdams(), Flow(), walks)
    for i in range(2):
        torch.testing.assert_close(both[..., i], unrolled(ExpAdams(), Flow(), walks[:, i]), rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("solver", LONG, ids=repr)
def test_a_table_that_would_be_cut_is_refused(solver: Solver) -> None:
    with pytest.raises(UserError, match="combines more than 5 answers"):
        unrolled(solver, Flow(), LogisticGrid()(Flow(), 9))


@pytest.mark.parametrize("solver", [Heun(), DPMpp2S()], ids=repr)
def test_two_evaluations_a_step_are_refused(solver: Solver) -> None:
    with pytest.raises(UserError, match=f"solver={solver.kind} can't be tuned: it asks more than once a step"):
        unrolled(solver, Flow(), LogisticGrid()(Flow(), 4))


@pytest.mark.parametrize("solver", [DDIM(eta=1.0), SASolver()], ids=repr)
def test_noise_on_the_way_is_refused(solver: Solver) -> None:
    with pytest.raises(UserError, match="it draws noise on the way"):
        unrolled(solver, Flow(), LogisticGrid()(Flow(), 4))


def walk_of(n: int, solver: Solver | None = None) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Times and numbers of a walk of n intervals."""
    times = LogisticGrid()(Flow(), n)
    return tuple(times.tolist()), rows_of(unrolled(solver or ExpAdams(), Flow(), times))


class Counted:
    """A denoiser that counts how often it is asked."""

    def __init__(self) -> None:
        self.inner, self.x = mixture(Flow())
        self.process, self.asked = self.inner.process, 0

    def __call__(self, x_t: Tensor, t: Tensor, cond: object = None) -> Tensor:
        self.asked += 1
        return self.inner(x_t, t)


def test_the_tuned_walk_is_taken_at_its_steps_and_only_there() -> None:
    walks = [walk_of(5), walk_of(7)]
    tuned = Tuned(tuple(t for t, _ in walks), tuple(v for _, v in walks), DPMpp2M())
    grid = TunedGrid(tuned.times, UniformGrid())
    for steps, intervals in ((4, 5), (6, 7), (3, 3), (9, 9)):
        assert tuned.intervals(Flow(), steps) == intervals
        denoiser = Counted()
        times = grid(Flow(), intervals)
        made = sample(denoiser, tuned, denoiser.x, times)
        assert denoiser.asked == steps
        other = sample(denoiser, ExpAdams() if steps in (4, 6) else DPMpp2M(), denoiser.x, times)
        torch.testing.assert_close(made, other, rtol=1e-8, atol=1e-8)  # numbers are kept to 10 digits
    assert tuned.walk(5) is None
    alone = tuned.walk(6)
    assert alone is not None and (alone.times, alone.numbers, alone.otherwise) == (
        (walks[1][0],),
        (walks[1][1],),
        DPMpp2M(),
    )


def test_other_times_fall_back_for_the_whole_batch() -> None:
    times, numbers = walk_of(5)
    tuned, (denoiser, x) = Tuned((times,), (numbers,), DDIM()), mixture(Flow())
    mixed = torch.tensor(times, dtype=torch.float64)[:, None].repeat(1, 6)
    mixed[1, 2] += 1e-6
    assert torch.equal(sample(denoiser, tuned, x, mixed), sample(denoiser, DDIM(), x, mixed))


def test_settings_round_trip() -> None:
    times, numbers = walk_of(5)
    for part in (Tuned((times,), (numbers,), DPMpp2M()), TunedGrid((times,))):
        family = find(part.family, part.kind)
        assert parse(family, as_spec(part).to_dict()).build() == part


def test_numbers_that_do_not_fit_the_times_are_refused() -> None:
    times, numbers = walk_of(5)
    with pytest.raises(UserError, match="needs 6 numbers for each step of each of its 1 walks"):
        Tuned((times,), (numbers[:-1],))
    with pytest.raises(UserError, match="times that fall from 1 to 0"):
        TunedGrid(((1.0, 0.5, 0.5, 0.0),))


def test_its_order_and_noise_are_those_of_its_fallback() -> None:
    assert (Tuned(otherwise=Heun()).order, Tuned(otherwise=Heun()).evaluations) == (2, 2)
    assert Tuned(otherwise=DDIM(eta=1.0)).stochastic and not Tuned().stochastic
