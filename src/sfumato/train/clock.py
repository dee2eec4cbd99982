"""The time of a run: what steps, hooks and checkpoints take, the same on all processes that share it."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import final

import torch

from sfumato.device import wait
from sfumato.train.hook import Hook
from sfumato.train.parallel import Parallel, Words
from sfumato.train.schedule import Budget
from sfumato.train.signals import StopSignals

HOOK_SHARE = 0.05  # of a budget of minutes, for hooks that are called evenly
_QUEUE = 2.0  # seconds of steps that may lie on a device unfinished: whoever asks a run to stop waits for them


@final
class Clock:
    """Adds to the seconds of a run's pace and tells its budget of the throughput.

    Every `lap` is also where the processes agree: on the main one's time, and on whether any was asked to stop (`asked`) or
    has failed. So all of them make the same decisions, and none waits for one that has failed.

    costs: by hook, or `save`: seconds spent, and those of the last call.
    """

    def __init__(
        self,
        budget: Budget,
        parallel: Parallel,
        device: torch.device,
        signals: StopSignals,
        hooks: Sequence[Hook] = (),
        checkpoint_minutes: float = 5.0,
    ) -> None:
        self.budget, self.pace = budget, budget.pace
        self._parallel, self._device, self._signals = parallel, device, signals
        self._hooks, self._checkpoint_seconds = list(hooks), 60 * checkpoint_minutes
        self.costs: dict[str, list[float]] = {}
        self.asked = False
        self._mark = self._training = self._measured_at = 0.0
        self._waited = self._told_at = 0.0  # seconds waited for data since `data_wait` was last told, and when that was
        self._queued = 0  # steps since the device was last waited for

    def start(self) -> None:
        """Steps begin, or begin again, now."""
        self._mark = time.monotonic()
        self._measured_at = 0.0

    def resume(self) -> None:
        """The pace was loaded."""
        self._told_at = self.pace.seconds

    def lap(self, error: Exception | None = None) -> float:
        """Seconds since the last lap, added to the run's: the main process's, on all of them.

        error: what this process has failed with; it is raised here, and on all others a SfumatoError that names it.
        """
        return self._lap(error).seconds

    def fetched(self, waited: float, count: int, error: Exception | None = None) -> int:
        """`lap` when the next step's batch is there, after `waited` seconds of waiting. Returns all processes' `count`."""
        self._waited += waited
        words = self._lap(error, count)
        self._training += words.seconds
        return words.total

    def _lap(self, error: Exception | None, count: int = 0) -> Words:
        now = time.monotonic()
        words = self._parallel.agree(Words(now - self._mark, self._signals.asked, error is not None, count))
        self._mark = now
        self.asked = words.asked
        self.pace.seconds += words.seconds
        if words.failed:
            self._parallel.raise_together(error)
        return words

    def training(self) -> None:
        """Steps end here for now; something else begins."""
        wait(self._device)
        self._queued = 0
        self._training += self.lap()

    def uncounted(self, seconds: float) -> None:
        """What has just taken so many seconds, since the last lap, is not of the budget."""
        self._mark += seconds

    def stepped(self) -> None:
        """A step is made. Waits for the device now and then, and measures the throughput."""
        total, pace, rate = self.budget.total_seconds, self.pace, self.budget.rate()
        due = pace.seconds - self._measured_at >= (1.0 if total is None else 0.01 * total) or pace.step <= 10
        self._queued += 1
        if due or self.budget.done:
            self.training()
            self._measured_at = pace.seconds
            self.budget.measure(self._training, self._reserved())
        elif rate is not None and self._queued * self.budget.settings.batch > _QUEUE * rate:
            wait(self._device)
            self._queued = 0

    def cost(self, name: str, seconds: float) -> None:
        """Note what a call of a hook has taken."""
        spent = self.costs.setdefault(name, [0.0, 0.0])
        spent[0] += seconds
        spent[1] = seconds

    def saved(self, seconds: float) -> None:
        """Note what a checkpoint has taken."""
        self.costs["save"] = [0.0, seconds]

    def data_wait(self) -> float:
        """The share of the time waited for data since the last call."""
        since = self.pace.seconds - self._told_at
        share = round(self._waited / since, 4) if since > 0 else 0.0
        self._waited, self._told_at = 0.0, self.pace.seconds
        return share

    def affords(self, hook: Hook) -> bool:
        """Whether a hook may be called before the end: the first call is always made, so that its cost is known."""
        total, (spent, last) = self.budget.total_seconds, self.costs.get(hook.name, (0.0, 0.0))
        return total is None or self.budget.done or last == 0 or spent + last <= self._share(total * self.pace.progress)

    def _reserved(self) -> float:
        """Seconds that hooks and checkpoints will still take, from what they took so far."""
        total, progress = self.budget.total_seconds, self.pace.progress
        if total is None:
            return 0.0
        reserved = 0.0
        for hook in self._hooks:
            if not hook.times:
                continue
            spent, last = self.costs.get(hook.name, (0.0, 0.0))
            calls = hook.times - int(progress * hook.times)
            reserved += max(last, min(last * calls, self._share(total) - spent))
        saves = 1 + int((total - self.pace.seconds) / self._checkpoint_seconds)
        return reserved + saves * self.costs.get("save", [0.0, 0.0])[1]

    def _share(self, seconds: float) -> float:
        """How much of some seconds one hook may have."""
        return HOOK_SHARE * seconds / sum(1 for hook in self._hooks if hook.times)
