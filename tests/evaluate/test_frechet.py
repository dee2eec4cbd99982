"""The Frechet distance against its closed forms."""

from __future__ import annotations

import pytest
import torch

from sfumato.errors import UserError
from sfumato.evaluate import Moments, frechet, frechet_distance
from sfumato.evaluate.frechet import linear_deviation

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


def test_linear_deviation_in_one_dimension() -> None:
    """The distance is (a - b)^2 + (s - r)^2, with derivatives 2 (a - b) by the mean a and 1 - r/s by the variance s^2."""
    g = torch.Generator().manual_seed(4)
    x, y = torch.randn(300, 1, generator=g, dtype=D), 1.5 * torch.randn(200, 1, generator=g, dtype=D) + 1
    a, b, s, r = x.mean(), y.mean(), x.std(), y.std()
    f = 2 * (a - b) * (x - a) + (1 - r / s) * (x - a) ** 2
    h = 2 * (b - a) * (y - b) + (1 - s / r) * (y - b) ** 2
    value, deviation = linear_deviation(x, y, Moments.of(x), Moments.of(y))
    assert value == pytest.approx(float((a - b) ** 2 + (s - r) ** 2), rel=1e-12)
    assert deviation == pytest.approx(float((f.var() / 300 + h.var() / 200).sqrt()), rel=1e-9)


def test_linear_deviation_is_that_of_the_bootstrap() -> None:
    g = torch.Generator().manual_seed(5)
    turn = torch.eye(6, dtype=D) + 0.3 * torch.randn(6, 6, generator=g, dtype=D)
    x, y = torch.randn(1500, 6, generator=g, dtype=D), torch.randn(1000, 6, generator=g, dtype=D) @ turn + 0.3
    drawn = frechet(x, y, resamples=400)
    value, deviation = linear_deviation(x, y, Moments.of(x), Moments.of(y))
    assert value == pytest.approx(drawn.value, rel=1e-10)
    assert 1.96 * deviation == pytest.approx(drawn.interval[1] - drawn.value, rel=0.12)  # 400 resamples: 3.5% and bias


def test_linear_deviation_without_spread_in_some_directions() -> None:
    """A feature that never changes adds nothing, to the value or to the deviation."""
    g = torch.Generator().manual_seed(6)
    x, y = torch.randn(200, 3, generator=g, dtype=D), torch.randn(300, 3, generator=g, dtype=D) + 1
    flat_x, flat_y = (torch.cat([rows, torch.full((len(rows), 2), 7.0, dtype=D)], 1) for rows in (x, y))
    plain = linear_deviation(x, y, Moments.of(x), Moments.of(y))
    wider = linear_deviation(flat_x, flat_y, Moments.of(flat_x), Moments.of(flat_y))
    assert wider == pytest.approx(plain, rel=1e-9)


def test_many_features_are_not_resampled() -> None:
    g = torch.Generator().manual_seed(7)
    few, many = (torch.randn(2, 40, d, generator=g, dtype=D) for d in (256, 257))
    assert frechet(*few).method == "bootstrap, 50 resamples"
    made = frechet(*many)
    assert made.method == "delta method" and made.interval[0] < made.value < made.interval[1]
    assert frechet(*many, resamples=0).interval == (pytest.approx(made.value),) * 2


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
