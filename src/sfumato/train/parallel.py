"""Several processes that train one model: what they share, gather and agree on.

The trainer is written for one process and asks a `Parallel` wherever others would have a say. All processes make the same
decisions because they are made of the same numbers: the clock and the wish to stop are agreed after every step, losses are
gathered, and sample numbers say which part of the data, noise and augmentation is whose (`Loader`, `Draws`).

Engine: torch.distributed as torchrun starts it; DistributedDataParallel, or `fully_shard` (FSDP2).
"""

from __future__ import annotations

import atexit
import os
import time
import uuid
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any, NamedTuple, NoReturn, final

import torch
import torch.distributed as dist
from torch import Tensor, nn

from sfumato.core import Batch, Draws, Loss, Network
from sfumato.device import choose_device
from sfumato.errors import UserError
from sfumato.nn.captured import regional
from sfumato.nn.recompute import blocks_of
from sfumato.nn.split import TokenGroup, TokenNetwork, share_tokens
from sfumato.tensorfile import Slice, StoredTensors
from sfumato.train.alarm import Alarm, Failure
from sfumato.train.optim import local
from sfumato.train.sequence import Neighbours
from sfumato.train.task import Task

KINDS = ("auto", "ddp", "fsdp", "hsdp")
_LAST = 0.25  # seconds for which threads that are done with a tensor may still wait for a core and for Python's lock
_TOGETHER = 1 << 26  # parameters of blocks that are gathered at once: 128 MiB in bfloat16


class Words(NamedTuple):
    """What the processes agree on again and again: the main one's `seconds`, whether any was `asked` to stop or has `failed`,
    and the `total` of what each counts."""

    seconds: float
    asked: bool = False
    failed: bool = False
    total: int = 0


