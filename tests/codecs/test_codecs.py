"""Codecs: exact round trips and white output, measured on the data."""

from __future__ import annotations

import pytest
import torch

from sfumato.codecs import Arrays, Pixels, Whitening
from sfumato.core import DataInfo
from sfumato.errors import UserError
from sfumato.testing import check_codec


@pytest.mark.parametrize("channels", [1, 3, 4])
def test_every_pixel_value_survives(channels: int) -> None:
    media = torch.arange(256, dtype=torch.uint8).reshape(1, 1, 16, 16).repeat(2, channels, 1, 1)
    check_codec(Pixels(DataInfo((channels, 16, 16))), media)


@pytest.mark.parametrize("size", [(11,), (7, 5), (6, 5, 4)])
def test_arrays_of_any_rank(size: tuple[int, ...]) -> None:
    media = 1000 + 30 * torch.randn(40, 2, *size, generator=torch.Generator().manual_seed(0))
    check_codec(Arrays(DataInfo((2, *size), "array")), media, tolerance=1e-3)


def test_whitening_over_batches_is_the_whitening_of_the_whole() -> None:
    h = 5 + torch.tensor([1.0, 3.0])[:, None] * torch.randn(100, 2, 9, generator=torch.Generator().manual_seed(0))
    whitening = Whitening(2)
    whitening.fit(h.split([1, 30, 69]))
    flat = h.double().transpose(0, 1).flatten(1)
    assert torch.allclose(whitening.mean.double(), flat.mean(1), rtol=1e-6)
    assert torch.allclose(whitening.std.double(), flat.std(1, correction=0), rtol=1e-6)


def test_a_constant_channel_keeps_deviation_1() -> None:
    whitening = Whitening(2)
    whitening.fit([torch.stack([torch.full((4, 3), 0.3), torch.randn(4, 3)], 1)])
    assert whitening.std[0] == 1 and whitening.std[1] != 1


def test_decoding_clips() -> None:
    codec = Pixels(DataInfo((1, 1, 2)))
    assert codec.decode(torch.tensor([[[[-9.0, 9.0]]]])).flatten().tolist() == [0, 255]


def test_figures_travel_with_the_model() -> None:
    a, b = Pixels(DataInfo((1, 4, 4))), Pixels(DataInfo((1, 4, 4)))
    a.measure([torch.randint(0, 255, (8, 1, 4, 4), dtype=torch.uint8)])
    b.load_state_dict(a.state_dict())
    assert torch.equal(b.whitening.mean, a.whitening.mean) and torch.equal(b.whitening.std, a.whitening.std)


def test_pixels_refuses_arrays() -> None:
    with pytest.raises(UserError, match="codec=arrays"):
        Pixels(DataInfo((1, 4), "array"))
