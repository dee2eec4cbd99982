"""What a run will cost: its memory, worked out beforehand, and its time, from two real steps that leave no trace."""

from __future__ import annotations

import copy
import time
from dataclasses import dataclass
from typing import final

import numpy as np
import torch

from sfumato.core import Draws
from sfumato.data import Data, Order
from sfumato.device import choose_device, choose_precision, wait
from sfumato.errors import SfumatoError
from sfumato.train.memory import Memory, Predictor, example, recomputed, remedies, room
from sfumato.train.optim import trained
from sfumato.train.optim_offload import averages
from sfumato.train.settings import Training, parse_memory
from sfumato.train.step import Micro, choose_step
from sfumato.train.task import Task


@final
@dataclass(frozen=True)
class Estimate:
    """parameters: that learn. memory: predicted peak of a step, None for a task that can't be predicted (`unpredicted`: why).
    limit: bytes that it may have, `train.memory` or what the device has left; None if unknown.
    remedy: which setting would make it fit, where it does not; then no step was made, and what follows is unknown.
    measured_bytes: the peak of the two steps on a GPU, unless the run captures its steps. seconds_per_step: of the second.
    minutes, samples: of the whole run, one of them the budget. settings: as the step is computed, `train.memory` obeyed.
    """

    parameters: int
    memory: Memory | None
    unpredicted: str
    limit: int | None
    remedy: str | None
    measured_bytes: int | None
    seconds_per_step: float | None
    minutes: float | None
    samples: int | None
    settings: Training

    @property
    def memory_bytes(self) -> int | None:
        """The predicted peak, or the measured one where there is no prediction."""
        return self.measured_bytes if self.memory is None else self.memory.total


def estimate(task: Task, data: Data, settings: Training, *, seed: int = 0, device: str = "auto") -> Estimate:
    """Predict the memory and, if it fits, run two real steps on a copy of the task.

    Nothing is written, and `task` and torch's generators are as before. Raises UserError if nothing fits `train.memory`.
    """
    chosen = choose_device(device)
    dtype = choose_precision(settings.precision, chosen)
    limit = room(chosen) if settings.memory is None else parse_memory(settings.memory)
    predictor = Predictor(task, example(data, settings, seed), device=chosen, dtype=dtype)
    memory, unpredicted, remedy = None, "", None
    try:
        if settings.memory is not None and limit is not None:
            settings = predictor.fit(settings, limit).settings
        memory = predictor(settings)
        if limit is not None and memory.total > limit:
            remedy = remedies(predictor, settings, limit)
    except SfumatoError as error:
        if settings.memory is not None:
            raise
        unpredicted = str(error)
    measured, seconds = (None, None) if remedy is not None else _two_steps(task, data, settings, seed, chosen, dtype)
    parameters = sum(p.numel() for p in trained(task).values())
    minutes, samples = settings.minutes, settings.samples
    if seconds is not None and minutes is not None:
        samples = int(60 * minutes / seconds) * settings.batch
    elif seconds is not None and samples is not None:
        minutes = samples / settings.batch * seconds / 60
    return Estimate(parameters, memory, unpredicted, limit, remedy, measured, seconds, minutes, samples, settings)


def _two_steps(
    task: Task, data: Data, settings: Training, seed: int, device: torch.device, dtype: torch.dtype
) -> tuple[int | None, float]:
    """(peak memory on a GPU, seconds of the second step)."""
    copied = copy.deepcopy(task).to(device).train()
    again = recomputed(copied, settings)
    cuda = [device.index or 0] if device.type == "cuda" else []
    train = data.split("train")
    order, size = Order(len(train), seed), settings.batch // settings.accumulate

    def micro(number: int, part: int) -> Micro:
        first = (number - 1) * settings.batch + part * size
        return train.fetch(order(np.arange(first, first + size))), Draws(seed, first, size)

    with torch.random.fork_rng(devices=cuda):
        optimizer = settings.optimizer.build(copied, settings)
        ema = averages(copied.model, settings.ema, settings.offload, optimizer.host)
        if cuda:
            torch.cuda.reset_peak_memory_stats(device)
        step = choose_step(
            copied, optimizer, ema, dtype, lambda _: None, record=settings.compile, micro=micro(1, 0),
            count=settings.accumulate, say=lambda _: None,
            in_the_way=None if again.capturable else "dropout in recomputed blocks draws on the host",
        )  # fmt: skip
        seconds = 0.0
        for number in (1, 2):
            begun = time.perf_counter()
            step((micro(number, part) for part in range(settings.accumulate)), 0.0, number)
            wait(device)
            seconds = time.perf_counter() - begun
    return (torch.cuda.max_memory_allocated(device) if cuda else None), seconds
