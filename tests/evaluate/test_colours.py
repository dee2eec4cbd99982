"""What a judge sees of colours."""

from __future__ import annotations

import pytest
import torch

from sfumato.errors import UserError
from sfumato.evaluate.colours import histogram


def flat(*colour: float) -> torch.Tensor:
    """One picture of one colour (1, C, 4, 4)."""
    return torch.tensor(colour)[None, :, None, None].expand(1, len(colour), 4, 4)


def test_a_colour_in_the_centre_of_a_bin_is_all_there() -> None:
    found = histogram(flat(17.0, 0.0, 255.0), 16)
    expected = torch.zeros(1, 16**3)
    expected[0, 1 * 256 + 0 * 16 + 15] = 1
    torch.testing.assert_close(found, expected)


def test_a_colour_between_bins_counts_in_parts() -> None:
    found = histogram(flat(17.0 * 2.25, 17.0 * 3.5, 0.0), 16).square()
    shares = {(2, 3): 0.375, (2, 4): 0.375, (3, 3): 0.125, (3, 4): 0.125}
    assert {(r, g): round(float(found[0, r * 256 + g * 16]), 5) for r, g in shares} == shares
    assert float(found.sum()) == pytest.approx(1)


@pytest.mark.parametrize("channels", [1, 3, 4])
def test_where_a_colour_is_does_not_matter(channels: int) -> None:
    media = torch.randint(0, 256, (5, channels, 6, 6), dtype=torch.uint8)
    moved = media.flatten(2)[:, :, torch.randperm(36)].view_as(media)
    torch.testing.assert_close(histogram(media, 4), histogram(moved, 4))
    torch.testing.assert_close(histogram(media, 4).square().sum(1), torch.ones(5))
    assert histogram(media, 4).shape == (5, 4 ** min(channels, 3))


def test_only_what_counts_is_counted() -> None:
    media = torch.randint(0, 256, (2, 3, 4, 4, 4), dtype=torch.uint8)
    counts = torch.rand(2, 4, 4, 4) < 0.3
    counts[1] = False
    found = histogram(media, 8, counts)
    torch.testing.assert_close(found[:1], histogram(media[0, :, counts[0]][None], 8))
    assert not found[1].any()


def test_one_bin_is_refused() -> None:
    with pytest.raises(UserError, match="at least 2"):
        histogram(flat(1.0, 2.0, 3.0), 1)
