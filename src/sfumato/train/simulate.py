"""A step without a device: shapes instead of numbers, and a count of the bytes that are alive.

Tensors lie on torch's `meta` device: an operation gives a tensor of the right shape, type and strides and computes nothing.
Two modes stand in for the device. `Rules` makes its choices (what autocast casts, which attention and norms keep what),
`Alive` counts storages as the GPU's allocator would, from the operation that makes them to the last reference's end.
"""

from __future__ import annotations

import copy
import weakref
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, ExitStack, contextmanager
from typing import Any, TypeVar, final

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map_only

from sfumato.nn import fused

M = TypeVar("M", bound=nn.Module)

META = torch.device("meta")
_GRAIN = 512  # bytes that the CUDA allocator rounds up to

# Contexts that are entered while a step is simulated. Operators of our own that run on a GPU only (and so would not be chosen
# for tensors on `meta`) register here what makes networks choose them; they need an implementation for `meta` then.
PRETENDING: list[Callable[[], AbstractContextManager[Any]]] = [fused.pretended]


def on_meta(module: M) -> M:
    """A copy of a module whose parameters and buffers have shapes and no numbers; nothing is copied."""
    memo: dict[int, Tensor] = {}
    for tensor in (*module.parameters(), *module.buffers()):
        empty = torch.empty_like(tensor, device=META)
        memo[id(tensor)] = nn.Parameter(empty, tensor.requires_grad) if isinstance(tensor, nn.Parameter) else empty
    return copy.deepcopy(module, memo)


