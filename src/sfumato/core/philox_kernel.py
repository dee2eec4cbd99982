"""The Triton kernel of `sfumato.core.philox`, imported only where it is used."""

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor

_BLOCK = 256


@triton.jit
def _fill(keys, out, n, BLOCK: tl.constexpr):
    row = tl.program_id(1).to(tl.int64)
    at = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    key = tl.load(keys + row)
    zero = at * 0
    a, b, c, d = tl.philox(key, at, zero, zero, zero)
    one = tl.sqrt(-2 * tl.log((a.to(tl.float32) + 0.5) * 2.3283064365386963e-10))
    two = tl.sqrt(-2 * tl.log((b.to(tl.float32) + 0.5) * 2.3283064365386963e-10))
    first = 6.283185307179586 * ((c.to(tl.float32) + 0.5) * 2.3283064365386963e-10)
    second = 6.283185307179586 * ((d.to(tl.float32) + 0.5) * 2.3283064365386963e-10)
    start = out + row * n + 4 * at
    tl.store(start, one * tl.cos(first), mask=4 * at < n)
    tl.store(start + 1, two * tl.cos(second), mask=4 * at + 1 < n)
    tl.store(start + 2, one * tl.sin(first), mask=4 * at + 2 < n)
    tl.store(start + 3, two * tl.sin(second), mask=4 * at + 3 < n)


def fill(keys: Tensor, out: Tensor) -> None:
    """Fill out (B, n) float32 for keys (B,) int64."""
    rows, n = out.shape
    _fill[(-(-n // (4 * _BLOCK)), rows)](keys, out, n, BLOCK=_BLOCK)
