"""Triton kernels for fields in channels-last memory. Imported only where Triton is (see `sfumato.nn.fused.ready`).

All work on bfloat16, float16 or float32 fields seen as (B, S, C), the channels side by side, and compute in float32.
"""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def _field(
    first,
    second,
    b,
    rows,
    chan,
    inside,
    S: tl.constexpr,
    C1: tl.constexpr,
    C2: tl.constexpr,
    apart=0,
    PARTS: tl.constexpr = 1,
):
    """A tile of the channels of `first` (B, S, C1) followed by those of `second` (B, S, C2), in float32.

    PARTS: `first` is the sum of so many fields, `apart` elements from one to the next.
    """
    ours = inside & (chan < C1)[None, :]
    x = tl.load(first + (b * S + rows)[:, None] * C1 + chan[None, :], mask=ours, other=0.0).to(tl.float32)
    for part in range(1, PARTS):
        at = first + part * apart
        x += tl.load(at + (b * S + rows)[:, None] * C1 + chan[None, :], mask=ours, other=0.0).to(tl.float32)
    if C2 > 0:
        theirs = inside & (chan >= C1)[None, :]
        x += tl.load(second + (b * S + rows)[:, None] * C2 + (chan - C1)[None, :], mask=theirs, other=0.0).to(
            tl.float32
        )
    return x


@triton.jit
def _of_groups(v, same):
    """Sums over the channels of each group, one for each channel. v: (C,), same: (C, C) bool."""
    return tl.sum(tl.where(same, v[None, :], 0.0), 1)


@triton.jit
def _shift_of(bias, add, b, stride, chan, used, HAS_BIAS: tl.constexpr, HAS_ADD: tl.constexpr):
    offset = tl.zeros(chan.shape, tl.float32)
    if HAS_BIAS:
        offset += tl.load(bias + chan, mask=used, other=0.0).to(tl.float32)
    if HAS_ADD:
        offset += tl.load(add + b * stride + chan, mask=used, other=0.0).to(tl.float32)
    return offset


@triton.jit
def _gain_of(gamma, beta, scale, shift, b, C, stride, chan, used, HAS_SCALE: tl.constexpr):
    """z gain + offset of the normed z: gamma (1 + scale) and beta (1 + scale) + shift."""
    gain = tl.load(gamma + chan, mask=used, other=0.0).to(tl.float32)
    offset = tl.load(beta + chan, mask=used, other=0.0).to(tl.float32)
    if HAS_SCALE:
        more = 1 + tl.load(scale + b * stride + chan, mask=used, other=0.0).to(tl.float32)
        gain = gain * more
        offset = offset * more + tl.load(shift + b * stride + chan, mask=used, other=0.0).to(tl.float32)
    return gain, offset


@triton.jit
def _act(u, ACT: tl.constexpr):
    if ACT:
        u = u * tl.sigmoid(u)
    return u


