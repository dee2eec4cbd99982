"""How much memory a training step will need, before it is run: on any machine, for any device.

The step is made once without numbers (`simulate`): the forward and backward pass of the real task with the real settings, and
the optimizer's step. What stays the whole time (weights, state, averages) is added up; the rest is the largest sum of what is
alive at once. `python -m benchmarks.memory` compares it with what a GPU measures.
"""

from __future__ import annotations

import functools
from bisect import bisect_left
from dataclasses import asdict, dataclass, replace
from typing import final

import numpy as np
import torch
from torch import nn

from sfumato.core import Batch, Draws, Network
from sfumato.data import Data, Order
from sfumato.device import free_memory
from sfumato.errors import SfumatoError, UserError
from sfumato.model import Model
from sfumato.nn.recompute import Recompute, blocks_of, count_of, first_blocks, recompute
from sfumato.train.optim import AdamW, trained
from sfumato.train.settings import Training, parse_memory
from sfumato.train.simulate import META, Alive, Rules, on_meta, pretending
from sfumato.train.step import working_copy
from sfumato.train.task import Task

GIB = 1 << 30
SAFE = 0.9  # share of a device's free memory that a prediction may take: it is good to 10%
_WORKSPACE = 64 << 20  # of the libraries for matrix products, on a GPU: 32 MiB for each of two streams
_LONGEST_FETCH = 256  # items that stand for a batch


@final
@dataclass(frozen=True)
class Memory:
    """Bytes on the device at the moment of a step when they are most.

    weights: parameters and buffers. gradients: those that are there at that moment. optimizer: its state. average: the
    averages of the weights. activations: what the backward pass needs. temporary: all else, workspaces included.
    """

    weights: int
    gradients: int
    optimizer: int
    average: int
    activations: int
    temporary: int

    @property
    def total(self) -> int:
        """All together: what `torch.cuda.max_memory_allocated` will say."""
        return sum(asdict(self).values())

    def to_dict(self) -> dict[str, int]:
        """The parts and their `total`."""
        return {**asdict(self), "total": self.total}


@final
@dataclass(frozen=True)
class Fit:
    """Settings whose step fits, and what it needs."""

    settings: Training
    memory: Memory


@final
@dataclass(frozen=True)
class Copies:
    """What a captured step computes with: a task whose network has half-precision weights, and the pairs (weight, copy)."""

    task: Task
    pairs: list[tuple[nn.Parameter, nn.Parameter]]

    def gather(self, added: bool) -> None:
        """Gradients of the copies become float32 all at once where they are `added` to those of the weights."""
        wide = [torch.empty_like(p) for p, half in self.pairs if added and half.grad is not None]
        for _, half in self.pairs:
            half.grad = None
        del wide


