"""What a trainer makes of a task for the processes that train it together."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, final

import torch
from torch import nn

from sfumato.data import Data, Replaced
from sfumato.data.broken import refuse, too_many
from sfumato.errors import UserError
from sfumato.nn.split import check_shared
from sfumato.train.ema import Ema
from sfumato.train.optim import AdamW, Optimizer
from sfumato.train.optim_offload import HostEma, averages, on_host
from sfumato.train.parallel import Parallel, Sharded
from sfumato.train.settings import Training
from sfumato.train.sharded import ShardedEma
from sfumato.train.task import Task

Averages = Ema[Any] | HostEma[Any] | ShardedEma[Any]


def part_of(settings: Training, parallel: Parallel) -> int:
    """Samples that a process computes at a time. Raises UserError if the batch can't be shared out evenly."""
    whole = settings.accumulate * parallel.data_size
    if settings.batch % whole:
        who = "processes" if parallel.sequence == 1 else f"groups of {parallel.sequence} processes"
        raise UserError(
            f"train.batch = {settings.batch}: {parallel.data_size} {who} of accumulate = {settings.accumulate} can't share "
            f"it out evenly; use a multiple of {whole}"
        )
    return settings.batch // whole


def shared(task: Task, settings: Training, parallel: Parallel, dtype: torch.dtype) -> tuple[Optimizer, Averages]:
    """Share the task's parameters; then their optimizer and averages. Raises UserError for what can't be shared.

    dtype: that the network computes in.
    """
    if parallel.sequence > 1:
        check_shared(task.halved, parallel.sequence)
        if getattr(task, "align", None) is not None:
            raise UserError(
                f"train.sequence = {parallel.sequence}: align= looks at all tokens of a block, and a process has a part; set "
                "align=none"
            )
    if parallel.size > 1 and settings.offload != "none":
        raise UserError(
            f"train.offload = {settings.offload}: not with several processes; use train.parallel=fsdp to save memory"
        )
    if not isinstance(parallel, Sharded):
        parallel.wrap(task)
        optimizer = settings.optimizer.build(task, settings)
        return optimizer, averages(task.model, settings.ema, settings.offload, optimizer.host)
    if settings.optimizer.cls is not AdamW:
        raise UserError(
            f"train.optimizer = {settings.optimizer.cls.kind}: needs whole tensors; use adamw with train.parallel=fsdp"
        )
    spare: nn.Module = on_host(task.model)
    parallel.wrap(task, dtype, compiled=settings.compile is not False)
    optimizer = settings.optimizer.build(task, settings)
    optimizer.across = parallel.squares
    return optimizer, ShardedEma(task.model, settings.ema, spare, parallel)


@final
class Tally:
    """The unreadable items of a run, as all its processes together met them: their number and names in a checkpoint.

    own: this process's, which its loader counts in. total: of all.
    """

    def __init__(self, parallel: Parallel, state: Mapping[str, Any] | None = None) -> None:
        self._parallel = parallel
        self._before = Replaced.of(state).samples
        self.own, self.total = Replaced.of(state), Replaced.of(state)
        self._told = parallel.size * self._before

    def update(self, told: int, data: Data, seen: int) -> None:
        """Bring `total` up to date. told: the sum of all processes' `own.samples`. seen: samples so far.

        Raises UserError where there are too many (`broken.too_many`), as one process that met them all would.
        """
        if told == self._told:
            return
        self._told = told
        each: list[Replaced] = self._parallel.everyone(self.own)[:: self._parallel.sequence]
        items = {index: said for one in each for index, said in one.items.items()}
        self.total = Replaced(self._before + sum(one.samples - self._before for one in each), items)
        seen = min(seen, len(data))
        if too_many(len(items), seen, len(data), data.broken_share):
            raise refuse(data.where, items, seen, data.broken_share)
