"""The order is a permutation of every epoch, uniform over permutations, with random access."""

from __future__ import annotations

from collections import Counter
from math import factorial

import numpy as np
import pytest

from sfumato.data import Order
from sfumato.errors import UserError


@pytest.mark.parametrize("n", [1, 2, 3, 5, 7, 8, 63, 64, 65, 1000, 10_007])
def test_every_epoch_is_a_permutation(n: int) -> None:
    indices = Order(n, seed=3)(np.arange(4 * n)).reshape(4, n)
    assert (np.sort(indices, axis=1) == np.arange(n)).all()
    if n >= 63:
        assert all((indices[e] != indices[e + 1]).any() for e in range(3))


def test_access_is_random() -> None:
    order = Order(1797, seed=0)
    whole = order(np.arange(5000))
    some = np.random.default_rng(0).permutation(5000)
    assert (order(some) == whole[some]).all()
    assert (order(np.arange(1234, 2000)) == whole[1234:2000]).all()


def test_seeds_and_values_are_stable() -> None:
    assert Order(10, seed=0)(np.arange(10)).tolist() != Order(10, seed=1)(np.arange(10)).tolist()
    # Written down once: a change of the order would make a resumed run see other data.
    assert Order(10, seed=0)(np.arange(12)).tolist() == [0, 2, 3, 8, 6, 7, 9, 4, 1, 5, 6, 7]


@pytest.mark.parametrize("n", [2, 3, 4, 5])
def test_all_permutations_are_equally_likely(n: int) -> None:
    epochs = 6000
    found = Counter(tuple(row) for row in Order(n, seed=1)(np.arange(epochs * n)).reshape(epochs, n))
    expected = epochs / factorial(n)
    chi2 = sum((count - expected) ** 2 / expected for count in found.values())
    assert len(found) == factorial(n)
    assert chi2 < 2.5 * factorial(n) + 10  # far beyond the 99.9th percentile only for a biased order


def test_neighbours_of_one_epoch_are_unrelated() -> None:
    indices = Order(4096, seed=0)(np.arange(4096)).astype(float)
    assert abs(np.corrcoef(indices[:-1], indices[1:])[0, 1]) < 0.05
    assert abs(np.corrcoef(indices, np.arange(4096))[0, 1]) < 0.05


def test_no_items_is_refused() -> None:
    with pytest.raises(UserError, match="training part of the data is empty"):
        Order(0, seed=0)