@triton.jit
def norm_forward(
    first, second, out, bias, add, gamma, beta, scale, shift, mean_out, rstd_out,
    G, stride, eps, apart,
    S: tl.constexpr, C1: tl.constexpr, C2: tl.constexpr, PER: tl.constexpr, GROUPS: tl.constexpr, ROWS: tl.constexpr, CHANNELS: tl.constexpr, ONCE: tl.constexpr,
    HAS_BIAS: tl.constexpr, HAS_ADD: tl.constexpr, HAS_SCALE: tl.constexpr, ACT: tl.constexpr, KNOWN: tl.constexpr,
    PARTS: tl.constexpr,
):  # fmt: skip
    """One sample's `GROUPS` groups of `PER` channels: read, normalise, act, write. ONCE: the whole field is one tile.

    KNOWN: mean_out and rstd_out are read, not written (the backward pass computes the output again). PARTS: of `_field`.
    """
    part, b = tl.program_id(0), tl.program_id(1).to(tl.int64)
    C = C1 + C2
    lanes = tl.arange(0, CHANNELS)
    chan = part * (GROUPS * PER) + lanes
    used = (lanes < GROUPS * PER) & (chan < C)
    group = chan // PER
    same = (group[:, None] == group[None, :]) & used[None, :]
    steps = tl.arange(0, ROWS)
    offset = _shift_of(bias, add, b, stride, chan, used, HAS_BIAS, HAS_ADD)
    gain, after = _gain_of(gamma, beta, scale, shift, b, C, stride, chan, used, HAS_SCALE)
    n = S * PER
    if ONCE:
        inside = (steps < S)[:, None] & used[None, :]
        x = _field(first, second, b, steps, chan, inside, S, C1, C2, apart, PARTS) + offset[None, :]
        if KNOWN:
            mean = tl.load(mean_out + b * G + group, mask=used, other=0.0)
            rstd = tl.load(rstd_out + b * G + group, mask=used, other=0.0)
        else:
            x = tl.where(inside, x, 0.0)
            mean = _of_groups(tl.sum(x, 0), same) / n
            centred = tl.where(inside, x - mean[None, :], 0.0)
            rstd = tl.rsqrt(_of_groups(tl.sum(centred * centred, 0), same) / n + eps)
        y = _act((x - mean[None, :]) * (rstd * gain)[None, :] + after[None, :], ACT)
        tl.store(out + (b * S + steps)[:, None] * C + chan[None, :], y.to(out.dtype.element_ty), mask=inside)
    else:
        if KNOWN:
            mean = tl.load(mean_out + b * G + group, mask=used, other=0.0)
            rstd = tl.load(rstd_out + b * G + group, mask=used, other=0.0)
        else:
            # Sums are taken around the first row, so that a large mean costs no digits.
            pivot = _of_groups(tl.sum(_field(first, second, b, steps, chan, (steps < 1)[:, None] & used[None, :], S, C1, C2, apart, PARTS), 0) + offset, same) / PER  # fmt: skip
            total = tl.zeros((CHANNELS,), tl.float32)
            square = tl.zeros((CHANNELS,), tl.float32)
            for row in range(0, S, ROWS):
                rows = row + steps
                inside = (rows < S)[:, None] & used[None, :]
                x = _field(first, second, b, rows, chan, inside, S, C1, C2, apart, PARTS) + (offset - pivot)[None, :]
                x = tl.where(inside, x, 0.0)
                total += tl.sum(x, 0)
                square += tl.sum(x * x, 0)
            away = _of_groups(total, same) / n
            mean = pivot + away
            rstd = tl.rsqrt(tl.maximum(_of_groups(square, same) / n - away * away, 0.0) + eps)
        for row in range(0, S, ROWS):
            rows = row + steps
            inside = (rows < S)[:, None] & used[None, :]
            x = _field(first, second, b, rows, chan, inside, S, C1, C2, apart, PARTS) + offset[None, :]
            y = _act((x - mean[None, :]) * (rstd * gain)[None, :] + after[None, :], ACT)
            tl.store(out + (b * S + rows)[:, None] * C + chan[None, :], y.to(out.dtype.element_ty), mask=inside)
    if not KNOWN:
        lead = used & (chan % PER == 0)
        tl.store(mean_out + b * G + group, mean, mask=lead)
        tl.store(rstd_out + b * G + group, rstd, mask=lead)


@triton.jit
def _slopes(
    first,
    second,
    grad,
    b,
    rows,
    chan,
    inside,
    S: tl.constexpr,
    C1: tl.constexpr,
    C2: tl.constexpr,
    offset,
    mean,
    rstd,
    gain,
    after,
    ACT: tl.constexpr,
):
    """(xhat, du) of a tile: the normed input and the gradient before the activation."""
    x = _field(first, second, b, rows, chan, inside, S, C1, C2) + offset[None, :]
    hat = tl.where(inside, (x - mean[None, :]) * rstd[None, :], 0.0)
    du = tl.load(grad + (b * S + rows)[:, None] * (C1 + C2) + chan[None, :], mask=inside, other=0.0).to(tl.float32)
    if ACT:
        u = hat * gain[None, :] + after[None, :]
        s = tl.sigmoid(u)
        du = du * s * (1 + u * (1 - s))
    return hat, du


