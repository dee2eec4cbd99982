"""The kernel distance against direct sums and closed forms."""

from __future__ import annotations

import importlib

import pytest
import torch

from sfumato.errors import UserError
from sfumato.evaluate import kid

D = torch.float64


def by_definition(x: torch.Tensor, y: torch.Tensor) -> float:
    def k(a: torch.Tensor, b: torch.Tensor) -> float:
        return float((a @ b / len(a) + 1) ** 3)

    n, m = len(x), len(y)
    xx = sum(k(x[i], x[j]) for i in range(n) for j in range(n) if i != j) / (n * (n - 1))
    yy = sum(k(y[i], y[j]) for i in range(m) for j in range(m) if i != j) / (m * (m - 1))
    xy = sum(k(a, b) for a in x for b in y) / (n * m)
    return xx + yy - 2 * xy


def test_equals_the_sums_over_pairs() -> None:
    g = torch.Generator().manual_seed(0)
    x, y = torch.randn(7, 3, generator=g, dtype=D), torch.randn(5, 3, generator=g, dtype=D) + 0.5
    assert kid(x, y).value == pytest.approx(by_definition(x, y), rel=1e-12)


def test_blocks_do_not_change_it(monkeypatch: pytest.MonkeyPatch) -> None:
    g = torch.Generator().manual_seed(0)
    x, y = torch.randn(70, 3, generator=g, dtype=D), torch.randn(50, 3, generator=g, dtype=D)
    whole = kid(x, y)
    monkeypatch.setattr(importlib.import_module("sfumato.evaluate.kid"), "_BLOCK", 130)
    parts = kid(x, y)
    assert parts.value == pytest.approx(whole.value, abs=1e-12)
    assert parts.interval == pytest.approx(whole.interval, abs=1e-12)


def test_two_points() -> None:
    """Items all at 0 and all at (a): k(0,0) = 1, k(0,a) = 1, k(a,a) = (a^2 + 1)^3."""
    x, y = torch.zeros(4, 1), torch.full((6, 1), 2.0)
    made = kid(x, y)
    assert made.value == pytest.approx(1 + 125 - 2, rel=1e-12)
    assert made.interval == pytest.approx((124, 124))


def test_unbiased_with_an_honest_interval() -> None:
    """200 pairs of sets of one distribution: the mean is 0 within its error; of two: 95% intervals hold the truth."""
    g = torch.Generator().manual_seed(3)
    same = torch.tensor(
        [kid(torch.randn(20, 2, generator=g), torch.randn(30, 2, generator=g)).value for _ in range(200)]
    )
    assert abs(float(same.mean())) < 3 * float(same.std()) / 200**0.5
    # x ~ N(0, 1), y ~ N(1, 1) in 1-D: E k(a, b) of independent draws, expanded: 1 + 3 mn + 3 m2 n2 + m3 n3
    # with moments (1st, 2nd, 3rd) of N(0, 1): 0, 1, 0 and of N(1, 1): 1, 2, 4.
    truth = (1 + 3) + (1 + 3 + 12 + 16) - 2 * (1 + 0 + 6 + 0)
    held = 0
    for _ in range(200):
        low, high = kid(torch.randn(150, 1, generator=g), torch.randn(100, 1, generator=g) + 1).interval
        held += low < truth < high
    assert held > 0.85 * 200


def test_bad_input_is_named() -> None:
    with pytest.raises(UserError, match="1 and 4 items are too few"):
        kid(torch.zeros(1, 2), torch.zeros(4, 2))
    with pytest.raises(UserError, match="2 and 3 values"):
        kid(torch.zeros(4, 2), torch.zeros(4, 3))
