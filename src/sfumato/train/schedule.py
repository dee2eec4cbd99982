"""How far a run has come, how long it will be, and the learning rate that follows from it."""

from __future__ import annotations

import math
from collections import deque
from dataclasses import dataclass
from typing import final

from sfumato.errors import UserError
from sfumato.train.settings import Training

_WINDOW = 16  # measurements that the throughput is taken over
_AHEAD = 0.03  # how far progress may be ahead of the clock: the throughput is measured every hundredth of the budget


def lr_factor(progress: float, warmup: float, decay: float) -> float:
    """Factor of the learning rate: up from 0 over `warmup`, 1, then down to 0 over `decay`, all shares of the run.

    The trapezoid of Zhai et al., "Scaling Vision Transformers", 2022, section 3.5; that a straight line to 0 is as good
    as a cosine: Hägele et al., "Scaling Laws and Compute-Optimal Training Beyond Fixed Training Durations", 2024.
    """
    up = min(1.0, progress / warmup) if warmup > 0 else 1.0
    down = min(1.0, (1 - progress) / decay) if decay > 0 else 1.0
    return max(0.0, min(up, down))


@dataclass
class Pace:
    """Where a run stands. All of it is in a checkpoint, so a resumed run follows the same schedule.

    samples, step: seen so far. seconds: spent so far, all starts together. horizon: samples of the whole run, measured
    again and again for a budget of minutes, None until it is first known. progress: share of the run that is done.
    """

    samples: int = 0
    step: int = 0
    seconds: float = 0.0
    horizon: int | None = None
    progress: float = 0.0


@final
class Budget:
    """Moves a `Pace` forward.

    With a budget of samples, progress is samples / horizon. With minutes, the horizon is what the throughput promises for
    the time left, and progress goes on from where it is,

        progress += (1 - progress) n / (horizon - samples),

    which is the same while the horizon stays and keeps the learning rate continuous when it moves. It never runs ahead of
    the clock: a run that begins slowly promises few samples, and gets through those long before its time is over.
    """

    def __init__(self, settings: Training, pace: Pace) -> None:
        if settings.minutes is None and settings.samples is None:
            raise UserError("training needs a budget; set minutes=10 or samples=100000")
        self.settings = settings
        self.pace = pace
        self._points: deque[tuple[float, int]] = deque(maxlen=_WINDOW)
        self._most, self._each = 1.0, 0.0  # progress by the clock, when it was measured; and of a sample
        self.resume(settings.minutes)

    @property
    def done(self) -> bool:
        """Whether the budget is used up."""
        return self.pace.horizon is not None and self.pace.samples >= self.pace.horizon

    @property
    def total_seconds(self) -> float | None:
        """The time budget, None for one of samples."""
        return None if self.settings.minutes is None else 60 * self.settings.minutes

    def lr(self) -> float:
        """The learning rate of the next step, at its middle: neither the first nor the last step is wasted at 0."""
        s, warmup = self.settings, self.settings.warmup
        middle = self.pace.samples + s.batch / 2
        if warmup >= 1:
            return s.lr * min(1.0, middle / warmup) * lr_factor(self._after(s.batch / 2), 0.0, s.decay)
        return s.lr * lr_factor(self._after(s.batch / 2), warmup, s.decay)

    def advance(self, n: int) -> None:
        """A step over n samples is done."""
        pace = self.pace
        pace.progress = self._after(n)
        pace.samples += n
        pace.step += 1

    def _after(self, n: float) -> float:
        pace = self.pace
        if pace.horizon is None:
            return pace.progress
        if self.settings.samples is not None:
            return min(1.0, (pace.samples + n) / pace.horizon)
        left = pace.horizon - pace.samples
        if n >= left:
            return 1.0
        most = max(pace.progress, self._most + _AHEAD + n * self._each)
        return min(pace.progress + (1 - pace.progress) * n / left, most)

    def resume(self, minutes: float | None) -> None:
        """Go on after the pace was loaded. minutes: the time budget before; with another one, progress is by the clock."""
        total, pace, samples = self.total_seconds, self.pace, self.settings.samples
        if total is None and samples is not None:
            pace.horizon = math.ceil(samples / self.settings.batch) * self.settings.batch  # whole steps only
            pace.progress = min(1.0, pace.samples / pace.horizon)
        elif total is not None and minutes != self.settings.minutes:
            pace.progress = min(1.0, pace.seconds / total)
            pace.horizon = pace.samples if pace.progress == 1.0 else None

    def forget(self) -> None:
        """Leave out the throughput that was measured: the run has gone back to fewer samples."""
        self._points.clear()

    def measure(self, training_seconds: float, reserved: float) -> None:
        """Take down the throughput and, for a budget of minutes, set the horizon from it.

        training_seconds: spent in steps since this process started. reserved: seconds that evaluation, pictures and
        checkpoints will still take.
        """
        self._points.append((training_seconds, self.pace.samples))
        rate = self.rate()
        if rate is None or self.total_seconds is None or self.done:  # what has come to its end is not lengthened
            return
        left = max(0.0, self.total_seconds - self.pace.seconds - reserved)
        steps = round(left * rate / self.settings.batch)
        self.pace.horizon = self.pace.samples + steps * self.settings.batch
        self._most, self._each = 1 - left / self.total_seconds, 1 / (rate * self.total_seconds)
        if steps == 0:
            self.pace.progress = 1.0

    def rate(self) -> float | None:
        """Samples a second over the last measurements, without the first ones: those hold compiling and allocating."""
        points = list(self._points)
        if len(points) < 2:
            return None
        first = points[-2] if len(points) < 4 else points[1]
        seconds, samples = points[-1][0] - first[0], points[-1][1] - first[1]
        return samples / seconds if seconds > 0 else None
