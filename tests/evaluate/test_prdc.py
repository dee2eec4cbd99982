"""Precision, recall, density and coverage on point sets whose balls can be drawn by hand."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from sfumato.errors import UserError
from sfumato.evaluate import PRDC, prdc, prdc_intervals


def line(*points: float) -> torch.Tensor:
    return torch.tensor(points, dtype=torch.float64)[:, None]


def by_definition(x: torch.Tensor, y: torch.Tensor, k: int) -> PRDC:
    """The four sums of the papers, in plain Python over whole numbers."""
    xs, ys = [tuple(map(int, r)) for r in x], [tuple(map(int, r)) for r in y]

    def d(a: tuple[int, ...], b: tuple[int, ...]) -> int:
        return sum((p - q) ** 2 for p, q in zip(a, b))

    def radii(s: list[tuple[int, ...]]) -> list[int]:
        return [sorted(d(a, b) for j, b in enumerate(s) if j != i)[k - 1] for i, a in enumerate(s)]

    of_x, of_y = radii(xs), radii(ys)
    hits = [[d(a, b) <= r for a, r in zip(xs, of_x)] for b in ys]
    return PRDC(
        precision=sum(any(h) for h in hits) / len(ys),
        recall=sum(any(d(a, b) <= r for b, r in zip(ys, of_y)) for a in xs) / len(xs),
        density=sum(map(sum, hits)) / (k * len(ys)),
        coverage=sum(any(d(a, b) <= r for b in ys) for a, r in zip(xs, of_x)) / len(xs),
    )


def test_by_hand() -> None:
    """Reals 0, 1, 10 with k = 1: balls of radius 1, 1, 9. Samples 0.5, 5, 100 with k = 1: radii 4.5, 4.5, 95."""
    made = prdc(line(0, 1, 10), line(0.5, 5, 100), k=1)
    # 0.5 lies in the balls of 0 and 1, 5 in that of 10, 100 in none; the samples' balls are [-4, 5], [0.5, 9.5], [5, 195].
    assert made == PRDC(precision=2 / 3, recall=1.0, density=(2 + 1) / 3, coverage=1.0)


def test_a_set_against_itself() -> None:
    """Every item lies in its own ball and in those it is a near neighbour of: k + 1 balls on average, rim included."""
    x = torch.randn(40, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    assert prdc(x, x, k=4) == PRDC(1.0, 1.0, pytest.approx(5 / 4), 1.0)


def test_far_samples_score_nothing() -> None:
    x = torch.randn(40, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    assert prdc(x, x + 1000, k=3) == PRDC(0.0, 0.0, 0.0, 0.0)


def test_dropping_a_mode_halves_recall_and_coverage() -> None:
    g = torch.Generator().manual_seed(0)
    a, b = torch.randn(50, 2, generator=g, dtype=torch.float64), torch.randn(50, 2, generator=g, dtype=torch.float64)
    made = prdc(torch.cat([a, b + 1000]), a, k=3)
    assert made.precision == 1.0
    assert made.recall == 0.5
    assert made.coverage == 0.5


@settings(max_examples=40, deadline=None)
@given(
    st.lists(st.tuples(st.integers(-6, 6), st.integers(-6, 6)), min_size=4, max_size=9),
    st.lists(st.tuples(st.integers(-6, 6), st.integers(-6, 6)), min_size=4, max_size=9),
    st.integers(1, 3),
    st.integers(-1000, 1000),
)
def test_equals_the_definition_and_moving_both_changes_nothing(
    x: list[tuple[int, int]], y: list[tuple[int, int]], k: int, shift: int
) -> None:
    """Whole numbers with many ties: every point on a rim counts, wherever the origin lies."""
    a, b = torch.tensor(x, dtype=torch.float64), torch.tensor(y, dtype=torch.float64)
    expected = by_definition(a, b, k)
    assert prdc(a + shift, b + shift, k) == PRDC(*map(pytest.approx, vars(expected).values()))


def test_expected_values_for_one_distribution() -> None:
    """Coverage of N reals by N samples of the same distribution: 1 - (N-1)...(N-k) / ((2N-1)...(2N-k)), any dimension.

    Naeem et al. 2020, lemma 2; density has mean 1.
    """
    g = torch.Generator().manual_seed(4)
    n, k = 60, 3
    expected = 1.0
    for i in range(1, k + 1):
        expected *= (n - i) / (2 * n - i)
    scores = [prdc(torch.randn(n, 5, generator=g), torch.randn(n, 5, generator=g), k) for _ in range(100)]
    coverage = torch.tensor([s.coverage for s in scores])
    density = torch.tensor([s.density for s in scores])
    assert abs(float(coverage.mean()) - (1 - expected)) < 4 * float(coverage.std()) / 10
    assert abs(float(density.mean()) - 1) < 4 * float(density.std()) / 10


def test_too_few_items_are_refused() -> None:
    with pytest.raises(UserError, match="k = 5 nearest neighbours can't be had from 4 others"):
        prdc(torch.zeros(5, 2), torch.zeros(9, 2), k=5)


def test_intervals_hold_the_expected_scores() -> None:
    """Two Gaussians that differ: at least 90% of 60 intervals hold the mean score, none much wider than it must be."""
    g = torch.Generator().manual_seed(5)
    scores, intervals = [], []
    for _ in range(60):
        x, y = torch.randn(150, 4, generator=g), 0.8 * torch.randn(150, 4, generator=g) + 0.3
        scores.append(vars(prdc(x, y, 3)))
        intervals.append(prdc_intervals(x, y, 3))
    for name in ("precision", "recall", "density", "coverage"):
        values = torch.tensor([s[name] for s in scores])
        ends = torch.tensor([i[name] for i in intervals])
        held = (ends[:, 0] <= values.mean()) & (values.mean() <= ends[:, 1])
        assert held.float().mean() >= 0.9, name
        assert (ends[:, 1] - ends[:, 0]).mean() < 2.5 * 2 * 1.96 * values.std(), name


def test_intervals_at_the_ends_are_wilsons_and_repeatable() -> None:
    from sfumato.evaluate import wilson

    x = torch.randn(40, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    same, far = prdc_intervals(x, x, k=4), prdc_intervals(x, x + 1000, k=4)
    assert same == prdc_intervals(x, x, k=4, found=prdc(x, x, 4))
    for name in ("precision", "recall", "coverage"):
        assert same[name] == pytest.approx(wilson(40, 40)) and far[name] == pytest.approx(wilson(0, 40))
    assert far["density"] == (0.0, 0.0)