@triton.jit
def _give(
    dx,
    first,
    second,
    beside,
    beside2,
    b,
    rows,
    chan,
    inside,
    S: tl.constexpr,
    C1: tl.constexpr,
    C2: tl.constexpr,
    BESIDE: tl.constexpr,
):
    """Write the gradient of the field, added to what another path gave; returns (dx, that)."""
    ours = inside & (chan < C1)[None, :]
    at = (b * S + rows)[:, None] * C1 + chan[None, :]
    other = tl.zeros(dx.shape, tl.float32)
    if BESIDE:
        other = tl.load(beside + at, mask=ours, other=0.0).to(tl.float32)
    if C2 > 0:
        theirs = inside & (chan >= C1)[None, :]
        at2 = (b * S + rows)[:, None] * C2 + (chan - C1)[None, :]
        if BESIDE:
            other += tl.load(beside2 + at2, mask=theirs, other=0.0).to(tl.float32)
        tl.store(second + at2, (dx + other).to(second.dtype.element_ty), mask=theirs)
    tl.store(first + at, (dx + other).to(first.dtype.element_ty), mask=ours)
    return other


@triton.jit
def norm_backward(
    first, second, grad, dfirst, dsecond, beside, beside2, bias, add, gamma, beta, scale, shift, mean_in, rstd_in,
    sums, dscale, dshift,
    G, stride, dstride,
    S: tl.constexpr, C1: tl.constexpr, C2: tl.constexpr, PER: tl.constexpr, GROUPS: tl.constexpr, ROWS: tl.constexpr, CHANNELS: tl.constexpr, ONCE: tl.constexpr,
    HAS_BIAS: tl.constexpr, HAS_ADD: tl.constexpr, HAS_SCALE: tl.constexpr, ACT: tl.constexpr, BESIDE: tl.constexpr,
    SUMS: tl.constexpr,
):  # fmt: skip
    """Gradients of `norm_forward`: of the field, of scale and shift, and for each sample and channel `SUMS` sums.

    BESIDE: gradients (B, S, C1) and (B, S, C2) that reached the field by another path are added. sums (B, SUMS, C):
    gradients of gamma, of beta, of add where there is one, and last the sums of BESIDE where there is one.
    """
    part, b = tl.program_id(0), tl.program_id(1).to(tl.int64)
    C = C1 + C2
    lanes = tl.arange(0, CHANNELS)
    chan = part * (GROUPS * PER) + lanes
    used = (lanes < GROUPS * PER) & (chan < C)
    group = chan // PER
    same = (group[:, None] == group[None, :]) & used[None, :]
    steps = tl.arange(0, ROWS)
    offset = _shift_of(bias, add, b, stride, chan, used, HAS_BIAS, HAS_ADD)
    gain, after = _gain_of(gamma, beta, scale, shift, b, C, stride, chan, used, HAS_SCALE)
    mean = tl.load(mean_in + b * G + group, mask=used, other=0.0)
    rstd = tl.load(rstd_in + b * G + group, mask=used, other=0.0)
    n = S * PER
    passed = tl.zeros((CHANNELS,), tl.float32)
    summed = tl.zeros((CHANNELS,), tl.float32)
    if ONCE:
        inside = (steps < S)[:, None] & used[None, :]
        hat, du = _slopes(first, second, grad, b, steps, chan, inside, S, C1, C2, offset, mean, rstd, gain, after, ACT)
        a = tl.sum(du, 0)
        c = tl.sum(du * hat, 0)
        one, two = _of_groups(a * gain, same) / n, _of_groups(c * gain, same) / n
        dx = tl.where(inside, (du * gain[None, :] - one[None, :] - hat * two[None, :]) * rstd[None, :], 0.0)
        summed += tl.sum(dx, 0)
        other = _give(dx, dfirst, dsecond, beside, beside2, b, steps, chan, inside, S, C1, C2, BESIDE)
        passed += tl.sum(other, 0)
    else:
        a = tl.zeros((CHANNELS,), tl.float32)
        c = tl.zeros((CHANNELS,), tl.float32)
        for row in range(0, S, ROWS):
            rows = row + steps
            inside = (rows < S)[:, None] & used[None, :]
            hat, du = _slopes(first, second, grad, b, rows, chan, inside, S, C1, C2, offset, mean, rstd, gain, after, ACT)  # fmt: skip
            a += tl.sum(du, 0)
            c += tl.sum(du * hat, 0)
        one, two = _of_groups(a * gain, same) / n, _of_groups(c * gain, same) / n
        for row in range(0, S, ROWS):
            rows = row + steps
            inside = (rows < S)[:, None] & used[None, :]
            hat, du = _slopes(first, second, grad, b, rows, chan, inside, S, C1, C2, offset, mean, rstd, gain, after, ACT)  # fmt: skip
            dx = tl.where(inside, (du * gain[None, :] - one[None, :] - hat * two[None, :]) * rstd[None, :], 0.0)
            summed += tl.sum(dx, 0)
            other = _give(dx, dfirst, dsecond, beside, beside2, b, rows, chan, inside, S, C1, C2, BESIDE)
            passed += tl.sum(other, 0)
    g = tl.load(gamma + chan, mask=used, other=0.0).to(tl.float32)
    if HAS_SCALE:
        more = 1 + tl.load(scale + b * stride + chan, mask=used, other=0.0).to(tl.float32)
        o = tl.load(beta + chan, mask=used, other=0.0).to(tl.float32)
        tl.store(dscale + b * dstride + chan, (g * c + o * a).to(dscale.dtype.element_ty), mask=used)
        tl.store(dshift + b * dstride + chan, a.to(dshift.dtype.element_ty), mask=used)
        a = a * more
        c = c * more
    sums += b * SUMS * C + chan
    tl.store(sums, c, mask=used)
    tl.store(sums + C, a, mask=used)
    if HAS_BIAS or HAS_ADD:
        tl.store(sums + 2 * C, summed, mask=used)
    if BESIDE:
        tl.store(sums + (SUMS - 1) * C, passed, mask=used)


