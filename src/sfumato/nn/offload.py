"""Weights of a network's blocks in the host's memory: each visits the device while it is computed with."""

from __future__ import annotations

import copy
import functools
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from types import TracebackType
from typing import Any, final

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from sfumato.errors import UserError
from sfumato.nn.recompute import blocks_of

_GRAIN = 512  # bytes to which tensors are aligned on the device, as its allocator does


@final
class Offload:
    """Keeps the weights of `network.blocks` in the host's memory until `remove`, or the end of a `with`.

    The rest of the network moves to `device`; so does a block's weight while it is computed with, and the next block's is on
    its way meanwhile, on a stream of its own. A linear layer outside the blocks that is larger than any of them (the
    modulation of a transformer) is computed in rows no larger than a block. So the weights take the memory of two blocks and
    of the small rest; an evaluation takes as long as its computation or the transfer of all weights over the bus,
    whichever is longer. Where weights lie in the host's memory it is pinned if the device is a GPU.

    For evaluation only: a pass with gradients is a UserError, and so is a network without blocks. A deep copy of the network
    is without this. After `remove` the weights stay where they are: the blocks' on the host.
    """

    def __init__(self, network: nn.Module, device: torch.device | str) -> None:
        self.device = torch.device(device)
        check_offload(network)
        blocks, stay = blocks_of(network), next(network.parameters())  # the first says where the network computes
        away = [[t for t in _tensors(block) if t is not stay] for block in blocks]
        most = max(sum(map(_room, part)) for part in away)
        inside = {id(module) for block in blocks for module in block.modules()}
        wide = [
            module
            for module in network.modules()
            if type(module) is nn.Linear
            and id(module) not in inside
            and module.weight is not stay
            and sum(map(_room, _tensors(module))) > most
        ]
        self._changed: list[nn.Module] = [*wide, *blocks]
        far = [t for part in away for t in part] + [t for module in wide for t in _tensors(module)]
        _move(network, self.device, {id(t) for t in far})
        for t in {id(t): t for t in far}.values():
            t.data = _pinned(t.data, self.device)
        rows = [_in_rows(module, most) for module in wide]
        self._travel = _Travel(
            [part for parts in rows for part in parts] + [[t.data for t in p] for p in away], self.device
        )
        first = 0
        for module, parts in zip(wide, rows):
            module.__dict__["forward"] = _Rows(module, self._travel, range(first, first + len(parts)))
            first += len(parts)
        for i, (block, part) in enumerate(zip(blocks, away), first):
            block.__dict__["forward"] = _Visit(block, self._travel, i, part)

    def __enter__(self) -> Offload:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.remove()

    def remove(self) -> None:
        """Let the network compute with its weights where they lie: those of the blocks on the host."""
        for module in self._changed:
            module.__dict__.pop("forward", None)
        self._changed = []
        self._travel.close()


def check_offload(network: nn.Module) -> None:
    """Raise UserError unless the network has blocks, each with a forward pass of its class."""
    name = getattr(network, "kind", "") or type(network).__name__
    if not blocks_of(network):
        raise UserError(f"the network '{name}' has no list `blocks` to keep away from the device; leave offload out")
    if any(type(t.data) is not Tensor for t in _tensors(network)):
        raise UserError(f"the network '{name}' has low-bit weights, which can't be offloaded; use one of the two")
    for block in blocks_of(network):
        if "forward" in block.__dict__ or getattr(block, "_compiled_call_impl", None) is not None:
            raise UserError(
                f"blocks of the network '{name}' are compiled, recomputed or offloaded already; load it anew for offload"
            )


@contextmanager
def offloaded(network: nn.Module, device: torch.device | str) -> Iterator[None]:
    """Inside, `Offload`; afterwards every weight is back where it was."""
    before = [(t, t.device) for t in _tensors(network)]
    try:
        with Offload(network, device):
            yield
    finally:
        for t, place in before:
            t.data = t.data.to(place)


def _tensors(module: nn.Module) -> list[Tensor]:
    return [*module.parameters(), *module.buffers()]


