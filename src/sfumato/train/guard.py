"""What to say when losses stop being finite: where it begins, and the usual remedies."""

from __future__ import annotations

from contextlib import ExitStack
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from sfumato.core import Batch, Draws
from sfumato.train.optim import local
from sfumato.train.parallel import Parallel
from sfumato.train.task import Task

PATIENCE = 5  # steps left out in a row before the run goes back or stops


def diagnose(
    task: Task, batch: Batch, draws: Draws, lr: float, dtype: torch.dtype, parallel: Parallel | None = None
) -> str:
    """A sentence: the first of weights, data, layers and gradients that is not finite on this batch, lr and dtype.

    parallel: the processes that share the work, each with its part of the batch; all of them must call, and all get the same.
    """
    found = _first(task, batch, draws, dtype, parallel or Parallel())
    kind = str(dtype).removeprefix("torch.")
    remedy = "a lower train.lr, a smaller train.clip" + (", train.precision=fp32" if dtype != torch.float32 else "")
    return f"{PATIENCE} steps in a row had a loss or gradient that is not finite: {found} (lr {lr:.2g}, {kind}); try {remedy}"


def _first(task: Task, batch: Batch, draws: Draws, dtype: torch.dtype, parallel: Parallel) -> str:
    def agreed(mine: str | None) -> str | None:
        """What the first process has found that has found something: none goes on alone to where the others do not come."""
        every = parallel.everyone(mine)
        rank = next((rank for rank, found in enumerate(every) if found is not None), None)
        return None if rank is None else every[rank] + (f" on process {rank}" if parallel.size > 1 else "")

    if found := agreed(_before(task, batch)):
        return found
    with ExitStack() as stack:
        layers: list[str] = []
        back: list[str] = []  # in the order in which gradients are made, the last layers' first
        for name, p in task.named_parameters():
            if p.requires_grad:
                hook = p.register_post_accumulate_grad_hook(partial(_look_back, name, back))  # type: ignore[no-untyped-call]
                stack.callback(hook.remove)
        for name, module in task.named_modules():
            if not any(True for _ in module.children()):
                stack.callback(_watch(module, name, layers).remove)
        stack.enter_context(parallel.part(task, True))
        with torch.autocast(batch_device(task).type, dtype, enabled=dtype != torch.float32):
            loss = parallel.loss(task, batch, draws)
        finite = _finite(loss.value)
        task.zero_grad(set_to_none=True)
        loss.value.backward()  # type: ignore[no-untyped-call]
    broken = [name for name, p in task.named_parameters() if p.grad is not None and not _finite(p.grad)]
    task.zero_grad(set_to_none=True)
    mine = f"the loss is finite and the gradient of '{(back or broken)[0]}' is not" if broken else None
    mine = mine if finite else "the network's output is finite and the loss is not"
    mine = f"it begins in the output of the layer '{layers[0]}'" if layers else mine
    return agreed(mine) or "it does not appear again on the last batch"


def _before(task: Task, batch: Batch) -> str | None:
    """What is not finite before anything is computed."""
    for name, p in task.named_parameters():
        if not _finite(p):
            return f"the weights of '{name}' are already not finite"
    if batch.media.is_floating_point() and not _finite(batch.media):
        return "the data of this batch is not finite"
    return None


def _watch(module: nn.Module, name: str, found: list[str]) -> RemovableHandle:
    def look(_module: nn.Module, _inputs: Any, output: Any) -> None:
        if isinstance(output, Tensor) and output.is_floating_point() and not _finite(output):
            found.append(name)

    return module.register_forward_hook(look)


def _look_back(name: str, found: list[str], p: Tensor) -> None:
    if p.grad is not None and not _finite(p.grad):
        found.append(name)


def _finite(x: Tensor) -> bool:
    """Of what this process holds of a tensor."""
    return bool(torch.isfinite(local(x)).all())


def batch_device(task: nn.Module) -> torch.device:
    """Where the parameters of a task are."""
    return next(task.parameters()).device
