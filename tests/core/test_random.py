"""Randomness as a function of the index."""

from __future__ import annotations

import math

import numpy as np
import torch

from sfumato.core import Draws, SampleNoise
from sfumato.core.random import keys, splitmix64, uniform


def test_splitmix_is_the_reference_sequence() -> None:
    """The published first outputs for seed 1234567: state += golden, then mix."""
    golden, seed = 0x9E3779B97F4A7C15, 1234567
    states = np.asarray([(seed + i * golden) % 2**64 for i in range(3)], np.uint64)
    assert splitmix64(states).tolist() == [6457827717110365317, 3203168211198807973, 9817491932198370423]


def test_keys_do_not_collide() -> None:
    index = np.arange(200_000)
    for stream in ("noise", "times"):
        assert len(np.unique(keys(0, stream, index))) == len(index)
    assert len(np.intersect1d(keys(0, "noise", index), keys(0, "times", index))) == 0
    assert len(np.intersect1d(keys(0, "noise", index), keys(1, "noise", index))) == 0


def test_uniform_is_uniform_and_open() -> None:
    u = uniform(keys(3, "x", np.arange(100_000)))
    assert u.min() > 0 and u.max() < 1
    sorted_u = np.sort(u)
    distance = np.abs(sorted_u - (np.arange(len(u)) + 0.5) / len(u)).max()
    assert distance < 1.95 / math.sqrt(len(u))  # Kolmogorov-Smirnov at 0.1%
    assert uniform(np.asarray([0, 2**64 - 1], np.uint64)).tolist() == [2.0**-53, 1 - 2.0**-53]


def test_spread_covers_evenly_from_any_start() -> None:
    """Star discrepancy of 64 consecutive samples is under 3/64, several times less than of independent ones."""
    for start in (0, 1, 10**9, 2**40):
        u = Draws(7, start, 64).spread("times").sort().values
        grid = torch.arange(64, dtype=torch.float64) / 64
        assert max((u - grid).abs().max(), (u - grid - 1 / 64).abs().max()) < 3 / 64


def test_spread_and_uniform_are_stable_under_splitting() -> None:
    for method in ("spread", "uniform"):
        whole = getattr(Draws(1, 50, 10), method)("s")
        parts = [getattr(Draws(1, 50 + i, 5), method)("s") for i in (0, 5)]
        assert torch.equal(whole, torch.cat(parts))


def test_normal_depends_on_its_key_alone() -> None:
    whole = Draws(0, 10, 6).normal((2, 3))
    assert torch.equal(whole[4:], Draws(0, 14, 2).normal((2, 3)))
    assert not torch.equal(whole[0], Draws(1, 10, 1).normal((2, 3))[0])
    many = Draws(0, 0, 4000).normal((50,))
    assert abs(many.mean()) < 4 / math.sqrt(many.numel()) and abs(many.std() - 1) < 4 / math.sqrt(2 * many.numel())


def test_sample_noise_follows_the_seed_not_the_row() -> None:
    a, b = SampleNoise((5, 9)), SampleNoise((9,))
    assert torch.equal(a.prior((3,))[1], b.prior((3,))[0])
    assert torch.equal(a.step(4, (3,))[1], b.step(4, (3,))[0])
    assert not torch.equal(b.step(4, (3,)), b.step(5, (3,)))


def test_global_generator_is_left_alone() -> None:
    torch.manual_seed(0)
    state = torch.get_rng_state()
    Draws(0, 0, 4).normal((3,))
    SampleNoise((1,)).prior((3,))
    assert torch.equal(state, torch.get_rng_state())
