"""Triton kernels for tokens (B, N, C) in contiguous memory. Imported only where Triton is."""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def gate_norm(
    x, branch, gate, scale, shift, out, y, stats, N, gate_stride, stride, eps,
    C: tl.constexpr, BLOCK: tl.constexpr, GATED: tl.constexpr, NORM: tl.constexpr,
):  # fmt: skip
    """One token: out = x + gate branch (GATED), y = LN(out) (1 + scale) + shift (NORM). gate, scale, shift: (B, C).

    stats (B N, 2): mean and 1 / deviation. The norm is of the rounded sum, as where the two are written one after the other.
    """
    row = tl.program_id(0).to(tl.int64)
    b = row // N
    c = tl.arange(0, BLOCK)
    used = c < C
    v = tl.load(x + row * C + c, mask=used, other=0.0).to(tl.float32)
    if GATED:
        g = tl.load(gate + b * gate_stride + c, mask=used, other=0.0).to(tl.float32)
        rounded = (v + g * tl.load(branch + row * C + c, mask=used, other=0.0).to(tl.float32)).to(out.dtype.element_ty)
        tl.store(out + row * C + c, rounded, mask=used)
        v = rounded.to(tl.float32)
    if NORM:
        mean = tl.sum(v, 0) / C
        d = tl.where(used, v - mean, 0.0)
        scaled = 1.0 / tl.sqrt(tl.sum(d * d, 0) / C + eps)
        s = tl.load(scale + b * stride + c, mask=used, other=0.0).to(tl.float32)
        h = tl.load(shift + b * stride + c, mask=used, other=0.0).to(tl.float32)
        tl.store(y + row * C + c, (d * scaled * (1 + s) + h).to(y.dtype.element_ty), mask=used)
        tl.store(stats + 2 * row, mean)
        tl.store(stats + 2 * row + 1, scaled)


@triton.jit
def gate_norm_back(
    beside, dy, out, branch, gate, scale, stats, dx, dbranch, sums, N, gate_stride, stride,
    C: tl.constexpr, BLOCK: tl.constexpr, ROWS: tl.constexpr, GATED: tl.constexpr, NORM: tl.constexpr,
    BESIDE: tl.constexpr,
):  # fmt: skip
    """The gradients of `gate_norm` for ROWS tokens of a sample. beside: the gradient of out from elsewhere (BESIDE).

    sums (B, parts, K, C) float32: over those tokens, of the gradients of scale and shift (NORM), then gate (GATED).
    """
    part, b = tl.program_id(0), tl.program_id(1).to(tl.int64)
    c = tl.arange(0, BLOCK)
    used = c < C
    of_scale = tl.zeros((BLOCK,), tl.float32)
    of_shift = tl.zeros((BLOCK,), tl.float32)
    of_gate = tl.zeros((BLOCK,), tl.float32)
    if NORM:
        s = 1 + tl.load(scale + b * stride + c, mask=used, other=0.0).to(tl.float32)
    if GATED:
        g = tl.load(gate + b * gate_stride + c, mask=used, other=0.0).to(tl.float32)
    for r in range(0, ROWS):
        n = part * ROWS + r
        inside = used & (n + 0 * c < N)  # a vector of its own: the interpreter has no mask from a number
        at = (b * N + n) * C + c
        d = tl.zeros((BLOCK,), tl.float32)
        if BESIDE:
            d += tl.load(beside + at, mask=inside, other=0.0).to(tl.float32)
        if NORM:
            known = stats + 2 * (b * N + tl.minimum(n, N - 1))
            mean, scaled = tl.load(known), tl.load(known + 1)
            v = tl.load(out + at, mask=inside, other=0.0).to(tl.float32)
            hat = tl.where(inside, (v - mean) * scaled, 0.0)
            e = tl.load(dy + at, mask=inside, other=0.0).to(tl.float32)
            t = e * s
            d += scaled * (t - tl.sum(t, 0) / C - hat * (tl.sum(t * hat, 0) / C))
            of_scale += e * hat
            of_shift += e
        if GATED:
            u = tl.load(branch + at, mask=inside, other=0.0).to(tl.float32)
            tl.store(dbranch + at, (g * d).to(dbranch.dtype.element_ty), mask=inside)
            of_gate += d * u
        if NORM:
            tl.store(dx + at, d.to(dx.dtype.element_ty), mask=inside)
    kinds: tl.constexpr = 2 * NORM + GATED
    to = sums + (b * tl.num_programs(0) + part) * kinds * C + c
    if NORM:
        tl.store(to, of_scale, mask=used)
        tl.store(to + C, of_shift, mask=used)
    if GATED:
        tl.store(to + 2 * NORM * C, of_gate, mask=used)


@triton.jit
def _gate_of_gelu(x):
    """s of GELU(x) = x s in its tanh form: sigmoid(2 sqrt(2 / pi) (x + 0.044715 x^3))."""
    return tl.sigmoid(1.5957691216057308 * (x + 0.044715 * x * x * x))


@triton.jit
def bias_gelu(x, bias, y, M, N: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr):
    """y = GELU(x + bias) for rows x (M, N), bias (N,)."""
    wide: tl.constexpr = (N + BLOCK_N - 1) // BLOCK_N
    m = (tl.program_id(0) // wide).to(tl.int64) * BLOCK_M + tl.arange(0, BLOCK_M)
    n = tl.program_id(0) % wide * BLOCK_N + tl.arange(0, BLOCK_N)
    inside = (m < M)[:, None] & (n < N)[None, :]
    at = m[:, None] * N + n[None, :]
    v = tl.load(x + at, mask=inside, other=0.0).to(tl.float32)
    v += tl.load(bias + n, mask=n < N, other=0.0).to(tl.float32)[None, :]
    tl.store(y + at, (v * _gate_of_gelu(v)).to(y.dtype.element_ty), mask=inside)


@triton.jit
def bias_gelu_back(
    dy, x, bias, dx, sums, M, N: tl.constexpr, PER: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr
):
    """dx of PER rows, and in sums (parts, N) float32 its sums over them: the gradient of the bias."""
    wide: tl.constexpr = (N + BLOCK_N - 1) // BLOCK_N
    part = (tl.program_id(0) // wide).to(tl.int64)
    n = tl.program_id(0) % wide * BLOCK_N + tl.arange(0, BLOCK_N)
    b = tl.load(bias + n, mask=n < N, other=0.0).to(tl.float32)[None, :]
    total = tl.zeros((BLOCK_M, BLOCK_N), tl.float32)  # summed over rows once, at the end: threads meet there only
    for row in range(0, PER, BLOCK_M):
        m = part * PER + row + tl.arange(0, BLOCK_M)
        inside = (m < M)[:, None] & (n < N)[None, :]
        at = m[:, None] * N + n[None, :]
        v = tl.load(x + at, mask=inside, other=0.0).to(tl.float32) + b
        g = tl.load(dy + at, mask=inside, other=0.0).to(tl.float32)
        s = _gate_of_gelu(v)
        d = g * (s + v * s * (1 - s) * 1.5957691216057308 * (1 + 0.134145 * v * v))
        tl.store(dx + at, d.to(dx.dtype.element_ty), mask=inside)
        total += d
    tl.store(sums + part * N + n, tl.sum(total, 0), mask=n < N)
