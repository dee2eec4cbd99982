"""The voxel codec: exact round trips, white output, empty cells without a signal, bounds that hold and are reached."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from sfumato.codecs import Voxels
from sfumato.codecs.voxels import fold, unfold
from sfumato.core import DataInfo
from sfumato.errors import UserError
from sfumato.testing import check_codec

INFO = DataInfo((4, 8, 8, 8), "voxels")
SETTINGS: list[dict[str, Any]] = [
    {}, {"fold": 2}, {"fold": 4}, {"field": "distance"}, {"field": "distance", "fold": 2, "reach": 2.0},
    {"outside": "spread", "fold": 2},
]  # fmt: skip


def models(n: int = 24, side: int = 8) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    full = torch.rand(n, 1, side, side, side, generator=generator) < torch.linspace(0.05, 0.6, n).view(n, 1, 1, 1, 1)
    colour = torch.randint(0, 256, (n, 3, side, side, side), generator=generator)
    return (torch.cat([colour, torch.full((n, 1, side, side, side), 255)], 1) * full).to(torch.uint8)


@pytest.mark.parametrize("settings", SETTINGS)
def test_round_trip_and_whitening(settings: dict[str, Any]) -> None:
    check_codec(Voxels(INFO, **settings), models())


@pytest.mark.parametrize("settings", SETTINGS)
def test_empty_and_solid_grids_survive(settings: dict[str, Any]) -> None:
    codec = Voxels(INFO, **settings)
    codec.measure([models()])
    ends = torch.stack([torch.zeros(4, 8, 8, 8), torch.full((4, 8, 8, 8), 255.0)]).to(torch.uint8)
    assert torch.equal(codec.decode(codec.whiten(codec.encode(ends))), ends)


def test_the_colour_of_empty_cells_carries_no_signal() -> None:
    """Whatever is stored there, x0 is the same, and zero in the colour channels before whitening."""
    codec, clean = Voxels(INFO), models()
    codec.measure([clean])
    noise = torch.randint(0, 256, clean[:, :3].shape).to(torch.uint8)
    dirty = torch.cat([torch.where(clean[:, 3:] > 0, clean[:, :3], noise), clean[:, 3:]], 1)
    assert torch.equal(codec.encode(dirty), codec.encode(clean))
    empty = (clean[:, 3] == 0)[:, None].expand(-1, 3, -1, -1, -1)
    assert not codec.encode(dirty)[:, :3][empty].any()
    assert codec.encode(clean)[:, :3].double().mean((0, 2, 3, 4)).abs().max() < 1e-6  # the mean colour is 0 too


def test_spread_colours_go_on_beyond_the_surface() -> None:
    codec, one = Voxels(INFO, outside="spread"), torch.zeros(1, 4, 8, 8, 8, dtype=torch.uint8)
    one[0, :, 2:5, 3:6, 1:4] = torch.tensor([200, 90, 30, 255], dtype=torch.uint8)[:, None, None, None]
    found = codec.encode(one)
    assert torch.equal(found[:, :3], found[:, :3, 2:3, 3:4, 1:2].expand(-1, -1, 8, 8, 8))
    assert torch.equal(found[:, 3:], Voxels(INFO).encode(one)[:, 3:])


@pytest.mark.parametrize("settings", SETTINGS)
def test_bounds_hold_and_are_reached(settings: dict[str, Any]) -> None:
    codec = Voxels(INFO, **settings)
    codec.measure([models()])
    low, high = (b.view(1, -1, 1, 1, 1) for b in codec.bounds())
    black, white = torch.zeros(1, 4, 8, 8, 8), torch.full((1, 4, 8, 8, 8), 255.0)
    black[:, 3] = 255
    some = torch.cat(
        [models(), black.to(torch.uint8), white.to(torch.uint8), torch.zeros(1, 4, 8, 8, 8, dtype=torch.uint8)]
    )
    x0 = codec.whiten(codec.encode(some))
    assert ((x0 >= low - 1e-4) & (x0 <= high + 1e-4)).all()
    assert torch.allclose(x0.amax((0, 2, 3, 4)), high.flatten(), atol=1e-4)
    assert torch.allclose(x0.amin((0, 2, 3, 4)), low.flatten(), atol=1e-4)


def test_fold_keeps_blocks_together() -> None:
    x = torch.arange(2 * 3 * 4 * 6 * 8).view(2, 3, 4, 6, 8)
    folded = fold(x, 2)
    assert folded.shape == (2, 24, 2, 3, 4)
    assert torch.equal(unfold(folded, 2), x)
    assert folded[1, :8, 1, 2, 3].tolist() == x[1, 0, 2:4, 4:6, 6:8].flatten().tolist()
    assert torch.equal(folded[:, 8:16], fold(x[:, 1:2], 2))


def test_specks_are_left_out_when_decoding() -> None:
    model = torch.zeros(1, 4, 8, 8, 8, dtype=torch.uint8)
    model[:, :, 1:5, 1:5, 1:5] = 255
    model[:, :, 7, 7, 7] = 255
    codec = Voxels(INFO, specks=0.1)
    codec.measure([models()])
    made = codec.decode(codec.whiten(codec.encode(model)))
    assert not made[..., 7].any()
    assert torch.equal(made[..., :7, :7, :7], model[..., :7, :7, :7])


@pytest.mark.parametrize(
    ("info", "settings", "said"),
    [
        (DataInfo((4, 8, 8)), {}, "codec=arrays or pixels"),
        (INFO, {"fold": 3}, "must divide"),
        (INFO, {"fold": 0}, "must divide"),
        (INFO, {"reach": 0.5}, "at least 1"),
        (INFO, {"specks": 2.0}, "0 to 1"),
    ],
)
def test_bad_settings(info: DataInfo, settings: dict[str, Any], said: str) -> None:
    with pytest.raises(UserError, match=said):
        Voxels(info, **settings)


def test_it_has_no_likelihood() -> None:
    with pytest.raises(UserError, match="does not keep volumes"):
        Voxels(INFO).log_volume(models())
