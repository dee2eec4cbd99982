"""The Triton kernel of `sfumato.train.fused_update`, imported only where it is used."""

from __future__ import annotations

import triton
import triton.language as tl

COLUMNS = 8  # of the table before the averages: weight, gradient, two moments, copy, elements, kind, (unused)


@triton.jit
def update(
    table, decays, owners, starts, scalars, weights, bad,
    WIDTH: tl.constexpr, AVERAGES: tl.constexpr, BLOCK: tl.constexpr, B1: tl.constexpr, B2: tl.constexpr,
    EPS: tl.constexpr, HALF: tl.constexpr,
):  # fmt: skip
    """AdamW, the averages and the half-precision copy of one block of one tensor.

    table (T, WIDTH) int64: addresses, see COLUMNS, then those of the averages. owners, starts: the tensor and first element
    of each program. scalars: lr, 1 - b1^n, 1 - b2^n, factor of the gradients. kind: 1 gradient in HALF, 2 has a copy.
    """
    program = tl.program_id(0)
    owner = tl.load(owners + program)
    row = table + owner * WIDTH
    at = tl.load(starts + program) + tl.arange(0, BLOCK)
    inside = at < tl.load(row + 5)
    kind = tl.load(row + 6)
    p_at = tl.load(row).to(tl.pointer_type(tl.float32)) + at
    p = tl.load(p_at, mask=inside, other=0.0)
    if tl.load(bad) == 0:
        lr, first, second, factor = tl.load(scalars), tl.load(scalars + 1), tl.load(scalars + 2), tl.load(scalars + 3)
        if kind & 1:
            g = tl.load(tl.load(row + 1).to(tl.pointer_type(HALF)) + at, mask=inside, other=0.0).to(tl.float32)
        else:
            g = tl.load(tl.load(row + 1).to(tl.pointer_type(tl.float32)) + at, mask=inside, other=0.0)
        g = g * factor
        m_at = tl.load(row + 2).to(tl.pointer_type(tl.float32)) + at
        v_at = tl.load(row + 3).to(tl.pointer_type(tl.float32)) + at
        m = tl.load(m_at, mask=inside, other=0.0)
        v = tl.load(v_at, mask=inside, other=0.0)
        m = m + (1 - B1) * (g - m)
        v = B2 * v + (1 - B2) * g * g
        p = p * (1 - lr * tl.load(decays + owner))
        p = p - (lr / first) * m / (tl.sqrt(v) / tl.sqrt(second) + EPS)
        tl.store(m_at, m, mask=inside)
        tl.store(v_at, v, mask=inside)
        tl.store(p_at, p, mask=inside)
    if kind & 2:
        tl.store(tl.load(row + 4).to(tl.pointer_type(HALF)) + at, p.to(HALF), mask=inside)
    for i in tl.static_range(AVERAGES):
        a_at = tl.load(row + 8 + i).to(tl.pointer_type(tl.float32)) + at
        a = tl.load(a_at, mask=inside, other=0.0)
        tl.store(a_at, a + tl.load(weights + i) * (p - a), mask=inside)
