"""Tokens of a transformer: gated residual sum, layer norm and modulation in one pass over memory, and their gradients.

Operators of torch's library, so that a compiler sees them as they are. They hold for tokens (B, N, C) and gate, scale and
shift (B, C) of one type; see `sfumato.nn.fused.takes_tokens`.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.library import custom_op

EPS = 1e-6
_ROWS = 32  # tokens that a program of the backward pass sums over


def _power(n: int) -> int:
    return 1 << max(0, n - 1).bit_length()


def _dense(rows: Tensor | None) -> Tensor | None:
    """(B, C), the channels side by side."""
    return rows if rows is None or rows.stride(-1) == 1 else rows.contiguous()


def _launch(name: str, grid: tuple[int, ...], *args: Any, **settings: Any) -> None:
    from sfumato.nn.fused import token_kernels

    getattr(token_kernels, name)[grid](*args, **settings)


def _warps(channels: int) -> int:
    return max(1, min(8, _power(channels) // 256))


@custom_op(
    "sfumato::gate_norm",
    mutates_args=(),
    schema="(Tensor x, Tensor? branch, Tensor? gate, Tensor? scale, Tensor? shift) -> (Tensor, Tensor, Tensor)",
)
def gate_norm(
    x: Tensor, branch: Tensor | None, gate: Tensor | None, scale: Tensor | None, shift: Tensor | None
) -> tuple[Tensor, Tensor, Tensor]:
    """(x + gate branch, LN of it (1 + scale) + shift, what the backward pass needs); without a part, an empty tensor."""
    batch, n, channels = x.shape
    x, gate, scale = x.contiguous(), _dense(gate), _dense(scale)
    out, y, stats = _outputs(x, gate, scale)
    assert scale is None or (shift is not None and shift.stride() == scale.stride())
    _launch(
        "gate_norm", (batch * n,),
        x, _or(branch, x).contiguous(), _or(gate, x), _or(scale, x), _or(shift, x), out, y, stats, n,
        0 if gate is None else gate.stride(0), 0 if scale is None else scale.stride(0), EPS,
        C=channels, BLOCK=_power(channels), GATED=gate is not None, NORM=scale is not None, num_warps=_warps(channels),
    )  # fmt: skip
    return out, y, stats


def _outputs(x: Tensor, gate: Tensor | None, scale: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
    none = x.new_empty(0)
    out = none if gate is None else torch.empty(x.shape, dtype=x.dtype, device=x.device)
    if scale is None:
        return out, x.new_empty(0), x.new_empty(0, dtype=torch.float32)
    y = torch.empty(x.shape, dtype=x.dtype, device=x.device)
    return out, y, torch.empty(*x.shape[:2], 2, dtype=torch.float32, device=x.device)


@gate_norm.register_fake
def _(
    x: Tensor, branch: Tensor | None, gate: Tensor | None, scale: Tensor | None, shift: Tensor | None
) -> tuple[Tensor, Tensor, Tensor]:
    return _outputs(x, gate, scale)


@custom_op(
    "sfumato::gate_norm_back",
    mutates_args=(),
    schema="(Tensor? beside, Tensor? dy, Tensor out, Tensor? branch, Tensor? gate, Tensor? scale, Tensor stats)"
    " -> (Tensor, Tensor, Tensor)",
)
def gate_norm_back(
    beside: Tensor | None,
    dy: Tensor | None,
    out: Tensor,
    branch: Tensor | None,
    gate: Tensor | None,
    scale: Tensor | None,
    stats: Tensor,
) -> tuple[Tensor, Tensor, Tensor]:
    """(gradient of x, of branch, sums (B, parts, K, C) of those of scale and shift, then gate)."""
    batch, n, channels = out.shape
    gate, scale = _dense(gate), _dense(scale)
    dx, dbranch, sums = _gradients(out, gate, scale)
    given = [None if v is None else v.contiguous() for v in (beside, dy, branch)]
    _launch(
        "gate_norm_back", (sums.shape[1], batch),
        _or(given[0], out), _or(given[1], out), out.contiguous(), _or(given[2], out), _or(gate, out), _or(scale, out),
        stats, dx, dbranch, sums, n, 0 if gate is None else gate.stride(0), 0 if scale is None else scale.stride(0),
        C=channels, BLOCK=_power(channels), ROWS=_ROWS, GATED=gate is not None, NORM=scale is not None,
        BESIDE=beside is not None, num_warps=_warps(channels),
    )  # fmt: skip
    return dx, dbranch, sums


def _gradients(out: Tensor, gate: Tensor | None, scale: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
    batch, n, channels = out.shape
    full = [
        out.new_empty(0) if part is None else torch.empty(out.shape, dtype=out.dtype, device=out.device)
        for part in (scale, gate)
    ]
    kinds = 2 * (scale is not None) + (gate is not None)
    return full[0], full[1], out.new_empty(batch, -(-n // _ROWS), kinds, channels, dtype=torch.float32)


@gate_norm_back.register_fake
def _(
    beside: Tensor | None,
    dy: Tensor | None,
    out: Tensor,
    branch: Tensor | None,
    gate: Tensor | None,
    scale: Tensor | None,
    stats: Tensor,
) -> tuple[Tensor, Tensor, Tensor]:
    return _gradients(out, gate, scale)


def _keep(ctx: Any, inputs: tuple[Tensor | None, ...], output: tuple[Tensor, ...]) -> None:
    x, branch, gate, scale, _ = inputs
    ctx.set_materialize_grads(False)
    # Without a norm the sum itself is not needed again, its shape alone: x has it.
    ctx.save_for_backward(output[0] if gate is not None and scale is not None else x, branch, gate, scale, output[2])


def _backward(ctx: Any, dout: Tensor | None, dy: Tensor | None, _: Any) -> tuple[Tensor | None, ...]:
    out, branch, gate, scale, stats = ctx.saved_tensors
    beside = dout if gate is not None else None
    if scale is not None and dy is None:
        dy = torch.zeros_like(out)
    if scale is None and beside is None:
        return (None,) * 5
    dx, dbranch, sums = torch.ops.sfumato.gate_norm_back(beside, dy, out, branch, gate, scale, stats)
    each = iter(sums.sum(1).to(out.dtype).unbind(1))
    dscale, dshift = (next(each), next(each)) if scale is not None else (None, None)
    dgate = next(each) if gate is not None else None
    return dx if scale is not None else beside, dbranch if gate is not None else None, dgate, dscale, dshift


gate_norm.register_autograd(_backward, setup_context=_keep)


def _or(tensor: Tensor | None, other: Tensor) -> Tensor:
    return other if tensor is None else tensor


# ---------------------------------------------------------------- GELU(x + bias)

_PER = 128  # rows that a program of the backward pass sums over
_TILE = {"BLOCK_M": 16, "BLOCK_N": 128, "num_warps": 4}


def _parts(rows: int) -> int:
    return -(-rows // _PER)


@custom_op("sfumato::bias_gelu", mutates_args=(), schema="(Tensor x, Tensor bias) -> Tensor")
def bias_gelu(x: Tensor, bias: Tensor) -> Tensor:
    """GELU(x + bias) in its tanh form, for tokens (B, N, H): what a product without its bias gave."""
    x, y = x.contiguous(), torch.empty(x.shape, dtype=x.dtype, device=x.device)
    rows, wide = x.numel() // x.shape[-1], x.shape[-1]
    grid = (-(-wide // _TILE["BLOCK_N"]) * -(-rows // _TILE["BLOCK_M"]),)  # a second axis ends at 65,535
    _launch("bias_gelu", grid, x, bias, y, rows, N=wide, **_TILE)
    return y


@bias_gelu.register_fake
def _(x: Tensor, bias: Tensor) -> Tensor:
    return torch.empty(x.shape, dtype=x.dtype, device=x.device)


@custom_op("sfumato::bias_gelu_back", mutates_args=(), schema="(Tensor dy, Tensor x, Tensor bias) -> (Tensor, Tensor)")
def bias_gelu_back(dy: Tensor, x: Tensor, bias: Tensor) -> tuple[Tensor, Tensor]:
    """(gradient of x, its sums over parts of the rows (parts, H) float32)."""
    dx = torch.empty(x.shape, dtype=x.dtype, device=x.device)
    rows, wide = x.numel() // x.shape[-1], x.shape[-1]
    sums = torch.empty(_parts(rows), wide, dtype=torch.float32, device=x.device)
    grid = (-(-wide // _TILE["BLOCK_N"]) * len(sums),)
    _launch("bias_gelu_back", grid, dy.contiguous(), x.contiguous(), bias, dx, sums, rows, N=wide, PER=_PER, **_TILE)
    return dx, sums


@bias_gelu_back.register_fake
def _(dy: Tensor, x: Tensor, bias: Tensor) -> tuple[Tensor, Tensor]:
    wide = x.shape[-1]
    parts = _parts(x.numel() // wide)
    return torch.empty(x.shape, dtype=x.dtype, device=x.device), x.new_empty(parts, wide, dtype=torch.float32)


def _keep_gelu(ctx: Any, inputs: tuple[Tensor, Tensor], output: Tensor) -> None:
    ctx.save_for_backward(*inputs)


def _gelu_backward(ctx: Any, dy: Tensor) -> tuple[Tensor, Tensor]:
    x, bias = ctx.saved_tensors
    dx, sums = torch.ops.sfumato.bias_gelu_back(dy, x, bias)
    return dx, sums.sum(0).to(bias.dtype)


bias_gelu.register_autograd(_gelu_backward, setup_context=_keep_gelu)
