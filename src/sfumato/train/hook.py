"""What is done now and then during a run: the contract. The ones that ship are in `sfumato.train.hooks`."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from torch import nn

from sfumato.train.run import Run
from sfumato.train.task import Task


@dataclass(frozen=True)
class Moment:
    """Where a run stands when a hook is called.

    model: the averaged weights, in evaluation mode. progress: share of the run that is done. last: the run ends here.
    """

    model: nn.Module
    task: Task
    run: Run
    step: int
    samples: int
    progress: float
    seconds: float
    last: bool


class Hook(ABC):
    """Called evenly over a run, or with every checkpoint. It may look at everything and change nothing of the training.

    times: how often over the run, the last time at its end; 0 for never; None for with every checkpoint, before it counts
    as saved. behind: one of these may be called by another thread, while the training goes on: it does not look at
    `moment.task`.
    """

    times: int | None = 0
    behind = False

    @property
    def name(self) -> str:
        """For messages and timings."""
        return type(self).__name__

    @abstractmethod
    def __call__(self, moment: Moment) -> Mapping[str, Any] | None:
        """Numbers and lists go to metrics.jsonl, numbers and PIL images to the trackers."""

    def end(self, run: Run) -> None:  # noqa: B027 - most hooks have nothing to do then
        """Called once when the run has ended, in whatever state: it is written down by then."""