@final
class Predictor:
    """Predictions for one task on one kind of device.

    batch: any real items; they stand for as many as a step has. device: `cuda` or `cpu`, whether it is there or not;
    dtype: of matrix products. captured: the step is recorded in a CUDA graph (`train.step.GraphStep`): gradients keep their
    places between steps, and the network has a copy in half precision; None: where the settings have it so. What compiling
    blocks saves is not known beforehand: they may use less.
    Raises SfumatoError if the task's loss looks at the numbers of a tensor on the device.
    """

    def __init__(
        self, task: Task, batch: Batch, *, device: torch.device | str, dtype: torch.dtype, captured: bool | None = None
    ) -> None:
        self.task, self.batch = task, batch
        self.cuda = torch.device(device).type == "cuda"
        self.dtype, self.captured = dtype, captured
        self._known: dict[tuple[object, ...], Memory] = {}

    @property
    def blocks(self) -> int:
        """Blocks that can be recomputed."""
        network = network_of(self.task)
        return 0 if network is None else len(blocks_of(network))

    def __call__(self, settings: Training) -> Memory:
        """What a step needs at most, the averages of the weights included."""
        s = settings
        key = (s.batch, s.accumulate, s.optimizer, s.ema, s.offload, s.compile, round(s.recompute * self.blocks, 6))
        if key not in self._known:
            try:
                self._known[key] = self._predict(settings)
            except (NotImplementedError, RuntimeError) as error:
                raise SfumatoError(
                    f"the memory of this task can't be predicted, because a step of it does not run without numbers: {error}"
                ) from error
        return self._known[key]

    def captures(self, settings: Training) -> bool:
        """Whether a step with these settings is one that is recorded in a CUDA graph."""
        if self.captured is not None:
            return self.captured
        possible = self.cuda and self.dtype != torch.float32 and self.task.separable and settings.offload == "none"
        return possible and settings.compile is not False

    def _predict(self, settings: Training) -> Memory:
        task, captured = self._ready(settings), self.captures(settings)
        fused = captured and settings.optimizer.cls is AdamW  # `FusedUpdate`: nothing but the gradients is read
        direct = fused and settings.accumulate == 1
        alive, rules = Alive(), Rules(self.dtype, self.cuda)
        weights, gradients, copies = alive.know(_all(task)), 0, Copies(task, [])
        if captured:
            copies = Copies(*working_copy(task, self.dtype))
            weights += alive.know(half for _, half in copies.pairs)
            halves = {id(p): half for p, half in copies.pairs} if direct else {}
            for p in trained(task).values():
                place = torch.empty_like(halves.get(id(p), p).detach())
                p.grad = None if id(p) in halves else place
                gradients += alive.know([place])
        optimizer = settings.optimizer.build(task, settings) if settings.offload == "none" else None
        state = 0 if optimizer is None else alive.know(optimizer.state().values())
        average = 0 if settings.offload == "all" else len(settings.ema) * Alive().know(_all(task.model))
        if not captured:
            alive.watch(trained(task).values())
        kept, micro = 0, settings.batch // settings.accumulate
        with pretending(), alive, rules:
            for part in range(min(2, settings.accumulate)):
                if not captured:  # there nothing is cast twice: the copies have the type already
                    rules.begin()
                loss = copies.task.loss(several(self.batch, micro), Draws(0, part * micro, micro)).value
                rules.end()
                kept = max(kept, alive.now - alive.gradients)
                loss.backward()  # type: ignore[no-untyped-call]
                del loss
                copies.gather(not direct)
            if optimizer is not None and not fused:
                optimizer.step(0.0, torch.zeros((), device=META))
            if captured and not fused:  # an average takes the differences of all weights from it at once
                [torch.empty_like(p) for p in trained(task).values()]
        rest = alive.peak - alive.gradients_then
        space = _WORKSPACE if self.cuda else 0
        gradients += alive.gradients_then
        return Memory(weights, gradients, state, average, min(kept, rest), max(0, rest - kept) + space)

    def _ready(self, settings: Training) -> Task:
        """The task without numbers, its blocks recomputed as the settings say."""
        task = on_meta(self.task).train()
        network = network_of(task)
        if network is not None:
            for block in blocks_of(network):
                block.__dict__.pop("forward", None)  # of a task whose blocks are recomputed already
            if settings.recompute:
                # A mode is off while it handles a call, and `backward` is one: what runs again there needs the rules anew.
                again = functools.partial(Rules, self.dtype, self.cuda)
                recompute(network, first_blocks(network, settings.recompute), again=again)
        return task

    def fit(self, settings: Training, limit: int, name: str = "train.memory") -> Fit:
        """The settings with the fewest recomputed blocks, then the fewest parts of a batch, whose step needs at most `limit`.

        Raises UserError that says what would fit if nothing does.
        """
        found = self.fewest_blocks(settings, limit)
        if found is None:
            parts = self.fewest_parts(self._all_recomputed(settings), limit)
            if parts is not None:
                found = self.fewest_blocks(replace(settings, accumulate=parts.settings.accumulate), limit)
        if found is None:
            raise UserError(self._too_small(settings, limit, name))
        return found

    def fewest_parts(self, settings: Training, limit: int) -> Fit | None:
        """The smallest larger number of parts of a batch that fits: few as a rule, and whether any does, the most say."""
        divisors = (n for n in range(settings.accumulate + 1, settings.batch + 1) if settings.batch % n == 0)
        tried = [replace(settings, accumulate=n) for n in divisors]
        if not tried or self(tried[-1]).total > limit:
            return None
        return next(Fit(one, self(one)) for one in tried if self(one).total <= limit)

    def _all_recomputed(self, settings: Training) -> Training:
        return replace(settings, recompute=1.0) if self.blocks else settings

    def fewest_blocks(self, settings: Training, limit: int) -> Fit | None:
        """The smallest share of recomputed blocks that fits, by bisection."""
        if self(settings).total <= limit:
            return Fit(settings, self(settings))
        n = self.blocks
        shares = (count / n for count in range(count_of(n, settings.recompute) + 1, n + 1))
        tried = [replace(settings, recompute=share) for share in shares]
        if not tried or self(tried[-1]).total > limit:
            return None
        found = tried[bisect_left(tried, True, key=lambda one: self(one).total <= limit)]
        return Fit(found, self(found))

    def _too_small(self, settings: Training, limit: int, name: str) -> str:
        least = replace(self._all_recomputed(settings), accumulate=settings.batch)
        need = self(least).total
        said = (
            f"{name} = {gib(limit)}: a step of one sample at a time with every block recomputed needs about {gib(need)}"
        )
        for change in ("optimizer", "all"):
            smaller = self(replace(least, offload=change)).total
            if smaller <= limit:
                return f"{said}; set train.offload={change}, which needs {gib(smaller)}"
        return f"{said}, and {gib(smaller)} with train.offload=all; use a smaller network, or give it more memory"


