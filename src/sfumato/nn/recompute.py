"""Blocks that keep no activations: their forward pass runs a second time when the backward pass needs them.

Chen et al., "Training Deep Nets with Sublinear Memory Cost", 2016. Memory: what goes into each block instead of all that is
computed inside; time: one more forward pass of the blocks, a third of a step if it is all of them.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Collection, Sequence
from contextlib import AbstractContextManager, nullcontext
from types import TracebackType
from typing import Any, final

import torch
from torch import nn

from sfumato.errors import UserError

Again = Callable[[], AbstractContextManager[Any]]

_DROPOUTS = (nn.Dropout, nn.Dropout1d, nn.Dropout2d, nn.Dropout3d, nn.AlphaDropout, nn.FeatureAlphaDropout)


def blocks_of(network: nn.Module) -> Sequence[nn.Module]:
    """`network.blocks`, the repeated blocks in the order in which they run; none if it does not tell."""
    found: Any = getattr(network, "blocks", ())
    return [block for block in found if isinstance(block, nn.Module)]


def count_of(blocks: int, share: float) -> int:
    """How many of `blocks` a share is, rounded up."""
    return math.ceil(share * blocks - 1e-9)


def first_blocks(network: nn.Module, share: float) -> range:
    """The first of the network's blocks, at least `share` of them.

    The first, because theirs are the activations that are kept longest: the last block's would be needed again at once.
    """
    return range(count_of(len(blocks_of(network)), share))


@final
class Recompute:
    """Blocks of a network that are recomputed, until `remove` or the end of a `with`.

    capturable: whether such a step can be recorded in a CUDA graph: dropout must see the same random numbers twice, and
    setting a generator back is not possible there.
    """

    def __init__(self, blocks: Sequence[nn.Module], again: Again = nullcontext) -> None:
        self._blocks = list(blocks)
        wrapped = [_Twice(block, again) for block in self._blocks]
        for block, twice in zip(self._blocks, wrapped):
            block.forward = twice  # an attribute of the object, found before the method of its class
        self.capturable = not any(twice.random for twice in wrapped)

    def __len__(self) -> int:
        return len(self._blocks)

    def __enter__(self) -> Recompute:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.remove()

    def remove(self) -> None:
        """Let the blocks keep their activations again."""
        for block in self._blocks:
            block.__dict__.pop("forward", None)
        self._blocks = []


def recompute(network: nn.Module, indices: Collection[int], *, again: Again = nullcontext) -> Recompute:
    """Make the listed entries of `network.blocks` recompute their activations in the backward pass.

    Gradients are equal bit for bit, dropout (as a module) included; names of parameters stay. Evaluation and passes without
    gradients are as before. again: a context for the second run.
    Raises UserError if the network has no such blocks, or if one is recomputed already.
    """
    blocks = blocks_of(network)
    if indices and not blocks:
        name = getattr(network, "kind", "") or type(network).__name__
        raise UserError(f"the network '{name}' has no list `blocks` to recompute; set train.recompute=0")
    for i in indices:
        if not 0 <= i < len(blocks):
            raise UserError(
                f"block {i} can't be recomputed: the network has {len(blocks)} blocks, 0 to {len(blocks) - 1}"
            )
        if "forward" in blocks[i].__dict__:
            raise UserError(f"block {i} has a forward of its own, so it can't be recomputed; remove that first")
    return Recompute([blocks[i] for i in sorted(set(indices))], again)


def compile_blocks(network: nn.Module, *, hooked: bool = False, **options: Any) -> None:
    """`torch.compile` for each of the network's blocks; what is recomputed is compiled inside of the recomputation.

    hooked: blocks will get hooks, which stay outside (`fully_shard` gathers weights in them). Such a network can't be copied.
    """
    for block in blocks_of(network):
        own = block.__dict__.get("forward")
        if isinstance(own, _Twice):
            own.once = torch.compile(own.once, **options)
        elif hooked:
            block.forward = torch.compile(block.forward, **options)
        else:
            block.compile(**options)


@final
class _Twice:
    """The forward of a block that is recomputed. A deep copy of the block gets one of its own."""

    def __init__(self, block: nn.Module, again: Again) -> None:
        self.block, self.again = block, again
        self.once: Callable[..., Any] = functools.partial(type(block).forward, block)
        self.random = any(isinstance(m, _DROPOUTS) and m.p > 0 for m in block.modules())

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        if not (torch.is_grad_enabled() and self.block.training):
            return self.once(*args, **kwargs)
        from torch.utils.checkpoint import checkpoint

        more: dict[str, Any] = {}
        if self.again is not nullcontext:
            more["context_fn"] = lambda: (nullcontext(), self.again())
        return checkpoint(self.once, *args, use_reentrant=False, preserve_rng_state=self.random, **more, **kwargs)
