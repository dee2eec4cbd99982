"""The Frechet distance against its closed forms."""

from __future__ import annotations

import pytest
import torch

from sfumato.errors import UserError
from sfumato.evaluate import Moments, frechet, frechet_distance

D = torch.float64


def gaussian(mean: list[float], covariance: list[list[float]]) -> Moments:
    return Moments(torch.tensor(mean, dtype=D), torch.tensor(covariance, dtype=D), 100)


def rotation(angle: float) -> torch.Tensor:
    c, s = torch.tensor(angle, dtype=D).cos(), torch.tensor(angle, dtype=D).sin()
    return torch.stack([torch.stack([c, -s]), torch.stack([s, c])])


def test_equal_gaussians_are_at_distance_zero() -> None:
    a = gaussian([1, -2], [[2, 0.5], [0.5, 1]])
    assert frechet_distance(a, a) == pytest.approx(0, abs=1e-12)


def test_commuting_covariances_differ_by_their_deviations() -> None:
    """C_a C_b = C_b C_a: |m|^2 + sum (s_a - s_b)^2 over the common axes."""
    r = rotation(0.7)
    a = Moments(torch.tensor([0.0, 3.0], dtype=D), r @ torch.diag(torch.tensor([4.0, 1.0], dtype=D)) @ r.T, 10)
    b = Moments(torch.tensor([4.0, 0.0], dtype=D), r @ torch.diag(torch.tensor([9.0, 0.25], dtype=D)) @ r.T, 10)
    assert frechet_distance(a, b) == pytest.approx(25 + (2 - 3) ** 2 + (1 - 0.5) ** 2, rel=1e-12)


def test_two_by_two_covariances_that_do_not_commute() -> None:
    """For 2x2, tr (AB)^1/2 = sqrt(tr AB + 2 sqrt(det AB)) (Cayley-Hamilton)."""
    a = gaussian([0, 0], [[2, 0.3], [0.3, 1]])
    b = gaussian([0, 0], [[1, -0.4], [-0.4, 3]])
    product = a.covariance @ b.covariance
    root = (product.trace() + 2 * product.det().sqrt()).sqrt()
    expected = a.covariance.trace() + b.covariance.trace() - 2 * root
    assert frechet_distance(a, b) == pytest.approx(float(expected), rel=1e-12)


def test_singular_covariances() -> None:
    """Two lines at an angle: rank one each, tr (C_a^1/2 C_b C_a^1/2)^1/2 = s_a s_b |cos|."""
    r = rotation(1.1)
    line = torch.diag(torch.tensor([4.0, 0.0], dtype=D))
    a, b = Moments(torch.zeros(2, dtype=D), line, 10), Moments(torch.zeros(2, dtype=D), r @ line @ r.T, 10)
    cosine = torch.tensor(1.1, dtype=D).cos()
    assert frechet_distance(a, b) == pytest.approx(float(8 - 2 * 4 * cosine), rel=1e-9)
    point = Moments(torch.zeros(2, dtype=D), torch.zeros(2, 2, dtype=D), 10)
    assert frechet_distance(a, point) == pytest.approx(4, rel=1e-12)


def test_fewer_items_than_features() -> None:
    """Sample covariances of 3 items in 50 dimensions are singular; a shift of all items adds its squared length."""
    x = torch.randn(3, 50, generator=torch.Generator().manual_seed(0), dtype=D)
    shift = torch.zeros(50, dtype=D)
    shift[7] = 3.0
    assert frechet_distance(Moments.of(x), Moments.of(x + shift)) == pytest.approx(9, rel=1e-6)


@pytest.mark.parametrize("scale", [1.0, 1e-3, 1e3])
def test_isometries_and_scale(scale: float) -> None:
    """Moving and turning both sets changes nothing; scaling both scales the squared distance by the square."""
    g = torch.Generator().manual_seed(1)
    x, y = torch.randn(60, 4, generator=g, dtype=D), 2 * torch.randn(50, 4, generator=g, dtype=D) + 1
    turn = torch.linalg.qr(torch.randn(4, 4, generator=g, dtype=D)).Q
    plain = frechet(x, y, resamples=1).value
    moved = frechet(scale * (x @ turn + 5), scale * (y @ turn + 5), resamples=1).value
    assert moved == pytest.approx(scale**2 * plain, rel=1e-8)
    assert frechet(y, x, resamples=1).value == pytest.approx(plain, rel=1e-10)


def test_moments_are_unbiased_and_take_any_shape() -> None:
    x = torch.tensor([[[0.0, 0.0]], [[2.0, 0.0]], [[4.0, 3.0]]])
    moments = Moments.of(x)
    assert moments.mean.tolist() == [2.0, 1.0]
    assert torch.equal(moments.covariance, torch.tensor([[4.0, 3.0], [3.0, 3.0]], dtype=D))


def test_interval_is_repeatable_holds_the_estimate_and_narrows() -> None:
    g = torch.Generator().manual_seed(2)
    x, y = torch.randn(2000, 3, generator=g), torch.randn(2000, 3, generator=g) + 1
    few, many = frechet(x[:100], y[:100]), frechet(x, y)
    assert many == frechet(x, y)
    assert many.interval[0] < many.value < many.interval[1]
    assert many.interval[0] < 3.0 < many.interval[1]  # the truth: |(1, 1, 1)|^2
    widths = [b - a for a, b in (few.interval, many.interval)]
    assert widths[1] < 0.4 * widths[0]  # about sqrt(1/20)


@pytest.mark.parametrize(
    ("x", "y", "said"),
    [
        (torch.zeros(1, 3), torch.zeros(4, 3), "1 item is not defined"),
        (torch.zeros(4, 3), torch.zeros(4, 2), "3 and 2 values"),
        (torch.zeros(0, 3), torch.zeros(4, 3), "real items of shape (0, 3)"),
        (torch.tensor([[0.0], [float("nan")]]), torch.zeros(4, 1), "item 1 of the real items"),
    ],
)
def test_bad_input_is_named(x: torch.Tensor, y: torch.Tensor, said: str) -> None:
    with pytest.raises(UserError, match=said.replace("(", r"\(").replace(")", r"\)")):
        frechet(x, y)
