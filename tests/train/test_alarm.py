"""The thread that looks whether another process has failed."""

from __future__ import annotations

import threading
import time

import pytest
import torch.distributed as dist

from sfumato.train import alarm
from sfumato.train.alarm import Alarm


class _Slow:
    """A store that takes its time to answer, as one on another machine does."""

    def __init__(self) -> None:
        self.asked, self.answered = threading.Event(), False

    def check(self, names: list[str]) -> bool:
        self.asked.set()
        time.sleep(0.3)
        self.answered = True
        return False


def test_it_does_not_outlive_the_run(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(alarm, "_LOOK", 0.01)
    monkeypatch.setattr(dist.distributed_c10d, "_get_default_store", dist.HashStore)
    before = set(threading.enumerate())
    alarms, store = Alarm(0, 2, "run"), _Slow()
    alarms._store = store
    with alarms:
        assert store.asked.wait(5)
    assert store.answered and set(threading.enumerate()) <= before
