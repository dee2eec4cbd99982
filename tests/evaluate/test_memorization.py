"""Near-copies, deviation and shares on sets whose answer is known."""

from __future__ import annotations

import pytest
import torch

from sfumato.errors import UserError
from sfumato.evaluate import Share, accuracy, deviation, memorization, wilson


def line(*points: float) -> torch.Tensor:
    return torch.tensor(points, dtype=torch.float64)[:, None]


def test_threshold_and_share_by_hand() -> None:
    """Held-out items at distances 0, 1, ..., 20 from training: the 5th percentile is 1."""
    train = line(0)
    made = memorization(line(0, 0.5, 1, 5, -0.25), train, line(*range(21)))
    assert made.threshold == 1.0
    assert made.near_copies == Share(3, 5)  # 1 is at the threshold, not below it
    assert made.held_out == Share(1, 21)
    assert made.nearest.index[:, 0].tolist() == [0] * 5


def test_copies_are_found_and_new_items_score_as_held_out_ones() -> None:
    g = torch.Generator().manual_seed(0)
    train, held_out, new = (
        torch.randint(0, 256, (n, 1, 4, 4), generator=g, dtype=torch.uint8) for n in (400, 400, 400)
    )
    assert memorization(train, train, held_out).near_copies.value == 1.0
    fair = memorization(new, train, held_out)
    assert fair.held_out.hits == 20
    assert fair.near_copies.value < 0.1
    half = memorization(torch.cat([new[:200], train[:200]]), train, held_out)
    assert 0.5 <= half.near_copies.value < 0.55


def test_moving_everything_changes_nothing() -> None:
    g = torch.Generator().manual_seed(1)
    train, held_out, new = (torch.randint(0, 100, (60, 6), generator=g).double() for _ in range(3))
    plain, moved = memorization(new, train, held_out), memorization(new + 77, train + 77, held_out + 77)
    assert plain.threshold == moved.threshold
    assert plain.near_copies == moved.near_copies


def test_percentile_is_checked() -> None:
    with pytest.raises(UserError, match="percentile = 0"):
        memorization(line(0), line(0), line(0), percentile=0)


def test_deviation_by_hand() -> None:
    items = torch.tensor([[0.0, 0.0], [2.0, 0.0], [10.0, 4.0], [12.0, 8.0]])
    groups = torch.tensor([0, 0, 1, 1])
    # within: variances (2, 0) and (2, 8), pixel means 1 and 5, mean 3
    assert deviation(items, groups) == pytest.approx(3**0.5)
    # about one mean (6, 3): variances (36 + 16 + 16 + 36) / 3 and (9 + 9 + 1 + 25) / 3
    assert deviation(items) == pytest.approx(((104 + 44) / 3 / 2) ** 0.5)
    assert deviation(2 * items + 5, groups) == pytest.approx(2 * 3**0.5)


def test_deviation_counts_groups_alike_and_leaves_out_single_items() -> None:
    items = torch.tensor([[0.0], [2.0], [5.0], [5.0], [5.0], [9.0]])
    assert deviation(items, torch.tensor([0, 0, 1, 1, 1, 2])) == pytest.approx(1.0)  # (2 + 0) / 2
    with pytest.raises(UserError, match="is not defined"):
        deviation(items[:2], torch.tensor([0, 1]))
    with pytest.raises(UserError, match=r"\(2,\) groups do not fit 6"):
        deviation(items, torch.tensor([0, 1]))


def test_one_picture_per_prompt_has_no_deviation() -> None:
    pictures = torch.randint(0, 256, (10, 1, 8, 8), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    assert deviation(pictures.repeat(5, 1, 1, 1), torch.arange(10).repeat(5)) == 0


@pytest.mark.parametrize(
    ("hits", "n", "low", "high"),
    [(0, 10, 0.0, 0.27753), (10, 10, 0.72247, 1.0), (5, 10, 0.23659, 0.76341), (95, 100, 0.88825, 0.97846)],
)
def test_wilson_intervals(hits: int, n: int, low: float, high: float) -> None:
    """Published values, and the equation that defines the ends: (p - hits/n)^2 = z^2 p (1 - p) / n."""
    made = wilson(hits, n)
    assert made == pytest.approx((low, high), abs=6e-6)
    for p in made:
        assert (p - hits / n) ** 2 == pytest.approx(1.959963984540054**2 * p * (1 - p) / n, abs=1e-12)


def test_accuracy_counts() -> None:
    share = accuracy(torch.tensor([1, 2, 3, 3]), torch.tensor([1, 2, 0, 3]))
    assert share == Share(3, 4)
    assert share.value == 0.75
    with pytest.raises(UserError, match=r"\(2,\) judged labels do not fit \(3,\)"):
        accuracy(torch.zeros(2), torch.zeros(3))
    with pytest.raises(UserError, match="0 of 0 is not a share"):
        Share(0, 0)
