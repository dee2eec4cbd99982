"""The time of a run: laps add up to what has passed, but for what the budget does not count."""

from __future__ import annotations

import time

import pytest
import torch

from sfumato.train import Training
from sfumato.train.clock import Clock
from sfumato.train.parallel import Parallel
from sfumato.train.schedule import Budget, Pace
from sfumato.train.signals import StopSignals


def made() -> Clock:
    budget = Budget(Training(batch=10, minutes=1), Pace())
    return Clock(budget, Parallel(), torch.device("cpu"), StopSignals(lambda: None))


def test_laps_add_up_to_what_has_passed(monkeypatch: pytest.MonkeyPatch) -> None:
    now = iter([10.0, 12.0, 15.0])
    monkeypatch.setattr(time, "monotonic", lambda: next(now))
    clock = made()
    clock.start()
    assert clock.lap() == 2.0 and clock.lap() == 3.0
    assert clock.pace.seconds == 5.0


def test_what_recording_takes_on_the_way_is_not_of_the_budget(monkeypatch: pytest.MonkeyPatch) -> None:
    """A lap of 9 seconds, of which a recording took 7: the run has spent 2."""
    now = iter([10.0, 19.0, 20.0])
    monkeypatch.setattr(time, "monotonic", lambda: next(now))
    clock = made()
    clock.start()
    clock.uncounted(7.0)
    assert clock.lap() == 2.0 and clock.lap() == 1.0
    assert clock.pace.seconds == 3.0