def predict(
    task: Task,
    settings: Training,
    batch: Batch,
    *,
    device: torch.device | str,
    dtype: torch.dtype,
    captured: bool | None = None,
) -> Memory:
    """What a training step will need at most, before it is run; see `Predictor`."""
    return Predictor(task, batch, device=device, dtype=dtype, captured=captured)(settings)


def fitted(
    task: Task, data: Data, settings: Training, *, device: torch.device, dtype: torch.dtype, seed: int = 0
) -> Training:
    """The settings with `train.memory` obeyed: as a step is to be computed. Raises UserError if nothing fits."""
    if settings.memory is None:
        return settings
    ask = Predictor(task, example(data, settings, seed), device=device, dtype=dtype)
    return ask.fit(settings, parse_memory(settings.memory)).settings


def recomputed(task: Task, settings: Training) -> Recompute:
    """Make the blocks of the task's network recompute that `train.recompute` asks for."""
    network = network_of(task)
    if network is None:
        return Recompute([])
    count = count_of(len(blocks_of(network)), settings.recompute) if blocks_of(network) else int(settings.recompute > 0)
    return recompute(network, range(count))


def example(data: Data, settings: Training, seed: int = 0) -> Batch:
    """The first items of a run, enough to stand for a batch."""
    train = data.split("train")
    count = min(settings.batch // settings.accumulate, _LONGEST_FETCH)
    return train.fetch(Order(len(train), seed)(np.arange(count)))


def several(batch: Batch, n: int) -> Batch:
    """n items: those of the batch over and over."""
    chosen = [i % len(batch) for i in range(n)]
    return Batch(
        batch.media[torch.tensor(chosen)],
        {
            name: column[torch.tensor(chosen)] if isinstance(column, torch.Tensor) else [column[i] for i in chosen]
            for name, column in batch.conditions.items()
        },
    )


def network_of(task: Task) -> Network | None:
    """The network that is trained, if there is one."""
    return next((module for module in task.model.modules() if isinstance(module, Network)), None)


def gib(count: float) -> str:
    """Bytes in GiB, or in MiB if they are few."""
    return f"{count / GIB:.1f} GiB" if count >= GIB else f"{count / (1 << 20):.0f} MiB"


# ---------------------------------------------------------------- devices and errors


def room(device: torch.device) -> int | None:
    """Bytes that a prediction may come to on this device: what other processes leave, less 10%. None if it can't be asked."""
    if device.type == "cpu":
        available = free_memory()
        return None if available is None else int(SAFE * available)
    if device.type != "cuda":
        return None
    free, _ = torch.cuda.mem_get_info(device)
    return int(SAFE * (free + torch.cuda.memory_reserved(device)))


def remedies(predictor: Predictor, settings: Training, limit: int) -> str:
    """`set train.recompute=0.5 (60 GiB) or train.accumulate=2 (52 GiB)`: what would fit, one change if one does."""
    found = []
    blocks = predictor.fewest_blocks(settings, limit)
    if blocks is not None:
        found.append((f"train.recompute={_share(blocks.settings.recompute)}", blocks.memory))
    parts = predictor.fewest_parts(settings, limit)
    if parts is not None:
        found.append((f"train.accumulate={parts.settings.accumulate}", parts.memory))
    if not found:
        try:
            both = predictor.fit(settings, limit)
        except UserError as error:
            if not predictor.cuda:  # there is no other memory to put anything in
                return "use a smaller network: one sample at a time with every block recomputed is too much as well"
            return str(error).partition(": ")[2]
        s = both.settings
        found.append((f"train.recompute={_share(s.recompute)} and train.accumulate={s.accumulate}", both.memory))
    return "set " + " or ".join(f"{change} ({gib(memory.total)})" for change, memory in found)


def explain_oom(task: Task, settings: Training, batch: Batch, *, device: torch.device, dtype: torch.dtype) -> str:
    """One sentence after `torch.OutOfMemoryError`: what a step needs, what the device has, and the setting to change.

    settings: as the step was computed. batch: any real items.
    """
    predictor = Predictor(task, batch, device=device, dtype=dtype)
    asked = f"a step with train.batch={settings.batch}" + (
        f" and train.accumulate={settings.accumulate}" if settings.accumulate > 1 else ""
    )
    try:
        need = predictor(settings).total
        # A step that should have fitted and did not: the memory is in pieces, or something else takes some of it.
        limit = min(room(device) or need, int(SAFE * need))
        return f"{device_in_words(device)} is out of memory: {asked} needs about {gib(need)}; " + remedies(
            predictor, settings, limit
        )
    except SfumatoError:
        return f"{device_in_words(device)} is out of memory in {asked}; set train.accumulate={next_divisor(settings)}"


def explain_sampling_oom(model: Model, batch: int, *, device: torch.device, dtype: torch.dtype) -> str:
    """The same for sampling: which batch fits."""
    need = sampling_memory(model, batch, device=device, dtype=dtype)
    limit = min(room(device) or need, int(SAFE * need))
    said = f"{device_in_words(device)} is out of memory: {batch} samples at once need about {gib(need)}"
    smaller = batch
    while smaller > 1:
        smaller //= 2
        if (fits := sampling_memory(model, smaller, device=device, dtype=dtype)) <= limit:
            return f"{said}; set batch={smaller} ({gib(fits)})"
    return f"{said}, and one alone does not fit; use a device with more memory, or dtype=bf16"


def sampling_memory(model: Model, n: int, *, device: torch.device | str, dtype: torch.dtype) -> int:
    """Bytes that a step of sampling n at once needs at most, guided: the network sees 2 n."""
    cuda = torch.device(device).type == "cuda"
    thin = on_meta(model).eval()
    alive, rules = Alive(), Rules(torch.float32, cuda)
    weights = alive.know(_all(thin))
    size = dtype.itemsize / 4  # of weights and activations, both in `dtype`
    with pretending(), torch.no_grad(), alive, rules:
        x = [torch.empty(n, *model.codec.shape, device=META) for _ in range(4)]  # x_t, estimates of a multistep solver
        cond = None if thin.conditioner is None else thin.conditioner.null(2 * n)
        thin.denoiser(torch.cat([x[0], x[0]]), torch.full((2 * n,), 0.5, dtype=torch.float64), cond)
    return int(size * (weights + alive.peak)) + (_WORKSPACE if cuda else 0)


def device_in_words(device: torch.device) -> str:
    """`cuda:0 (NVIDIA H100, 79.1 GiB, 3.0 GiB of it taken by other processes)`."""
    if device.type != "cuda":
        return str(device)
    free, total = torch.cuda.mem_get_info(device)
    others = total - free - torch.cuda.memory_reserved(device)
    taken = f", {gib(others)} of it taken by others" if others > GIB else ""
    return f"{device} ({torch.cuda.get_device_name(device)}, {gib(total)}{taken})"


def next_divisor(settings: Training) -> int:
    """The next larger number of parts that a batch can be computed in."""
    more = range(settings.accumulate + 1, settings.batch + 1)
    return next((n for n in more if settings.batch % n == 0), settings.batch)


def _all(module: nn.Module) -> list[torch.Tensor]:
    return [*module.parameters(), *module.buffers()]


def _share(share: float) -> str:
    """Rounded up to two digits, so that it is at least as many blocks."""
    return f"{min(1.0, int(share * 100 + 0.999999) / 100):g}"
