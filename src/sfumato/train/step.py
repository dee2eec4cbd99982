"""One step of training: as it is written, or recorded once and replayed by the GPU.

Both compute the same. On the way from one to the other nothing is approximated but the type of matrix products, which a
GPU step has in bfloat16 either way.
"""

from __future__ import annotations

import copy
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple, final

import torch
from torch import Tensor, nn

from sfumato.core import Batch, Draws, Loss, Planned, on_device
from sfumato.errors import UserError
from sfumato.nn.captured import quickest_kernels, regional
from sfumato.nn.lowbit import fp8_training
from sfumato.train.ema import Ema
from sfumato.train.fused_update import FusedUpdate
from sfumato.train.optim import AdamW, Optimizer
from sfumato.train.optim_offload import HostEma
from sfumato.train.parallel import Parallel
from sfumato.train.sharded import ShardedEma
from sfumato.train.task import Task

Micro = tuple[Batch, Draws]
Averages = Ema[Any] | HostEma[Any] | ShardedEma[Any]
Seed = Callable[[int], None]  # sets torch's generators from a sample number

_OTHERS = "thread_local"  # while this thread records, others may ask the GPU things, as NCCL's does
_WARM_UP = 2  # steps before recording: libraries choose their kernels in them
_MOST_GRAPHS = 8  # shapes of a batch that are recorded; any other is computed as it is written


class Stepped(NamedTuple):
    """The mean loss, the gradient's norm, 1 if the step was left out, and the losses of its parts: all on the device."""

    value: Tensor
    norm: Tensor
    bad: Tensor
    parts: list[Loss]


class Step(ABC):
    """Makes optimizer steps of a task, each on `count` parts of a batch.

    setup_seconds: what recording and compiling has taken so far.
    """

    setup_seconds: float = 0.0

    @abstractmethod
    def __call__(self, micros: Iterable[Micro], lr: float, number: int) -> Stepped:
        """Step `number` = 1, 2, ... on the parts of a batch."""


@final
@dataclass
class PlainStep(Step):
    """The step as it is written."""

    task: Task
    optimizer: Optimizer
    ema: Averages
    dtype: torch.dtype
    seed: Seed
    count: int = 1
    parallel: Parallel = field(default_factory=Parallel)

    def __call__(self, micros: Iterable[Micro], lr: float, number: int) -> Stepped:
        self.optimizer.zero()
        value, parts = torch.zeros((), device=next(self.task.parameters()).device), []
        for i, (batch, draws) in enumerate(micros, 1):
            self.seed(draws.start)
            with self.parallel.part(self.task, i == self.count):
                with torch.autocast(value.device.type, self.dtype, enabled=self.dtype != torch.float32):
                    loss = self.parallel.loss(self.task, batch, draws)
                part = loss.value if self.count == 1 else loss.value / self.count
                part.backward()  # type: ignore[no-untyped-call]
            whole = self.parallel.gather(Loss(loss.value.detach(), loss.per_sample.detach(), loss.t))
            value += whole.value if self.count == 1 else whole.value / self.count
            parts.append(whole)
        norm, bad = self.optimizer.step(lr, value)
        self.ema.update(number)
        return Stepped(value, norm, bad, parts)


def working_copy(task: Task, dtype: torch.dtype) -> tuple[Task, list[tuple[nn.Parameter, nn.Parameter]]]:
    """A task that shares everything with `task` but the weights of its `halved` part, which are copies of type `dtype`;
    and the pairs (weight, copy). Gains and offsets of norms stay shared: they are few, and near 1."""
    shared: dict[int, object] = {id(t): t for t in [*task.parameters(), *task.buffers()]}
    copied = copy.deepcopy(task, shared)
    pairs: dict[int, tuple[nn.Parameter, nn.Parameter]] = {}
    for module in copied.halved.modules() if copied.halved is not None else ():
        if isinstance(module, nn.GroupNorm | nn.LayerNorm | nn.RMSNorm):
            continue
        for name, p in module.named_parameters(recurse=False):
            if p.is_floating_point():
                half = nn.Parameter(p.detach().to(dtype), requires_grad=p.requires_grad)
                pairs.setdefault(id(p), (p, half))
                setattr(module, name, pairs[id(p)][1])
    return copied, list(pairs.values())


