"""A network that a GPU replays from a recorded graph: one launch an evaluation instead of hundreds."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import fields
from typing import Any, NamedTuple, final

import torch
from torch import Tensor, nn

from sfumato.core.cond import Cond
from sfumato.core.network import Network
from sfumato.nn.recompute import compile_blocks

_WARM_UP = 2  # evaluations before recording: libraries choose their kernels in them
_MOST = 8  # recorded shapes; the one that was used longest ago makes way


class _Recorded(NamedTuple):
    """A graph, what it reads and what it gives; `cond` is the condition whose tensors lie in the inputs now."""

    graph: torch.cuda.CUDAGraph
    inputs: dict[str, Tensor]
    output: Tensor
    last: dict[str, tuple[Tensor, int]]


@final
class Captured(Network):
    """Calls `network` on a GPU through a CUDA graph for each shape of its input, recorded at the first call of that shape.

    Equal to the network bit for bit. Where gradients are wanted, or off the GPU, it is the network. Conditions are copied in
    when they change, not at every evaluation. Recording waits for the device, replaying does not. Weights may change in
    place; moving or casting the network needs `forget`. compiled: also compile the repeated blocks of networks that gain
    from it, which takes up to a minute, once.
    """

    def __init__(self, network: Network, *, compiled: bool = False) -> None:
        super().__init__()
        self.network = network
        if compiled:
            regional(network)
        self._graphs: OrderedDict[object, _Recorded] = OrderedDict()
        self._pool: Any = None

    def forget(self) -> None:
        """Throw away what is recorded."""
        self._graphs.clear()
        self._pool = None

    def perturbed(self, blocks: Sequence[int] | None = None) -> Network:
        """The network's own, not recorded."""
        changed: Network = self.network.perturbed(blocks)  # type: ignore[operator]
        return changed

    def forward(self, x: Tensor, noise: Tensor, cond: Cond | None = None) -> Tensor:
        if not x.is_cuda or torch.is_grad_enabled() or torch.compiler.is_compiling():
            plain: Tensor = self.network(x, noise, cond)
            return plain
        given = {"x": x, "noise": noise}
        if cond is not None:
            given |= {f.name: v for f in fields(cond) if (v := getattr(cond, f.name)) is not None}
        key = tuple((name, v.shape, v.dtype) for name, v in given.items())
        if key not in self._graphs:
            if len(self._graphs) >= _MOST:
                self._graphs.popitem(last=False)
            self._graphs[key] = self._record(given)
        self._graphs.move_to_end(key)
        recorded = self._graphs[key]
        for name, value in given.items():
            # a step's x lies where the last one's did: only what stays is worth recognising
            known = recorded.last.get(name)
            if known is None or known[0] is not value or known[1] != value._version:
                recorded.inputs[name].copy_(value)
                if name not in ("x", "noise"):
                    recorded.last[name] = (value, value._version)
        recorded.graph.replay()
        return recorded.output.clone()

    def _record(self, given: dict[str, Tensor]) -> _Recorded:
        inputs = {name: v.clone() for name, v in given.items()}
        x, noise = inputs["x"], inputs["noise"]
        parts = {name: v for name, v in inputs.items() if name not in ("x", "noise")}
        cond = Cond(**parts) if parts else None
        with quickest_kernels():
            side = torch.cuda.Stream(x.device)  # type: ignore[no-untyped-call]
            side.wait_stream(torch.cuda.current_stream(x.device))
            with torch.cuda.stream(side):
                for _ in range(_WARM_UP):
                    self.network(x, noise, cond)
            torch.cuda.current_stream(x.device).wait_stream(side)
            graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(graph, pool=self._pool):
                output = self.network(x, noise, cond)
        self._pool = graph.pool()
        return _Recorded(graph, inputs, output, {})


@contextmanager
def quickest_kernels() -> Iterator[None]:
    """Inside, cuDNN tries its kernels for every shape it meets first and keeps the quickest."""
    before = torch.backends.cudnn.benchmark
    torch.backends.cudnn.benchmark = True
    try:
        yield
    finally:
        torch.backends.cudnn.benchmark = before


def regional(network: nn.Module | None, *, hooked: bool = False) -> None:
    """Compile the repeated blocks of a network that gains from it: one compilation for all. hooked: see `compile_blocks`."""
    if isinstance(network, Network) and network.regional:
        compile_blocks(network, hooked=hooked, dynamic=False)
