"""The drawings: exact areas and places, captions that say what is there, and combinations that are kept apart."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from sfumato.data import Shapes
from sfumato.data.shapes import AREAS, GAP, RADII, coverage, held_out_combinations
from sfumato.data.shapes_words import COLOURS, RELATIONS, SHAPES, SIZES, Described, Thing, understand
from sfumato.errors import UserError

DATA = Shapes(count=3000)


@pytest.mark.parametrize("shape", range(4))
@pytest.mark.parametrize("radius", [3.7, 6.5])
def test_coverage_has_the_area_of_the_shape(shape: int, radius: float) -> None:
    grid = np.arange(32) + 0.5
    for at in (16.0, 15.7, 14.2):
        drawn = coverage(shape, grid[None] - at, grid[:, None] - at, np.asarray(radius))
        assert drawn.sum() == pytest.approx(AREAS[shape] * radius**2, rel=0.03)
        assert drawn.max() == 1 and drawn.min() == 0
        rows = np.flatnonzero(drawn.sum(1) > 0.5)
        assert rows[0] + 0.5 > at - radius - 1 and rows[-1] + 0.5 < at + radius + 1


def test_a_square_on_whole_pixels_is_exact() -> None:
    side = 8 / np.sqrt(np.pi)  # half a side of 4 pixels
    grid = np.arange(16) + 0.5
    drawn = coverage(1, grid[None] - 8, grid[:, None] - 8, np.asarray(side))
    wanted = np.zeros((16, 16))
    wanted[4:12, 4:12] = 1
    assert np.abs(drawn - wanted).max() < 1e-12


def test_a_picture_depends_on_seed_and_index_alone() -> None:
    index = np.asarray([5, 17, 2999, 5])
    one, other = DATA.fetch(index).media, Shapes(count=3000).fetch(range(3000)).media[index]
    assert torch.equal(one, other) and torch.equal(one[0], one[3])
    assert torch.equal(one, Shapes(count=50_000).fetch(index).media)  # more pictures leave the first ones as they are
    assert not torch.equal(one, Shapes(count=3000, seed=1).fetch(index).media)


def test_the_background_is_light_and_the_ink_is_the_captions() -> None:
    media = DATA.fetch(range(200)).media.numpy()
    for picture, i in zip(media, range(200)):
        described = DATA.describe(i)
        assert np.median(picture, axis=(1, 2)).min() > 205
        for thing in described.things:
            away = np.abs(picture.astype(int) - np.asarray(COLOURS[thing.colour])[:, None, None]).max(0)
            assert (away <= 13).sum() >= 9, described  # at least nine pixels of the colour, within its jitter


def test_every_combination_is_in_one_part_alone() -> None:
    data = Shapes(count=40_000)
    mask = data.held_out_mask()
    combinations = {True: set(), False: set()}
    for i in range(0, 40_000, 2):
        described = data.describe(i).canonical()
        if described.relation:
            combinations[bool(mask[i])].add((described.relation, *((t.colour, t.shape) for t in described.things)))
    assert not combinations[True] & combinations[False]
    assert len(combinations[True]) == 205 == held_out_combinations().sum()
    assert len(combinations[False]) > 1700
    assert 0.05 < mask.mean() < 0.09


def test_single_things_are_in_the_training_part() -> None:
    train = DATA.split("train")
    singles = sum(DATA.describe(int(i)).relation is None for i in train.indices)
    assert singles == sum(DATA.describe(i).relation is None for i in range(3000)) > 800


def test_attributes_are_spread_evenly() -> None:
    things = [t for i in range(3000) for t in DATA.describe(i).things]
    for values, field in ((SIZES, "size"), (COLOURS, "colour"), (SHAPES, "shape")):
        counts = np.asarray([sum(getattr(t, field) == v for t in things) for v in values])
        expected = len(things) / len(counts)
        assert ((counts - expected) ** 2 / expected).sum() < 30


def test_every_wording_is_understood_as_the_same_picture() -> None:
    for i in range(300):
        described = DATA.describe(i)
        for caption in described.captions():
            assert understand(caption).canonical() == described.canonical()


def test_canonical_wording_and_turning() -> None:
    red, blue = Thing("small", "red", "circle"), Thing("large", "blue", "square")
    assert Described((red, blue), "above").captions()[0] == "a small red circle above a large blue square"
    assert Described((red, blue), "above").captions()[1] == "a large blue square below a small red circle"
    assert Described((red, blue), "right of").canonical() == Described((blue, red), "left of")
    assert Described((red,)).captions()[0] == "a small red circle"


@pytest.mark.parametrize(
    "caption", ["", "a red circle", "a small red circle near a large blue square", "a handwritten seven"]
)
def test_other_captions_are_refused(caption: str) -> None:
    with pytest.raises(UserError, match="describes no picture of shapes"):
        understand(caption)


@pytest.mark.parametrize("settings", [{"size": 16}, {"count": 0}])
def test_impossible_settings_are_refused(settings: dict[str, int]) -> None:
    with pytest.raises(UserError, match=f"{next(iter(settings))} = "):
        Shapes(**settings)


def test_large_pairs_fit_into_the_picture() -> None:
    assert 4 * RADII[1][1] + GAP < 1 and len(RELATIONS) == 4
