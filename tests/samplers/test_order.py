"""The order of convergence of every deterministic solver on every process, on an exact mixture of Gaussians.

Measured between 64 and 128 steps (unless said) on a log-SNR of -2 to 2: there the slope is that of the limit; on -4 to 4 it
takes four times the steps. `pytest -s` prints what a start at order 1 costs multistep methods.
"""

from __future__ import annotations

from typing import ClassVar, cast

import pytest

from sfumato.core import VE, VP, Cosine, Flow, Process
from sfumato.registry import members
from sfumato.samplers import (
    DDIM,
    DEIS,
    DPM2,
    IPNDM,
    RK4,
    Adams,
    DPMpp2M,
    DPMpp2S,
    DPMpp3M,
    Euler,
    ExpAdams,
    Heun,
    SASolver,
    Solver,
    UniPC,
)
from sfumato.testing import PROCESSES, measured_order

INTERVAL = 2.0
CURVES: list[Process] = [Flow(), Cosine(), VP(), VE()]

DEFAULTS: list[Solver] = [
    DDIM(), Euler(), Heun(), DPM2(), RK4(), DPMpp2S(), DPMpp2M(), DPMpp3M(), UniPC(), DEIS(), Adams(), IPNDM(),
    SASolver(eta=0.0), ExpAdams(),
]  # fmt: skip
SETTINGS: list[Solver] = [
    Heun("ve"), RK4("ve"), DPMpp3M(published=True),
    *[ExpAdams(p) for p in (1, 2, 4)], *[UniPC(p) for p in (1, 2, 4)],
    *[UniPC(p, "bh1") for p in (1, 2, 3)], *[UniPC(p, "exact") for p in (1, 2)],
    *[DEIS(p) for p in (1, 2, 4)], *[Adams(p) for p in (1, 2, 3)], *[IPNDM(p) for p in (1, 2, 3)],
    *[Adams(p, "ve") for p in (1, 2, 3, 4)],
    *[SASolver(p, c, eta=0.0) for p, c in ((1, 0), (2, 0), (3, 0), (4, 0), (1, 1), (2, 2), (4, 4), (1, 3), (2, 4))],
]  # fmt: skip


def steps_for(solver: Solver) -> int:
    """Adams in x / alpha comes to its limit late on curves where alpha changes.

    The default has a term of order 4 with the other sign, from the share of a predictor of one order less.
    """
    return 1024 if solver == ExpAdams() else 128 if solver == Adams(4, "ve") else 64


def test_no_deterministic_solver_is_missing() -> None:
    """`adaptive` chooses its steps, `tuned` is fitted to its steps, and neither has an order; `restart` adds noise."""
    deterministic = {name for name, cls in members("solver").items() if not cast(type[Solver], cls)().stochastic}
    assert deterministic - {"adaptive", "tuned", "restart"} <= {solver.kind for solver in DEFAULTS}


@pytest.mark.parametrize("process", PROCESSES, ids=repr)
@pytest.mark.parametrize("solver", DEFAULTS, ids=repr)
def test_declared_order(solver: Solver, process: Process) -> None:
    order = measured_order(solver, process, steps=steps_for(solver), interval=INTERVAL)
    assert abs(order - solver.order) < 0.15


@pytest.mark.parametrize("process", CURVES, ids=repr)
@pytest.mark.parametrize("solver", SETTINGS, ids=repr)
def test_declared_order_of_every_setting(solver: Solver, process: Process) -> None:
    order = measured_order(solver, process, steps=steps_for(solver), interval=INTERVAL)
    assert abs(order - solver.order) < 0.15


@pytest.mark.parametrize("predictor, corrector", [(2, 1), (3, 1)])
def test_a_weaker_corrector_takes_order_away(predictor: int, corrector: int) -> None:
    """The corrector's order is all that is left of the predictor's. Terms of opposite signs: the limit is far."""
    solver = SASolver(predictor, corrector, eta=0.0)
    assert solver.order == 2
    assert abs(measured_order(solver, Flow(), steps=512, interval=INTERVAL) - 2) < 0.15


class TestRealStart:
    """A multistep method begins with one step of order 1, whose error is of order h^2 (h^3 with a free corrector) once."""

    FROM_ORDER_1: ClassVar[list[tuple[Solver, int, int]]] = [  # solver, order with the real start, steps
        (DPMpp2M(), 2, 64), (DPMpp3M(), 2, 64), (DEIS(2), 2, 64), (DEIS(3), 2, 64), (DEIS(4), 2, 64),
        (Adams(2), 2, 64), (Adams(3), 2, 64), (Adams(4), 2, 64), (SASolver(3, 0, eta=0.0), 2, 64),
        (UniPC(1), 2, 64), (UniPC(2), 3, 64), (UniPC(3), 3, 512), (UniPC(4), 3, 128),
        (ExpAdams(1), 2, 64), (ExpAdams(2), 3, 64), (ExpAdams(3), 3, 1024), (ExpAdams(4), 3, 128), (ExpAdams(), 3, 128),
    ]  # fmt: skip

    @pytest.mark.parametrize(
        "solver, order, steps", FROM_ORDER_1, ids=lambda v: repr(v) if isinstance(v, Solver) else ""
    )
    def test_order(self, solver: Solver, order: int, steps: int) -> None:
        real = measured_order(solver, Flow(), steps=steps, interval=INTERVAL, graded=False)
        print(f"\n{solver!r:60} declared {solver.order}, started at order 1: {real:.2f}", end="")
        assert abs(real - order) < 0.15

    @pytest.mark.parametrize("solver", [DDIM(), Heun(), DPM2(), DPMpp2S(), RK4()], ids=repr)
    def test_one_step_methods_lose_nothing(self, solver: Solver) -> None:
        assert abs(measured_order(solver, VP(), steps=64, interval=INTERVAL, graded=False) - solver.order) < 0.15
