"""How pictures are changed while a judge learns their attributes."""

from __future__ import annotations

import torch

from sfumato.recipes.attributes import shifted, tinted


def grey() -> torch.Tensor:
    return torch.full((64, 3, 16, 16), 128.0)


def drawn() -> torch.Generator:
    return torch.Generator().manual_seed(0)


def test_what_is_moved_loses_nothing() -> None:
    media = torch.rand(8, 3, 16, 16)
    moved = shifted(media, 3, drawn())
    assert not torch.equal(moved, media)
    torch.testing.assert_close(moved.flatten(2).sort().values, media.flatten(2).sort().values)


def test_colours_are_off_as_a_whole_and_from_place_to_place_but_no_more() -> None:
    off = tinted(grey(), 10.0, 0.0, drawn()) - 128
    assert 15 < float(off.abs().max()) <= 20
    middles, around = off.mean((2, 3)), off - off.mean((2, 3), keepdim=True)
    assert float(middles.std()) > 5 and 2 < float(around.std()) < 6
    steps = (off[..., 1:] - off[..., :-1]).abs()
    assert float(steps.max()) <= 20 * 5 / 16 + 1e-4  # smooth: at most from one end to the other between two places


def test_noise_is_of_each_value_and_nothing_leaves_the_range() -> None:
    off = tinted(grey(), 0.0, 4.0, drawn()) - 128
    assert float(off.abs().max()) <= 4 and abs(float(off.mean())) < 0.1
    assert abs(float(off.std()) - 4 / 3**0.5) < 0.05
    white = tinted(torch.full((8, 3, 16, 16), 255.0), 10.0, 4.0, drawn())
    assert float(white.max()) == 255 and float(white.min()) >= 255 - 24
    torch.testing.assert_close(tinted(grey(), 10.0, 4.0, drawn()), tinted(grey(), 10.0, 4.0, drawn()))
