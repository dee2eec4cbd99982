"""Fused parts for a GPU: each equals a plain one within rounding (tests/nn/test_fused.py), with fewer passes over memory.

They are taken for networks of half precision on CUDA where Triton is installed; everywhere else the plain parts run.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from importlib.util import find_spec

import torch
from torch import Tensor, nn
from torch.autograd import forward_ad

_HALF = (torch.bfloat16, torch.float16)
_PLAIN = (Tensor, nn.Parameter)  # not a low-bit weight, which is one that holds others
_off = 0
_pretended = 0
_interpreted = False  # tests run the kernels on the CPU
_TRITON = find_spec("triton") is not None


@contextmanager
def plain() -> Iterator[None]:
    """Inside, no fused part is used."""
    global _off
    _off += 1
    try:
        yield
    finally:
        _off -= 1


@contextmanager
def pretended() -> Iterator[None]:
    """Inside, fused parts take tensors on `meta` as they would a GPU's, for predictions of memory."""
    global _pretended
    _pretended += 1
    try:
        yield
    finally:
        _pretended -= 1


def has_triton() -> bool:
    """Whether kernels can be compiled here."""
    return _TRITON


def fits(x: Tensor, weight: Tensor) -> bool:
    """Whether a fused part takes x (B, C, *S) with weights of this type: half precision on CUDA, first derivatives only."""
    if _off or type(weight) not in _PLAIN or x.dtype != weight.dtype or torch.compiler.is_compiling():
        return False
    half = x.dtype in _HALF and ((x.is_cuda and has_triton()) or (x.is_meta and _pretended > 0))
    if not (_interpreted or half):
        return False
    if forward_ad.unpack_dual(x).tangent is not None:  # type: ignore[no-untyped-call]
        return False
    return torch._C._functorch.maybe_current_level() is None


def takes_tokens(x: Tensor, *beside: Tensor) -> bool:
    """Whether `sfumato.nn.fused.tokens` takes tokens x (B, N, C) and what modulates them: as `fits`, also in a compiler."""
    if _off or x.ndim != 3 or any(v.dtype != x.dtype for v in beside):
        return False
    half = x.dtype in _HALF and ((x.is_cuda and _TRITON) or (x.is_meta and _pretended > 0))
    if not (_interpreted or half):
        return False
    if torch.compiler.is_compiling():
        return True
    if any(forward_ad.unpack_dual(v).tangent is not None for v in (x, *beside)):  # type: ignore[no-untyped-call]
        return False
    return torch._C._functorch.maybe_current_level() is None


def gate_norm(
    x: Tensor, branch: Tensor | None, gate: Tensor | None, scale: Tensor | None, shift: Tensor | None
) -> tuple[Tensor, Tensor]:
    """(x + gate branch, LN of it (1 + scale) + shift), for what `takes_tokens`; a part that is not asked for is empty."""
    from sfumato.nn.fused import tokens

    out, y, _ = tokens.gate_norm(x, branch, gate, scale, shift)
    return out, y


def bias_gelu(x: Tensor, bias: Tensor) -> Tensor:
    """GELU(x + bias) in its tanh form, of tokens that `takes_tokens`."""
    from sfumato.nn.fused import tokens

    out: Tensor = tokens.bias_gelu(x, bias)
    return out


def res_block(
    x: Tensor, skip: Tensor | None, mod: Tensor, norms: tuple[nn.GroupNorm, nn.GroupNorm], convs: Sequence[nn.Module],
    shortcut: nn.Linear | None, drop: float = 0.0,
) -> Tensor:  # fmt: skip
    """A residual block of [x | skip] as one function: see `sfumato.nn.fused.blocks.ResBlock`."""
    from sfumato.nn.fused.blocks import ResBlock

    (one, two), (first, second) = norms, convs
    trained = [p for part in (*norms, *convs, shortcut) if part is not None for p in part.parameters()]
    out: Tensor = ResBlock.apply(  # type: ignore[no-untyped-call]
        x, skip, mod, one.weight, one.bias, first.weight, first.bias, two.weight, two.bias, second.weight, second.bias,
        None if shortcut is None else shortcut.weight, None if shortcut is None else shortcut.bias,
        (one.num_groups, two.num_groups), one.eps, drop, _no_gradients(x, skip, mod, *trained),
    )  # fmt: skip
    return out


def group_norm(norm: nn.GroupNorm, x: Tensor, act: bool) -> Tensor:
    """GN(x), or SiLU(GN(x))."""
    from sfumato.nn.fused.blocks import GroupNorm

    out: Tensor = GroupNorm.apply(x, norm.weight, norm.bias, norm.num_groups, norm.eps, act)  # type: ignore[no-untyped-call]
    return out


def linear(module: nn.Linear, x: Tensor, beside: Tensor | None = None) -> Tensor:
    """beside + module(x) for tokens (B, N, K)."""
    from sfumato.nn.fused.blocks import Linear

    rows = None if beside is None else beside.flatten(0, 1)
    out: Tensor = Linear.apply(rows, x.flatten(0, 1), module.weight, module.bias)  # type: ignore[no-untyped-call]
    return out.view(*x.shape[:2], -1)


def conv(module: nn.Conv2d | nn.Conv3d, x: Tensor) -> Tensor:
    """module(x), padded by half its kernel."""
    from sfumato.nn.fused import blocks

    weight, bias = module.weight, module.bias
    if _no_gradients(x, weight) and bias is not None and blocks.sharable(x, weight):
        return blocks.conv_of_few(x, weight, bias, module.stride, (1, 1))
    out: Tensor = blocks.Conv.apply(x, weight, bias, module.stride)  # type: ignore[no-untyped-call]
    return out


def conv_enlarged(module: nn.Conv2d | nn.Conv3d, x: Tensor, up: Sequence[int]) -> Tensor | None:
    """module of x enlarged `up` times by nearest neighbour in one pass; None where that does not pay."""
    from sfumato.nn.fused import blocks

    if module.bias is None or not _no_gradients(x, module.weight) or not blocks.sharable(x, module.weight, up):
        return None
    return blocks.conv_of_few(x, module.weight, module.bias, module.stride, up)


def _no_gradients(*used: Tensor | None) -> bool:
    """Whether nothing is kept for a backward pass."""
    return not (torch.is_grad_enabled() and any(t is not None and t.requires_grad for t in used))
