"""Small parts that the networks share: convolutions for 1, 2 and 3 dimensions, group norm, checks of the input.

Inside a network a field is (B, C, *S) in channels-last memory, and a 1-D field is a 2-D field of height 1: those are
the layouts for which every backend has its fastest convolutions, and in them (B, C, *S) to tokens (B, N, C) is a view.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from sfumato.core.cond import Cond, CondShape
from sfumato.errors import UserError
from sfumato.nn import fused

M = TypeVar("M", bound=nn.Module)
C = TypeVar("C", nn.Conv2d, nn.Conv3d)


def zero(module: M) -> M:
    """Set all parameters of a module to zero (the last layer of a residual branch starts as 'no change')."""
    for parameter in module.parameters():
        nn.init.zeros_(parameter)
    return module


def as_is(x: Tensor) -> AbstractContextManager[Any]:
    """Inside, autocast changes no types on x's device (on `meta` it does not exist)."""
    return nullcontext() if x.is_meta else torch.autocast(x.device.type, enabled=False)


def to_inner(x: Tensor) -> Tensor:
    """(B, C, *S) to the layout used inside: height 1 added to 1-D, channels-last memory."""
    if x.ndim == 3:
        x = x.unsqueeze(2)
    if x.shape[1] == 1:  # any layout of one channel counts as torch's own, and convolutions of it would go on in that
        return x.reshape(len(x), *x.shape[2:], 1).movedim(-1, 1)
    return x.contiguous(memory_format=torch.channels_last if x.ndim == 4 else torch.channels_last_3d)


def conv(dims: int, inputs: int, outputs: int, kernel: int = 3, stride: int = 1) -> nn.Conv2d | nn.Conv3d:
    """A convolution of `dims` dimensions for the inner layout, padded so that stride 1 keeps the size."""
    if dims == 3:
        return _channels_last(nn.Conv3d(inputs, outputs, kernel, stride, kernel // 2))
    shape, steps = (kernel, kernel), (stride, stride)
    if dims == 1:
        shape, steps = (1, kernel), (1, stride)
    return _channels_last(nn.Conv2d(inputs, outputs, shape, steps, (shape[0] // 2, shape[1] // 2)))


def _channels_last(made: C) -> C:
    layout = torch.channels_last if made.weight.ndim == 4 else torch.channels_last_3d
    made.weight = nn.Parameter(made.weight.detach().contiguous(memory_format=layout))
    return made


def apply_conv(module: nn.Conv2d | nn.Conv3d, x: Tensor) -> Tensor:
    """module(x) for a convolution of `conv`."""
    if fused.fits(x, module.weight):
        return fused.conv(module, x)
    out: Tensor = module(x)
    return out


def apply_linear(module: nn.Linear, x: Tensor, beside: Tensor | None = None) -> Tensor:
    """module(x), or beside + module(x): (B, N, K) to (B, N, width)."""
    if type(module) is nn.Linear and fused.fits(x, module.weight):  # an fp8 layer has an ordinary weight
        return fused.linear(module, x, beside)
    out: Tensor = module(x)
    return out if beside is None else beside + out


def gelu_linear(module: nn.Linear, x: Tensor) -> Tensor:
    """GELU(module(x)) in its tanh form. Without gradients on a GPU the product ends in it: no further pass.

    With them the bias is added where GELU is taken, and its gradient summed where GELU's is.
    """
    own = (
        type(module) is nn.Linear
        and type(module.weight) is nn.Parameter
        and module.bias is not None
        and module.weight.dtype == x.dtype
    )
    if own and x.is_cuda and not torch.is_grad_enabled():
        rows = torch._addmm_activation(module.bias, x.flatten(0, -2), module.weight.T, use_gelu=True)
        return rows.view(*x.shape[:-1], -1)
    if own and fused.takes_tokens(x, module.bias):
        return fused.bias_gelu(F.linear(x, module.weight), module.bias)
    return F.gelu(module(x), approximate="tanh")


def to_tokens(x: Tensor) -> Tensor:
    """(B, C, *S) to (B, N, C); no copy for channels-last memory."""
    return x.movedim(1, -1).flatten(1, -2)


def to_field(tokens: Tensor, size: Sequence[int]) -> Tensor:
    """(B, N, C) to (B, C, *size) in channels-last memory; no copy."""
    return tokens.reshape(len(tokens), *size, tokens.shape[-1]).movedim(-1, 1)


def norm_groups(channels: int, groups: int | None) -> int:
    """Groups of a group norm over `channels`; None takes at most 32, of at least 8 channels each.

    8 floats fill a vector register: with fewer in a group, torch's channels-last kernel on a CPU is 4 times slower.
    """
    if groups is None:
        return next(g for g in range(max(1, min(32, channels // 8)), 0, -1) if channels % g == 0)
    if channels % groups:
        raise UserError(f"groups = {groups} does not divide the {channels} channels of a layer; leave groups unset")
    return groups


def head_count(channels: int, head_dim: int | None) -> int:
    """Heads of an attention layer; None takes the widest head of at most 64 channels that divides them."""
    if head_dim is None:
        head_dim = next(d for d in range(min(64, channels), 0, -1) if channels % d == 0)
    if head_dim < 1 or channels % head_dim:
        options = ", ".join(str(d) for d in range(8, channels + 1) if channels % d == 0)
        raise UserError(
            f"head_dim = {head_dim} does not divide the {channels} channels of a level; use one of {options}"
        )
    return channels // head_dim


def check_shape(shape: Sequence[int], name: str) -> None:
    """A network is built for (C, L), (C, H, W) or (C, D, H, W), all at least 1."""
    if len(shape) not in (2, 3, 4) or min(shape, default=0) < 1:
        raise UserError(
            f"{name} takes data of shape (C, L), (C, H, W) or (C, D, H, W) with every size at least 1, not {tuple(shape)}"
            + ("; plain vectors are for network=mlp" if len(shape) == 1 else "")
        )


def check_positive(name: str, **settings: float) -> None:
    """Refuse settings below 1 by name."""
    for key, value in settings.items():
        if value < 1:
            raise UserError(f"{name}: {key} = {value} must be at least 1")


def check_input(x: Tensor, noise: Tensor, cond: Cond | None, shape: Sequence[int], needs: CondShape) -> None:
    """Raise a readable error when the input is not what the network was built for. Reads shapes only."""
    if x.ndim != len(shape) + 1 or x.shape[1] != shape[0]:
        raise UserError(f"the network was built for samples of shape {tuple(shape)} and got {tuple(x.shape[1:])}")
    if noise.shape != x.shape[:1]:
        raise UserError(f"the network takes one noise level a sample, shape ({len(x)},), and got {tuple(noise.shape)}")
    for part in ("vector", "tokens", "concat"):
        value: Tensor | None = None if cond is None else getattr(cond, part)
        want: int = getattr(needs, part)
        have = 0 if value is None else value.shape[1 if part == "concat" else -1]
        if have != want:
            raise UserError(
                f"the network was built for a condition with {part} of width {want} and got width {have}; "
                "build it with the conditioner's shape, and pass its null(n) where nothing is asked for"
            )