class _Recorded(NamedTuple):
    """A graph of a loss and its gradients: what it reads and what it leaves behind."""

    graph: torch.cuda.CUDAGraph
    inputs: dict[str, Tensor]
    value: Tensor
    per_sample: Tensor


@final
class GraphStep(Step):
    """The step as two CUDA graphs: loss and gradients of a part of the batch, then clip, optimizer, averages and copies.

    The network computes from half-precision copies of its weights, renewed after every step, so that nothing is cast on the
    way; weights, gradients' sums, moments and averages are float32. The host makes what is random or comes from a schedule
    (`Task.plan`), copies it to where the graph reads, and goes on: no step waits for the device. Several processes add up
    their gradients between the two graphs, in one message.
    """

    def __init__(
        self,
        task: Task,
        optimizer: Optimizer,
        ema: Ema[Any],
        dtype: torch.dtype,
        seed: Seed,
        count: int = 1,
        fp8: bool = False,
        parallel: Parallel | None = None,
    ) -> None:
        self.task, self.optimizer, self.ema, self.dtype, self.seed = task, optimizer, ema, dtype, seed
        self.count, self.parallel = count, parallel or Parallel()
        self._parts = count * self.parallel.size  # of a batch, whose mean is the loss
        self.working, pairs = working_copy(task, dtype)
        if fp8 and self.working.halved is not None:
            fp8_training(self.working.halved)
        self._device = next(task.parameters()).device
        self._pairs = [(p, half) for p, half in pairs if p.requires_grad]
        self._flat: list[Tensor] = []  # what the gradients are views of
        self._sums = self._places_for_gradients(FusedUpdate.fits(optimizer, ema, self._pairs))
        self._fused: FusedUpdate | None = None
        if isinstance(optimizer, AdamW) and FusedUpdate.fits(optimizer, ema, self._pairs):
            self._fused = FusedUpdate(optimizer, ema, self._pairs, list(self._sums.values()))
        self._graphs: dict[object, _Recorded] = {}
        self._update: torch.cuda.CUDAGraph | None = None
        self._pool: Any = None
        self._value, self._lr = (torch.zeros((), device=self._device) for _ in range(2))
        self._weights = torch.zeros(len(ema.gammas), device=self._device)
        self._found: tuple[Tensor, Tensor] | None = None
        self.setup_seconds = 0.0
        self._renew()
        regional(self.working.halved)

    def _places_for_gradients(self, fused: bool) -> dict[str, Tensor]:
        """Where gradients are summed, by name. In the copies' type if nothing is added and the optimizer reads it."""
        halves = {id(p): half for p, half in self._pairs} if fused and self.count == 1 else {}
        likes = {name: halves.get(id(p), p).detach() for name, p in self.optimizer.parameters.items()}
        self._flat, places = in_a_row(list(likes.values()))
        found = dict(zip(likes, places))
        for name, p in self.optimizer.parameters.items():
            p.grad = None if id(p) in halves else found[name]
        return found

    def prepare(self, micro: Micro) -> None:
        """Record what a step of such parts needs; no weight is changed."""
        batch, draws = micro
        self._recorded(self.task.plan(batch, draws).tensors)
        self._recorded_update()

    def __call__(self, micros: Iterable[Micro], lr: float, number: int) -> Stepped:
        update = self._recorded_update()
        torch._foreach_zero_([p.grad for p in self.optimizer.parameters.values() if p.grad is not None])
        self._value.zero_()
        parts = []
        for batch, draws in micros:
            planned = self.task.plan(batch, draws)
            recorded = self._recorded(planned.tensors)
            self.seed(draws.start)
            if recorded is None:
                parts.append(self._written(planned))
                continue
            for name, value in planned.tensors.items():
                recorded.inputs[name].copy_(_pinned(value), non_blocking=True)
            recorded.graph.replay()
            parts.append(self.parallel.gather(Loss(recorded.value.clone(), recorded.per_sample.clone(), planned.t)))
        self.parallel.add_up([*self._flat, self._value])
        numbers = torch.tensor([lr, *self.ema.weights(number)])
        numbers = on_device(numbers, self._device)
        self._lr.copy_(numbers[0])
        self._weights.copy_(numbers[1:])
        update.replay()
        assert self._found is not None
        norm, bad = (v.clone() for v in self._found)
        return Stepped(self._value.clone(), norm, bad, parts)

    # ------------------------------------------------------------ recording

    def _recorded(self, tensors: Mapping[str, Tensor]) -> _Recorded | None:
        key = tuple((name, v.shape, v.dtype) for name, v in tensors.items())
        if key not in self._graphs and len(self._graphs) < _MOST_GRAPHS:
            self._graphs[key] = self._record(tensors)
        return self._graphs.get(key)

    def _record(self, tensors: Mapping[str, Tensor]) -> _Recorded:
        torch.cuda.synchronize(self._device)  # what is still to be done of earlier steps is not of the recording
        begun = time.monotonic()
        sums = list(self._sums.values())
        kept = [total.clone() for total in sums]
        value = self._value.clone()
        inputs = {name: v.to(self._device) for name, v in tensors.items()}
        with quickest_kernels():
            side = torch.cuda.Stream()  # type: ignore[no-untyped-call]
            side.wait_stream(torch.cuda.current_stream())
            with torch.cuda.stream(side):
                for _ in range(_WARM_UP):
                    self._gradients(inputs)
            torch.cuda.current_stream().wait_stream(side)
            graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(graph, pool=self._pool, capture_error_mode=_OTHERS):
                mean, each = self._gradients(inputs)
        self._pool = graph.pool()
        torch._foreach_copy_(sums, kept)
        self._value.copy_(value)
        torch.cuda.synchronize(self._device)
        self.setup_seconds += time.monotonic() - begun
        return _Recorded(graph, inputs, mean, each)

    def _recorded_update(self) -> torch.cuda.CUDAGraph:
        if self._update is None:
            begun = time.monotonic()
            graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(graph, pool=self._pool, capture_error_mode=_OTHERS):
                self._found = self._apply()
            self._update = graph
            self.setup_seconds += time.monotonic() - begun
        return self._update

    # ------------------------------------------------------------ what is recorded

    def _gradients(self, inputs: Mapping[str, Tensor]) -> tuple[Tensor, Tensor]:
        """Add the gradients of a part's loss to those of the weights."""
        with torch.autocast(self._device.type, self.dtype, cache_enabled=False):
            value, each = self.working.compute(inputs)
        (value / self._parts).backward()  # type: ignore[no-untyped-call]
        with torch.no_grad():
            self._value.add_(value.detach() / self._parts)
            self._gather()
        return value.detach(), each

    def _gather(self) -> None:
        """Move the gradients of the copies to where they are summed."""
        names = {id(p): name for name, p in self.optimizer.parameters.items()}
        sums, found = [], []
        for p, half in self._pairs:
            if half.grad is not None:
                sums.append(self._sums[names[id(p)]])
                found.append(half.grad)
        if sums and sums[0].dtype == self.dtype:  # nothing is added
            torch._foreach_copy_(sums, found)
        else:
            wide = [torch.empty_like(total) for total in sums]
            torch._foreach_copy_(wide, found)
            torch._foreach_add_(sums, wide)
        for _, half in self._pairs:
            half.grad = None

    def _apply(self) -> tuple[Tensor, Tensor]:
        """The second graph: weights, averages and copies from the gradients. (norm, 1 if left out)."""
        if self._fused is not None:
            return self._fused(self._lr, self._value, self._weights)
        found = self.optimizer.step(self._lr, self._value)
        self.ema.take(self._weights)
        self._renew()
        return found

    def _written(self, planned: Planned) -> Loss:
        inputs = {name: on_device(v, self._device) for name, v in planned.tensors.items()}
        value, each = self._gradients(inputs)
        return self.parallel.gather(Loss(value, each, planned.t))

    @torch.no_grad()
    def _renew(self) -> None:
        """Bring the copies up to date."""
        torch._foreach_copy_([half.data for _, half in self._pairs], [p.data for p, _ in self._pairs])