def _room(t: Tensor) -> int:
    return -(-t.numel() * t.element_size() // _GRAIN) * _GRAIN


def _move(module: nn.Module, device: torch.device, besides: set[int]) -> None:
    for t in _tensors(module):
        if id(t) not in besides:
            t.data = t.data.to(device)


def _pinned(t: Tensor, device: torch.device) -> Tensor:
    """The numbers of t in the host's memory, in the same order there."""
    return torch.empty_like(t, device="cpu", pin_memory=device.type == "cuda").copy_(t)


def _in_rows(module: nn.Linear, most: int) -> list[list[Tensor]]:
    """(weight, bias) of a linear layer, cut into rows of at most `most` bytes."""
    count = -(-sum(map(_room, _tensors(module))) // most)
    weights = module.weight.data.chunk(count)
    biases: Sequence[Tensor | None] = [None] * len(weights) if module.bias is None else module.bias.data.chunk(count)
    return [[w] if b is None else [w, b] for w, b in zip(weights, biases)]


@final
class _Travel:
    """Two places on the device: one that is computed with, one that is filled with what was needed next the last time.

    Places are never given back in between and are filled in the order of events on the device, so the host waits for
    nothing, and memory does not depend on how far it is ahead.
    """

    def __init__(self, parts: list[list[Tensor]], device: torch.device) -> None:
        self._parts, self._device = parts, device
        self._cuda = device.type == "cuda"
        most = max(sum(map(_room, part)) for part in parts)
        self._places = [torch.empty(most, dtype=torch.uint8, device=device) for _ in range(2)]
        self._holds: list[int | None] = [None, None]
        self._at, self._last = 1, len(parts) - 1
        self._next = [(i + 1) % len(parts) for i in range(len(parts))]
        self._side: Any = None
        self._came: list[Any] = [None, None]  # events: a place is filled, and what was computed with it is done
        self._left: list[Any] = [None, None]
        if self._cuda:
            self._side = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
            self._came, self._left = ([torch.cuda.Event() for _ in range(2)] for _ in range(2))  # type: ignore[no-untyped-call]
            # what had the memory of the places before may still be computed with
            self._side.wait_stream(torch.cuda.current_stream(device))

    @contextmanager
    def visit(self, part: int) -> Iterator[list[Tensor]]:
        """The tensors of a part on the device, for what is computed inside."""
        if torch.is_grad_enabled():
            raise UserError(
                "gradients need weights that stay on the device, and these are offloaded; set offload=false, "
                "or compute under torch.no_grad()"
            )
        self._next[self._last], self._last = part, part
        if part not in self._holds:
            self._fetch(part, 1 - self._at)
        self._at = place = self._holds.index(part)
        if self._cuda:
            torch.cuda.current_stream(self._device).wait_event(self._came[place])
        if (coming := self._next[part]) not in self._holds:
            self._fetch(coming, 1 - place)
        try:
            yield self._views(part, place)
        finally:
            if self._cuda:
                self._left[place].record(torch.cuda.current_stream(self._device))

    def close(self) -> None:
        """Wait for what is under way and give the places back."""
        if self._cuda:
            torch.cuda.synchronize(self._device)
        self._places, self._parts = [], []

    def _fetch(self, part: int, place: int) -> None:
        side: AbstractContextManager[Any] = torch.cuda.stream(self._side) if self._cuda else nullcontext()
        if self._cuda:
            self._side.wait_event(self._left[place])  # of what was computed there before
        with side:
            for here, there in zip(self._views(part, place), self._parts[part]):
                here.copy_(there, non_blocking=True)
            if self._cuda:
                self._came[place].record(self._side)
        self._holds[place] = part

    def _views(self, part: int, place: int) -> list[Tensor]:
        """A part's tensors as they lie in a place: each as in the host's memory."""
        views, at = [], 0
        for t in self._parts[part]:
            flat = self._places[place][at : at + t.numel() * t.element_size()].view(t.dtype)
            views.append(flat.as_strided(t.shape, t.stride()))
            at += _room(t)
        return views


@final
class _Visit:
    """The forward pass of a block whose weights come for it."""

    def __init__(self, block: nn.Module, travel: _Travel, part: int, tensors: list[Tensor]) -> None:
        self._block, self._travel, self._part, self._tensors = block, travel, part, tensors

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        home = [t.data for t in self._tensors]
        with self._travel.visit(self._part) as here:
            try:
                for t, data in zip(self._tensors, here):
                    t.data = data
                return type(self._block).forward(self._block, *args, **kwargs)
            finally:
                for t, data in zip(self._tensors, home):
                    t.data = data

    def __deepcopy__(self, memo: dict[int, Any]) -> Callable[..., Any]:
        return _plain(self._block, memo)


@final
class _Rows:
    """The forward pass of a linear layer whose weights come for it, some rows at a time."""

    def __init__(self, module: nn.Linear, travel: _Travel, parts: range) -> None:
        self._module, self._travel, self._parts = module, travel, parts

    def __call__(self, x: Tensor) -> Tensor:
        made = []
        for part in self._parts:
            with self._travel.visit(part) as here:
                made.append(F.linear(x, *here))
        return torch.cat(made, -1)

    def __deepcopy__(self, memo: dict[int, Any]) -> Callable[..., Any]:
        return _plain(self._module, memo)


def _plain(module: nn.Module, memo: dict[int, Any]) -> Callable[..., Any]:
    """The usual forward pass of the copy of a module."""
    return functools.partial(type(module).forward, copy.deepcopy(module, memo))
