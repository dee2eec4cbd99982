"""The Triton kernel of `sfumato.train.fused_update`, imported only where it is used."""

from __future__ import annotations

import triton
import triton.language as tl

COLUMNS = 8  # of the table before the averages: weight, gradient, two moments, copy, elements, kind, (unused)


@triton.jit
def _place(address, at, KIND: tl.constexpr, WHOLE: tl.constexpr):
    """Pointers to the elements `at` of the tensor whose address is in the table."""
    there = tl.load(address).to(tl.pointer_type(KIND)) + at
    return tl.multiple_of(there, [16]) if WHOLE else there


@triton.jit
def update(
    table, decays, owners, starts, scalars, weights, bad,
    WIDTH: tl.constexpr, AVERAGES: tl.constexpr, BLOCK: tl.constexpr, WHOLE: tl.constexpr, B1: tl.constexpr,
    B2: tl.constexpr, EPS: tl.constexpr, HALF: tl.constexpr,
):  # fmt: skip
    """AdamW, the averages and the half-precision copy of one block of one tensor.

    table (T, WIDTH) int64: addresses, see COLUMNS, then those of the averages. owners, starts: the tensor and first element
    of each program. scalars: lr, 1 - b1^n, 1 - b2^n, factor of the gradients. kind: 1 gradient in HALF, 2 has a copy.
    WHOLE: every block lies inside its tensor at addresses that 16 divides, so that 16 bytes are moved at once; of
    addresses that come from a table a compiler does not know it.
    """
    program = tl.program_id(0)
    owner = tl.load(owners + program)
    row = table + owner * WIDTH
    at = tl.load(starts + program) + tl.arange(0, BLOCK)
    inside = None if WHOLE else at < tl.load(row + 5)
    other = None if WHOLE else 0.0
    kind = tl.load(row + 6)
    p_at = _place(row, at, tl.float32, WHOLE)
    p = tl.load(p_at, mask=inside, other=other)
    if tl.load(bad) == 0:
        lr, first, second, factor = tl.load(scalars), tl.load(scalars + 1), tl.load(scalars + 2), tl.load(scalars + 3)
        if kind & 1:
            g = tl.load(_place(row + 1, at, HALF, WHOLE), mask=inside, other=other).to(tl.float32)
        else:
            g = tl.load(_place(row + 1, at, tl.float32, WHOLE), mask=inside, other=other)
        g = g * factor
        m_at = _place(row + 2, at, tl.float32, WHOLE)
        v_at = _place(row + 3, at, tl.float32, WHOLE)
        m = tl.load(m_at, mask=inside, other=other)
        v = tl.load(v_at, mask=inside, other=other)
        m = m + (1 - B1) * (g - m)
        v = B2 * v + (1 - B2) * g * g
        p = p * (1 - lr * tl.load(decays + owner))
        p = p - (lr / first) * m / (tl.sqrt(v) / tl.sqrt(second) + EPS)
        tl.store(m_at, m, mask=inside)
        tl.store(v_at, v, mask=inside)
        tl.store(p_at, p, mask=inside)
    if kind & 2:
        tl.store(_place(row + 4, at, HALF, WHOLE), p.to(HALF), mask=inside)
    for i in tl.static_range(AVERAGES):
        a_at = _place(row + 8 + i, at, tl.float32, WHOLE)
        a = tl.load(a_at, mask=inside, other=other)
        tl.store(a_at, a + tl.load(weights + i) * (p - a), mask=inside)
