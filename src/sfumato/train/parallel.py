"""Several processes that train one model: what they share, gather and agree on.

The trainer is written for one process and asks a `Parallel` wherever others would have a say. All processes make the same
decisions because they are made of the same numbers: the clock and the wish to stop are agreed after every step, losses are
gathered, and sample numbers say which part of the data, noise and augmentation is whose (`Loader`, `Draws`).

Engine: torch.distributed as torchrun starts it; DistributedDataParallel, or `fully_shard` (FSDP2).
"""

from __future__ import annotations

import os
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any, final

import torch
import torch.distributed as dist
from torch import Tensor, nn

from sfumato.core import Batch, Draws, Loss
from sfumato.errors import UserError
from sfumato.nn.recompute import blocks_of
from sfumato.train.device import choose_device
from sfumato.train.task import Task

KINDS = ("auto", "ddp", "fsdp")


class Parallel:
    """One process: shares nothing, agrees with itself. rank, size: of this process, and how many there are."""

    rank, size = 0, 1

    @property
    def main(self) -> bool:
        """Whether this process writes, shows and evaluates."""
        return self.rank == 0

    def wrap(self, task: Task) -> None:
        """Share the task's parameters, before an optimizer or averages are made of them."""

    def loss(self, task: Task, batch: Batch, draws: Draws) -> Loss:
        """The loss of this process's part of a batch, whose gradient is that of all parts' mean."""
        return task.loss(batch, draws)

    @contextmanager
    def part(self, task: Task, last: bool) -> Iterator[None]:
        """Around loss and backward pass of one of several parts of a step: gradients are shared in the last one."""
        yield

    def gather(self, loss: Loss) -> Loss:
        """The loss of all processes' parts together: the mean, and every sample in the order of its number."""
        return loss

    def squares(self, total: Tensor) -> Tensor:
        """A sum of squares over what each process holds of the parameters, to that over the parameters."""
        return total

    def agree(self, seconds: float, asked: bool) -> tuple[float, bool]:
        """(the main process's seconds, whether any process was asked to stop)."""
        return seconds, asked

    def share(self, value: Any) -> Any:
        """The main process's value."""
        return value

    def whole(self, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Tensors of parameters by name, each as a whole; `group.name` belongs to the parameter that `name` ends with."""
        return dict(tensors)

    def own(self, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Of whole tensors, what this process holds: the inverse of `whole`."""
        return dict(tensors)

    def close(self) -> None:
        """Leave the others."""


class _Process(Parallel):
    """What every process of several has: its rank, and a group on the CPU for small words."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        if not dist.is_initialized():
            dist.init_process_group("nccl" if device.type == "cuda" else "gloo")
        self.rank, self.size = dist.get_rank(), dist.get_world_size()
        self._words = dist.new_group(backend="gloo") if device.type == "cuda" else None

    def gather(self, loss: Loss) -> Loss:
        value = loss.value.detach().clone()
        dist.all_reduce(value)
        each = [torch.empty_like(loss.per_sample) for _ in range(self.size)]
        dist.all_gather(each, loss.per_sample.detach().contiguous())
        times = [torch.empty_like(loss.t) for _ in range(self.size)]
        dist.all_gather(times, loss.t.contiguous(), group=self._words)
        return Loss(value / self.size, torch.cat(each), torch.cat(times))

    def agree(self, seconds: float, asked: bool) -> tuple[float, bool]:
        words = torch.tensor([seconds if self.main else 0.0, float(asked)], dtype=torch.float64)
        dist.all_reduce(words, group=self._words)
        return float(words[0]), bool(words[1] > 0)

    def share(self, value: Any) -> Any:
        box = [value]
        dist.broadcast_object_list(box, src=0, group=self._words)
        return box[0]

    def close(self) -> None:
        if dist.is_initialized():
            dist.destroy_process_group()


class _Loss(nn.Module):
    """A task's loss as the forward pass of a module, which is where torch's wrappers take hold."""

    def __init__(self, task: Task) -> None:
        super().__init__()
        self.task = task

    def forward(self, batch: Batch, draws: Draws) -> tuple[Tensor, Tensor, Tensor]:
        return tuple(self.task.loss(batch, draws))  # type: ignore[return-value]


@final
class Replicated(_Process):
    """Every process holds the whole model; gradients are averaged in the backward pass (DistributedDataParallel)."""

    def wrap(self, task: Task) -> None:
        ids = [self.device.index or 0] if self.device.type == "cuda" else None
        with warnings.catch_warnings():  # a later torch has another word for it, this one's has not
            warnings.simplefilter("ignore", FutureWarning)
            self._ddp = nn.parallel.DistributedDataParallel(
                _Loss(task), device_ids=ids, broadcast_buffers=False, gradient_as_bucket_view=False
            )

    def loss(self, task: Task, batch: Batch, draws: Draws) -> Loss:
        return Loss(*self._ddp(batch, draws))

    @contextmanager
    def part(self, task: Task, last: bool) -> Iterator[None]:
        if last:
            yield
        else:
            with self._ddp.no_sync():
                yield


@final
class Sharded(_Process):
    """Every process holds a slice of each parameter, gradient, moment and average; blocks are put together as they run."""

    def wrap(self, task: Task) -> None:
        from torch.distributed.device_mesh import init_device_mesh
        from torch.distributed.fsdp import fully_shard

        mesh = init_device_mesh(self.device.type, (self.size,))
        self._module = _Loss(task)
        for block in blocks_of(task.halved) if task.halved is not None else ():
            fully_shard(block, mesh=mesh)
        fully_shard(self._module, mesh=mesh)
        named = dict(task.named_parameters())
        self._sharded = {**{name.removeprefix("model."): p for name, p in named.items()}, **named}

    def loss(self, task: Task, batch: Batch, draws: Draws) -> Loss:
        return Loss(*self._module(batch, draws))

    @contextmanager
    def part(self, task: Task, last: bool) -> Iterator[None]:
        self._module.set_requires_gradient_sync(last)  # type: ignore[operator]
        yield

    def squares(self, total: Tensor) -> Tensor:
        total = total.clone()
        dist.all_reduce(total)
        return total

    def whole(self, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        from torch.distributed.tensor import DTensor

        found = {}
        for name, tensor in tensors.items():
            like = self._like(name, tensor)
            if like is not None and not isinstance(tensor, DTensor):
                tensor = DTensor.from_local(
                    tensor, like.device_mesh, like.placements, run_check=False, shape=like.shape, stride=like.stride()
                )
            found[name] = tensor.full_tensor().detach() if isinstance(tensor, DTensor) else tensor
        return found

    def own(self, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        from torch.distributed.tensor import distribute_tensor

        found = {}
        for name, tensor in tensors.items():
            like = self._like(name, None)
            if like is not None and tensor.shape == like.shape:
                there = tensor.to(self.device)
                tensor = distribute_tensor(there, like.device_mesh, like.placements, src_data_rank=None).to_local()
            found[name] = tensor
        return found

    def _like(self, name: str, tensor: Tensor | None) -> Any:
        """The sharded parameter that a name ends with: the longest such ending."""
        while name not in self._sharded:
            _, dot, name = name.partition(".")
            if not dot:
                return None
        return self._sharded[name]


def begin(kind: str, device: str) -> tuple[Parallel, torch.device]:
    """This process's part in what torchrun started, and its device. kind: `train.parallel`."""
    size = int(os.environ.get("WORLD_SIZE", "1"))
    if size == 1:
        if kind == "fsdp":
            raise UserError(
                "train.parallel=fsdp needs several processes; start them by torchrun --nproc-per-node N -m sfumato"
            )
        return Parallel(), choose_device(device)
    chosen = choose_device(device)
    if chosen.type == "cuda":
        chosen = torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0")))
        torch.cuda.set_device(chosen)
    return (Sharded if kind == "fsdp" else Replicated)(chosen), chosen
