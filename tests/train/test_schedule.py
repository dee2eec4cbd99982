"""Settings of a training and where a run stands in its budget."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import pytest

from sfumato.errors import UserError
from sfumato.spec import parse
from sfumato.train import Training
from sfumato.train.schedule import Budget, Pace, lr_factor


@pytest.mark.parametrize(
    ("progress", "factor"),
    [(0.0, 0.0), (0.05, 0.5), (0.1, 1.0), (0.5, 1.0), (0.6, 1.0), (0.8, 0.5), (0.9, 0.25), (1.0, 0.0)],
)
def test_the_learning_rate_is_a_trapezoid(progress: float, factor: float) -> None:
    assert lr_factor(progress, warmup=0.1, decay=0.4) == pytest.approx(factor, abs=1e-12)


def test_without_warm_up_and_decay_it_is_flat() -> None:
    assert [lr_factor(p, 0.0, 0.0) for p in (0.0, 0.3, 1.0)] == [1.0, 1.0, 1.0]


def rates(**settings: Any) -> list[float]:
    budget = Budget(Training(batch=10, **settings), Pace())
    found = []
    while not budget.done:
        found.append(budget.lr())
        budget.advance(10)
    return found


def test_rates_of_a_budget_of_samples() -> None:
    # Ten steps, warm-up over two and decay over four of them, each rate taken at the middle of its step.
    expected = [0.25, 0.75, 1, 1, 1, 1, 0.875, 0.625, 0.375, 0.125]
    assert rates(samples=100, lr=1.0, warmup=0.2, decay=0.4) == pytest.approx(expected)
    assert rates(samples=91, lr=1.0, warmup=0.2, decay=0.4) == pytest.approx(expected)  # whole steps
    assert rates(samples=100, lr=1.0, warmup=20, decay=0.4) == pytest.approx(expected)  # warm-up in samples


def simulate(
    minutes: float, seconds_per_step: Any, reserved: float = 0.0, every: float = 0.0
) -> tuple[Pace, list[float], list[float]]:
    """A run on a clock of its own: (pace at the end, rates, times at which steps end).

    every: the share of the budget after which the throughput is measured, after the first steps; 0 for at every step.
    """
    budget = Budget(Training(batch=10, minutes=minutes, lr=1.0, warmup=0.1, decay=0.5), Pace())
    found, times = [], []
    pace, measured = budget.pace, 0.0
    while not budget.done:
        found.append(budget.lr())
        budget.advance(10)
        pace.seconds += seconds_per_step(pace)
        times.append(pace.seconds)
        if pace.step <= 10 or pace.seconds - measured >= every * 60 * minutes:
            budget.measure(pace.seconds, reserved)
            measured = pace.seconds
    return pace, found, times


def test_a_budget_of_minutes_ends_in_time_and_uses_the_whole_schedule() -> None:
    pace, found, _ = simulate(1.0, lambda pace: 0.1)
    assert pace.seconds == pytest.approx(60, abs=0.2)
    assert pace.step == pytest.approx(600, abs=2)
    assert pace.progress == 1.0
    assert max(found) == 1.0 and found[-1] < 0.01
    exact = [lr_factor((k + 0.5) / 600, 0.1, 0.5) for k in range(600)]
    # Two steps of the warm-up's 60 pass before the horizon is known.
    assert max(abs(a - b) for a, b in zip(found, exact)) < 2.1 / 60


def test_a_machine_that_slows_down_still_ends_in_time_without_jumps_of_the_rate() -> None:
    pace, found, _ = simulate(1.0, lambda pace: 0.1 if pace.seconds < 40 else 0.3)
    assert pace.seconds == pytest.approx(60, rel=0.01)
    assert max(abs(a - b) for a, b in pairwise(found)) < 0.05
    assert found[-1] < 0.05


def test_a_slow_first_step_is_forgotten() -> None:
    pace, _, _ = simulate(1.0, lambda pace: 10.0 if pace.step == 1 else 0.1)
    assert pace.seconds == pytest.approx(60, abs=0.3)
    assert pace.step == pytest.approx(501, abs=4)


def test_a_slow_start_does_not_use_up_the_schedule() -> None:
    """Thirty seconds at a twentieth of the speed: the rate begins to fall at half of the time, not of what was promised."""
    apart: list[float] = []

    def seconds(pace: Pace) -> float:
        apart.append(pace.progress - pace.seconds / 300)
        return 2.0 if pace.seconds < 30 else 0.1

    pace, found, times = simulate(5.0, seconds, every=0.01)
    assert pace.seconds == pytest.approx(300, abs=0.5) and pace.progress == 1.0
    assert max(apart) < 0.05 and min(apart) > -0.08
    assert all(lr == 1.0 for lr, at in zip(found, times) if 40 < at < 140)
    assert max(abs(a - b) for a, b in pairwise(found[20:])) < 0.02 and found[-1] < 0.01


def test_time_is_left_for_what_comes_after() -> None:
    pace, _, _ = simulate(1.0, lambda pace: 0.1, reserved=6.0)
    assert pace.seconds == pytest.approx(54, abs=0.3)


def test_a_step_longer_than_the_budget_ends_it() -> None:
    pace, _, _ = simulate(0.01, lambda pace: 5.0)
    assert pace.step <= 2


def test_another_budget_on_resume() -> None:
    half = Pace(samples=500, step=50, seconds=30.0, horizon=1000, progress=0.5)
    longer = Budget(Training(batch=10, minutes=2), half)
    longer.resume(1.0)
    assert (half.progress, half.horizon, longer.done) == (0.25, None, False)
    shorter = Budget(Training(batch=10, minutes=0.25), half)
    shorter.resume(1.0)
    assert shorter.done
    in_samples = Budget(Training(batch=10, samples=2000), half)
    in_samples.resume(1.0)
    assert (half.progress, half.horizon) == (0.25, 2000)


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"minutes": 1, "samples": 5}, "two budgets, minutes=1 and samples=5"),
        ({"minutes": 0}, r"train\.minutes = 0\.?0?: must be above 0"),
        ({"samples": 0}, r"train\.samples = 0: must be at least 1"),
        ({"batch": 0}, r"train\.batch = 0: must be at least 1"),
        ({"batch": 10, "accumulate": 3}, r"train\.accumulate = 3: must divide batch = 10"),
        ({"lr": 0}, r"train\.lr = 0"),
        ({"lr": float("nan")}, r"train\.lr = nan"),
        ({"decay": 1.5}, r"train\.decay = 1\.5: is a share"),
        ({"warmup": -1}, r"train\.warmup = -1"),
        ({"drop": 1.0}, r"train\.drop = 1\.0"),
        ({"ema": (0.3,)}, r"train\.ema = \(0\.3,\): must lie in \(0, 0\.28\)"),
        ({"ema": ()}, r"train\.ema"),
        ({"clip": -1}, r"train\.clip = -1"),
        ({"betas": (0.9, 1.0)}, r"train\.betas"),
    ],
)
def test_settings_that_mean_nothing_are_refused(settings: dict[str, Any], words: str) -> None:
    with pytest.raises(UserError, match=words):
        Training(**settings)


def test_training_without_a_budget_is_refused() -> None:
    with pytest.raises(UserError, match="needs a budget; set minutes=10 or samples=100000"):
        Budget(Training(), Pace())


def test_settings_are_read_from_plain_data() -> None:
    spec = parse(Training, {"type": "training", "minutes": 2, "ema": [0.05, 0.1], "precision": "fp32"})
    assert spec.build() == Training(minutes=2.0, ema=(0.05, 0.1), precision="fp32")
    with pytest.raises(UserError, match=r"precision.*'auto', 'fp32' or 'bf16'"):
        parse(Training, {"type": "training", "precision": "fp64"})