def rounded(nbytes: int) -> int:
    """Bytes that the device's allocator takes for a tensor."""
    return -(-nbytes // _GRAIN) * _GRAIN


@final
class Alive(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Counts the bytes of all `meta` storages that operations make while it is on.

    now: alive at this moment. gradients: of them, counted by `watch`. peak: the most that were alive, with what an operation
    needs inside itself and gives back; gradients_then: `gradients` at that moment.
    """

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.now = self.gradients = 0
        self.peak = self.gradients_then = 0
        self._known: set[int] = set()

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        return False  # or the mode imports torch's compiler, a second

    def know(self, tensors: Iterable[Tensor]) -> int:
        """Take tensors that are there already as counted elsewhere; returns their bytes, shared storages once."""
        total = 0
        for tensor in tensors:
            storage = tensor.untyped_storage()
            if tensor.device.type == "meta" and id(storage) not in self._known:
                self._known.add(id(storage))
                weakref.finalize(storage, self._known.discard, id(storage))
                total += rounded(storage.nbytes())
        return total

    def watch(self, parameters: Iterable[nn.Parameter]) -> None:
        """Count gradients as they come to these parameters."""
        for p in parameters:
            waiting = [rounded(p.numel() * p.element_size())]
            p.register_post_accumulate_grad_hook(lambda _, waiting=waiting: self._came(waiting))  # type: ignore[no-untyped-call]

    def _came(self, waiting: list[int]) -> None:
        self.gradients += waiting.pop() if waiting else 0

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        out = func(*args, **(kwargs or {}))
        relaid = _RELAID.get(func)
        if relaid is not None:
            out = relaid(out, *args)
        for leaf in tree_leaves(out):
            if isinstance(leaf, Tensor) and leaf.device.type == "meta":
                self._count(leaf.untyped_storage())
        inside = _INSIDE.get(func)
        at = self.now + (inside(*args) if inside is not None else 0)
        if at > self.peak:
            self.peak, self.gradients_then = at, self.gradients
        return out

    def _count(self, storage: torch.UntypedStorage) -> None:
        key = id(storage)
        if key in self._known:
            return
        size = rounded(storage.nbytes())
        self._known.add(key)
        self.now += size
        weakref.finalize(storage, self._free, key, size)

    def _free(self, key: int, size: int) -> None:
        self._known.discard(key)
        self.now -= size


# ---------------------------------------------------------------- what operations need inside themselves


def _copy_of(x: Tensor, like: Tensor) -> int:
    """Bytes of a copy of x in the memory format of a kernel, if x is not in it."""
    layout = _channels_last(like)
    return 0 if x.is_contiguous(memory_format=layout) else rounded(x.numel() * x.element_size())


def _convolution(x: Tensor, weight: Tensor, *_: Any) -> int:
    return _copy_of(x, weight)


def _convolution_backward(gradient: Tensor, x: Tensor, weight: Tensor, *_: Any) -> int:
    return _copy_of(gradient, weight) + _copy_of(x, weight)


_INSIDE: dict[Any, Callable[..., int]] = {
    torch.ops.aten.convolution.default: _convolution,
    torch.ops.aten.convolution_backward.default: _convolution_backward,
}


# ---------------------------------------------------------------- memory formats that `meta` does not know


def _channels_last(x: Tensor) -> torch.memory_format:
    """Of a kernel that is given x: channels last if x is, else the plain one."""
    layout = {4: torch.channels_last, 5: torch.channels_last_3d}.get(x.ndim, torch.contiguous_format)
    return layout if x.is_contiguous(memory_format=layout) else torch.contiguous_format


def _laid(out: Tensor | None, *like: Tensor) -> Tensor | None:
    """`out` in the memory format of a kernel that prefers channels last if one of `like` is."""
    layouts = [_channels_last(x) for x in like]
    layout = next((found for found in layouts if found != torch.contiguous_format), torch.contiguous_format)
    if out is None or not out.is_meta or out.is_contiguous(memory_format=layout):
        return out
    return torch.empty_like(out, memory_format=layout)


def _relaid_backward(out: Any, gradient: Tensor, x: Tensor, *rest: Any) -> Any:
    like = [x, *(r for r in rest[:1] if isinstance(r, Tensor) and r.ndim == x.ndim)]
    return (_laid(out[0], *like), _laid(out[1], *like) if len(like) > 1 else out[1], out[2])


_RELAID: dict[Any, Callable[..., Any]] = {
    torch.ops.aten.convolution.default: lambda out, x, weight, *_: _laid(out, x, weight),
    torch.ops.aten.convolution_backward.default: _relaid_backward,
    torch.ops.aten.native_group_norm.default: lambda out, x, *_: (_laid(out[0], x), *out[1:]),
    torch.ops.aten.native_group_norm_backward.default: _relaid_backward,
}


# ---------------------------------------------------------------- a GPU's choices


class _Flash(torch.autograd.Function):
    """Attention that keeps q, k, v, its output and one number a row: no matrix of all pairs."""

    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        batch, heads, n, _ = q.shape
        out = torch.empty_like(q)  # values are as wide as queries in all of our networks; laid as those are
        ctx.save_for_backward(q, k, v, out, q.new_empty(batch, heads, n, dtype=torch.float32))
        return out

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        q, k, v, out, _ = ctx.saved_tensors
        gradient = gradients[0].contiguous() if gradients[0].stride(-1) != 1 else gradients[0]
        wide = q.new_empty(q.shape, dtype=torch.float32)  # the gradient of q is summed in float32
        made = torch.empty_like(q), torch.empty_like(k), torch.empty_like(v)
        del wide, gradient, out
        return made


class _RmsNorm(torch.autograd.Function):
    """The fused kernel: keeps x, the gain and one number a row."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, gain: Tensor) -> Tensor:
        ctx.save_for_backward(x, gain, x.new_empty(x.shape[:-1], dtype=torch.float32))
        return x.new_empty(x.shape)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, Tensor]:
        x, gain, _ = ctx.saved_tensors
        return torch.empty_like(x), torch.empty_like(gain)


# What torch.autocast casts on CUDA (the lists of torch's documentation, "CUDA Ops that can autocast"), as far as networks
# call it from Python.
_HALF = {
    *(F.linear, F.conv1d, F.conv2d, F.conv3d, F.conv_transpose1d, F.conv_transpose2d, F.conv_transpose3d, F.bilinear),
    *(F.scaled_dot_product_attention, torch.matmul, torch.mm, torch.bmm, torch.addmm, torch.baddbmm, torch.einsum),
    *(Tensor.matmul, Tensor.mm, Tensor.bmm, Tensor.__matmul__, Tensor.__rmatmul__, Tensor.addmm, Tensor.baddbmm),
}
_SINGLE = {
    *(
        F.layer_norm,
        F.group_norm,
        F.softmax,
        F.log_softmax,
        F.mse_loss,
        F.l1_loss,
        F.smooth_l1_loss,
        F.softplus,
    ),
    *(
        F.interpolate,
        torch.softmax,
        torch.log_softmax,
        torch.exp,
        torch.log,
        torch.pow,
        torch.rsqrt,
        torch.sum,
        torch.cumsum,
    ),
    *(Tensor.softmax, Tensor.exp, Tensor.log, Tensor.pow, Tensor.__pow__, Tensor.rsqrt, Tensor.sum, Tensor.cumsum),
    *(torch.logsumexp, Tensor.logsumexp, torch.reciprocal, Tensor.reciprocal, torch.prod, Tensor.prod),
}


@final
class Rules(TorchFunctionMode):
    """Runs torch's functions on `meta` as a device would: autocast to `dtype` if that is not float32, and fused kernels.

    cuda: by a GPU's rules, else a CPU's, which casts less. Casts of weights are kept from `begin` to `end`, a forward pass.
    """

    def __init__(self, dtype: torch.dtype, cuda: bool) -> None:
        super().__init__()
        self._dtype, self._cuda = dtype, cuda
        self._casts: dict[int, Tensor] = {}
        self._keeping = False

    def begin(self) -> None:
        """A forward pass begins."""
        self._keeping = True

    def end(self) -> None:
        """The forward pass is over: casts that nothing saved are freed, and new ones (of recomputed blocks) are not kept."""
        self._casts.clear()
        self._keeping = False

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        kwargs = dict(kwargs or {})
        if not any(isinstance(leaf, Tensor) and leaf.device.type == "meta" for leaf in tree_leaves((args, kwargs))):
            return func(*args, **kwargs)
        if self._dtype != torch.float32 and func in _HALF:
            args, kwargs = tree_map_only(Tensor, self._half, (args, kwargs))
        elif self._dtype != torch.float32 and self._cuda and func in _SINGLE:
            args, kwargs = tree_map_only(Tensor, _single, (args, kwargs))
        if func is F.scaled_dot_product_attention and args[0].shape[1] == args[1].shape[1]:
            return _Flash.apply(*args[:3])  # type: ignore[no-untyped-call]
        if self._cuda and func is F.rms_norm:
            gain = kwargs.get("weight", args[2] if len(args) > 2 else None)
            if gain is not None and gain.dtype == args[0].dtype:
                return _RmsNorm.apply(args[0], gain)  # type: ignore[no-untyped-call]
        if not self._cuda and func is F.group_norm:  # on all but a CPU it makes its input contiguous first
            return _group_norm(*args, **kwargs)
        return func(*args, **kwargs)

    def _half(self, x: Tensor) -> Tensor:
        if x.dtype not in (torch.float32, torch.float16, torch.bfloat16) or x.dtype == self._dtype:
            return x
        if not (x.is_leaf and x.requires_grad and self._keeping and torch.is_grad_enabled()):
            return x.to(self._dtype)
        if id(x) not in self._casts:
            self._casts[id(x)] = x.to(self._dtype)
        return self._casts[id(x)]


def _group_norm(
    x: Tensor, groups: int, weight: Tensor | None = None, bias: Tensor | None = None, eps: float = 1e-5
) -> Tensor:
    """The operation behind `F.group_norm`, on x as it lies in memory."""
    batch, channels = x.shape[:2]
    return torch.native_group_norm(x, weight, bias, batch, channels, x[0, 0].numel(), groups, eps)[0]


def _single(x: Tensor) -> Tensor:
    return x.float() if x.dtype in (torch.float16, torch.bfloat16) else x


@contextmanager
def pretending() -> Iterator[None]:
    """Everything that `PRETENDING` asks for."""
    with ExitStack() as stack:
        for make in PRETENDING:
            stack.enter_context(make())
        yield
