"""Parts of the U-Net as one differentiable function each. Only inputs are kept for the backward pass: what the
convolutions saw is normed again from them, which costs one pass and saves half the memory."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from sfumato.nn.fused.norm import (
    Normed,
    Parts,
    channels_last,
    column_sums,
    convolve_parts,
    few,
    mix,
    norm_backward,
    norm_forward,
)

_conv = torch.ops.aten.convolution.default
_conv_back = torch.ops.aten.convolution_backward.default
_drop = torch.ops.aten.native_dropout.default
_drop_back = torch.ops.aten.native_dropout_backward.default


def rows(x: Tensor) -> Tensor:
    """(B, C, *S) in channels-last memory to (B S, C); a view."""
    return x.movedim(1, -1).reshape(-1, x.shape[1])


def _like_rows(out: Tensor, x: Tensor) -> Tensor:
    """(B S, C) to a field of x's size; a view."""
    return out.view(len(x), *x.shape[2:], out.shape[1]).movedim(-1, 1)


def convolve(x: Tensor, weight: Tensor, stride: Sequence[int] = ()) -> Tensor:
    """A convolution without a bias, padded so that stride 1 keeps the size."""
    pad = [k // 2 for k in weight.shape[2:]]
    ones = [1] * len(pad)
    out: Tensor = _conv(x, weight, None, list(stride) or ones, pad, ones, False, [0] * len(pad), 1)
    return out


def convolve_back(
    grad: Tensor, x: Tensor, weight: Tensor, needs: tuple[bool, bool] = (True, True), stride: Sequence[int] = ()
) -> tuple[Tensor, Tensor]:
    """Its gradients of x and weight, those that are needed."""
    pad = [k // 2 for k in weight.shape[2:]]
    ones = [1] * len(pad)
    dx, dw, _ = _conv_back(
        grad, x, weight, None, list(stride) or ones, pad, ones, False, [0] * len(pad), 1, [*needs, False]
    )
    return dx, dw


def sharable(x: Tensor, weight: Tensor, up: Sequence[int] = (1, 1)) -> bool:
    """Whether a convolution of x is one for `convolve_parts`: two dimensions, few positions, weights in its order."""
    positions = len(x) * math.prod(n * u for n, u in zip(x.shape[2:], up))
    return x.ndim == 4 and few(positions, weight.shape[0]) and weight.is_contiguous(memory_format=torch.channels_last)


def conv_of_few(x: Tensor, weight: Tensor, bias: Tensor, stride: Sequence[int], up: Sequence[int]) -> Tensor:
    """A convolution with a bias for few positions, of x enlarged `up` times; not differentiable."""
    parts = convolve_parts(x, weight, (stride[0], stride[1]), (up[0], up[1]))
    total = mix(parts, None, None, None, bias)
    return total.view(len(x), *parts.size, total.shape[1]).movedim(-1, 1)


class Conv(torch.autograd.Function):
    """A convolution with a bias, whose gradient is one pass of our own."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor, stride: tuple[int, ...]) -> Tensor:
        ctx.save_for_backward(x, weight)
        ctx.stride = stride
        out = convolve(x, weight, stride)
        return out.add_(bias.view(-1, *[1] * len(stride)))

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Any, ...]:
        x, weight = ctx.saved_tensors
        grad = channels_last(grad)
        needs_x, needs_weight, needs_bias, _ = ctx.needs_input_grad
        dx, dw = None, None
        if needs_x or needs_weight:
            dx, dw = convolve_back(grad, x, weight, (needs_x, needs_weight), ctx.stride)
        return dx, dw, column_sums(rows(grad)).to(weight.dtype) if needs_bias else None, None


class ResBlock(torch.autograd.Function):
    """conv2(drop(SiLU(norm2(conv1(SiLU(norm1(x))), mod)))) + shortcut(x) of x = [first | second].

    Of dropout the mask is kept, a byte an element: drawing it again would need the generator's state.
    """

    @staticmethod
    def forward(
        ctx: Any,
        first: Tensor,
        second: Tensor | None,
        mod: Tensor,
        g1: Tensor, b1: Tensor, w1: Tensor, c1: Tensor,
        g2: Tensor, b2: Tensor, w2: Tensor, c2: Tensor,
        ws: Tensor | None, cs: Tensor | None,
        groups: tuple[int, int], eps: float, drop: float, forward_only: bool,
    ) -> Tensor:  # fmt: skip
        """drop: the share dropped. forward_only: nothing is kept for a backward pass. In here gradients are always off, so
        the caller says it."""
        mask = None
        n1, n2 = _norms(mod, g1, b1, c1, g2, b2, w2.shape[1], groups, eps)
        y, stats1 = norm_forward(first, second, n1)
        if forward_only and not drop and sharable(first, w2):
            y, _ = norm_forward(convolve_parts(y, w1), None, n2)
            beside: Tensor | Parts = convolve_parts(y, w2)
        else:
            h = convolve(y, w1)
            y, stats2 = norm_forward(h, None, n2)
            if drop:
                y, mask = _drop(y, drop, True)
            beside = rows(convolve(y, w2))
        if ws is None:
            total = mix(beside, rows(first), None, None, c2)
        else:
            total = mix(beside, rows(first), None if second is None else rows(second), ws, c2, cs)
        if not forward_only:
            ctx.save_for_backward(first, second, mod, g1, b1, w1, c1, g2, b2, w2, ws, h, stats1, stats2, mask)
            ctx.groups, ctx.eps, ctx.drop = groups, eps, drop
        return _like_rows(total, first)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Any, ...]:
        first, second, mod, g1, b1, w1, c1, g2, b2, w2, ws, h, stats1, stats2, mask = ctx.saved_tensors
        n1, n2 = _norms(mod, g1, b1, c1, g2, b2, w2.shape[1], ctx.groups, ctx.eps)
        grad = channels_last(grad)
        y, _ = norm_forward(h, None, n2, stats2)
        if mask is not None:
            y = _drop_back(y, mask, 1 / (1 - ctx.drop))
        dy, dw2 = convolve_back(grad, y, w2)
        if mask is not None:
            dy = _drop_back(dy, mask, 1 / (1 - ctx.drop))
        del y
        back2 = norm_backward(h, None, dy, n2, stats2)
        del dy, h
        y, _ = norm_forward(first, second, n1, stats1)
        dy, dw1 = convolve_back(back2.first, y, w1)
        del y
        beside, dws, dc2 = _shortcut_back(grad, first, second, ws)
        back1 = norm_backward(first, second, dy, n1, stats1, beside)
        if dc2 is None:
            dc2 = back1.beside
        dmod = back2.modulation if back2.modulation is not None else _as(back2.add, mod)
        return (
            back1.first, back1.second, dmod,
            _as(back1.gamma, g1), _as(back1.beta, b1), dw1, _as(back2.bias, c1),
            _as(back2.gamma, g2), _as(back2.beta, b2), dw2, _as(dc2, c1),
            dws, None if ws is None else _as(dc2, c1), None, None, None, None,
        )  # fmt: skip


def _norms(
    mod: Tensor,
    g1: Tensor,
    b1: Tensor,
    c1: Tensor,
    g2: Tensor,
    b2: Tensor,
    width: int,
    groups: tuple[int, int],
    eps: float,
) -> tuple[Normed, Normed]:
    n1 = Normed(groups[0], eps, True, g1, b1)
    n2 = Normed(groups[1], eps, True, g2, b2, bias=c1)
    if mod.shape[1] == width:
        return n1, replace(n2, add=mod)
    return n1, replace(n2, scale=mod[:, :width], shift=mod[:, width:])


def _shortcut_back(
    grad: Tensor, first: Tensor, second: Tensor | None, ws: Tensor | None
) -> tuple[tuple[Tensor, Tensor | None], Tensor | None, Tensor | None]:
    """(gradients of first and second by the shortcut, of its weight, of its bias); the last two None without a weight."""
    if ws is None:
        return (grad, None), None, None
    g, c1 = rows(grad), first.shape[1]
    d1 = _like_rows(g @ ws[:, :c1], first)
    dws = torch.empty_like(ws)
    torch.mm(g.T, rows(first), out=dws[:, :c1]) if second is None else dws[:, :c1].copy_(g.T @ rows(first))
    d2 = None
    if second is not None:
        d2 = _like_rows(g @ ws[:, c1:], second)
        dws[:, c1:].copy_(g.T @ rows(second))
    return (d1, d2), dws, column_sums(g)


def _as(grad: Tensor | None, like: Tensor) -> Tensor | None:
    return None if grad is None else grad.to(like.dtype)


class GroupNorm(torch.autograd.Function):
    """SiLU(GN(x)) or GN(x)."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, gamma: Tensor, beta: Tensor, groups: int, eps: float, act: bool) -> Tensor:
        out, stats = norm_forward(x, None, Normed(groups, eps, act, gamma, beta))
        ctx.save_for_backward(x, gamma, beta, stats)
        ctx.groups, ctx.eps, ctx.act = groups, eps, act
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Any, ...]:
        x, gamma, beta, stats = ctx.saved_tensors
        back = norm_backward(x, None, channels_last(grad), Normed(ctx.groups, ctx.eps, ctx.act, gamma, beta), stats)
        return back.first, _as(back.gamma, gamma), _as(back.beta, beta), None, None, None


class Linear(torch.autograd.Function):
    """beside + x weight^T + bias of rows (M, N), (M, K); beside may be None. The bias's gradient is one pass of our own."""

    @staticmethod
    def forward(ctx: Any, beside: Tensor | None, x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        ctx.save_for_backward(x, weight)
        return torch.addmm(bias, x, weight.T) if beside is None else mix(beside, x, None, weight, bias)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Any, ...]:
        x, weight = ctx.saved_tensors
        grad = grad.contiguous()
        beside = grad if ctx.needs_input_grad[0] else None
        return beside, grad @ weight, grad.T @ x, column_sums(grad).to(weight.dtype)