@triton.jit
def mix(
    beside, first, second, weight, bias, bias2, out, M,
    N: tl.constexpr, K1: tl.constexpr, K2: tl.constexpr,
    BESIDE: tl.constexpr, FIRST: tl.constexpr, HAS_BIAS: tl.constexpr, HAS_BIAS2: tl.constexpr, PRODUCT: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    """out = beside + [first | second] weight^T + bias + bias2, rows (M, N). weight: (N, K1 + K2).

    Without PRODUCT, first is (M, N) and added itself where there is FIRST: a residual connection with its biases.
    BESIDE: how many (M, N) beside holds, one after the other; their sum is added.
    """
    wide: tl.constexpr = (N + BLOCK_N - 1) // BLOCK_N
    m = (tl.program_id(0) // wide).to(tl.int64) * BLOCK_M + tl.arange(0, BLOCK_M)
    n = tl.program_id(0) % wide * BLOCK_N + tl.arange(0, BLOCK_N)
    inside = (m < M)[:, None] & (n < N)[None, :]
    total = tl.zeros((BLOCK_M, BLOCK_N), tl.float32)
    if PRODUCT:
        for k in range(0, K1, BLOCK_K):
            at = k + tl.arange(0, BLOCK_K)
            x = tl.load(first + m[:, None] * K1 + at[None, :], mask=(m < M)[:, None] & (at < K1)[None, :], other=0.0)
            w = tl.load(weight + n[None, :] * (K1 + K2) + at[:, None], mask=(n < N)[None, :] & (at < K1)[:, None], other=0.0)  # fmt: skip
            total = tl.dot(x, w, total)
        for k in range(0, K2, BLOCK_K):
            at = k + tl.arange(0, BLOCK_K)
            x = tl.load(second + m[:, None] * K2 + at[None, :], mask=(m < M)[:, None] & (at < K2)[None, :], other=0.0)
            w = tl.load(weight + n[None, :] * (K1 + K2) + K1 + at[:, None], mask=(n < N)[None, :] & (at < K2)[:, None], other=0.0)  # fmt: skip
            total = tl.dot(x, w, total)
    elif FIRST:
        total += tl.load(first + m[:, None] * N + n[None, :], mask=inside, other=0.0).to(tl.float32)
    for part in range(0, BESIDE):
        at = beside + (part * M + m)[:, None] * N + n[None, :]
        total += tl.load(at, mask=inside, other=0.0).to(tl.float32)
    if HAS_BIAS:
        total += tl.load(bias + n, mask=n < N, other=0.0).to(tl.float32)[None, :]
    if HAS_BIAS2:
        total += tl.load(bias2 + n, mask=n < N, other=0.0).to(tl.float32)[None, :]
    tl.store(out + m[:, None] * N + n[None, :], total.to(out.dtype.element_ty), mask=inside)


@triton.jit
def conv_parts(
    x, weight, parts, M, H, W, HO, WO,
    C: tl.constexpr, N: tl.constexpr, KH: tl.constexpr, KW: tl.constexpr, DOWN_H: tl.constexpr, DOWN_W: tl.constexpr,
    UP_H: tl.constexpr, UP_W: tl.constexpr, STEPS: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    """A padded convolution as a matrix product whose inner dimension is shared out among programs, for few positions.

    x (B, H, W, C), first enlarged UP times by nearest neighbour; weight (N, KH, KW, C), stride DOWN. parts (P, M, N)
    float32, M = B HO WO: their sum over P is the result. A step is BLOCK_K channels of one place of the kernel.
    """
    part = tl.program_id(2)
    m = tl.program_id(1) * BLOCK_M + tl.arange(0, BLOCK_M)
    n = tl.program_id(0) * BLOCK_N + tl.arange(0, BLOCK_N)
    b = m // (HO * WO)
    top = (m % (HO * WO)) // WO * DOWN_H - KH // 2
    left = m % WO * DOWN_W - KW // 2
    chunks: tl.constexpr = (C + BLOCK_K - 1) // BLOCK_K
    total = tl.zeros((BLOCK_M, BLOCK_N), tl.float32)
    for i in range(0, STEPS):
        step = part * STEPS + i
        place = step // chunks
        c = (step % chunks) * BLOCK_K + tl.arange(0, BLOCK_K)
        real = c + C * (place // (KH * KW)) < C  # the last program may have steps left over
        row, col = top + place // KW, left + place % KW
        inside = (m < M) & (row >= 0) & (row < H * UP_H) & (col >= 0) & (col < W * UP_W)
        at = ((b * H + row // UP_H) * W + col // UP_W) * C
        pixels = tl.load(x + at[:, None] + c[None, :], mask=inside[:, None] & real[None, :], other=0.0)
        kernel = tl.load(
            weight + n[None, :] * (KH * KW * C) + place * C + c[:, None],
            mask=(n < N)[None, :] & real[:, None],
            other=0.0,
        )
        total = tl.dot(pixels, kernel, total)
    tl.store(parts + (part * M + m)[:, None] * N + n[None, :], total, mask=(m < M)[:, None] & (n < N)[None, :])


@triton.jit
def column_sums(x, out, M, N: tl.constexpr, PER: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr):
    """Partial sums over rows: out (parts, N) float32, each of PER rows of x (M, N)."""
    part = tl.program_id(1).to(tl.int64)
    n = tl.program_id(0) * BLOCK_N + tl.arange(0, BLOCK_N)
    total = tl.zeros((BLOCK_N,), tl.float32)
    for row in range(0, PER, BLOCK_M):
        m = part * PER + row + tl.arange(0, BLOCK_M)
        inside = ((m < M) & (row + tl.arange(0, BLOCK_M) < PER))[:, None] & (n < N)[None, :]
        total += tl.sum(tl.load(x + m[:, None] * N + n[None, :], mask=inside, other=0.0).to(tl.float32), 0)
    tl.store(out + part * N + n, total, mask=n < N)