def in_a_row(tensors: Sequence[Tensor]) -> tuple[list[Tensor], list[Tensor]]:
    """Zeros like each of `tensors`, strides included, that lie one after the other in one long tensor for each type.

    Each begins at a multiple of 64 elements. Returns (the long ones, those like `tensors`).
    """
    starts, lengths = [], dict.fromkeys((t.dtype for t in tensors), 0)
    for t in tensors:
        starts.append(lengths[t.dtype])
        lengths[t.dtype] += -(-t.numel() // 64) * 64
    long = {kind: torch.zeros(n, dtype=kind, device=tensors[0].device) for kind, n in lengths.items()}
    places = [long[t.dtype].as_strided(t.shape, t.stride(), start) for t, start in zip(tensors, starts)]
    return list(long.values()), places


def choose_step(
    task: Task,
    optimizer: Optimizer,
    ema: Averages,
    dtype: torch.dtype,
    seed: Seed,
    *,
    record: bool | None,
    micro: Micro,
    count: int,
    say: Callable[[str], None],
    in_the_way: str | None = None,
    fp8: bool = False,
    parallel: Parallel | None = None,
) -> Step:
    """A step that is ready for such a batch: recorded on a GPU in half precision where that is possible, else as written.

    micro, count: a part of a batch, and how many parts a step has. record: `train.compile`; True raises UserError where
    recording is not possible, None says so where it fails in the attempt. in_the_way: a reason of the caller's not to.
    fp8: `train.fp8`. parallel: the processes that share the work.
    """
    plain = PlainStep(task, optimizer, ema, dtype, seed, count, parallel or Parallel())
    reason = _in_the_way(task, optimizer, dtype) or in_the_way
    if fp8 and (record is False or reason is not None):
        raise UserError(f"train.fp8 = true: {reason or 'train.compile is false'}; leave it unset")
    if record is False or (record is None and reason is not None):
        return plain
    if reason is not None:
        raise UserError(f"train.compile = true: {reason}; leave it unset")
    assert isinstance(ema, Ema)  # averages on the host come with an optimizer there
    step, failed = GraphStep(task, optimizer, ema, dtype, seed, count, fp8, plain.parallel), None
    try:
        step.prepare(micro)
    except torch.OutOfMemoryError:
        raise
    except Exception as error:
        failed = error
    said = [why for why in plain.parallel.everyone(None if failed is None else _first_line(failed)) if why is not None]
    if not said:
        return step
    if record or fp8:
        plain.parallel.raise_together(failed)
    say(f"warning: the step could not be recorded for the GPU and is computed as written ({said[0]})")
    optimizer.zero()
    return plain


def _in_the_way(task: Task, optimizer: Optimizer, dtype: torch.dtype) -> str | None:
    """Why a step can't be recorded."""
    if next(task.parameters()).device.type != "cuda":
        return "steps are recorded on CUDA devices only"
    if dtype == torch.float32:
        return "steps are recorded in half precision only, train.precision=bf16"
    if not task.separable:
        return "this objective or process computes on the host between two parts of the network's work"
    if not optimizer.capturable:
        return "with train.offload the host takes part in every step"
    return None


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:160]


def _pinned(value: Tensor) -> Tensor:
    return value if value.is_pinned() else value.pin_memory()
