"""The reader is right about drawn pictures, blurred and noisy ones, and refuses every wrong caption."""

from __future__ import annotations

import time

import numpy as np
import pytest
from numpy.typing import NDArray

from sfumato.data import Shapes, matches, matches_many, read_shapes
from sfumato.data.shapes_reader import read_many, shows
from sfumato.data.shapes_words import COLOURS, RELATIONS, SHAPES, SIZES, Described, Thing
from sfumato.errors import UserError

COUNT = 1500
DATA = Shapes(count=COUNT)
DESCRIBED = [DATA.describe(i) for i in range(COUNT)]
CAPTIONS = [d.captions()[0] for d in DESCRIBED]


@pytest.fixture(scope="module")
def pictures() -> NDArray[np.uint8]:
    return DATA.fetch(range(COUNT)).media.numpy()


def worsened(pictures: NDArray[np.uint8], blur: float, noise: float) -> NDArray[np.uint8]:
    """Gaussian blur of `blur` pixels, noise of deviation `noise` of 255, and 8 bits again."""
    weights = np.exp(-0.5 * (np.arange(-3, 4) / blur) ** 2)
    weights /= weights.sum()
    soft = np.pad(pictures.astype(np.float64), ((0, 0), (0, 0), (3, 3), (3, 3)), mode="edge")
    wide = pictures.shape[-1]
    soft = sum(w * soft[:, :, i : i + wide] for i, w in enumerate(weights))
    soft = sum(w * soft[..., i : i + wide] for i, w in enumerate(weights))
    return np.clip(np.rint(soft + np.random.default_rng(0).normal(0, noise, soft.shape)), 0, 255).astype(np.uint8)


def test_drawn_pictures_show_their_captions(pictures: NDArray[np.uint8]) -> None:
    assert matches_many(pictures, CAPTIONS).mean() >= 0.999
    assert matches(pictures[0], CAPTIONS[0])


@pytest.mark.parametrize(("blur", "noise"), [(0.5, 6), (0.7, 8), (0.8, 12), (0.01, 20)])
def test_blurred_and_noisy_pictures_do_too(pictures: NDArray[np.uint8], blur: float, noise: float) -> None:
    assert matches_many(worsened(pictures[:800], blur, noise), CAPTIONS[:800]).mean() >= 0.99


@pytest.mark.parametrize("size", [24, 48, 64])
def test_other_sizes_are_read(size: int) -> None:
    data = Shapes(size=size, count=200)
    batch = data.fetch(range(200))
    assert matches_many(batch.media.numpy(), list(batch.conditions["caption"])).mean() >= 0.99  # type: ignore[arg-type]


def changed(described: Described, attribute: str, rng: np.random.Generator) -> Described:
    """The description with one attribute of one thing, or the relation, replaced by a wrong one."""
    if attribute == "relation":
        assert described.relation is not None
        return Described(described.things, str(rng.choice([r for r in RELATIONS if r != described.relation])))
    if attribute == "order":
        return Described(described.things[::-1], described.relation)
    options = {"size": SIZES, "colour": tuple(COLOURS), "shape": SHAPES}[attribute]
    which = int(rng.integers(len(described.things)))
    things = list(described.things)
    fields = {"size": things[which].size, "colour": things[which].colour, "shape": things[which].shape}
    fields[attribute] = str(rng.choice([o for o in options if o != fields[attribute]]))
    things[which] = Thing(**fields)
    return Described(tuple(things), described.relation)


@pytest.mark.parametrize("attribute", ["size", "colour", "shape", "relation", "order"])
@pytest.mark.parametrize("blur", [0.01, 0.7])
def test_wrong_captions_are_refused(pictures: NDArray[np.uint8], attribute: str, blur: float) -> None:
    rng = np.random.default_rng(0)
    needs_two = attribute in ("relation", "order")
    chosen = [i for i in range(600) if DESCRIBED[i].relation or not needs_two]
    wrong = [changed(DESCRIBED[i], attribute, rng).captions()[0] for i in chosen]
    assert matches_many(worsened(pictures[chosen], blur, 5), wrong).mean() <= 0.01


def test_missing_and_extra_things_are_refused(pictures: NDArray[np.uint8]) -> None:
    two = [i for i in range(300) if DESCRIBED[i].relation]
    seen = read_many(pictures[two])
    assert not any(shows(s, str(Described(DESCRIBED[i].things[:1]).captions()[0])) for s, i in zip(seen, two))
    one = [i for i in range(600) if not DESCRIBED[i].relation]
    other = Thing("large", "red", "circle")
    longer = [Described((DESCRIBED[i].things[0], other), "above").captions()[0] for i in one]
    assert not matches_many(pictures[one], longer).any()


def test_places_and_extents_are_measured() -> None:
    """A red circle of half extent 6 at (10.25, 20.5), drawn by its formula."""
    y, x = np.mgrid[:32, :32] + 0.5
    cover = np.clip(0.5 + 6 - np.hypot(x - 10.25, y - 20.5), 0, 1)
    ground, ink = np.full(3, 240.0)[:, None, None], np.asarray(COLOURS["red"], float)[:, None, None]
    (seen,) = read_shapes(np.rint(ground + cover * (ink - ground)).astype(np.uint8))
    assert (seen.size, seen.colour, seen.shape) == ("large", "red", "circle")
    assert (seen.x * 32, seen.y * 32, seen.radius * 32) == pytest.approx((10.25, 20.5, 6), abs=0.05)


def test_what_is_no_shape_is_named_as_such() -> None:
    picture = np.full((3, 32, 32), 240, np.uint8)
    assert read_shapes(picture) == ()
    picture[:, 4:7, 2:30] = 30  # a black bar
    (seen,) = read_shapes(picture)
    assert seen.colour == "black" and seen.shape is None
    picture[:] = 240
    picture[:, 8:20, 8:20] = np.asarray([120, 80, 60])[:, None, None]  # brown is none of the colours
    (seen,) = read_shapes(picture)
    assert seen.shape == "square" and seen.colour is None
    noise = np.random.default_rng(0).integers(0, 256, (20, 3, 32, 32)).astype(np.uint8)
    assert not matches_many(noise, CAPTIONS[:20]).any()


def test_specks_are_left_out_and_blobs_are_not(pictures: NDArray[np.uint8]) -> None:
    plain = next(i for i in range(COUNT) if not DESCRIBED[i].relation and read_shapes(pictures[i])[0].x > 0.5)
    speck, blob = pictures[plain].copy(), pictures[plain].copy()
    speck[:, 2:4, 2:4] = 20
    blob[:, 2:6, 2:6] = 20
    assert matches(speck, CAPTIONS[plain]) and not matches(blob, CAPTIONS[plain])


def test_a_thousand_pictures_take_seconds(pictures: NDArray[np.uint8]) -> None:
    start = time.perf_counter()
    read_many(pictures[:1000])
    assert time.perf_counter() - start < 10


def test_wrong_arrays_are_refused(pictures: NDArray[np.uint8]) -> None:
    with pytest.raises(UserError, match="uint8"):
        read_many(pictures.astype(np.float32))
    with pytest.raises(UserError, match="as many"):
        matches_many(pictures[:2], CAPTIONS[:1])