class Parallel:
    """One process: shares nothing, agrees with itself. rank, size: of this process, and how many there are.

    sequence: how many neighbours share the tokens of each sample (`train.sequence`). They have the same part of a batch, and
    batches are dealt to groups of them: `data_rank` of this process's, `data_size` of groups.
    """

    rank, size, sequence = 0, 1, 1
    unrecorded: str | None = None  # why such a process's steps can't be recorded for a GPU

    @property
    def data_rank(self) -> int:
        """Whose part of a batch this process has."""
        return self.rank // self.sequence

    @property
    def data_size(self) -> int:
        """Among how many a batch is shared out."""
        return self.size // self.sequence

    @property
    def main(self) -> bool:
        """Whether this process writes, shows and evaluates."""
        return self.rank == 0

    def wrap(self, task: Task, dtype: torch.dtype = torch.float32, compiled: bool = False) -> None:
        """Share the task's parameters, before an optimizer or averages are made of them.

        dtype: that blocks compute in. compiled: compile blocks that gain from it, where a step will not be recorded.
        """

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

    def add_up(self, tensors: Sequence[Tensor]) -> None:
        """Replace each tensor by the sum of what all processes have; between two graphs of a recorded step."""

    def squares(self, total: Tensor) -> Tensor:
        """A sum of squares over what each process holds of the parameters, to that over the parameters."""
        return total

    def agree(self, words: Words) -> Words:
        """The words of all processes together."""
        return words

    def share(self, value: Any) -> Any:
        """The main process's value."""
        return value

    def everyone(self, value: Any) -> list[Any]:
        """What each process has, in the order of their ranks."""
        return [value]

    def slices(self, tensors: Mapping[str, Tensor]) -> dict[str, Slice]:
        """What this process writes of tensors that `whole` would put together: each row is in one process's slice."""
        return {name: Slice.whole(tensor) for name, tensor in tensors.items()}

    def raise_together(self, error: Exception | None) -> NoReturn:
        """Raise `error`; a process that has none, while others have, raises a SfumatoError that names the first of theirs.

        Every process must call it, which `agree` has told them to.
        """
        assert error is not None
        raise error

    @contextmanager
    def bound(self) -> Iterator[None]:
        """Around a run: where a process ends with an error that was not agreed on, all others end too (`Alarm`)."""
        yield

    def whole(self, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Tensors of parameters by name, each as a whole; `group.name` belongs to the parameter that `name` ends with."""
        return dict(tensors)

    def own(self, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Of whole tensors, what this process holds: the inverse of `whole`."""
        return dict(tensors)

    def close(self) -> None:
        """Leave the others. Done by itself when Python ends."""


class _Process(Parallel):
    """What every process of several has: its rank, a group on the CPU for small words, and those it shares tokens with."""

    def __init__(self, device: torch.device, sequence: int = 1) -> None:
        self.device = device
        self._broken = False
        if not dist.is_initialized():
            dist.init_process_group("nccl" if device.type == "cuda" else "gloo")
            atexit.register(self.close)
        self.rank, self.size = dist.get_rank(), dist.get_world_size()
        self._words = dist.new_group(backend="gloo") if device.type == "cuda" else None
        self._alarm: Alarm | None = None
        self.sequence = sequence
        self._tokens: TokenGroup | None = Neighbours(sequence) if sequence > 1 else None
        if sequence > 1:
            self.unrecorded = "with train.sequence neighbours exchange tokens in the middle of the network"

    def _sharing(self, task: Task) -> AbstractContextManager[None]:
        """Around a loss: the network's tokens are shared there, and nowhere else; its copies compute alone."""
        network = task.halved
        return share_tokens(network, self._tokens) if isinstance(network, TokenNetwork) else nullcontext()

    def gather(self, loss: Loss) -> Loss:
        value = loss.value.detach().clone()
        dist.all_reduce(value)
        each = [torch.empty_like(loss.per_sample) for _ in range(self.size)]
        dist.all_gather(each, loss.per_sample.detach().contiguous())
        times = [torch.empty_like(loss.t) for _ in range(self.size)]
        dist.all_gather(times, loss.t.contiguous(), group=self._words)
        one = slice(None, None, self.sequence)  # those who share tokens have the same samples
        return Loss(value / self.size, torch.cat(each[one]), torch.cat(times[one]))

    def agree(self, words: Words) -> Words:
        mine = Words(words.seconds if self.main else 0.0, *words[1:])
        told = torch.tensor(mine, dtype=torch.float64)
        dist.all_reduce(told, group=self._words)
        seconds, asked, failed, total = told.tolist()
        return Words(seconds, asked > 0, failed > 0, round(total))

    def share(self, value: Any) -> Any:
        box = [value]
        dist.broadcast_object_list(box, src=0, group=self._words)
        return box[0]

    def everyone(self, value: Any) -> list[Any]:
        found: list[Any] = [None] * self.size
        dist.all_gather_object(found, value, group=self._words)
        return found

    def slices(self, tensors: Mapping[str, Tensor]) -> dict[str, Slice]:
        found, at = {}, 0
        total = 1 + sum(tensor.numel() * tensor.element_size() for tensor in tensors.values())
        for name, tensor in tensors.items():  # all hold all of it: each writes its share of the bytes
            if at * self.size // total == self.rank:
                found[name] = Slice.whole(tensor)
            at += tensor.numel() * tensor.element_size()
        return found

    def raise_together(self, error: Exception | None) -> NoReturn:
        failures = self.everyone(None if error is None else Failure.of(error, self.rank))
        if self._alarm is not None:
            self._alarm.agreed()
        if error is not None:
            raise error
        raise next(failure for failure in failures if failure is not None).error(self.size)

    @contextmanager
    def bound(self) -> Iterator[None]:
        self._broken = True
        with Alarm(self.rank, self.size, self.share(uuid.uuid4().hex)) as self._alarm:
            yield
        self._broken = False

    def close(self) -> None:
        """Let the group's threads end while Python still runs: one that lets go of a tensor later aborts the process.

        Ending the group joins them only where nothing else holds it, as FSDP2 does; so they are given time, and the lock.
        With NCCL not after an error, when others may be gone and whatever they have not answered would be waited for.
        """
        if dist.is_initialized():
            time.sleep(_LAST)
            if not (self._broken and self.device.type == "cuda"):
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
    """Every process holds the whole model. Gradients are averaged in the backward pass (DistributedDataParallel), or added up
    between the two graphs of a recorded step."""

    _ddp: nn.parallel.DistributedDataParallel | None = None

    @torch.no_grad()
    def wrap(self, task: Task, dtype: torch.dtype = torch.float32, compiled: bool = False) -> None:
        for tensor in [*task.parameters(), *task.buffers()]:
            whole = tensor.detach().contiguous()
            dist.broadcast(whole, 0)
            tensor.copy_(whole)

    def _wrapped(self, task: Task) -> nn.parallel.DistributedDataParallel:
        """The task as a module of torch's, made when it is first wanted: it takes hold of every backward pass."""
        if self._ddp is None:
            ids = [self.device.index or 0] if self.device.type == "cuda" else None
            with warnings.catch_warnings():  # a later torch has another word for it, this one's has not
                warnings.simplefilter("ignore", FutureWarning)
                self._ddp = nn.parallel.DistributedDataParallel(
                    _Loss(task), device_ids=ids, broadcast_buffers=False, gradient_as_bucket_view=False, init_sync=False
                )
        return self._ddp

    def loss(self, task: Task, batch: Batch, draws: Draws) -> Loss:
        with self._sharing(task):
            return Loss(*self._wrapped(task)(batch, draws))

    def add_up(self, tensors: Sequence[Tensor]) -> None:
        for tensor in tensors:
            dist.all_reduce(tensor)

    @contextmanager
    def part(self, task: Task, last: bool) -> Iterator[None]:
        if last:
            yield
        else:
            with self._wrapped(task).no_sync():
                yield


@final
class Sharded(_Process):
    """Every process holds a slice of each parameter, gradient, moment and average; blocks are put together as they run.

    shards: into how many slices; fewer than there are processes: so many neighbours share them, and groups of neighbours have
    the same (HSDP), so that between groups nothing goes but gradients.
    """

    unrecorded = "with slices of weights a block's are gathered as it runs"

    def __init__(self, device: torch.device, sequence: int = 1, shards: int | None = None) -> None:
        super().__init__(device, sequence)
        self.shards = self.size if shards is None else shards
        self._group, self._place = divmod(self.rank, self.shards)
        self._neighbours: dist.ProcessGroup | None = None

    def wrap(self, task: Task, dtype: torch.dtype = torch.float32, compiled: bool = False) -> None:
        from torch.distributed.device_mesh import init_device_mesh
        from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard

        if self.shards == self.size:
            mesh = init_device_mesh(self.device.type, (self.size,))
        else:
            sides, names = (self.size // self.shards, self.shards), ("groups", "shards")
            mesh = init_device_mesh(self.device.type, sides, mesh_dim_names=names)
            self._neighbours = mesh["shards"].get_group()
        self._module = _Loss(task)
        halves = MixedPrecisionPolicy()
        if (
            self.device.type == "cuda" and dtype != torch.float32
        ):  # what is gathered is as small as what is computed with
            halves = MixedPrecisionPolicy(param_dtype=dtype, reduce_dtype=torch.float32, cast_forward_inputs=False)
        if compiled and self.device.type == "cuda":
            regional(task.halved, hooked=True)
        network = task.halved
        for blocks in together(blocks_of(network)) if network is not None else ():
            fully_shard(blocks, mesh=mesh, mp_policy=halves)
        if isinstance(network, Network):  # what it has beside blocks can be much: a DiT's modulation is a third of it
            fully_shard(network, mesh=mesh, mp_policy=halves, reshard_after_forward=False)
        fully_shard(self._module, mesh=mesh)
        named = dict(task.named_parameters(remove_duplicate=False))
        self._sharded = {**{name.removeprefix("model."): p for name, p in named.items()}, **named}

    def loss(self, task: Task, batch: Batch, draws: Draws) -> Loss:
        with self._sharing(task):
            return Loss(*self._module(batch, draws))

    @contextmanager
    def part(self, task: Task, last: bool) -> Iterator[None]:
        self._module.set_requires_gradient_sync(last)  # type: ignore[operator]
        yield

    def squares(self, total: Tensor) -> Tensor:
        total = total.clone()
        dist.all_reduce(total, group=self._neighbours)
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
        found = {}
        for name in tensors:
            like = self._like(name, None)
            shape = tensors.shape(name) if isinstance(tensors, StoredTensors) else tuple(tensors[name].shape)
            if like is None or shape != tuple(like.shape):
                found[name] = tensors[name]
                continue
            start, stop = self._rows(like)
            if isinstance(tensors, StoredTensors):
                found[name] = tensors.rows(name, start, stop)
            else:
                found[name] = tensors[name][start:stop]
        return found

    def slices(self, tensors: Mapping[str, Tensor]) -> dict[str, Slice]:
        found = {}
        for name, tensor in tensors.items():
            like = self._like(name, tensor)
            if like is not None:
                held = local(tensor)
                first, last = _chunk(held.shape[0], self.size // self.shards, self._group)
                found[name] = Slice(held[first:last], tuple(like.shape), self._rows(like)[0] + first)
            elif self.main:  # a count of steps, or a buffer: the same on all
                found[name] = Slice.whole(tensor)
        return found

    def _rows(self, like: Any) -> tuple[int, int]:
        """The rows of a parameter that this process holds: `fully_shard` cuts the first axis as `torch.chunk` does."""
        return _chunk(like.shape[0], self.shards, self._place)

    def _like(self, name: str, tensor: Tensor | None) -> Any:
        """The sharded parameter that a name ends with: the longest such ending."""
        while name not in self._sharded:
            _, dot, name = name.partition(".")
            if not dot:
                return None
        return self._sharded[name]


def together(blocks: Sequence[nn.Module], most: int = _TOGETHER) -> list[list[nn.Module]]:
    """Neighbours of which `most` parameters are gathered in one message: every message costs the host the same."""
    groups: list[list[nn.Module]] = []
    held = most
    for block in blocks:
        n = sum(p.numel() for p in block.parameters())
        if held + n > most:
            groups.append([])
            held = 0
        groups[-1].append(block)
        held += n
    return groups


def _chunk(n: int, parts: int, place: int) -> tuple[int, int]:
    """[first, last) of one of the parts that `torch.chunk` makes of n rows; later ones may be empty."""
    each = -(-n // parts)
    return min(place * each, n), min((place + 1) * each, n)


def begin(kind: str, device: str, sequence: int = 1) -> tuple[Parallel, torch.device]:
    """This process's part in what torchrun started, and its device. kind: `train.parallel`; sequence: `train.sequence`."""
    size = int(os.environ.get("WORLD_SIZE", "1"))
    if size % sequence:
        raise UserError(
            f"train.sequence = {sequence}: does not divide the number of processes, {size}; start a multiple of {sequence} "
            "by torchrun --nproc-per-node N -m sfumato"
        )
    if size == 1:
        if kind in ("fsdp", "hsdp"):
            raise UserError(
                f"train.parallel={kind} needs several processes; start them by torchrun --nproc-per-node N -m sfumato"
            )
        return Parallel(), choose_device(device)
    chosen = choose_device(device)
    if chosen.type == "cuda":
        chosen = torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0")))
        torch.cuda.set_device(chosen)
    if kind == "hsdp":
        here = int(os.environ.get("LOCAL_WORLD_SIZE", size))
        if size % here:
            raise UserError(f"train.parallel=hsdp: {size} processes are not {here} on every machine; use fsdp")
        return Sharded(chosen, sequence, here), chosen
    return (Sharded if kind == "fsdp" else Replicated)(chosen, sequence), chosen
