"""Conditions are joined, padded and dropped per sample; grids have the papers' spacings."""

from __future__ import annotations

import pytest
import torch

from sfumato.core import VE, VP, Cond, Cosine, Flow, Grid, KarrasGrid, LogSNRGrid, Process, QuadraticGrid, UniformGrid
from sfumato.errors import UserError
from sfumato.testing import PROCESSES

GRIDS: list[Grid] = [UniformGrid(), QuadraticGrid(), KarrasGrid(), LogSNRGrid()]


def cond(batch: int, length: int) -> Cond:
    return Cond(torch.randn(batch, 3), torch.randn(batch, length, 4), torch.ones(batch, length, dtype=torch.bool))


def test_cat_pads_and_masks() -> None:
    a, b = cond(2, 5), cond(3, 2)
    joined = Cond.cat([a, b])
    assert len(joined) == 5 and joined.tokens is not None and joined.mask is not None
    assert torch.equal(joined.tokens[:2], a.tokens) and torch.equal(joined.tokens[2:, :2], b.tokens)
    assert joined.mask.sum(1).tolist() == [5, 5, 2, 2, 2] and not joined.tokens[2:, 2:].any()


def test_drop_is_per_sample() -> None:
    a, null = cond(4, 5), cond(4, 2)
    where = torch.tensor([True, False, False, True])
    dropped = a.drop(where, null)
    assert dropped.vector is not None and dropped.tokens is not None and dropped.mask is not None
    assert torch.equal(dropped.vector, torch.where(where[:, None], null.vector, a.vector))
    assert dropped.mask.sum(1).tolist() == [2, 5, 5, 2]
    assert torch.equal(dropped.tokens[1:3], a.tokens[1:3]) and torch.equal(dropped.tokens[0, :2], null.tokens[0])


def test_parts_must_agree() -> None:
    with pytest.raises(UserError, match="vector"):
        Cond.cat([Cond(vector=torch.zeros(1, 2)), Cond(tokens=torch.zeros(1, 1, 2))])


def test_repeat_and_index() -> None:
    a = cond(3, 2)
    assert torch.equal(a.repeat(2).vector[4], a.vector[2]) and torch.equal(a[1:].vector, a.vector[1:])


@pytest.mark.parametrize("process", PROCESSES, ids=repr)
@pytest.mark.parametrize("grid", GRIDS, ids=repr)
@pytest.mark.parametrize("n", [1, 2, 5, 50])
def test_grids_fall_from_1_to_0(grid: Grid, process: Process, n: int) -> None:
    t = grid(process, n)
    assert t.shape == (n + 1,) and t.dtype == torch.float64 and t[0] == 1 and t[-1] == 0
    assert bool((t.diff() < 0).all())


def test_karras_spacing_is_edms() -> None:
    n, i = 18, torch.arange(18).double()
    want = (80 ** (1 / 7) + i / (n - 1) * (0.002 ** (1 / 7) - 80 ** (1 / 7))) ** 7
    assert torch.allclose(VE().sigma(KarrasGrid()(VE(), n)[:-1]), want, rtol=1e-10)


def test_logsnr_grid_has_equal_steps() -> None:
    for process in (VP(), Flow(), Cosine(), VE()):
        steps = process.logsnr(LogSNRGrid()(process, 12)[1:-1]).diff()
        assert torch.allclose(steps, steps[0].expand_as(steps), rtol=1e-8)


def test_uniform_grid_is_trailing() -> None:
    """Lin et al. 2023, table 2: 5 of 1,000 steps are 999, 799, 599, 399, 199; step k of theirs is t = (k + 1) / 1000."""
    assert torch.allclose(UniformGrid()(VP(), 5)[:-1] * 1000 - 1, torch.tensor([999, 799, 599, 399, 199]).double())


def test_refusals() -> None:
    with pytest.raises(UserError, match="at least 1 step"):
        UniformGrid()(Flow(), 0)
    with pytest.raises(UserError, match="sigma_min"):
        KarrasGrid(sigma_min=2, sigma_max=1)
